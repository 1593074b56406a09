"""Pages of single judgements: the list of a campaign, one of them whole, and what was skipped."""

from __future__ import annotations

import uuid

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from accounts.access import get_membership
from accounts.models import Membership, Role, User
from accounts.pages import asked, page_of
from accounts.templatetags.laurel import letter
from feedback import judgements, letters
from feedback.changes import words
from feedback.models import Campaign, Judgement, Skip


def _campaign(request: HttpRequest, slug: str, pk: int) -> tuple[Membership, Campaign]:
    membership = get_membership(request, slug, Role.LEAD)
    rows = Campaign.objects.select_related("project")
    return membership, get_object_or_404(rows, project=membership.project, pk=pk)


@login_required
@require_GET
def judgement_list(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """List a campaign's judgements, filtered by what the address says."""
    _, campaign = _campaign(request, slug, pk)
    kind, annotator = asked(request.GET, "kind"), asked(request.GET, "annotator")
    says, query = asked(request.GET, "says"), asked(request.GET, "q")
    rows = judgements.search(
        Judgement.objects.select_related("annotator", "item__prompt", "slot"),
        campaign=campaign,
        kind=kind,
        says=says,
        annotator=annotator,
        prompt=query,
    )
    page = page_of(request, rows.order_by("-id"))
    judged = User.objects.filter(judgements__campaign=campaign).distinct()
    context = {
        "campaign": campaign,
        "page": page,
        "rows": [
            (one, letters.said(one, {shown: letter(n) for n, shown in enumerate(one.shown)}))
            for one in page
        ],
        "kind": kind,
        "kinds": [(key, label) for key, (label, _) in judgements.KINDS.items()],
        "says": says,
        "sayings": [(key, label) for key, (label, _) in judgements.sayings(campaign).items()],
        "annotator": annotator,
        "annotators": judged.order_by("username"),
        "q": query,
    }
    return render(request, "feedback/judgement_list.html", context)


@login_required
@require_GET
def judgement(request: HttpRequest, slug: str, pk: int, key: uuid.UUID) -> HttpResponse:
    """Show one judgement whole: what was asked, shown, chosen and written."""
    _, campaign = _campaign(request, slug, pk)
    rows = Judgement.objects.select_related(
        "annotator", "campaign", "item__prompt", "slot", "retracted_by"
    )
    found = judgements.whole(get_object_or_404(rows, campaign=campaign, client_id=key))
    context = {
        "campaign": campaign,
        "whole": found,
        "judgement": found.judgement,
        "added": words(found.changes, "ins"),
        "removed": words(found.changes, "del"),
    }
    return render(request, "feedback/judgement.html", context)


@login_required
@require_GET
def skip_list(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """List which items annotators gave back, and why."""
    _, campaign = _campaign(request, slug, pk)
    rows = Skip.objects.filter(item__campaign=campaign).order_by("-id")
    context = {
        "campaign": campaign,
        "page": page_of(request, rows.select_related("annotator", "item__prompt")),
        "kinds": [(key, label) for key, (label, _) in judgements.KINDS.items()],
    }
    return render(request, "feedback/skip_list.html", context)
