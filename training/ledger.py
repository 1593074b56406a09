"""The conservation ledger: every judgement becomes rows or exactly one named exclusion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.rows import Composed


class Exclusion(StrEnum):
    """Why a judgement gave no row. Where several hold, the first in this order is named."""

    RETRACTED = "retracted"
    GOLD = "gold"
    REPEAT = "repeat"
    CALIBRATION = "calibration"
    PAUSED_ANNOTATOR = "paused_annotator"
    SKIPPED = "skipped"
    HELDOUT_LEAK = "heldout_leak"
    EVALUATION_LEAK = "evaluation_leak"
    TOO_LONG = "too_long"
    LANGUAGE = "language"
    PII = "pii"
    OVERRULED = "overruled"
    OUTVOTED = "outvoted"
    NO_MAJORITY = "no_majority"
    BELOW_AGREEMENT = "below_agreement"
    EQUAL_TEXTS = "equal_texts"
    BOTH_BAD = "both_bad"
    TIE = "tie"
    THUMB = "thumb"
    THUMB_DOWN = "thumb_down"
    RANKING = "ranking"
    RATING = "rating"
    CORRECTION = "correction"
    NO_RATING = "no_rating"
    NO_VERDICT = "no_verdict"


GRAVITY = {one: place for place, one in enumerate(Exclusion)}


@dataclass(kw_only=True)
class Ledger:
    """Counts that must balance: judgements = exported + excluded."""

    judgements: int = 0
    exported: int = 0
    pairs: int = 0
    excluded: Counter[str] = field(default_factory=Counter)

    def enter(self, exclusion: Exclusion | None, judgements: int = 1) -> None:
        """Account for judgements; they have either rows or an exclusion."""
        self.judgements += judgements
        if exclusion is None:
            self.exported += judgements
        elif judgements:
            self.excluded[exclusion] += judgements

    def account(self, judgements: Sequence[str], composed: Composed) -> None:
        """Account for everything said of a prompt; AssertionError for what is lost or doubled."""
        named = {judgement for row in composed.rows for judgement in row.judgements}
        reasons = composed.reasons
        if not named.isdisjoint(reasons) or named | reasons.keys() != set(judgements):
            raise AssertionError(
                f"Of {', '.join(judgements)}, {', '.join(sorted(named))} gave rows and "
                f"{', '.join(sorted(reasons))} have reasons why not."
            )
        self.judgements += len(judgements)
        self.exported += len(judgements) - len(reasons)
        self.excluded.update(reasons.values())
        self.pairs += len(composed.rows)

    def check(self, expected: int) -> None:
        """Raise AssertionError unless every judgement that was counted is accounted for once."""
        accounted = self.exported + sum(self.excluded.values())
        if not expected == self.judgements == accounted:
            raise AssertionError(
                f"The ledger does not balance: {expected} judgements, {self.judgements} read, "
                f"{accounted} accounted."
            )

    def as_dict(self) -> dict[str, Any]:
        return {
            "judgements": self.judgements,
            "exported": self.exported,
            "pairs": self.pairs,
            "excluded": dict(sorted(self.excluded.items())),
        }
