"""Answers as people read them: responses go by letters, “B > A = D”."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accounts.templatetags.laurel import letter
from feedback.extras import Scale
from feedback.models import Judgement

# How much better the better one of two is.
STRENGTHS = {1: "slightly", 2: "clearly", 3: "significantly"}


def in_letters(groups: Sequence[Sequence[str]]) -> str:
    """Return a ranking as people read it."""
    return " > ".join(" = ".join(sorted(group)) for group in groups)


def levels_in_letters(rated: Mapping[str, Mapping[str, int]], scales: Sequence[Scale] = ()) -> str:
    """Return levels by letter as people read them: “A: Tone 4, Depth 2; B: Tone 1”."""
    named = {scale.key: scale.label for scale in scales}
    order = {key: place for place, key in enumerate(named)}
    return "; ".join(
        f"{letter}: "
        + ", ".join(
            f"{named.get(key, key)} {levels[key]}"
            for key in sorted(levels, key=lambda key: order.get(key, len(order)))
        )
        for letter, levels in sorted(rated.items())
    )


def answer_in_letters(
    answer: Mapping[str, Any],
    letters: Mapping[int, str] | None = None,
    *,
    scales: Sequence[Scale] = (),
) -> str:
    """Return an answer by position; ``letters`` names the positions where they are not in order."""
    if "thumb" in answer:
        return "good" if answer["thumb"] == 1 else "bad"
    if "ratings" in answer:
        rated = {int(place): levels for place, levels in answer["ratings"].items()}
        named = letters or {place: letter(place) for place in rated}
        said = levels_in_letters({named[place]: rated[place] for place in rated}, scales)
        within = answer.get("within")
        return f"{said}, each within {within}" if within else said
    named = letters or {place: letter(place) for group in answer["ranking"] for place in group}
    return in_letters([[named[place] for place in group] for group in answer["ranking"]])


def said(judgement: Judgement, letters: Mapping[int, str]) -> str:
    """Return what a judgement says; ``letters`` are by response id."""
    if judgement.ranking is not None:
        return in_letters([[letters[one] for one in group] for group in judgement.ranking])
    if judgement.thumb is not None:
        return "good" if judgement.thumb == 1 else "bad"
    return "ratings only"
