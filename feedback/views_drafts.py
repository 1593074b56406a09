"""Pages on which leads order drafts and decide them, one after the other and by keyboard."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Membership, Role
from accounts.pages import asked, page_of, refused, sentence, whole
from feedback import drafts as service
from feedback import drafts_undo, live
from feedback.forms_drafts import DraftsForm
from feedback.models import Campaign, Prompt
from feedback.models_drafts import Draft, DraftQuerySet, DraftRequest

# Orders shown above the list: those that are being written, and a few more.
ORDERS_SHOWN = 5


def _number(value: str) -> int:
    return whole(value) or 0


# The list


def _filtered(request: HttpRequest, membership: Membership) -> DraftQuerySet:
    """Return the project's drafts that the address asks for by kind and order."""
    rows = Draft.objects.of(membership.project)
    kind, order = request.GET.get("kind", ""), request.GET.get("request", "")
    if kind in DraftRequest.Kind.values:
        rows = rows.filter(request__kind=kind)
    if order:
        rows = rows.filter(request=_number(order))
    return rows


def _filters(request: HttpRequest, **changes: str) -> str:
    """Return the part of the address that narrows the review, to be kept from draft to draft."""
    given = request.GET.dict() | changes
    kept = {name: given[name] for name in ("kind", "request", "campaign") if given.get(name)}
    return f"?{urlencode(kept)}" if kept else ""


def _orders_context(membership: Membership) -> dict[str, Any]:
    orders = DraftRequest.objects.filter(project=membership.project).with_counts()
    shown = list(orders.select_related("version__base", "by")[:ORDERS_SHOWN])
    generating = any(one.state == DraftRequest.State.GENERATING for one in shown)
    return {"orders": shown, "generating": generating}


@login_required
@require_GET
def drafts(request: HttpRequest, slug: str) -> HttpResponse:
    """List drafts by state; put approved answers into a campaign."""
    membership = get_membership(request, slug, Role.LEAD)
    rows = _filtered(request, membership)
    states = {state: Count("id", filter=Q(state=state)) for state in Draft.State.values}
    counts = rows.aggregate(all=Count("id"), **states)
    state = request.GET.get("state", "")
    if state in Draft.State.values:
        rows = rows.filter(state=state)
    unplaced = Draft.objects.of(membership.project).unplaced()
    rows = rows.select_related(
        "request__version", "completion", "decided_by", "prompt", "made_prompt", "response__item"
    )
    context = {
        "page": page_of(request, rows.order_by("-id")),
        "state": state,
        "kind": request.GET.get("kind", ""),
        "request_id": request.GET.get("request", ""),
        "kinds": DraftRequest.Kind.choices,
        "states": [(name, counts[name]) for name in Draft.State.values],
        "total": counts["all"],
        "pending": counts["pending"],
        "filters": _filters(request),
        "unplaced": unplaced.count(),
        "campaigns": live.open_campaigns(membership),
        "undoable": drafts_undo.last_undoable(project=membership.project, by=membership.user),
    }
    return render(request, "feedback/drafts.html", context | _orders_context(membership))


@login_required
@require_GET
def drafts_progress(request: HttpRequest, slug: str) -> HttpResponse:
    """Render the orders alone, while drafts are written."""
    membership = get_membership(request, slug, Role.LEAD)
    return render(request, "feedback/_draft_orders.html", _orders_context(membership))


@login_required
def drafts_new(request: HttpRequest, slug: str) -> HttpResponse:
    """Order drafts."""
    membership = get_membership(request, slug, Role.LEAD)
    form = DraftsForm(request.POST or None, project=membership.project)
    template = "feedback/drafts_new.html"
    if request.method != "POST":
        return render(request, template, {"form": form})
    if not form.is_valid():
        text = "Some fields need another look; see below."
        return refused(request, template, {"form": form}, text)
    try:
        made = service.request_drafts(
            project=membership.project, by=membership.user, **form.order()
        )
    except (ProductError, ValidationError) as error:
        return refused(request, template, {"form": form}, error)
    messages.success(request, f"{made.wanted} drafts are being written. Review them as they come.")
    return redirect("drafts", slug)


