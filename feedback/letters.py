"""Answers as people read them: responses go by letters, “B > A = D”."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accounts.templatetags.laurel import letter
from feedback.models import Judgement

# How much better the better one of two is.
STRENGTHS = {1: "slightly", 2: "clearly", 3: "significantly"}


def in_letters(groups: Sequence[Sequence[str]]) -> str:
    """Return a ranking as people read it."""
    return " > ".join(" = ".join(sorted(group)) for group in groups)


def answer_in_letters(answer: Mapping[str, Any], letters: Mapping[int, str] | None = None) -> str:
    """Return an answer by position; ``letters`` names the positions where they are not in order."""
    if "thumb" in answer:
        return "good" if answer["thumb"] == 1 else "bad"
    named = letters or {place: letter(place) for group in answer["ranking"] for place in group}
    return in_letters([[named[place] for place in group] for group in answer["ranking"]])


def said(judgement: Judgement, letters: Mapping[int, str]) -> str:
    """Return what a judgement says; ``letters`` are by response id."""
    if judgement.ranking is not None:
        return in_letters([[letters[one] for one in group] for group in judgement.ranking])
    if judgement.thumb is not None:
        return "good" if judgement.thumb == 1 else "bad"
    return "ratings only"
