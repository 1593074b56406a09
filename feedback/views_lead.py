"""Pages of a lead: prompts, campaigns, and what people said of answers."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Membership, Role
from accounts.pages import asked, ordered, page_of, refused, whole
from feedback import live, quality, services
from feedback.dealing import ORDER_MEANING
from feedback.extras import stored
from feedback.forms_documents import DocumentsForm
from feedback.forms_extras import ExtrasForm
from feedback.forms_lead import CampaignForm, PromptsForm, SourceForm, tag_counts
from feedback.models import MAX_COMMENT, MAX_CORRECTION, Campaign, CompletionFeedback, Prompt
from inference.models import Completion, Version

PROMPT_COLUMNS = {"added": "id", "used": "campaigns"}
CAMPAIGN_COLUMNS = {"created": "id", "name": "name", "kind": "kind", "state": "state"}
# What the filter of the feedback page offers, and what each choice means.
FEEDBACK_KINDS: dict[str, tuple[str, Q]] = {
    "complaint": ("complaints", Q(complaint=True)),
    "down": ("thumbs down", Q(thumb=-1)),
    "up": ("thumbs up", Q(thumb=1)),
    "comment": ("with a comment", ~Q(comment="")),
    "correction": ("with a correction", ~Q(correction="")),
}
MAX_VERSIONS_OFFERED = 50


# Prompts


def _prompt_rows(membership: Membership, query: str, tag: str) -> QuerySet[Prompt]:
    rows = Prompt.objects.filter(project=membership.project)
    if query:
        rows = rows.saying(query)
    if tag:
        rows = rows.filter(tags__contains=[tag])
    drafted = rows.select_related("draft__request__version", "draft__decided_by")
    return drafted.annotate(campaigns=Count("items"))


def _prompts_context(
    request: HttpRequest, membership: Membership, form: PromptsForm, attached: DocumentsForm
) -> dict[str, Any]:
    query, tag = asked(request.GET, "q"), asked(request.GET, "tag")
    rows, sort = ordered(
        request, _prompt_rows(membership, query, tag), PROMPT_COLUMNS, default="-added"
    )
    return {
        "page": page_of(request, rows),
        "sort": sort,
        "q": query,
        "tag": tag,
        "tags": tag_counts(membership.project),
        "form": form,
        "attached": attached,
    }


@login_required
def prompts(request: HttpRequest, slug: str) -> HttpResponse:
    """List prompts; add those that are pasted."""
    membership = get_membership(request, slug, Role.LEAD)
    form = PromptsForm(request.POST or None)
    attached = DocumentsForm(request.POST or None, request.FILES or None)
    # Both are checked, so that one refusal names everything.
    if request.method != "POST" or not all([form.is_valid(), attached.is_valid()]):
        context = _prompts_context(request, membership, form, attached)
        status = 400 if request.method == "POST" else 200
        return render(request, "feedback/prompts.html", context, status=status)
    before = membership.project.prompts.count()
    documents = attached.cleaned_data["documents"]
    try:
        stored = services.add_prompts(
            project=membership.project,
            prompts=form.cleaned_data["prompts"],
            tags=form.cleaned_data["tags"],
            documents=documents,
        )
    except ProductError as error:
        context = _prompts_context(request, membership, form, attached)
        return refused(request, "feedback/prompts.html", context, error)
    added = membership.project.prompts.count() - before
    known = len(stored) - added
    text = f"{_number(added, 'prompt')} added"
    text += f" with {_number(len(documents), 'document')}." if documents else "."
    if known > 0:
        text += f" {_number(known, 'prompt')} were there already and stay as they are."
    messages.success(request, text)
    return redirect("prompts", slug)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


# Campaigns


@login_required
@require_GET
def campaigns(request: HttpRequest, slug: str) -> HttpResponse:
    """List campaigns with their progress."""
    membership = get_membership(request, slug, Role.LEAD)
    rows = Campaign.objects.filter(project=membership.project)
    state = request.GET.get("state", "")
    if state in Campaign.State.values:
        rows = rows.filter(state=state)
    rows, sort = ordered(request, rows.with_progress(), CAMPAIGN_COLUMNS, default="-created")
    context = {
        "page": page_of(request, rows),
        "sort": sort,
        "state": state,
        "states": Campaign.State.choices,
    }
    return render(request, "feedback/campaigns.html", context)


def _source_forms(request: HttpRequest, membership: Membership) -> list[SourceForm]:
    """Return a row for each version; what serves in production is chosen at first."""
    versions = Version.objects.filter(project=membership.project).select_related("base")
    production = versions.in_production().first()
    return [
        SourceForm(
            request.POST if request.method == "POST" else None,
            version=version,
            initial={"use": production is not None and version.pk == production.pk},
        )
        for version in versions.order_by("-number")[:MAX_VERSIONS_OFFERED]
    ]


@login_required
def campaign_new(request: HttpRequest, slug: str) -> HttpResponse:
    """Create a campaign and have its responses written."""
    membership = get_membership(request, slug, Role.LEAD)
    posted = request.method == "POST"
    form = CampaignForm(request.POST if posted else None, project=membership.project)
    asked = ExtrasForm(request.POST if posted else None)
    sources = _source_forms(request, membership)
    context = {"form": form, "extras": asked, "sources": sources}
    template = "feedback/campaign_new.html"
    if not posted:
        return render(request, template, context)
    valid = [form.is_valid(), asked.is_valid(), *(source.is_valid() for source in sources)]
    if not all(valid):
        return refused(request, template, context, "Some fields need another look; see below.")
    data = dict(form.cleaned_data)
    data.pop("prompts")
    try:
        campaign = services.create_campaign(
            project=membership.project,
            by=membership.user,
            prompts=list(form.chosen_prompts()),
            sources=[source.source() for source in sources if source.cleaned_data["use"]],
            extras=asked.definition,
            **data | {"kind": Campaign.Kind(data["kind"])},
        )
    except (ProductError, ValidationError) as error:
        return refused(request, template, context, error)
    messages.success(request, f"“{campaign.name}” is made; its responses are being written.")
    return redirect("campaign", slug, campaign.pk)


def _campaign(request: HttpRequest, slug: str, pk: int) -> tuple[Membership, Campaign]:
    membership = get_membership(request, slug, Role.LEAD)
    rows = Campaign.objects.filter(project=membership.project).select_related("created_by")
    return membership, get_object_or_404(rows.with_progress(), pk=pk)


def _progress_context(campaign: Any) -> dict[str, Any]:
    """Return what the moving part shows; the campaign carries the counts of with_progress."""
    return {
        "campaign": campaign,
        "generating": campaign.state == Campaign.State.GENERATING,
        "judging": campaign.state == Campaign.State.OPEN
        and campaign.filled_count < campaign.slot_count,
        "annotators": quality.annotators(campaign),
        "even_share": 1 / campaign.responses_per_item,
        "order_meaning": ORDER_MEANING[campaign.queue_order],
    }


def _campaign_context(membership: Membership, campaign: Campaign) -> dict[str, Any]:
    versions = Version.objects.filter(project=membership.project).select_related("base")
    used = versions.in_bulk([source["version"] for source in campaign.sources])
    return _progress_context(campaign) | {
        "sources": [
            source | {"version": used.get(source["version"])} for source in campaign.sources
        ],
        "asked": stored(campaign.extras),
        # Snapshots are made one floor up; their rows are reached through the relation.
        "snapshots": campaign.snapshots.order_by("-id")[:10],
    }


@login_required
@require_GET
def campaign(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show a campaign: how far it is, who judged how, and what to do next."""
    membership, campaign = _campaign(request, slug, pk)
    return render(request, "feedback/campaign.html", _campaign_context(membership, campaign))


