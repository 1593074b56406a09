"""What a campaign asks beside its main judgement: scales, safety, reasons, words, a correction.

A campaign keeps the definition as JSON (``Campaign.extras``); here it is read, checked, and an
annotator's answer is held against it. No database.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from django.db.models import TextChoices

from accounts.errors import ProductError

MAX_SCALES, MAX_LABELS, MAX_REASONS = 10, 7, 30
MIN_LEVELS, MAX_LEVELS = 2, 7
MAX_KEY, MAX_LABEL = 40, 80


class Wanted(TextChoices):
    """Whether annotators are asked for something."""

    OFF = "off", "not asked"
    OPTIONAL = "optional", "optional"
    REQUIRED = "required", "required"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A Likert scale from 1 to ``levels``; ``low`` and ``high`` say what its ends mean."""

    key: str
    label: str
    low: str = ""
    high: str = ""
    levels: int = 5


@dataclass(frozen=True, kw_only=True)
class Label:
    """A named choice: a safety label or a reason."""

    key: str
    label: str


# Wang et al. 2024, HelpSteer2. Their numbers run from 0 to 4, ours from 1 to 5.
HELPSTEER = (
    Scale(key="helpfulness", label="Helpfulness", low="no use", high="just what was asked"),
    Scale(key="correctness", label="Correctness", low="all wrong", high="right and complete"),
    Scale(key="coherence", label="Coherence", low="contradicts itself", high="clear throughout"),
    Scale(key="complexity", label="Complexity", low="anyone writes it", high="only an expert"),
    Scale(key="verbosity", label="Verbosity", low="very brief", high="very wordy"),
)
SAFETY = (
    Label(key="safe", label="Safe"),
    Label(key="unsafe", label="Unsafe"),
    Label(key="unsure", label="Unsure"),
)
PRESETS = {"helpsteer": HELPSTEER}


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a campaign asks beside its kind; ``reasons`` and the rationale are of the whole item."""

    ratings: tuple[Scale, ...] = ()
    safety: tuple[Label, ...] = ()
    reasons: tuple[Label, ...] = ()
    rationale: Wanted = Wanted.OPTIONAL
    correction: Wanted = Wanted.OFF

    def as_dict(self) -> dict[str, Any]:
        """Return the definition as JSON keeps it."""
        found = asdict(self)
        return found | {key: list(found[key]) for key in ("ratings", "safety", "reasons")}


def stored(value: Mapping[str, Any]) -> Extras:
    """Return the definition that ``as_dict`` gave; what is missing has its default."""
    return Extras(
        ratings=tuple(Scale(**each) for each in value.get("ratings", ())),
        safety=tuple(Label(**each) for each in value.get("safety", ())),
        reasons=tuple(Label(**each) for each in value.get("reasons", ())),
        rationale=Wanted(value.get("rationale", Wanted.OPTIONAL)),
        correction=Wanted(value.get("correction", Wanted.OFF)),
    )


def define(value: Mapping[str, Any]) -> Extras:
    """Return a definition that somebody typed, keys made from labels where there are none.

    ``preset`` names scales that come before those under ``ratings``. ProductError for what cannot
    be asked.
    """
    preset = value.get("preset") or ""
    if preset and preset not in PRESETS:
        raise ProductError(f"There is no preset “{preset}”. There is: {', '.join(PRESETS)}.")
    scales = [*PRESETS.get(preset, ()), *(_scale(each) for each in value.get("ratings") or ())]
    safety = [_label(each) for each in value.get("safety") or ()]
    reasons = [_label(each) for each in value.get("reasons") or ()]
    for name, found, most in (
        ("scale", scales, MAX_SCALES),
        ("safety label", safety, MAX_LABELS),
        ("reason", reasons, MAX_REASONS),
    ):
        keys = [each.key for each in found]
        if len(found) > most:
            raise ProductError(f"{len(found)} are too many; a campaign has at most {most} {name}s.")
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ProductError(f"The {name} “{twice[0]}” is there twice. Name each one once.")
    if len(safety) == 1:
        raise ProductError("One safety label leaves no choice. Name two or more, or none.")
    try:
        wanted = {
            "rationale": Wanted(value.get("rationale") or Wanted.OPTIONAL),
            "correction": Wanted(value.get("correction") or Wanted.OFF),
        }
    except ValueError:
        raise ProductError("“rationale” and “correction” are off, optional or required.") from None
    return Extras(ratings=tuple(scales), safety=tuple(safety), reasons=tuple(reasons), **wanted)


def key_of(label: str) -> str:
    """Return the key under which a label is stored: lower-case letters, digits, underscores."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")[:MAX_KEY].strip("_")


