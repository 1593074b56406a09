"""What turns one text into another, word by word. Pure functions, no Django.

The task page shows the same while an annotator types (``static/extras.js``); this is for readers of
what was stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

Kind = Literal["same", "del", "ins"]

# A word, a stretch of blanks, or any other sign, as the task page cuts a text.
_WORD = re.compile(r"\s+|[\w'’]+|[^\w\s'’]")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
# Longer texts are compared by lines.
MOST_WORDS = 4_000


@dataclass(frozen=True, slots=True)
class Change:
    """A stretch that both texts have, or only the first (``del``), or only the second (``ins``)."""

    kind: Kind
    text: str


def changes(before: str, after: str) -> list[Change]:
    """Return the stretches that lead from one text to the other.

    Without the ``ins`` they spell ``before``, without the ``del`` they spell ``after``. Changes
    with nothing but a blank between them are one: a new phrase is read whole, not word by word.
    """
    before, after = (text.replace("\r\n", "\n").replace("\r", "\n") for text in (before, after))
    old, new = _WORD.findall(before), _WORD.findall(after)
    if max(len(old), len(new)) > MOST_WORDS:
        old, new = _LINE.findall(before), _LINE.findall(after)
    # The ends first: in long texts, difflib takes no frequent word for the start of a match.
    head = _alike(old, new)
    tail = _alike(old[head:][::-1], new[head:][::-1])
    middle = _middle(old[head : len(old) - tail], new[head : len(new) - tail])
    ends = "".join(old[:head]), "".join(old[len(old) - tail :])
    found = [Change("same", ends[0]), *middle, Change("same", ends[1])]
    return [change for change in found if change.text]


def _alike(old: list[str], new: list[str]) -> int:
    """Return how many parts both begin with."""
    pairs = enumerate(zip(old, new, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(old), len(new)))


def _middle(old: list[str], new: list[str]) -> list[Change]:
    found: list[Change] = []
    gone = come = ""
    for tag, i, j, k, m in SequenceMatcher(None, old, new).get_opcodes():
        before, after = "".join(old[i:j]), "".join(new[k:m])
        if tag == "equal" and (before.strip(" ") or not (gone or come)):
            found += [Change("del", gone), Change("ins", come), Change("same", before)]
            gone = come = ""
        else:
            gone, come = gone + before, come + after
    return [*found, Change("del", gone), Change("ins", come)]


def words(found: Iterable[Change], kind: Kind) -> int:
    """Return how many words the changes of one kind have."""
    return sum(len(re.findall(r"[\w'’]+", change.text)) for change in found if change.kind == kind)
