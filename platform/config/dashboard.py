"""A project's front page: what to do next, and where the loop stands.

It lives in the composition root, for it alone looks at every floor at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib.auth.decorators import login_required
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts.access import get_membership
from accounts.models import Membership, Project, Role
from accounts.templatetags.laurel import find_url
from feedback.models import Campaign, CompletionFeedback, Judgement, Prompt
from inference.models import Alias, AliasName, Version
from training.models import Run, Snapshot

CAMPAIGNS_SHOWN = 4


@dataclass(frozen=True)
class Step:
    """One thing to do next, with the page where it is done."""

    title: str
    text: str
    action: str
    url: str


@require_safe
@never_cache
@login_required
def project(request: HttpRequest, slug: str) -> HttpResponse:
    """Show the project's state; an annotator is taken to the queue. About eleven queries."""
    membership = get_membership(request, slug)
    if not membership.may(Role.LEAD):
        return redirect("queue", slug)
    where = membership.project
    campaigns = list(
        Campaign.objects.filter(project=where)
        .exclude(state=Campaign.State.CLOSED)
        .with_progress()[:CAMPAIGNS_SHOWN]
    )
    production = (
        Alias.objects.filter(project=where, name=AliasName.PRODUCTION)
        .select_related("version__base")
        .first()
    )
    latest_run = Run.objects.filter(project=where).select_related("version").first()
    counts = {
        "prompts": Prompt.objects.filter(project=where).count(),
        "judgements": Judgement.objects.standing().filter(campaign__project=where).count(),
        "snapshots": Snapshot.objects.filter(project=where, state=Snapshot.State.READY).count(),
        "versions": Version.objects.filter(project=where).adapters().count(),
    }
    feedback = CompletionFeedback.objects.filter(completion__project=where).aggregate(
        all=Count("id"), complaints=Count("id", filter=Q(complaint=True))
    )
    context = {
        "campaigns": campaigns,
        "production": production,
        "latest_run": latest_run,
        "counts": counts,
        "feedback": feedback,
        "next": _next_step(membership, campaigns, counts, production, latest_run),
    }
    return render(request, "accounts/project.html", context)


def _next_step(
    membership: Membership,
    campaigns: list[Campaign],
    counts: dict[str, int],
    production: Alias | None,
    latest_run: Run | None,
) -> Step | None:
    """Return the next turn of the loop that waits for somebody with this role."""
    where, is_admin = membership.project, membership.may(Role.ADMIN)
    if not counts["prompts"]:
        return _step(
            where,
            "Add prompts",
            "Judging begins with questions to your models.",
            "Add prompts",
            "prompts",
        )
    if failed := next((each for each in campaigns if each.state == Campaign.State.FAILED), None):
        return _step(
            where,
            f"“{failed.name}” could not write its answers",
            failed.reason,
            "Look at it",
            "campaign",
            failed.pk,
        )
    if not counts["judgements"] and not campaigns:
        return _step(
            where,
            "Start a campaign",
            "Choose prompts and versions; people judge what the versions answer.",
            "Start a campaign",
            "campaign_new",
        )
    if latest_run and latest_run.state == Run.State.FAILED:
        return _step(
            where, f"Run {latest_run.pk} failed", latest_run.reason, "See why", "run", latest_run.pk
        )
    if latest_run and latest_run.is_live:
        return _step(
            where,
            f"Run {latest_run.pk} is {latest_run.get_state_display()}",
            "Watch its curve; the adapter appears under Versions when it is proved.",
            "Watch",
            "run",
            latest_run.pk,
        )
    return _after_judging(where, campaigns, counts, production, latest_run, is_admin=is_admin)


def _after_judging(
    where: Project,
    campaigns: list[Campaign],
    counts: dict[str, int],
    production: Alias | None,
    latest_run: Run | None,
    *,
    is_admin: bool,
) -> Step | None:
    new = latest_run.version if latest_run else None
    if (
        new is not None
        and is_admin
        and (production is None or new.number > production.version.number)
    ):
        return _step(
            where,
            f"{new.name} waits for promotion",
            "It was trained and proved, and does not serve yet.",
            f"Look at {new.name}",
            "version",
            new.pk,
        )
    newest = Judgement.objects.standing().filter(campaign__project=where).order_by("-id").first()
    taken = Snapshot.objects.filter(project=where, state=Snapshot.State.READY).first()
    if newest is not None and (taken is None or taken.created_at < newest.created_at):
        return _step(
            where,
            "New judgements are in no snapshot yet",
            "A snapshot freezes them into pairs to train on.",
            "Take a snapshot",
            "snapshots",
        )
    if counts["snapshots"] and is_admin and latest_run is None:
        return _step(
            where, "Train the first adapter", "A snapshot is ready.", "Start a run", "run_new"
        )
    open_ones = [each for each in campaigns if each.state == Campaign.State.OPEN]
    if open_ones:
        return _step(
            where,
            "People are judging",
            "Help them, or come back when the campaign is full.",
            "To the queue",
            "queue",
        )
    return _step(
        where,
        "Start the next campaign",
        "The latest judgements are in your data.",
        "Start a campaign",
        "campaign_new",
    )


def _step(where: Project, title: str, text: str, action: str, page: str, *args: int) -> Step | None:
    url = find_url(page, where.slug, *args)
    return Step(title=title, text=text, action=action, url=url) if url else None
