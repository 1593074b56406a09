"""What leads settled about answers that annotators dispute. Pure functions, no database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, slots=True)
class Decided:
    """A lead's decision on one item; answers are named by the digests of their texts."""

    # Groups of answers from best to worst.
    ranking: Sequence[Sequence[str]] = ()
    # Of the one answer that the item has.
    thumb: int = 0
    answer: str = ""


class Settled:
    """The decisions on one prompt; where two items' decisions contradict each other, none holds."""

    def __init__(self, decisions: Iterable[Decided] = ()) -> None:
        self._better: dict[tuple[str, str], set[str]] = {}
        self._thumbs: dict[str, set[int]] = {}
        for one in decisions:
            if one.thumb:
                self._thumbs.setdefault(one.answer, set()).add(one.thumb)
            places = [
                (place, answer) for place, group in enumerate(one.ranking) for answer in group
            ]
            for (place, first), (later, second) in combinations(places, 2):
                if first != second:
                    better = first if place < later else ""
                    self._better.setdefault(_pair(first, second), set()).add(better)

    def better(self, one: str, other: str) -> str | None:
        """Return the better of two answers, "" where they tie, None where nothing was decided."""
        found = self._better.get(_pair(one, other), ())
        return next(iter(found)) if len(found) == 1 else None

    def thumb(self, answer: str) -> int:
        """Return 1 for a good answer, -1 for a bad one, 0 where nothing was decided."""
        found = self._thumbs.get(answer, ())
        return next(iter(found)) if len(found) == 1 else 0


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)


UNSETTLED = Settled()
