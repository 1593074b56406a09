"""Pages of retractions: see what would be touched, take it back, make it again without."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Membership, Project, Role, User
from accounts.pages import page_of, refused, whole
from feedback.models import Campaign, Judgement, Prompt
from training import retraction as service
from training.models import Retraction, Snapshot
from training.subjects import find_subject


class RetractForm(forms.Form):
    """What of it is taken back, why, and whether its texts go, too."""

    campaign = forms.ModelChoiceField(
        queryset=Campaign.objects.none(), required=False, empty_label="all campaigns"
    )
    why = forms.CharField(
        max_length=service.MAX_WHY, help_text="Kept in the audit trail and with each judgement."
    )
    erase = forms.BooleanField(
        required=False,
        label="Erase the texts, too",
        help_text="What was written goes for good, and the files of the snapshots with it. Counts "
        "stay. Trained weights cannot forget: stop serving them, or train again.",
    )

    def __init__(self, *args: Any, subject: service.Subject, project: Project, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(subject, User):
            del self.fields["campaign"]
            return
        field = self.fields["campaign"]
        assert isinstance(field, forms.ModelChoiceField)
        judged = Judgement.objects.filter(annotator=subject).values("campaign")
        field.queryset = Campaign.objects.filter(project=project, pk__in=judged)


def _subject(membership: Membership, kind: str, key: str) -> service.Subject:
    if kind not in Retraction.Kind.values:
        raise Http404
    subject = find_subject(membership.project, kind, key)
    assert isinstance(subject, Judgement | User | Prompt)
    return subject


def _title(subject: service.Subject) -> str:
    if isinstance(subject, User):
        return f"the judgements of {subject.username}"
    return "a prompt" if isinstance(subject, Prompt) else "a judgement"


@login_required
def retract(request: HttpRequest, slug: str, kind: str, key: str) -> HttpResponse:
    """Show what a retraction would touch; do it."""
    membership = get_membership(request, slug, Role.ADMIN)
    project = membership.project
    subject = _subject(membership, kind, key)
    form = RetractForm(request.POST or None, subject=subject, project=project)
    campaign = form.cleaned_data.get("campaign") if form.is_bound and form.is_valid() else None
    if not form.is_bound and (number := whole(request.GET.get("campaign", ""))):
        campaign = Campaign.objects.filter(project=project, pk=number).first()
        form.initial["campaign"] = campaign
    context = {
        "title": _title(subject),
        "kind": kind,
        "key": key,
        "prompt": subject if isinstance(subject, Prompt) else None,
        "form": form,
        "affected": service.affected_by(project=project, subject=subject, campaign=campaign),
    }
    template = "training/retract.html"
    if request.method != "POST":
        return render(request, template, context)
    if not form.is_valid():
        return refused(request, template, context, "Say why it is taken back.")
    try:
        made = service.retract(
            project=project,
            subject=subject,
            campaign=campaign,
            why=form.cleaned_data["why"],
            erase=form.cleaned_data["erase"],
            by=membership.user,
        )
    except ProductError as error:
        return refused(request, template, context, error)
    messages.success(request, f"{made.judgements:,} judgements were retracted.")
    return redirect("retraction", slug, made.pk)


@login_required
@require_GET
def retraction_index(request: HttpRequest, slug: str) -> HttpResponse:
    """List what was taken back."""
    membership = get_membership(request, slug, Role.LEAD)
    rows = Retraction.objects.filter(project=membership.project).select_related(
        "annotator", "campaign", "judgement", "prompt", "by"
    )
    return render(request, "training/retractions.html", {"page": page_of(request, rows)})


def _context(membership: Membership, pk: int) -> dict[str, Any]:
    rows = Retraction.objects.select_related(
        "annotator", "campaign", "judgement", "prompt", "by", "rebuild_by"
    )
    found = get_object_or_404(rows, pk=pk, project=membership.project)
    snapshots = found.snapshots.select_related("replaced_by")
    return {
        "retraction": found,
        "snapshots": snapshots,
        "runs": found.runs.select_related("version", "replaced_by__version", "snapshot"),
        "versions": found.versions.prefetch_related("aliases").order_by("number"),
        "waiting": found.rebuild_state == "running",
        "to_rebuild": found.rebuild_at is None
        and any(row.standing in ("stale", Snapshot.State.ERASED) for row in snapshots),
    }


@login_required
@require_GET
def retraction(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show one retraction, what it touched, and what replaces it."""
    membership = get_membership(request, slug, Role.LEAD)
    return render(request, "training/retraction.html", _context(membership, pk))


@login_required
@require_GET
def retraction_body(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Render what is being made again alone; once it is done, have the whole page loaded."""
    context = _context(get_membership(request, slug, Role.LEAD), pk)
    response = render(request, "training/_retraction_body.html", context)
    if not context["waiting"]:
        response["HX-Refresh"] = "true"
    return response


@login_required
@require_POST
def rebuild(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue the affected snapshots and runs anew; a second click changes nothing."""
    membership = get_membership(request, slug, Role.ADMIN)
    found = get_object_or_404(Retraction, pk=pk, project=membership.project)
    service.rebuild(retraction=found, by=membership.user)
    messages.success(request, "The snapshots are built again; their runs follow.")
    return redirect("retraction", slug, pk)
