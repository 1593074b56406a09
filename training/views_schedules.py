"""Pages of schedules: when rounds begin by themselves, what they did, what they propose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Membership, Project, Role, User
from accounts.pages import page_of, refused
from feedback.models import Campaign
from training import schedules as service
from training.forms import METHODS, OPTION_FIELDS, OptionsForm, method_choices, option_values
from training.models import Schedule, ScheduledRound
from training.options import METHODS_FOR, Kind, Options


class ScheduleForm(forms.ModelForm, OptionsForm):  # type: ignore[type-arg]  # not so at run time
    """When a round begins, and what it exports, trains and compares."""

    method = forms.ChoiceField(choices=method_choices(name for name in METHODS if name != "reward"))
    rule = forms.ChoiceField(help_text="How the new version is compared with production.")

    class Meta:
        model = Schedule
        fields = [
            "name",
            "cadence",
            "weekday",
            "at",
            "zone",
            "after_judgements",
            "campaigns",
            "kind",
            "heldout_fraction",
            "method",
            "arguments",
            "from_production",
            "seed",
            "rule",
            "samples",
        ]
        labels = {
            "cadence": "A round begins",
            "weekday": "On",
            "at": "At",
            "zone": "Time zone",
            "after_judgements": "New judgements",
            "heldout_fraction": "Held out",
            "from_production": "Start from what serves in production",
            "samples": "Answers to each prompt",
        }
        help_texts = {
            "weekday": "For a round every week.",
            "at": "As 03:00, by the clock on the wall there.",
            "zone": "As Europe/Berlin; it keeps its local hour in summer and winter.",
            "after_judgements": "For a round after so many new judgements.",
            "arguments": "As JSON; what is not named has its default.",
            "from_production": "Otherwise each round starts from the plain base.",
        }
        widgets = {
            "at": forms.TimeInput(format="%H:%M"),
            "campaigns": forms.CheckboxSelectMultiple,
            "arguments": forms.Textarea(attrs={"rows": 3, "spellcheck": "false", "class": "mono"}),
        }

    def __init__(
        self, *args: Any, project: Project, options: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Take the snapshots' ``options`` from the fields, or as they are given."""
        super().__init__(*args, **kwargs)
        self.instance.project = project
        self.given = options
        for name, value in option_values(self.instance.options).items():
            self.initial.setdefault(name, value)
        kind = self.fields["kind"]
        assert isinstance(kind, forms.ChoiceField)
        kind.choices = [(one.value, one.label) for one in Kind if METHODS_FOR[one]]
        kind.help_text = "The method has to learn from them."
        campaigns, rule = self.fields["campaigns"], self.fields["rule"]
        assert isinstance(campaigns, forms.ModelMultipleChoiceField)
        assert isinstance(rule, forms.ChoiceField)
        campaigns.queryset = Campaign.objects.filter(project=project)
        self.name_scales(campaigns.queryset)
        rule.choices = [(name, name) for name in settings.EVALUATION_RULES]

    @property
    def plain(self) -> list[forms.BoundField]:
        """Return the fields that everybody looks at; ``how`` are the others."""
        return [one for one in self if one.name == "feedback" or one.name not in OPTION_FIELDS]

    def options(self) -> dict[str, Any]:
        """Return the options that were given, or filled in beside those that have no field."""
        if self.given is not None:
            return dict(self.given)
        kept = {k: v for k, v in self.instance.options.items() if k not in OPTION_FIELDS}
        return kept | super().options()

    def store(self, by: User) -> Schedule:
        """Store what was filled in."""
        self.instance.options = Options.read(self.options()).as_dict()
        return service.save_schedule(
            schedule=self.save(commit=False), campaigns=self.cleaned_data["campaigns"], by=by
        )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if not self.errors:
            own = [name for name in self.Meta.fields if name != "campaigns"]
            draft = Schedule(**{name: cleaned[name] for name in own}, options=self.options())
            try:
                service.check_schedule(draft, cleaned["campaigns"])
            except ProductError as error:
                raise ValidationError(error.message) from error
        return cleaned


def _schedule(request: HttpRequest, slug: str, pk: int, role: Role) -> tuple[Membership, Schedule]:
    membership = get_membership(request, slug, role)
    return membership, get_object_or_404(Schedule, pk=pk, project=membership.project)


@login_required
def schedule_index(request: HttpRequest, slug: str) -> HttpResponse:
    """List schedules and open proposals; make a schedule."""
    role = Role.ADMIN if request.method == "POST" else Role.LEAD
    membership = get_membership(request, slug, role)
    form = ScheduleForm(request.POST or None, project=membership.project)
    rounds = ScheduledRound.objects.filter(schedule__project=membership.project)
    context = {
        "form": form,
        "page": page_of(request, Schedule.objects.filter(project=membership.project)),
        "proposals": rounds.filter(state=ScheduledRound.State.PROPOSED).select_related(
            "schedule", "run__version", "evaluation"
        ),
    }
    if request.method != "POST":
        return render(request, "training/schedules.html", context)
    if not form.is_valid():
        said = (
            " ".join(map(str, form.non_field_errors()))
            or "Some fields need another look; see below."
        )
        return refused(request, "training/schedules.html", context, said)
    made = form.store(membership.user)
    messages.success(request, f"“{made.name}” runs {made.rhythm}.")
    return redirect("schedule", slug, made.pk)


@login_required
def schedule(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show a schedule with its history; change it."""
    role = Role.ADMIN if request.method == "POST" else Role.LEAD
    membership, found = _schedule(request, slug, pk, role)
    form = ScheduleForm(request.POST or None, instance=found, project=membership.project)
    rounds = found.rounds.select_related(
        "snapshot", "run__version", "evaluation__champion", "decided_by"
    )
    context = {"schedule": found, "form": form, "page": page_of(request, rounds)}
    if request.method != "POST":
        return render(request, "training/schedule.html", context)
    if not form.is_valid():
        said = (
            " ".join(map(str, form.non_field_errors()))
            or "Some fields need another look; see below."
        )
        return refused(request, "training/schedule.html", context, said)
    form.store(membership.user)
    messages.success(request, "The schedule was changed.")
    return redirect("schedule", slug, pk)


@login_required
@require_POST
def schedule_active(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Pause or resume."""
    membership, found = _schedule(request, slug, pk, Role.ADMIN)
    service.set_active(schedule=found, active=request.POST.get("active") == "1", by=membership.user)
    return redirect("schedule", slug, pk)


@login_required
@require_POST
def schedule_run(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Begin a round now."""
    membership, found = _schedule(request, slug, pk, Role.ADMIN)
    try:
        service.run_now(schedule=found, by=membership.user)
    except ProductError as error:
        messages.error(request, error.message)
    else:
        messages.success(request, "A round has begun: its snapshot is being written.")
    return redirect("schedule", slug, pk)


@login_required
@require_POST
def proposal_decide(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Promote what a round proposes, or decline it."""
    membership = get_membership(request, slug, Role.ADMIN)
    rows = ScheduledRound.objects.select_related("schedule")
    row = get_object_or_404(rows, pk=pk, schedule__project=membership.project)
    accept = request.POST.get("decision") == "promote"
    try:
        service.decide(row=row, accept=accept, by=membership.user)
    except ProductError as error:
        messages.error(request, error.message)
    else:
        messages.success(request, "Promoted." if accept else "Declined; production stays.")
    return redirect("schedule", slug, row.schedule_id)