@login_required
@require_POST
def drafts_restart(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Have the missing drafts of a failed order written."""
    membership = get_membership(request, slug, Role.LEAD)
    rows = DraftRequest.objects.select_related("version__base", "project")
    try:
        service.restart(
            request=get_object_or_404(rows, project=membership.project, pk=pk), by=membership.user
        )
        messages.success(request, "The missing drafts are being written again.")
    except ProductError as error:
        messages.error(request, sentence(error))
    return redirect("drafts", slug)


@login_required
@require_POST
def drafts_place(request: HttpRequest, slug: str) -> HttpResponse:
    """Put all approved answers that are in no campaign yet into one."""
    membership = get_membership(request, slug, Role.LEAD)
    campaign = get_object_or_404(
        live.open_campaigns(membership), pk=_number(request.POST.get("campaign", ""))
    )
    unplaced = list(Draft.objects.of(membership.project).unplaced())
    try:
        sent = service.place(campaign=campaign, drafts=unplaced, by=membership.user)
    except ProductError as error:
        messages.error(request, sentence(error))
        return redirect("drafts", slug)
    text = f"Put into “{campaign.name}”: {sent.items} new to judge."
    if sent.already:
        text += f" It had {sent.already} of these prompts already."
    messages.success(request, text)
    return redirect("campaign", slug, campaign.pk)


# One after the other


def _draft(request: HttpRequest, slug: str, pk: int) -> tuple[Membership, Draft]:
    membership = get_membership(request, slug, Role.LEAD)
    rows = Draft.objects.of(membership.project).select_related(
        "request__version__base", "request__by", "completion", "decided_by",
        "prompt", "made_prompt", "response__item__campaign",
    )  # fmt: skip
    return membership, get_object_or_404(rows, pk=pk)


def _after(request: HttpRequest, membership: Membership, pk: int) -> Draft | None:
    """Return what is reviewed after a draft: the next, else the first that is left."""
    pending = _filtered(request, membership).pending().exclude(pk=pk)
    return pending.filter(pk__gt=pk).first() or pending.first()


def _draft_context(request: HttpRequest, membership: Membership, draft: Draft) -> dict[str, Any]:
    shown = Prompt.objects.filter(project=membership.project).in_bulk(draft.examples)
    pending = _filtered(request, membership).pending()
    return {
        "draft": draft,
        "is_prompt": draft.request.kind == DraftRequest.Kind.PROMPT,
        "examples": [shown[pk] for pk in draft.examples if pk in shown],
        "left": pending.count(),
        "after": _after(request, membership, draft.pk),
        "filters": _filters(request),
        "campaigns": live.open_campaigns(membership),
        "campaign_id": _number(request.GET.get("campaign", "")),
        "edited_turns": None,
        "undoable": drafts_undo.last_undoable(project=membership.project, by=membership.user),
    }


def review_url(slug: str, draft: Draft | None, filters: str = "") -> str:
    """Return where to go on reviewing: the draft, or the list when none is left."""
    if draft is None:
        return reverse("drafts", args=[slug]) + filters
    return reverse("draft", args=[slug, draft.pk]) + filters


@login_required
@require_GET
def drafts_review(request: HttpRequest, slug: str) -> HttpResponse:
    """Go to the first draft to review."""
    membership = get_membership(request, slug, Role.LEAD)
    first = _filtered(request, membership).pending().first()
    if first is None:
        messages.info(request, "Nothing is left to review here.")
    return redirect(review_url(slug, first, _filters(request)))


@login_required
def draft(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show a draft with where it came from; a post decides it and goes on to the next."""
    membership, found = _draft(request, slug, pk)
    template = "feedback/draft.html"
    if request.method != "POST":
        return render(request, template, _draft_context(request, membership, found))
    act = request.POST.get("act", "")
    chosen = _number(request.POST.get("campaign", ""))
    try:
        if act == "reject":
            service.reject(draft=found, by=membership.user, why=asked(request.POST, "why"))
            said = f"Draft {found.pk} is rejected."
        elif act in ("approve", "edit"):
            campaign: Campaign | None = None
            if chosen:
                campaign = get_object_or_404(live.open_campaigns(membership), pk=chosen)
            service.approve(
                draft=found,
                by=membership.user,
                instead=_edited(request, found) if act == "edit" else None,
                campaign=campaign,
            )
            said = f"Draft {found.pk} is approved" + (" as edited." if act == "edit" else ".")
        else:
            raise ProductError("Approve, edit or reject the draft.")
    except (ProductError, ValidationError) as error:
        membership, found = _draft(request, slug, pk)  # as it is now, for whoever came second
        context = _draft_context(request, membership, found) | {"campaign_id": chosen}
        if act == "edit" and found.state == Draft.State.PENDING:
            context["edited_turns"] = _typed(request, found)
        return refused(request, template, context, error)
    messages.success(request, said)
    filters = _filters(request, campaign=str(chosen or ""))
    return redirect(review_url(slug, _after(request, membership, pk), filters))


@login_required
@require_POST
def draft_undo(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Take back what was just decided of a draft, and show it again."""
    membership, found = _draft(request, slug, pk)
    try:
        drafts_undo.undo(draft=found, by=membership.user)
        messages.success(request, f"Draft {pk} waits for a decision again.")
    except ProductError as error:
        messages.error(request, sentence(error))
    return redirect(review_url(slug, found, _filters(request)))


def _typed(request: HttpRequest, draft: Draft) -> list[dict[str, str]]:
    """Return the turns as they were typed; the roles are the draft's."""
    typed = [request.POST.get(f"turn-{number}", "") for number in range(len(draft.turns))]
    return [
        {"role": turn["role"], "content": text.replace("\r\n", "\n")}
        for turn, text in zip(draft.turns, typed, strict=True)
    ]


def _edited(request: HttpRequest, draft: Draft) -> Any:
    turns = _typed(request, draft)
    return turns if draft.request.kind == DraftRequest.Kind.PROMPT else turns[0]["content"]
