"""What a snapshot takes in and how: chosen when it is made, written into its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from django.db.models import TextChoices

from accounts.errors import ProductError
from training import languages


class Kind(TextChoices):
    """What the rows are."""

    PREFERENCE = "preference", "preference: a chosen and a rejected answer"
    UNPAIRED = "unpaired", "unpaired: single answers, good or bad"
    SFT = "sft", "SFT: answers to imitate"
    RATINGS = "ratings", "ratings: each answer's scores"


class Pairs(TextChoices):
    """Which pairs of a ranking are taken; all of them are the whole ranking."""

    ALL = "all", "all pairs of a ranking"
    ADJACENT = "adjacent", "neighbours in a ranking alone"


class Votes(TextChoices):
    """What becomes of several annotators' words on the same answers."""

    INDIVIDUAL = "individual", "each judgement is a row of its own"
    MAJORITY = "majority", "the majority of the votes, the mean of ratings"
    WEIGHTED = "weighted", "votes weighted by competence, as soft labels"


class Margins(TextChoices):
    """How much better a pair's chosen answer is, which a reward model may learn."""

    GIVEN = "given", "as annotators said, from 1 to 3"
    LEAD = "lead", "the lead of the weighted sum of ratings"


class Imitate(TextChoices):
    """Which answers are worth imitating."""

    CORRECTIONS = "corrections", "corrections"
    THUMBS = "thumbs", "answers with a thumb up"
    BEST = "best", "the best of each ranking"


class Pii(TextChoices):
    """What becomes of personal data that has a form: addresses, numbers, codes."""

    OFF = "off", "not looked for"
    REPORT = "report", "counted, and left as it is"
    MASK = "mask", "masked, as <EMAIL_ADDRESS> and the like"
    DROP = "drop", "rows with it left out"


# The methods that learn from rows of a kind.
METHODS_FOR: dict[str, tuple[str, ...]] = {
    Kind.PREFERENCE: ("dpo", "orpo", "simpo", "kto", "sft", "reward"),
    Kind.UNPAIRED: ("kto", "sft"),
    Kind.SFT: ("sft",),
    # They are for other tools; what orders answers by weighted scales is a preference snapshot.
    Kind.RATINGS: (),
}
WHAT_ROWS_ARE = {
    Kind.PREFERENCE: "pairs of a chosen and a rejected answer",
    Kind.UNPAIRED: "single answers called good or bad",
    Kind.SFT: "answers to imitate",
    Kind.RATINGS: "answers with their ratings",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """A snapshot's options; the defaults take every pair of every judgement as it is."""

    pairs: Pairs = Pairs.ALL
    votes: Votes = Votes.INDIVIDUAL
    # The least share of the votes on two answers that the winner must have; 0 asks for nothing.
    min_agreement: float = 0.0
    # Weights of the attributes whose sum orders rated answers; the least difference that counts.
    attributes: Mapping[str, float] = field(default_factory=dict)
    gap: float = 1.0
    # Where ratings order the answers, HelpSteer2's margin is the lead (Wang et al. 2024).
    margins: Margins = Margins.GIVEN
    imitate: tuple[Imitate, ...] = (Imitate.CORRECTIONS, Imitate.THUMBS)
    # The most that a prompt and the longer answer of a row may have together; 0 takes all.
    max_characters: int = 0
    # ISO 639 codes of the languages that are taken; none takes all.
    languages: tuple[str, ...] = ()
    pii: Pii = Pii.OFF
    # Thumbs and corrections that answers in use were given, besides the campaigns.
    feedback: bool = False
    # The share of the annotators who are held out, with every prompt that they judged.
    heldout_annotators: float = 0.0
    # Keep near-duplicate prompts on one side of the held-out split.
    near: bool = False
    # Leave out of the training part what an earlier snapshot held out, and what versions are
    # evaluated on; with ``near`` also what is nearly the same as either.
    leaks: bool = True

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Options:
        """Return checked options from JSON values; ProductError says what is wrong."""
        names = {one.name for one in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ProductError(
                f"A snapshot has no option {', '.join(unknown)}. "
                f"There are {', '.join(sorted(names))}."
            )
        given: dict[str, Any] = dict(values)
        try:
            for name, choices in (
                ("pairs", Pairs),
                ("votes", Votes),
                ("margins", Margins),
                ("pii", Pii),
            ):
                if name in given:
                    given[name] = choices(given[name])
            if "imitate" in given:
                given["imitate"] = tuple(sorted({Imitate(one) for one in given["imitate"]}))
            if "languages" in given:
                given["languages"] = tuple(sorted({str(one) for one in given["languages"]}))
            if "attributes" in given:
                given["attributes"] = {
                    str(name): float(weight) for name, weight in given["attributes"].items()
                }
            for name in ("min_agreement", "gap", "heldout_annotators"):
                if name in given:
                    given[name] = float(given[name])
            if "max_characters" in given:
                given["max_characters"] = int(given["max_characters"])
        except (AttributeError, TypeError, ValueError) as error:
            raise ProductError(f"An option of the snapshot makes no sense: {error}.") from None
        options = cls(**given)
        options._check()
        return options

    def _check(self) -> None:
        if not 0 <= self.min_agreement <= 1:
            raise ProductError("The least agreement is a share from 0 to 1.")
        if not 0 <= self.heldout_annotators <= 0.9:
            raise ProductError("The share of held-out annotators is from 0 to 0.9.")
        if self.gap < 0:
            raise ProductError("The least gap between two ratings is 0 or more.")
        if self.margins == Margins.LEAD and not self.attributes:
            raise ProductError("Only a weighted sum has a lead: weigh scales under “attributes”.")
        if self.max_characters < 0:
            raise ProductError("The most characters of a row are 0, for no limit, or more.")
        if unknown := sorted(set(self.languages) - languages.CODES):
            raise ProductError(
                f"No language that can be told has the code {', '.join(unknown)}. Write codes of "
                "ISO 639, such as en, de or zh."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values that ``read`` takes."""
        return {
            **asdict(self),
            "pairs": str(self.pairs),
            "votes": str(self.votes),
            "margins": str(self.margins),
            "pii": str(self.pii),
            "imitate": [str(one) for one in self.imitate],
            "languages": list(self.languages),
            "attributes": dict(self.attributes),
        }


def refuse_method(kind: str, method: str) -> None:
    """Raise ProductError unless the method learns from a snapshot of this kind."""
    kind = Kind(kind)
    if not METHODS_FOR[kind]:
        raise ProductError(
            f"No method learns from {WHAT_ROWS_ARE[kind]} as they are. Take a snapshot of "
            "preferences and weigh the scales under “attributes”: it pairs the answers by the sum."
        )
    if method not in METHODS_FOR[kind]:
        raise ProductError(
            f"{method.upper()} cannot learn from this snapshot, whose rows are "
            f"{WHAT_ROWS_ARE[kind]}. Choose {' or '.join(m.upper() for m in METHODS_FOR[kind])}, "
            "or take a snapshot of another kind."
        )
