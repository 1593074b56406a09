"""Pages on which leads keep judging sound: gold, repeats, trust, pauses, and disputed items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Membership, Role, User
from accounts.pages import asked, refused, sentence, whole
from accounts.templatetags.laurel import letter
from feedback import adjudication, extras, gold, letters, pauses
from feedback.models import LEAST_EVERY, Campaign, Item, ItemRole, Judgement, Pause, Response
from feedback.models_drafts import Draft


def _campaign(request: HttpRequest, slug: str, pk: int) -> tuple[Membership, Campaign]:
    membership = get_membership(request, slug, Role.LEAD)
    rows = Campaign.objects.select_related("project")
    return membership, get_object_or_404(rows, project=membership.project, pk=pk)


class ChecksForm(forms.Form):
    """How often gold and repeats come, and what follows from the trust test."""

    gold_every = forms.IntegerField(
        label="Gold: one in so many tasks",
        min_value=0,
        max_value=1000,
        help_text=f"0 is never; {LEAST_EVERY} is the most often.",
    )
    repeat_every = forms.IntegerField(
        label="Hidden repeats: one in so many tasks",
        min_value=0,
        max_value=1000,
        help_text="An own earlier item with its sides swapped; 0 is never.",
    )
    repeat_after = forms.IntegerField(
        label="Not before so many other tasks", min_value=1, max_value=1000
    )
    trust = forms.ChoiceField(
        label="An annotator over whom the trust test raises the alarm is",
        choices=Campaign.Trust.choices,
        widget=forms.RadioSelect,
    )

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        for name in ("gold_every", "repeat_every"):
            if 0 < (data.get(name) or 0) < LEAST_EVERY:
                self.add_error(name, f"Say 0 for never, or {LEAST_EVERY} or more.")
        return data


def _checks_context(campaign: Campaign, form: ChecksForm) -> dict[str, Any]:
    rows = Pause.objects.filter(campaign=campaign).select_related(
        "annotator", "started_by", "ended_by"
    )
    judging = User.objects.filter(judgements__campaign=campaign).distinct().order_by("username")
    paused = {row.annotator_id for row in rows if row.ended_at is None}
    scales = extras.stored(campaign.extras).ratings
    return {
        "campaign": campaign,
        "form": form,
        "golden": [
            (item, letters.answer_in_letters(item.gold_answer or {}, scales=scales))
            for item in gold.gold_items(campaign)
        ],
        "pauses": rows,
        "free": [user for user in judging if user.pk not in paused],
    }


@login_required
def campaign_checks(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show and set how a campaign is checked: gold, repeats, the trust test, and who is paused."""
    membership, campaign = _campaign(request, slug, pk)
    initial = {name: getattr(campaign, name) for name in ChecksForm.base_fields}
    form = ChecksForm(request.POST if request.method == "POST" else None, initial=initial)
    template = "feedback/checks.html"
    if request.method != "POST":
        return render(request, template, _checks_context(campaign, form))
    if not form.is_valid():
        context = _checks_context(campaign, form)
        return refused(request, template, context, "Some fields need another look; see below.")
    values = form.cleaned_data
    gold.set_checks(
        campaign=campaign,
        by=membership.user,
        **values | {"trust": Campaign.Trust(values["trust"])},
    )
    messages.success(request, "Kept. It holds from the next task on.")
    return redirect("campaign_checks", slug, pk)


