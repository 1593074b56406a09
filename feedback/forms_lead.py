"""What leads type: prompts and campaigns, checked before a service sees them."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import Count, F, Func, QuerySet

from accounts.errors import ProductError
from accounts.models import Project
from accounts.parsing import Unreadable, read_json
from feedback.dealing import ORDER_MEANING
from feedback.models import MAX_RESPONSES, Campaign, Prompt
from feedback.models_drafts import Draft
from feedback.services import check_messages
from inference.models import Version

MAX_LINES = 10_000
MAX_ERRORS_SHOWN = 20
MAX_TAG = 60
ALL_PROMPTS = ""


def tag_counts(project: Project) -> list[tuple[str, int]]:
    """Return the project's tags with the number of prompts under each; one query."""
    unnested = Func(F("tags"), function="unnest")
    unnested.set_returning = True
    rows = Prompt.objects.filter(project=project).annotate(tag=unnested).order_by()
    return sorted(rows.values_list("tag").annotate(prompts=Count("id")))


def parse_prompts(text: str) -> tuple[list[list[dict[str, str]]], list[str]]:
    """Read one prompt a line; return the conversations and a sentence for each line in error.

    A line is plain text, or JSON: a list of {role, content}, or an object with it under
    “messages” or “prompt”.
    """
    prompts: list[list[dict[str, str]]] = []
    errors: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(check_messages(_value(line.strip())))
        except ProductError as error:
            errors.append(f"Line {number}: {error.message}")
        except Unreadable as error:
            errors.append(f"Line {number} begins like JSON but is not. {error}")
    return prompts, errors


def _value(line: str) -> Any:
    if line[0] not in "[{":
        return line
    value = read_json(line.encode())
    if isinstance(value, dict):
        return value.get("messages", value.get("prompt", value))
    return value


class PromptsForm(forms.Form):
    """Prompts to add, all of them or none."""

    prompts = forms.CharField(
        label="Prompts",
        help_text="One a line: plain text, or JSON with a list of messages.",
        widget=forms.Textarea(attrs={"rows": 8, "spellcheck": "false"}),
        error_messages={"required": "Paste at least one prompt."},
    )
    tags = forms.CharField(
        label="Tags", required=False, help_text="Words to find them by, separated by commas."
    )

    def clean_prompts(self) -> list[list[dict[str, str]]]:
        text = self.cleaned_data["prompts"]
        if text.count("\n") >= MAX_LINES:
            raise forms.ValidationError(f"{MAX_LINES:,} lines are the most. Paste it in parts.")
        prompts, errors = parse_prompts(text)
        if errors:
            rest = len(errors) - MAX_ERRORS_SHOWN
            more = [f"{rest} more lines have errors."] if rest > 0 else []
            raise forms.ValidationError(errors[:MAX_ERRORS_SHOWN] + more)
        if not prompts:
            raise forms.ValidationError("Paste at least one prompt.")
        return prompts

    def clean_tags(self) -> list[str]:
        tags = [tag.strip() for tag in self.cleaned_data["tags"].split(",")]
        tags = list(dict.fromkeys(tag for tag in tags if tag))
        if any(len(tag) > MAX_TAG for tag in tags):
            raise forms.ValidationError(f"A tag has at most {MAX_TAG} characters.")
        return tags


def order_choices() -> list[tuple[str, str]]:
    """Return the orders, each with a line on what it does."""
    return [
        (order.value, f"{order.label.capitalize()}. {meaning}")
        for order, meaning in ORDER_MEANING.items()
    ]


class CampaignForm(forms.Form):
    """A campaign but for its sources, which ``SourceForm`` rows describe."""

    name = forms.CharField(label="Name", max_length=120)
    kind = forms.ChoiceField(
        label="How it is judged",
        choices=Campaign.Kind.choices,
        initial=Campaign.Kind.RANKING,
        widget=forms.RadioSelect,
    )
    prompts = forms.ChoiceField(label="Prompts", required=False)
    approved_drafts = forms.BooleanField(
        label="Approved drafts stand among the responses",
        required=False,
        initial=True,
        help_text="Each goes into one campaign; versions write the rest.",
    )
    responses_per_item = forms.IntegerField(
        label="Responses to each prompt",
        min_value=1,
        max_value=MAX_RESPONSES,
        initial=4,
        help_text="2 to 9 for a ranking, 1 to 9 to rate each. A comparison has two, a thumb one.",
    )
    judgements_per_item = forms.IntegerField(
        label="Judgements of each prompt",
        min_value=1,
        max_value=50,
        initial=3,
        help_text="By as many different people.",
    )
    queue_order = forms.ChoiceField(
        label="What goes out first",
        choices=order_choices,
        initial=Campaign.Order.LEAST_JUDGED,
        widget=forms.RadioSelect,
    )
    instructions = forms.CharField(
        label="Code book",
        required=False,
        max_length=20_000,
        help_text="What makes a response better here, in Markdown. It stays at hand while judging.",
        widget=forms.Textarea(attrs={"rows": 8}),
    )
    seed = forms.IntegerField(
        label="Seed",
        min_value=0,
        max_value=2**31 - 1,
        initial=0,
        help_text="The same seed writes the same responses and shuffles them the same way.",
    )

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        total = project.prompts.count()
        choices = [(ALL_PROMPTS, f"all {total:,} prompts" if total != 1 else "the one prompt")]
        choices += [(tag, f"{tag} ({number:,})") for tag, number in tag_counts(project)]
        field = self.fields["prompts"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices
        self.prompt_total = total
        if not Draft.objects.of(project).unplaced().exists():
            del self.fields["approved_drafts"]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        kind, responses = data.get("kind"), data.get("responses_per_item")
        if kind == Campaign.Kind.RANKING and responses == 1:
            self.add_error("responses_per_item", "A ranking needs at least two responses.")
        return data

    def chosen_prompts(self) -> QuerySet[Prompt]:
        """Return the prompts under the chosen tag, or all."""
        rows = Prompt.objects.filter(project=self.project)
        tag = self.cleaned_data["prompts"]
        return rows if tag == ALL_PROMPTS else rows.filter(tags__contains=[tag])


class SourceForm(forms.Form):
    """Whether and how one version writes responses."""

    use = forms.BooleanField(required=False)
    temperature = forms.FloatField(min_value=0, max_value=2, initial=1.0)
    top_p = forms.FloatField(label="top-p", min_value=0.01, max_value=1, initial=1.0)
    max_tokens = forms.IntegerField(min_value=1, max_value=4096, initial=128)

    def __init__(self, *args: Any, version: Version, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"prefix": f"v{version.pk}"})
        self.version = version
        for name, field in self.fields.items():
            field.widget.attrs["aria-label"] = f"{field.label or name} of {version.name}"
        for name in ("temperature", "top_p"):
            self.fields[name].widget.attrs["step"] = "any"  # from 0.01, so no even step fits
        if self.is_bound and not self.data.get(self.add_prefix("use")):
            for field in self.fields.values():
                field.required = False

    def source(self) -> dict[str, Any]:
        """Return the source as the service takes it."""
        values = {name: self.cleaned_data[name] for name in ("temperature", "top_p", "max_tokens")}
        return {"version": self.version.pk} | values
