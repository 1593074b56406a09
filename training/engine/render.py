"""Show a snapshot's row as the tokens that training reads, without torch: the web process asks.

The tokens come from the same ``Encoder`` and are cut at the same limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tokenizers.decoders import DecodeStream

from training.engine.data import Encoder, Message
from training.engine.tokens import PlainTokenizer

UNCUT = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token, or the few that write one character together."""

    ids: tuple[int, ...]
    text: str
    special: bool

    @property
    def shown(self) -> str:
        """Return the text with its line ends to be seen."""
        return self.text.replace("\n", "↵\n")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A prompt or a response: what is read, and what is cut off behind its ``opening`` pieces.

    That is an answer's end, or a prompt's beginning but for the mark of the text's begin.
    """

    pieces: tuple[Piece, ...]
    cut: tuple[Piece, ...]
    opening: int

    @property
    def laid_out(self) -> list[tuple[Piece, bool]]:
        """Return all pieces as they stand in the text, and whether each is cut off."""
        before, after = self.pieces[: self.opening], self.pieces[self.opening :]
        return [
            (piece, off)
            for some, off in ((before, False), (self.cut, True), (after, False))
            for piece in some
        ]

    @property
    def tokens(self) -> int:
        return _count(self.pieces)

    @property
    def cut_tokens(self) -> int:
        return _count(self.cut)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One row as a base reads it; ``dropped`` says why nothing is learnt from it, if so."""

    prompt: Part
    chosen: Part | None
    rejected: Part | None
    dropped: str

    @property
    def truncated(self) -> bool:
        return any(part.cut for part in (self.prompt, self.chosen, self.rejected) if part)


def read_row(path: Path, number: int) -> tuple[dict[str, Any] | None, int]:
    """Return a row of a snapshot's file, the first being 1, and how many there are.

    None where there is none of that number. Only its row group is read.
    """
    with pq.ParquetFile(path) as file:
        rows: int = file.metadata.num_rows
        before = 0
        for group in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if before < number <= before + size:
                table = file.read_row_group(group).slice(number - before - 1, 1)
                found: dict[str, Any] = table.to_pylist()[0]
                return found, rows
            before += size
    return None, rows


def render_row(
    row: dict[str, Any], base: Path, *, max_length: int, max_prompt_length: int, single: bool
) -> Rendered:
    """Return a row as the tokens that a base in this folder reads.

    Raises RunError, OSError or ValueError where the base cannot read it.
    """
    tokenizer = PlainTokenizer(base)
    kept = Encoder(tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)
    whole = Encoder(tokenizer, max_length=UNCUT, max_prompt_length=UNCUT)
    messages: list[Message] = row["prompt"]
    tokens, _ = kept.prompt(messages)
    every, _ = whole.prompt(messages)
    opening = kept.opening(every)
    prompt = Part(
        pieces=_pieces(tokenizer, tokens),
        cut=_pieces(tokenizer, every[opening : len(every) - len(tokens) + opening]),
        opening=opening,
    )
    found: dict[str, tuple[int, ...]] = {}
    parts: dict[str, Part] = {}
    for side in ("chosen", "rejected"):
        if row.get(side) is None:
            continue
        found[side], _ = kept.response(messages, row[side], len(tokens))
        all_of_it, _ = whole.response(messages, row[side], 0)
        pieces = _pieces(tokenizer, found[side])
        parts[side] = Part(
            pieces=pieces,
            cut=_pieces(tokenizer, all_of_it[len(found[side]) :]),
            opening=len(pieces),
        )
    return Rendered(
        prompt=prompt,
        chosen=parts.get("chosen"),
        rejected=parts.get("rejected"),
        dropped=_why_dropped(found, single=single),
    )


def _why_dropped(found: dict[str, tuple[int, ...]], *, single: bool) -> str:
    """Say why ``read_trees`` passes a row over; nothing where it takes it."""
    learnt = [tokens for tokens in found.values() if tokens]
    if not learnt:
        return "Nothing of an answer is left behind the prompt."
    if len(learnt) == 2 and learnt[0] == learnt[1]:
        return "Both answers are the same, as far as they are read."
    if len(learnt) == 1 and not single:
        return "The method compares two answers, and only one of them can be read."
    return ""


def _pieces(tokenizer: PlainTokenizer, tokens: Sequence[int]) -> tuple[Piece, ...]:
    return tuple(_spelt(tokenizer, tokens))


def _spelt(tokenizer: PlainTokenizer, tokens: Sequence[int]) -> Iterator[Piece]:
    """Yield the pieces whose texts, joined, are what was encoded."""
    added = tokenizer.backend.get_added_tokens_decoder()
    stream = DecodeStream(skip_special_tokens=False)
    held: list[int] = []
    for token in tokens:
        held.append(token)
        text = stream.step(tokenizer.backend, token)
        if text is not None:
            special = len(held) == 1 and token in added and added[token].special
            yield Piece(ids=tuple(held), text=text, special=special)
            held = []
    if held:  # a cut went through a character
        yield Piece(ids=tuple(held), text="\N{REPLACEMENT CHARACTER}", special=False)


def _count(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)
