"""What a lead types to say what a campaign asks beside its kind."""

from __future__ import annotations

from typing import Any

from django import forms

from accounts.errors import ProductError
from feedback.extras import SAFETY, Wanted, define


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_scale(line: str) -> dict[str, Any]:
    """Read ``label | what 1 means | what the highest means | levels``; all but the label may lack.

    ProductError when the levels are no number.
    """
    label, low, high, levels, *rest = [*(part.strip() for part in line.split("|")), "", "", ""]
    if any(rest):
        raise ProductError(f"“{line[:60]}” has more than four parts.")
    if levels and not levels.isdecimal():
        raise ProductError(
            f"The levels of “{label}” are a number from 2 to 7, not “{levels[:20]}”."
        )
    return {"label": label, "low": low, "high": high, "levels": int(levels or 5)}


class ExtrasForm(forms.Form):
    """Scales, safety labels, reasons, a rationale and a correction; ``definition`` when valid."""

    helpsteer = forms.BooleanField(
        label="HelpSteer's five scales",
        required=False,
        help_text="Helpfulness, correctness, coherence, complexity and verbosity, from 1 to 5.",
    )
    scales = forms.CharField(
        label="Scales of your own",
        required=False,
        max_length=4_000,
        help_text="One a line: name | what 1 means | what the highest means | levels (2 to 7).",
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "Tone | rude | kind | 5"}),
    )
    safety = forms.BooleanField(
        label="A safety label for each response",
        required=False,
        help_text="Safe, unsafe or unsure, unless you name others.",
    )
    safety_labels = forms.CharField(
        label="Safety labels of your own",
        required=False,
        max_length=600,
        help_text="Separated by commas.",
    )
    reasons = forms.CharField(
        label="Reasons to choose from",
        required=False,
        max_length=3_000,
        help_text="One a line; annotators mark any that apply.",
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "Wrong facts"}),
    )
    rationale = forms.ChoiceField(
        label="A comment that says why",
        choices=Wanted.choices,
        initial=Wanted.OPTIONAL,
        required=False,
    )
    correction = forms.ChoiceField(
        label="A correction: what would you have liked?",
        choices=Wanted.choices,
        initial=Wanted.OFF,
        required=False,
    )

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if self.errors:
            return data
        own = [label.strip() for label in data["safety_labels"].split(",") if label.strip()]
        try:
            asked = define(
                {
                    "preset": "helpsteer" if data["helpsteer"] else "",
                    "ratings": [read_scale(line) for line in _lines(data["scales"])],
                    "safety": own or [label.label for label in SAFETY if data["safety"]],
                    "reasons": _lines(data["reasons"]),
                    "rationale": data["rationale"],
                    "correction": data["correction"],
                }
            )
        except ProductError as error:
            raise forms.ValidationError(error.message) from error
        self.definition = asked.as_dict()
        return data
