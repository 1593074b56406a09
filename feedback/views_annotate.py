"""The annotator's pages: the queue of campaigns, and the task in hand.

Every action is an ordinary form post. With htmx the answer is the fragment ``_task.html`` with the
next task, or a refusal aimed at the notice line; without JavaScript it is a redirect to the task
page, or the page again with what was typed.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts.access import get_membership
from accounts.errors import Conflict, ProductError
from accounts.models import Project, Role, User
from accounts.pages import whole
from feedback import assignment, code_books, extras, extras_form, obstacles
from feedback.letters import STRENGTHS
from feedback.models import MAX_COMMENT, MAX_CORRECTION, Campaign, Judgement, SkipReason
from feedback.progress import Progress, progress

LONGEST_SECONDS = 24 * 3600.0
QUESTIONS = {
    Campaign.Kind.RANKING: "Rank the answers, best first",
    Campaign.Kind.PAIRWISE: "Which answer is better?",
    Campaign.Kind.THUMBS: "Is this a good answer?",
    Campaign.Kind.RATING: "Rate each answer",
}


@dataclass(frozen=True)
class Card:
    """A response as the page shows it, with the rank given so far."""

    id: int
    index: int
    text: str
    rank: str
    asks: list[extras_form.Ask]
    letter: str  # empty where the response is the only one

    @property
    def raw_id(self) -> str:
        """Return the id of the element that holds the text as it was written."""
        return f"raw-{self.id}"


@dataclass(frozen=True)
class Ticket:
    """What names a hand-out in a form: slot, fencing token, client id."""

    slot: int
    token: int
    client_id: uuid.UUID


# Pages


@require_safe
@never_cache
@login_required
def queue(request: HttpRequest, slug: str) -> HttpResponse:
    """List the open campaigns with what is left for this person."""
    membership = get_membership(request, slug)
    rows = _in_line(membership.project, membership.user)
    context = {
        "rows": rows,
        "judged_today": sum(standing.judged_today for _, standing in rows),
        "is_lead": membership.may(Role.LEAD),
    }
    return render(request, "feedback/queue.html", context)


def _in_line(project: Project, annotator: User) -> list[tuple[Campaign, Progress]]:
    """Return the project's campaigns with one's standing, what can be worked on first."""
    states = [Campaign.State.OPEN, Campaign.State.PAUSED, Campaign.State.GENERATING]
    campaigns = list(Campaign.objects.filter(project=project, state__in=states))
    standing = progress(annotator=annotator, campaigns=[each.pk for each in campaigns])
    rows = [(campaign, standing[campaign.pk]) for campaign in campaigns]
    # Within that, the newest campaign first, as the model orders.
    return sorted(rows, key=lambda row: not _has_work(*row))


def _has_work(campaign: Campaign, standing: Progress) -> bool:
    return campaign.state == Campaign.State.OPEN and bool(standing.left)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def task(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show the task in hand, claiming one if there is none; a post submits it."""
    campaign, annotator = _campaign(request, slug, pk)
    if request.method == "POST":
        return _submit(request, campaign, annotator)
    return _show(request, campaign, annotator)