@login_required
@require_GET
def campaign_progress(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Render the moving part of the campaign page alone."""
    _, campaign = _campaign(request, slug, pk)
    return render(request, "feedback/_campaign_progress.html", _progress_context(campaign))


@login_required
@require_POST
def campaign_state(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Open, pause or close a campaign."""
    membership, campaign = _campaign(request, slug, pk)
    state = request.POST.get("state", "")
    try:
        if state not in Campaign.State.values:
            raise ProductError("A campaign can be opened, paused or closed.")
        services.set_campaign_state(
            campaign=campaign, state=Campaign.State(state), by=membership.user
        )
    except ProductError as error:
        context = _campaign_context(membership, campaign)
        return refused(request, "feedback/campaign.html", context, error)
    messages.success(request, f"“{campaign.name}” is {state} now.")
    return redirect("campaign", slug, pk)


@login_required
@require_POST
def campaign_restart(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue a failed generation again."""
    membership, campaign = _campaign(request, slug, pk)
    services.restart_generation(campaign=campaign, by=membership.user)
    messages.success(request, "The missing responses are being written again.")
    return redirect("campaign", slug, pk)


# What people said of answers


@login_required
@require_GET
def feedback_list(request: HttpRequest, slug: str) -> HttpResponse:
    """List feedback on answers, filtered by what the address says."""
    membership = get_membership(request, slug, Role.LEAD)
    rows = CompletionFeedback.objects.filter(completion__project=membership.project)
    rows = rows.select_related("completion__version", "user")
    kind, version = request.GET.get("kind", ""), request.GET.get("version", "")
    source, query = request.GET.get("source", ""), asked(request.GET, "q")
    if kind in FEEDBACK_KINDS:
        rows = rows.filter(FEEDBACK_KINDS[kind][1])
    if (number := whole(version)) is not None:
        rows = rows.filter(completion__version__number=number)
    if source in Completion.Source.values:
        rows = rows.filter(completion__source=source)
    if query:
        rows = rows.filter(
            Q(comment__icontains=query)
            | Q(correction__icontains=query)
            | Q(completion__text__icontains=query)
        )
    counts = CompletionFeedback.objects.filter(completion__project=membership.project).aggregate(
        all=Count("id"), **{key: Count("id", filter=q) for key, (_, q) in FEEDBACK_KINDS.items()}
    )
    context = {
        "page": page_of(request, rows),
        "kind": kind,
        "kinds": [(key, label, counts[key]) for key, (label, _) in FEEDBACK_KINDS.items()],
        "total": counts["all"],
        "version": version,
        "versions": Version.objects.filter(project=membership.project).order_by("-number"),
        "source": source,
        "sources": Completion.Source.choices,
        "q": query,
        "campaigns": live.open_campaigns(membership),
    }
    return render(request, "feedback/feedback_list.html", context)


class FeedbackForm(forms.Form):
    """What one person says of one answer."""

    thumb = forms.TypedChoiceField(
        label="Was it good?",
        choices=[("1", "Yes"), ("-1", "No")],
        coerce=int,
        empty_value=None,
        required=False,
        widget=forms.RadioSelect,
    )
    comment = forms.CharField(
        label="Comment",
        required=False,
        max_length=MAX_COMMENT,
        widget=forms.Textarea(attrs={"rows": 3}),
    )
    correction = forms.CharField(
        label="What it should have said",
        required=False,
        max_length=MAX_CORRECTION,
        widget=forms.Textarea(attrs={"rows": 5}),
    )
    complaint = forms.BooleanField(label="This is a complaint: somebody must look", required=False)


@login_required
def completion(request: HttpRequest, slug: str, pk: str) -> HttpResponse:
    """Show one recorded answer with what was said of it; take more of that.

    A lead sees every answer of the project, another member only their own: the rest could tell
    which model wrote what they judge.
    """
    membership = get_membership(request, slug)
    rows = Completion.objects.filter(project=membership.project)
    if not membership.may(Role.LEAD):
        rows = rows.filter(created_by=membership.user, source=Completion.Source.CHAT)
    rows = rows.select_related("version__base", "created_by", "draft")
    completion = get_object_or_404(rows, pk=pk)
    form = FeedbackForm(request.POST if request.method == "POST" else None)
    context = {
        "completion": completion,
        "said": completion.feedback.select_related("user"),
        "campaigns": live.open_campaigns(membership) if membership.may(Role.LEAD) else [],
        "form": form,
    }
    template = "feedback/feedback_completion.html"
    if request.method != "POST":
        return render(request, template, context)
    if not form.is_valid():
        return refused(request, template, context, "Some fields need another look; see below.")
    try:
        services.give_feedback(completion=completion, user=membership.user, **form.cleaned_data)
    except ProductError as error:
        return refused(request, template, context, error)
    messages.success(request, "Thank you; it is kept with the answer.")
    return redirect("completion", slug, completion.pk)
