"""Pages of rounds: several methods and settings on one snapshot, ranked."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Membership, Role
from accounts.pages import page_of, refused
from training import rounds
from training.forms import RoundForm
from training.models import Round, Snapshot

LOOK_AGAIN = "Some fields need another look; see below."


@login_required
@require_GET
def round_index(request: HttpRequest, slug: str) -> HttpResponse:
    """List rounds."""
    membership = get_membership(request, slug, Role.LEAD)
    rows = Round.objects.filter(project=membership.project)
    rows = rows.select_related("snapshot", "created_by").prefetch_related("runs")
    return render(request, "training/rounds.html", {"page": page_of(request, rows)})


@login_required
def round_new(request: HttpRequest, slug: str) -> HttpResponse:
    """Start a round of several runs by one action."""
    membership = get_membership(request, slug, Role.ADMIN)
    data = request.POST if request.method == "POST" else None
    initial = {"snapshot": request.GET.get("snapshot")}
    form = RoundForm(data, project=membership.project, initial=initial)
    ready = Snapshot.objects.filter(project=membership.project).usable().learnable()
    context = {"form": form, "has_snapshot": ready.exists()}
    template = "training/round_new.html"
    if data is None:
        return render(request, template, context)
    if not form.is_valid():
        return refused(request, template, context, LOOK_AGAIN)
    given = form.cleaned_data
    try:
        entries = (
            rounds.suite(given["arguments"])
            if given["suite"]
            else rounds.expand(given["methods"], arguments=given["arguments"], grid=given["grid"])
        )
        started = rounds.start_round(
            snapshot=given["snapshot"],
            start_version=given["start_version"],
            entries=entries,
            name=given["name"],
            seed=given["seed"],
            first_steps=given["first_steps"] or 0,
            by=membership.user,
        )
    except (ProductError, ValidationError) as error:
        return refused(request, template, context, error)
    messages.success(request, f"Round {started.pk} is queued with {started.runs.count()} runs.")
    return redirect("round", slug, started.pk)


def _round(
    request: HttpRequest, slug: str, pk: int, role: Role = Role.LEAD
) -> tuple[Membership, Round]:
    membership = get_membership(request, slug, role)
    rows = Round.objects.filter(project=membership.project)
    rows = rows.select_related("project", "snapshot", "start_version", "created_by")
    return membership, get_object_or_404(rows, pk=pk)


def _round_context(found: Round) -> dict[str, Any]:
    outcomes = rounds.outcomes(found)
    return {
        "round": found,
        "state": found.state,
        "outcomes": outcomes,
        "hardware": sorted({row.hardware for row in outcomes if row.hardware}),
    }


@login_required
@require_GET
def round_page(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show a round: its outcomes, the best first."""
    _, found = _round(request, slug, pk)
    return render(request, "training/round.html", _round_context(found))


@login_required
@require_GET
def round_body(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Render the table alone; once the round has ended, have the whole page loaded."""
    _, found = _round(request, slug, pk)
    context = _round_context(found)
    response = render(request, "training/_round_body.html", context)
    if context["state"] != "running":
        response["HX-Refresh"] = "true"
    return response


@login_required
@require_POST
def round_cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Cancel what has not ended of a round."""
    membership, found = _round(request, slug, pk, Role.ADMIN)
    try:
        rounds.cancel_round(round=found, by=membership.user)
    except ProductError as error:
        return refused(request, "training/round.html", _round_context(found), error)
    messages.success(request, f"Round {found.pk} is cancelled; its runs stop within one step.")
    return redirect("round", slug, pk)