@login_required
@require_POST
def annotator_pause(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Pause an annotator in this campaign."""
    membership, campaign = _campaign(request, slug, pk)
    annotator = get_object_or_404(
        User,
        username=asked(request.POST, "annotator"),
        memberships__project=membership.project,
    )
    try:
        pauses.pause(
            campaign=campaign,
            annotator=annotator,
            why=asked(request.POST, "why"),
            by=membership.user,
        )
        messages.success(request, f"{annotator.username} is paused in “{campaign.name}”.")
    except ProductError as error:
        messages.error(request, sentence(error))
    return redirect("campaign_checks", slug, pk)


@login_required
@require_POST
def pause_lift(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """End a pause."""
    membership, campaign = _campaign(request, slug, pk)
    rows = Pause.objects.select_related("campaign__project", "annotator")
    number = whole(request.POST.get("pause", ""))
    paused = get_object_or_404(rows, campaign=campaign, pk=number or 0)
    try:
        pauses.lift(paused=paused, by=membership.user, why=asked(request.POST, "why"))
        messages.success(request, f"{paused.annotator.username} may go on.")
    except ProductError as error:
        messages.error(request, sentence(error))
    return redirect("campaign_checks", slug, pk)


# One item: what was said of it, and what a lead makes of that


@dataclass(frozen=True)
class Cell:
    """One scale of one response in the form, and the level given to it."""

    name: str
    letter: str
    given: str


@dataclass(frozen=True)
class Place:
    """A response in the form: its letter, text, and the place given to it."""

    position: int
    letter: str
    text: str
    written_by: str
    place: str
    draft: Draft | None = None


@dataclass(frozen=True)
class Row:
    """One scale in the form, with a cell for each response."""

    scale: extras.Scale
    levels: list[str]
    cells: list[Cell]


@dataclass(frozen=True)
class Said:
    """One judgement by the letters of the responses: “B > A = D”, or a line of levels for each."""

    judgement: Judgement
    lines: list[str]


def _item_context(campaign: Campaign, item: Item, given: dict[str, str]) -> dict[str, Any]:
    responses = list(
        Response.objects.filter(item=item)
        .select_related("completion__version", "draft__request__version", "draft__decided_by")
        .order_by("position")
    )
    named = {one.pk: letter(one.position) for one in responses}
    judgements = item.judgements.select_related("annotator").order_by("id")
    decisions = list(item.decisions.select_related("by"))
    copies = Item.objects.filter(repeat_of=item, role=ItemRole.GOLD)
    rating = campaign.kind == Campaign.Kind.RATING
    scales = extras.stored(campaign.extras).ratings
    return {
        "campaign": campaign,
        "item": item,
        "places": [
            Place(
                position=one.position,
                letter=named[one.pk],
                text=one.text,
                written_by=one.completion.version.name if one.completion else one.source,
                place=given.get(f"place-{one.position}", ""),
                draft=getattr(one, "draft", None),
            )
            for one in responses
        ],
        "ranks": [str(rank) for rank in range(1, len(responses) + 1)],
        "grid": [_row(scale, responses, given) for scale in scales] if rating else [],
        "said": [Said(one, _lines(one, named, scales if rating else ())) for one in judgements],
        "decisions": [
            (one, letters.answer_in_letters(one.answer, scales=scales)) for one in decisions
        ],
        "gold_answer": letters.answer_in_letters(item.gold_answer, scales=scales)
        if item.gold_answer
        else "",
        "gold_copy": copies.first(),
        "given": given,
        "answerable": item.role in (ItemRole.NORMAL, ItemRole.GOLD),
    }


def _row(scale: extras.Scale, responses: Sequence[Response], given: Mapping[str, str]) -> Row:
    names = {one.position: f"level-{one.position}-{scale.key}" for one in responses}
    return Row(
        scale=scale,
        levels=[str(level) for level in range(1, scale.levels + 1)],
        cells=[
            Cell(name=name, letter=letter(position), given=given.get(name, ""))
            for position, name in names.items()
        ],
    )


def _lines(
    judgement: Judgement, named: Mapping[int, str], scales: Sequence[extras.Scale]
) -> list[str]:
    if not scales:
        return [letters.said(judgement, named)]
    rated = {named[int(pk)]: levels for pk, levels in judgement.ratings.items()}
    return [letters.levels_in_letters({one: rated[one]}, scales) for one in sorted(rated)]


def _as_given(answer: dict[str, Any]) -> dict[str, str]:
    """Return a known answer as its form says it."""
    given = {
        f"place-{position}": str(place)
        for place, group in enumerate(answer.get("ranking", ()), start=1)
        for position in group
    }
    given |= {
        f"level-{position}-{key}": str(level)
        for position, levels in answer.get("ratings", {}).items()
        for key, level in levels.items()
    }
    return given | {name: str(answer[name]) for name in ("thumb", "within") if name in answer}


def _read_answer(request: HttpRequest, campaign: Campaign, item: Item) -> dict[str, Any]:
    """Return the answer that the form says, by position."""
    if campaign.kind == Campaign.Kind.THUMBS:
        return {"thumb": {"1": 1, "-1": -1}.get(request.POST.get("thumb", ""))}
    if campaign.kind == Campaign.Kind.RATING:
        return {
            "ratings": {
                str(position): {
                    scale.key: level
                    for scale in extras.stored(campaign.extras).ratings
                    if (level := whole(asked(request.POST, f"level-{position}-{scale.key}")))
                    is not None
                }
                for position in range(item.responses.count())
            },
            "within": whole(asked(request.POST, "within")),
        }
    by_place: dict[int, list[int]] = {}
    for position in range(item.responses.count()):
        place = whole(request.POST.get(f"place-{position}", ""))
        if place is None:
            raise ProductError("Give every answer its place first.")
        by_place.setdefault(place, []).append(position)
    return {"ranking": [by_place[place] for place in sorted(by_place)]}


@login_required
def campaign_item(request: HttpRequest, slug: str, pk: int, item: int) -> HttpResponse:
    """Show an item with all that was said of it; a post decides it or makes it gold."""
    membership, campaign = _campaign(request, slug, pk)
    rows = Item.objects.select_related(
        "prompt__draft__request__version",
        "prompt__draft__decided_by",
        "campaign__project",
        "repeat_of",
    )
    found = get_object_or_404(rows, campaign=campaign, pk=item)
    template = "feedback/item.html"
    if request.method != "POST":
        given = _as_given(found.gold_answer or {})
        return render(request, template, _item_context(campaign, found, given))
    try:
        answer = _read_answer(request, campaign, found)
        if request.POST.get("act") == "gold":
            gold.make_gold(item=found, answer=answer, by=membership.user)
            messages.success(request, "It is gold now; annotators meet it at the campaign's rate.")
        else:
            why = asked(request.POST, "why")
            adjudication.decide(item=found, answer=answer, why=why, by=membership.user)
            messages.success(request, "Decided. The judgements stay as they are.")
    except (ProductError, ValidationError) as error:
        context = _item_context(campaign, found, request.POST.dict())
        return refused(request, template, context, error)
    return redirect("campaign_item", slug, pk, item)