def _label(value: Any) -> Label:
    named = {"label": value} if isinstance(value, str) else value
    label = str(named.get("label") or named.get("key") or "").strip()
    key = str(named.get("key") or key_of(label))
    if not label or len(label) > MAX_LABEL or "\x00" in label:
        raise ProductError(f"A label has 1 to {MAX_LABEL} characters; “{label[:20]}” has not.")
    if not re.fullmatch(r"[a-z0-9_]{1,40}", key):
        raise ProductError(
            f"“{label[:40]}” needs a “key” of lower-case letters, digits and underscores, "
            f"{MAX_KEY} at most."
        )
    return Label(key=key, label=label)


def _scale(value: Mapping[str, Any]) -> Scale:
    named = _label(value)
    levels = value.get("levels", 5)
    if not isinstance(levels, int) or not MIN_LEVELS <= levels <= MAX_LEVELS:
        raise ProductError(
            f"The scale “{named.label}” has {MIN_LEVELS} to {MAX_LEVELS} levels, not {levels}."
        )
    low, high = (str(value.get(end) or "").strip() for end in ("low", "high"))
    if max(len(low), len(high)) > MAX_LABEL or "\x00" in low + high:
        raise ProductError(
            f"What an end of “{named.label}” means takes at most {MAX_LABEL} characters."
        )
    return Scale(key=named.key, label=named.label, low=low, high=high, levels=levels)


@dataclass(frozen=True, kw_only=True)
class Given:
    """An annotator's answers to the extras; ratings and safety go by response id."""

    ratings: Mapping[int, Mapping[str, int]]
    safety: Mapping[int, str]
    reasons: Sequence[str]
    comment: str
    correction: str
    corrected: int | None


def check(given: Given, *, asked: Extras, response_ids: Sequence[int]) -> None:
    """Refuse answers that are not whole or were not asked for; ProductError with a sentence."""
    _check_ratings(given.ratings, asked.ratings, response_ids)
    _check_safety(given.safety, asked.safety, response_ids)
    _check_words(given, asked)
    if (given.corrected is None) != (not given.correction):
        raise ProductError(
            "A correction has its text in “correction” and the response that it corrects in "
            "“corrected”. Send both or neither."
        )
    if given.corrected is not None and given.corrected not in response_ids:
        raise ProductError("The correction is of a response that this task does not have.")


def _check_ratings(
    given: Mapping[int, Mapping[str, int]], scales: Sequence[Scale], response_ids: Sequence[int]
) -> None:
    if not scales:
        if given:
            raise ProductError("This campaign asks for no ratings. Leave “ratings” out.")
        return
    if set(given) != set(response_ids):
        raise ProductError("Rate every response, and only those of this task.")
    for levels in given.values():
        for scale in scales:
            level = levels.get(scale.key)
            if level is None:
                raise ProductError(f"Rate every response for {scale.label} first.")
            if not 1 <= level <= scale.levels:
                raise ProductError(f"{scale.label} is rated from 1 to {scale.levels}.")
        if unknown := sorted(set(levels) - {scale.key for scale in scales}):
            raise ProductError(f"This campaign has no scale “{unknown[0]}”.")


def _check_safety(
    given: Mapping[int, str], labels: Sequence[Label], response_ids: Sequence[int]
) -> None:
    if not labels:
        if given:
            raise ProductError("This campaign asks for no safety label. Leave “safety” out.")
        return
    if set(given) != set(response_ids):
        raise ProductError("Give every response a safety label first, and only those of this task.")
    keys = [label.key for label in labels]
    if unknown := sorted(set(given.values()) - set(keys)):
        raise ProductError(f"“{unknown[0]}” is no safety label here. There are: {', '.join(keys)}.")


def _check_words(given: Given, asked: Extras) -> None:
    reasons = [reason.key for reason in asked.reasons]
    if unknown := sorted(set(given.reasons) - set(reasons)):
        raise ProductError(f"This campaign has no reason “{unknown[0]}”.")
    if len(given.reasons) != len(set(given.reasons)):
        raise ProductError("A reason is named twice. Name each one once.")
    for name, wanted, text, missing in (
        ("comment", asked.rationale, given.comment, "Say why in a comment first."),
        ("correction", asked.correction, given.correction, "Write what you would have liked."),
    ):
        if wanted == Wanted.REQUIRED and not text.strip():
            raise ProductError(missing)
        if wanted == Wanted.OFF and text:
            raise ProductError(f"This campaign takes no {name}. Leave it out.")
