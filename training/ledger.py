"""The conservation ledger: every judgement becomes pairs or exactly one named exclusion."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations
from typing import Any

from feedback.models import Judgement, text_digest


class Exclusion(StrEnum):
    """Why a judgement gave no pair."""

    RETRACTED = "retracted"
    BOTH_BAD = "both_bad"
    TIE = "tie"
    THUMB = "thumb"
    EQUAL_TEXTS = "equal_texts"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One chosen response over one rejected response to one prompt."""

    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    prompt_id: str
    margin: float
    judgement_id: str

    def row(self) -> dict[str, Any]:
        """Return the canonical row, in the columns of the snapshot."""
        return {
            "prompt": self.prompt,
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "prompt_id": self.prompt_id,
            "margin": self.margin,
            "weight": 1.0,
            "judgement_id": self.judgement_id,
            "chosen_id": text_digest(self.chosen),
            "rejected_id": text_digest(self.rejected),
        }


@dataclass(kw_only=True)
class Ledger:
    """Counts that must balance: judgements = exported + excluded."""

    judgements: int = 0
    exported: int = 0
    pairs: int = 0
    excluded: Counter[str] = field(default_factory=Counter)

    def enter(self, pairs: list[Pair], exclusion: Exclusion | None) -> None:
        """Account for one judgement; it has either pairs or an exclusion."""
        self.judgements += 1
        if exclusion is None:
            self.exported += 1
            self.pairs += len(pairs)
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


def pairs_of(judgement: Judgement, texts: dict[int, str]) -> tuple[list[Pair], Exclusion | None]:
    """Return all ordered pairs of a judgement, or the one reason why there is none.

    ``texts`` maps the ids of the item's responses to their texts. In a ranking of K groups every
    response of a better group beats every response of a worse one.
    """
    if judgement.retracted_at is not None:
        return [], Exclusion.RETRACTED
    if judgement.ranking is None:
        return [], Exclusion.THUMB
    if judgement.both_bad:
        return [], Exclusion.BOTH_BAD
    if len(judgement.ranking) < 2:
        return [], Exclusion.TIE
    prompt = judgement.item.prompt
    pairs = [
        Pair(
            prompt=prompt.messages,
            chosen=texts[chosen],
            rejected=texts[rejected],
            prompt_id=prompt.digest,
            margin=float(judgement.strength or 1),
            judgement_id=str(judgement.client_id),
        )
        for better, worse in combinations(judgement.ranking, 2)
        for chosen in better
        for rejected in worse
        if texts[chosen] != texts[rejected]
    ]
    return (pairs, None) if pairs else ([], Exclusion.EQUAL_TEXTS)
