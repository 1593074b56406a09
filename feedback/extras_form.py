"""The extras as fields of the task form: what to show, what was sent, what would send it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accounts.errors import ProductError
from feedback.extras import Extras
from feedback.models import Judgement


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One group of choices about one response; ``low`` and ``high`` name the ends of a scale."""

    name: str
    label: str
    choices: list[tuple[str, str]]
    given: str
    low: str = ""
    high: str = ""


def asks(asked: Extras, *, response_id: int, given: Mapping[str, str]) -> list[Ask]:
    """Return what to ask of one response, in order: scales, then safety."""
    found = [
        Ask(
            name=f"rating-{response_id}-{scale.key}",
            label=scale.label,
            choices=[(str(level), str(level)) for level in range(1, scale.levels + 1)],
            given=given.get(f"rating-{response_id}-{scale.key}", ""),
            low=scale.low,
            high=scale.high,
        )
        for scale in asked.ratings
    ]
    if asked.safety:
        name = f"safety-{response_id}"
        choices = [(label.key, label.label) for label in asked.safety]
        found.append(Ask(name=name, label="Safety", choices=choices, given=given.get(name, "")))
    return found


def read(data: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of an Answer that a task form's extras say.

    Empty choices are left out; whether all is there says ``extras.check``.
    """
    ratings: dict[int, dict[str, int]] = {}
    safety: dict[int, str] = {}
    reasons: list[str] = []
    try:
        for name, value in data.items():
            kind, _, rest = name.partition("-")
            if kind == "rating" and value:
                response, _, key = rest.partition("-")
                ratings.setdefault(int(response), {})[key] = int(value)
            elif kind == "safety" and value:
                safety[int(rest)] = value
            elif kind == "reason" and value:
                reasons.append(rest)
        corrected = int(data.get("corrected") or 0) or None
    except ValueError:
        raise ProductError("This form was changed on its way. Reload the page.") from None
    correction = data.get("correction", "")
    if not correction.strip():
        correction, corrected = "", None
    return {
        "ratings": ratings,
        "safety": safety,
        "reasons": reasons,
        "correction": correction,
        "corrected": corrected,
    }


def fields(judgement: Judgement) -> dict[str, str]:
    """Return the form fields that would give this judgement's extras again."""
    found = {
        f"rating-{response}-{key}": str(level)
        for response, levels in judgement.ratings.items()
        for key, level in levels.items()
    }
    found |= {f"safety-{response}": label for response, label in judgement.safety.items()}
    found |= {f"reason-{key}": "1" for key in judgement.reasons}
    if judgement.corrected_id is not None:
        found |= {"correction": judgement.correction, "corrected": str(judgement.corrected_id)}
    return found
