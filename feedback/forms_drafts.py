"""What leads type to order drafts, checked before a service sees it."""

from __future__ import annotations

import uuid
from typing import Any

from django import forms
from django.db.models import QuerySet

from accounts.models import Project
from feedback.forms_lead import ALL_PROMPTS, MAX_TAG, tag_counts
from feedback.models import Prompt
from feedback.models_drafts import MAX_GUIDANCE, MOST_DRAFTS, MOST_SHOTS, DraftRequest
from inference.models import Version

MOST_OFFERED = 50


class DraftsForm(forms.Form):
    """An order of drafts."""

    kind = forms.ChoiceField(
        label="What is drafted",
        choices=DraftRequest.Kind.choices,
        initial=DraftRequest.Kind.PROMPT,
        widget=forms.RadioSelect,
    )
    version = forms.ModelChoiceField(
        label="Written by", queryset=Version.objects.none(), empty_label=None
    )
    prompts = forms.ChoiceField(
        label="Prompts",
        required=False,
        help_text="Examples for new prompts, or what is answered.",
    )
    wanted = forms.IntegerField(label="How many", min_value=1, max_value=MOST_DRAFTS, initial=20)
    shots = forms.IntegerField(
        label="Examples shown at a time",
        min_value=1,
        max_value=MOST_SHOTS,
        initial=3,
        help_text="For new prompts.",
    )
    guidance = forms.CharField(
        label="Guidance",
        required=False,
        max_length=MAX_GUIDANCE,
        help_text="What the writer should heed: subjects, tone, length.",
        widget=forms.Textarea(attrs={"rows": 3}),
    )
    tags = forms.CharField(
        label="Tags of new prompts",
        required=False,
        initial="drafted",
        help_text="Separated by commas; given to those that are approved.",
    )
    temperature = forms.FloatField(min_value=0, max_value=2, initial=1.0)
    top_p = forms.FloatField(label="top-p", min_value=0.01, max_value=1, initial=1.0)
    max_tokens = forms.IntegerField(label="Most tokens", min_value=1, max_value=4096, initial=256)
    seed = forms.IntegerField(label="Seed", min_value=0, max_value=2**31 - 1, initial=0)
    # A double click orders once.
    client_id = forms.UUIDField(widget=forms.HiddenInput, initial=uuid.uuid4)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        versions = Version.objects.filter(project=project).select_related("base")
        newest = versions.order_by("-number")[:MOST_OFFERED]
        version, prompts = self.fields["version"], self.fields["prompts"]
        assert isinstance(version, forms.ModelChoiceField)
        assert isinstance(prompts, forms.ChoiceField)
        version.queryset = versions.filter(pk__in=[one.pk for one in newest])
        version.initial = versions.in_production().first()
        self.prompt_total = project.prompts.filter(withdrawn_at=None).count()
        prompts.choices = [(ALL_PROMPTS, f"all {self.prompt_total:,}")] + [
            (tag, f"{tag} ({number:,})") for tag, number in tag_counts(project)
        ]
        for name in ("temperature", "top_p"):
            self.fields[name].widget.attrs["step"] = "any"

    def clean_tags(self) -> list[str]:
        tags = [tag.strip() for tag in self.cleaned_data["tags"].split(",")]
        tags = list(dict.fromkeys(tag for tag in tags if tag))
        if any(len(tag) > MAX_TAG for tag in tags):
            raise forms.ValidationError(f"A tag has at most {MAX_TAG} characters.")
        return tags

    def chosen_prompts(self) -> QuerySet[Prompt]:
        """Return the prompts under the chosen tag, or all."""
        rows = Prompt.objects.filter(project=self.project)
        tag = self.cleaned_data["prompts"]
        return rows if tag == ALL_PROMPTS else rows.filter(tags__contains=[tag])

    def order(self) -> dict[str, Any]:
        """Return the order as the service takes it."""
        data = self.cleaned_data
        names = ("wanted", "shots", "guidance", "tags", "seed", "client_id")
        sampling = {name: data[name] for name in ("temperature", "top_p", "max_tokens")}
        return {name: data[name] for name in names} | {
            "kind": DraftRequest.Kind(data["kind"]),
            "source": {"version": data["version"].pk} | sampling,
            "prompts": self.chosen_prompts(),
        }
