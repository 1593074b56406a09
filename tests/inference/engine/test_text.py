from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from inference.engine.text import BROKEN, Detokenizer, StopStrings
from tests.inference.engine.tiny import build_tokenizer

TOKENIZER = build_tokenizer()


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_its_pieces_add_up_to_the_whole_text(tokens: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(token) for token in tokens] + [detokenizer.finish()]
    assert "".join(pieces) == TOKENIZER.decode(tokens, skip_special_tokens=True)


def test_it_never_shows_half_a_character() -> None:
    text = "Thé 日本語 🙈🦀 done"
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(token) for token in TOKENIZER(text).input_ids]
    assert "".join(pieces) == text
    assert not any(BROKEN in piece for piece in pieces)
    assert "🦀" in pieces


def test_it_shows_what_is_broken_at_the_end() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert detokenizer.add(TOKENIZER("🦀").input_ids[0]) == ""
    assert detokenizer.finish() == BROKEN


@given(
    st.text("abc", max_size=30),
    st.lists(st.integers(0, 30), max_size=6),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
)
def test_it_stops_where_the_whole_text_would(text: str, cuts: list[int], stops: list[str]) -> None:
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    checker, shown, stopped = StopStrings(tuple(stops)), "", False
    for start, end in pairwise(edges):
        more, stopped = checker.add(text[start:end])
        shown += more
        assert text.startswith(shown)
        if stopped:
            break
    else:
        shown += checker.finish()
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert stopped == bool(found)
    # Piecewise, the earliest match that is complete wins; shown text never holds a stop string.
    assert not any(stop in shown for stop in stops)
    if not found:
        assert shown == text
