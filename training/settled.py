"""What leads settled about answers that annotators dispute. Pure functions, no database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations


@dataclass(frozen=True, slots=True)
class Decided:
    """A lead's decision on one item; answers are named by the digests of their texts."""

    # Groups of answers from best to worst.
    ranking: Sequence[Sequence[str]] = ()
    # Of the one answer that the item has.
    thumb: int = 0
    answer: str = ""
    # Levels by answer and scale.
    ratings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Settled:
    """The decisions on one prompt; where two items' decisions contradict each other, none holds."""

    def __init__(self, decisions: Iterable[Decided] = ()) -> None:
        self._better: dict[tuple[str, str], set[str]] = {}
        self._thumbs: dict[str, set[int]] = {}
        self._levels: dict[str, dict[str, set[float]]] = {}
        for one in decisions:
            for answer, levels in one.ratings.items():
                for scale, level in levels.items():
                    scales = self._levels.setdefault(answer, {})
                    scales.setdefault(scale, set()).add(level)
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

    def levels(self, answer: str) -> dict[str, float]:
        """Return an answer's decided levels by scale."""
        found = self._levels.get(answer, {})
        return {scale: next(iter(of)) for scale, of in found.items() if len(of) == 1}


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)


UNSETTLED = Settled()