@require_POST
@never_cache
@login_required
def task_skip(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Give the task back with a reason and show the next one."""
    campaign, annotator = _campaign(request, slug, pk)
    try:
        ticket = _ticket(request.POST)
        reason = request.POST.get("reason", "")
        if reason not in SkipReason.values:
            raise ProductError("Choose why you skip this task.")
        assignment.skip(
            slot_id=ticket.slot,
            token=ticket.token,
            annotator=annotator,
            reason=SkipReason(reason),
            note=_text(request.POST, "note"),
        )
    except ProductError as error:
        return _refuse(request, campaign, annotator, error)
    return _next(request, campaign, annotator, done=ticket, said="Skipped.")


@require_POST
@never_cache
@login_required
def task_undo(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Take the last judgement back and show its task again with the answer it had."""
    campaign, annotator = _campaign(request, slug, pk)
    try:
        undone = assignment.undo(campaign=campaign, annotator=annotator)
    except ProductError as error:
        return _refuse(request, campaign, annotator, error, holds=True)
    if not request.htmx:  # type: ignore[attr-defined]
        return redirect("task", slug, pk)
    before = (
        Judgement.objects.filter(slot=undone.slot, annotator=annotator)
        .exclude(retracted_at=None)
        .latest("retracted_at")
    )
    return _show(
        request, campaign, annotator, task=undone, given=_given(before), said="Taken back."
    )


@require_POST
@login_required
def task_renew(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Extend the lease: the page's heartbeat."""
    _, annotator = _campaign(request, slug, pk)
    try:
        ticket = _ticket(request.POST)
        assignment.renew(slot_id=ticket.slot, token=ticket.token, annotator=annotator)
    except ProductError as error:
        return HttpResponse(error.message, status=error.status_code, content_type="text/plain")
    return HttpResponse(status=204)


@require_POST
@login_required
def task_confirm(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Keep that the annotator has read the code book, and go on."""
    campaign, annotator = _campaign(request, slug, pk)
    number = whole(request.POST.get("code_book", ""))
    book = get_object_or_404(campaign.code_books, number=number or 0)
    try:
        code_books.confirm(code_book=book, annotator=annotator)
    except Conflict as error:
        messages.error(request, error.message)
    return redirect("task", slug, pk)


# How a post is answered


def _submit(request: HttpRequest, campaign: Campaign, annotator: User) -> HttpResponse:
    resent = "resend" in request.POST
    try:
        ticket = _ticket(request.POST)
        assignment.submit(
            slot_id=ticket.slot,
            token=ticket.token,
            client_id=ticket.client_id,
            annotator=annotator,
            answer=read_answer(request.POST, campaign),
        )
    except ProductError as error:
        if resent:
            return HttpResponse(error.message, status=error.status_code, content_type="text/plain")
        return _refuse(request, campaign, annotator, error)
    if resent:
        # A judgement that an earlier page could not send: nobody waits for the next task.
        return HttpResponse(status=204)
    return _next(request, campaign, annotator, done=ticket, said="Saved.")


def _next(
    request: HttpRequest, campaign: Campaign, annotator: User, *, done: Ticket, said: str
) -> HttpResponse:
    if not request.htmx:  # type: ignore[attr-defined]
        return redirect("task", campaign.project.slug, campaign.pk)
    response = _show(request, campaign, annotator, said=said)
    # The page drops its local copy only on this word.
    response["X-Laurel-Done"] = str(done.client_id)
    return response


def _refuse(
    request: HttpRequest,
    campaign: Campaign,
    annotator: User,
    error: ProductError,
    *,
    holds: bool = False,
) -> HttpResponse:
    """Say what was wrong; a conflict means that the task in hand is lost, unless one ``holds``."""
    lost = isinstance(error, Conflict) and not holds
    if request.htmx:  # type: ignore[attr-defined]
        response = render(
            request,
            "feedback/_task_notice.html",
            {"error": error.message, "lost": lost, "campaign": campaign},
            status=error.status_code,
        )
        response["HX-Retarget"] = "#task-notice"
        response["HX-Reswap"] = "innerHTML"
        return response
    return _show(
        request,
        campaign,
        annotator,
        given=None if lost else request.POST.dict(),
        error=error.message,
        kept=_kept(request.POST) if lost else "",
        status=error.status_code,
    )


def _show(
    request: HttpRequest,
    campaign: Campaign,
    annotator: User,
    *,
    task: assignment.Task | None = None,
    given: dict[str, str] | None = None,
    said: str = "",
    error: str = "",
    kept: str = "",
    status: int = 200,
) -> HttpResponse:
    """Render the task in hand: the fragment for htmx, the whole page otherwise."""
    task = task or assignment.claim(campaign=campaign, annotator=annotator)
    standing = progress(annotator=annotator, campaigns=[campaign.pk])[campaign.pk]
    context = {
        "campaign": campaign,
        "task": task,
        "progress": standing,
        "day_total": standing.judged_today + standing.left,
        "undoable": assignment.last_undoable(campaign=campaign, annotator=annotator),
        "skip_reasons": SkipReason.choices,
        "said": said,
        "error": error,
        "kept": kept,
        **(
            _task_context(task, campaign, given or {})
            if task
            else _idle_context(campaign, annotator)
        ),
    }
    template = "feedback/_task.html" if request.htmx else "feedback/task.html"  # type: ignore[attr-defined]
    return render(request, template, context, status=status)


def _idle_context(campaign: Campaign, annotator: User) -> dict[str, Any]:
    """Return why there is no task, and the campaign that has one."""
    rows = _in_line(campaign.project, annotator)
    others = (each for each, standing in rows if each != campaign and _has_work(each, standing))
    return {
        "obstacle": obstacles.obstacle(campaign=campaign, annotator=annotator),
        "elsewhere": next(others, None),
    }


def _task_context(
    task: assignment.Task, campaign: Campaign, given: dict[str, str]
) -> dict[str, Any]:
    asked = extras.stored(campaign.extras)
    turns = task.turns
    return {
        "question": QUESTIONS[Campaign.Kind(campaign.kind)],
        "documents": task.documents,
        "earlier": turns[:-1],
        "prompt": turns[-1],
        "cards": [
            Card(
                id=response.pk,
                index=index,
                text=response.text,
                rank=given.get(f"rank-{response.pk}", ""),
                asks=extras_form.asks(asked, response_id=response.pk, given=given),
                letter=chr(ord("A") + index) if len(task.responses) > 1 else "",
            )
            for index, response in enumerate(task.responses)
        ],
        "ranks": [str(rank) for rank in range(1, len(task.responses) + 1)],
        "given": given,
        "strengths": [(str(value), label) for value, label in STRENGTHS.items()],
        "asked": asked,
        "reasons": [
            (f"reason-{reason.key}", reason.label, f"reason-{reason.key}" in given)
            for reason in asked.reasons
        ],
        "max_comment": MAX_COMMENT,
        "max_correction": MAX_CORRECTION,
        "lease_seconds": settings.LEASE_SECONDS,
    }


# Reading a form


def _campaign(request: HttpRequest, slug: str, pk: int) -> tuple[Campaign, User]:
    membership = get_membership(request, slug)
    campaign = (
        Campaign.objects.select_related("project").filter(project=membership.project, pk=pk).first()
    )
    if campaign is None:
        raise Http404
    return campaign, membership.user


def _text(data: QueryDict, name: str) -> str:
    # Browsers send line ends as CRLF; the database cannot hold a NUL.
    return data.get(name, "").replace("\r\n", "\n").replace("\x00", "")


def _kept(data: QueryDict) -> str:
    """Return what somebody wrote, for a page that can no longer take it."""
    return "\n\n".join(filter(None, (_text(data, "comment"), _text(data, "correction"))))


def _ticket(data: QueryDict) -> Ticket:
    try:
        slot, token = int(data.get("slot", "")), int(data.get("token", ""))
        client_id = uuid.UUID(data.get("client_id", ""))
    except ValueError:
        raise ProductError(
            "This form does not say which task it is for. Reload the page."
        ) from None
    if not (0 < slot < 2**63 and 0 <= token < 2**31):
        raise ProductError("This form does not say which task it is for. Reload the page.")
    return Ticket(slot=slot, token=token, client_id=client_id)


def read_answer(data: QueryDict, campaign: Campaign) -> assignment.Answer:
    """Return what a task form says; ProductError with a sentence for its reader."""
    clean = {name: _text(data, name) for name in data}
    kind = campaign.kind
    beside = extras_form.read(clean) | {
        "comment": clean.get("comment", "").strip(),
        "seconds": _seconds(data.get("seconds", "")),
    }
    if kind == Campaign.Kind.RATING:
        return assignment.Answer(**beside)
    if kind == Campaign.Kind.THUMBS:
        if data.get("thumb") not in ("1", "-1"):
            raise ProductError("Choose good or bad first.")
        return assignment.Answer(thumb=int(data.get("thumb", "")), **beside)
    if kind == Campaign.Kind.PAIRWISE:
        return assignment.Answer(**_read_choice(data), **beside)
    ranks = {name: value for name, value in clean.items() if name.startswith("rank-")}
    if not ranks or not all(ranks.values()):
        raise ProductError("Give every answer its place first.")
    try:
        by_rank: dict[int, list[int]] = {}
        for name, value in ranks.items():
            by_rank.setdefault(int(value), []).append(int(name.removeprefix("rank-")))
    except ValueError:
        raise ProductError("A place is a number from 1. Choose one for every answer.") from None
    return assignment.Answer(ranking=[by_rank[rank] for rank in sorted(by_rank)], **beside)


def _read_choice(data: QueryDict) -> dict[str, Any]:
    try:
        both = [int(value) for value in data.getlist("response")]
        choice = data.get("choice", "")
        winner = None if choice in ("tie", "both_bad") else int(choice)
        strength = int(data.get("strength", "")) if data.get("strength") else None
    except ValueError:
        raise ProductError("Choose the better answer, a tie, or both bad first.") from None
    if winner is None:
        return {"ranking": [both], "both_bad": choice == "both_bad"}
    losers = [response for response in both if response != winner]
    return {"ranking": [[winner], losers], "strength": strength}


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    if not math.isfinite(seconds) or seconds < 0:
        return None
    return min(seconds, LONGEST_SECONDS)


def _given(judgement: Judgement) -> dict[str, str]:
    """Return the form fields that would give this judgement."""
    given = {"comment": judgement.comment} | extras_form.fields(judgement)
    if judgement.thumb is not None:
        return given | {"thumb": str(judgement.thumb)}
    groups: list[list[int]] = judgement.ranking or []
    for rank, group in enumerate(groups, start=1):
        given |= {f"rank-{response}": str(rank) for response in group}
    if judgement.strength:
        given["strength"] = str(judgement.strength)
    if len(groups) == 1:
        given["choice"] = "both_bad" if judgement.both_bad else "tie"
    elif groups:
        given["choice"] = str(groups[0][0])
    return given
