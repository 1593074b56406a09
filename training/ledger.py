"""The conservation ledger: every judgement becomes pairs or exactly one named exclusion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations
from typing import Any

# Groups of response ids from best to worst.
Ranking = list[list[int]]


class Exclusion(StrEnum):
    """Why a judgement gave no pair."""

    RETRACTED = "retracted"
    BOTH_BAD = "both_bad"
    TIE = "tie"
    THUMB = "thumb"
    EQUAL_TEXTS = "equal_texts"


@dataclass(kw_only=True)
class Ledger:
    """Counts that must balance: judgements = exported + excluded."""

    judgements: int = 0
    exported: int = 0
    pairs: int = 0
    excluded: Counter[str] = field(default_factory=Counter)

    def enter(self, pairs: int, exclusion: Exclusion | None) -> None:
        """Account for one judgement; it has either pairs or an exclusion."""
        self.judgements += 1
        if exclusion is None:
            self.exported += 1
            self.pairs += pairs
        else:
            self.excluded[exclusion] += 1

    def check(self) -> None:
        """Raise AssertionError unless every judgement is accounted for once."""
        accounted = self.exported + sum(self.excluded.values())
        if accounted != self.judgements:
            raise AssertionError(
                f"The ledger does not balance: {self.judgements} judgements, {accounted} accounted."
            )

    def as_dict(self) -> dict[str, Any]:
        return {
            "judgements": self.judgements,
            "exported": self.exported,
            "pairs": self.pairs,
            "excluded": dict(sorted(self.excluded.items())),
        }


def exclusion_of(*, retracted: bool, ranking: Ranking | None, both_bad: bool) -> Exclusion | None:
    """Return why a judgement gives no pair, as far as that shows without the texts."""
    if retracted:
        return Exclusion.RETRACTED
    if ranking is None:
        return Exclusion.THUMB
    if both_bad:
        return Exclusion.BOTH_BAD
    if len(ranking) < 2:
        return Exclusion.TIE
    return None


def pairs_of(ranking: Ranking, digests: Mapping[int, str]) -> list[tuple[int, int]]:
    """Return the (chosen, rejected) ids of a ranking, ordered by the digests of their texts.

    In a ranking of K groups every response of a better group beats every response of a worse one,
    unless their texts are the same.
    """
    pairs = [
        (chosen, rejected)
        for better, worse in combinations(ranking, 2)
        for chosen in better
        for rejected in worse
        if digests[chosen] != digests[rejected]
    ]
    pairs.sort(key=lambda pair: (digests[pair[0]], digests[pair[1]]))
    return pairs


def margin_of(strength: int | None) -> float:
    """Return how much better the chosen one is: the strength that was given, or 1."""
    return float(strength or 1)
