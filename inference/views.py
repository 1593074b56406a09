"""Pages of versions, of the aliases that serve them, and of the chat."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
)
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Membership, Role
from accounts.pages import asked, ordered, page_of, refused, whole
from accounts.parsing import Unreadable, read_json
from inference import gateway, services
from inference.models import Alias, AliasMove, AliasName, Completion, Version

MOVES_ON_PAGE = 8
VERSION_COLUMNS = {"number": "number", "method": "method", "base": "base__name"}
MAX_WHY = 500
DEFAULT_CHAT = {"temperature": 0.7, "max_tokens": 256}


# Versions and aliases


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What an alias names now, since when, and what a roll-back would bring back."""

    alias: Alias
    since: AliasMove | None
    before: Version | None


def _serving(membership: Membership) -> list[Serving]:
    """Return the project's aliases; three queries for each of at most two."""
    rows = Alias.objects.filter(project=membership.project).select_related("version__base")
    return [
        Serving(
            alias=alias,
            since=alias.moves.select_related("by").first(),
            before=services.version_before(alias),
        )
        for alias in rows
    ]


def _moves(membership: Membership) -> Any:
    return AliasMove.objects.filter(alias__project=membership.project).select_related(
        "alias", "from_version", "to_version", "by"
    )


def _versions_context(request: HttpRequest, membership: Membership) -> dict[str, Any]:
    rows = Version.objects.filter(project=membership.project)
    # Runs and evaluations live one floor up; their rows are reached through the relations.
    rows = rows.select_related("base", "parent").prefetch_related("aliases", "evaluations", "runs")
    rows, sort = ordered(request, rows, VERSION_COLUMNS, default="-number")
    page = page_of(request, rows)
    for version in page:
        done = (each for each in version.evaluations.all() if each.result.get("win_rate"))
        version.newest_result = next(done, None)
    return {
        "page": page,
        "sort": sort,
        "serving": _serving(membership),
        "moves": _moves(membership)[:MOVES_ON_PAGE],
    }


@login_required
@require_GET
def versions(request: HttpRequest, slug: str) -> HttpResponse:
    """List versions with where they serve, and the newest lines of the alias ledger."""
    membership = get_membership(request, slug, Role.LEAD)
    return render(request, "inference/versions.html", _versions_context(request, membership))


@login_required
@require_GET
def alias_ledger(request: HttpRequest, slug: str) -> HttpResponse:
    """List every move of every alias."""
    membership = get_membership(request, slug, Role.LEAD)
    context = {"page": page_of(request, _moves(membership))}
    return render(request, "inference/ledger.html", context)


@dataclass(frozen=True, kw_only=True)
class ArtifactFile:
    """One file of a version's folder."""

    name: str
    size: int


def _files(version: Version) -> list[ArtifactFile] | None:
    """Return the adapter's files, or None when its folder is gone."""
    if version.is_base:
        return []
    try:
        paths = sorted(path for path in version.folder.iterdir() if path.is_file())
    except OSError:
        return None
    return [ArtifactFile(name=path.name, size=path.stat().st_size) for path in paths]


def _version(request: HttpRequest, slug: str, pk: int, role: Role) -> tuple[Membership, Version]:
    membership = get_membership(request, slug, role)
    rows = Version.objects.filter(project=membership.project).select_related(
        "base", "parent", "created_by"
    )
    return membership, get_object_or_404(rows, pk=pk)


def _version_context(membership: Membership, version: Version) -> dict[str, Any]:
    serving = _serving(membership)
    return {
        "version": version,
        "run": version.runs.select_related("snapshot", "created_by").first(),
        "here": [row for row in serving if row.alias.version_id == version.pk],
        "elsewhere": [row for row in serving if row.alias.version_id != version.pk],
        "verdict": services.verdict(version),
        "canary_free": all(row.alias.name != AliasName.CANARY for row in serving),
        "evaluations": version.evaluations.select_related("champion")[:10],
        "defences": version.defences.select_related("challenger")[:10],
        "children": version.children.order_by("number"),
        "moves": _moves(membership).filter(to_version=version)
        | _moves(membership).filter(from_version=version),
        "files": _files(version),
        "answers": version.completions.count(),
    }


@login_required
@require_GET
def version(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show a version's passport: who, from what, trained on what, how good, where it serves."""
    membership, version = _version(request, slug, pk, Role.LEAD)
    return render(request, "inference/version.html", _version_context(membership, version))


def _alias_name(request: HttpRequest) -> AliasName:
    name = request.POST.get("alias", AliasName.PRODUCTION)
    if name not in AliasName.values:
        raise ProductError(f"Choose an alias: {', '.join(AliasName.values)}.")
    return AliasName(name)


def _why(request: HttpRequest) -> str:
    why = asked(request.POST, "why")
    if len(why) > MAX_WHY:
        raise ProductError(f"The reason has {len(why)} characters; {MAX_WHY} is the most.")
    return why


@login_required
@require_POST
def version_promote(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Put the version behind an alias."""
    membership, version = _version(request, slug, pk, Role.ADMIN)
    try:
        move = services.promote(
            project=membership.project,
            version=version,
            by=membership.user,
            why=_why(request),
            alias_name=_alias_name(request),
        )
    except ProductError as error:
        context = _version_context(membership, version) | {"why": request.POST.get("why", "")}
        return refused(request, "inference/version.html", context, error)
    messages.success(
        request,
        f"{move.alias.name} is {version.name} now; the move took {move.milliseconds:.0f} ms.",
    )
    return redirect("version", slug, pk)


@login_required
@require_POST
def alias_roll_back(request: HttpRequest, slug: str) -> HttpResponse:
    """Point an alias back to what the page named, unless it was moved meanwhile."""
    membership = get_membership(request, slug, Role.ADMIN)
    try:
        name = _alias_name(request)
        move = services.roll_back(
            project=membership.project,
            by=membership.user,
            why=_why(request),
            alias_name=name,
            to=whole(request.POST.get("to", "")) or 0,
        )
    except ProductError as error:
        context = _versions_context(request, membership) | {"why": request.POST.get("why", "")}
        return refused(request, "inference/versions.html", context, error)
    messages.success(
        request,
        f"{name} is {move.to_version.name} again; the move took {move.milliseconds:.0f} ms.",
    )
    return redirect("versions", slug)


# Chat


def _chat_context(membership: Membership) -> dict[str, Any]:
    """Return what can be talked to: aliases first, then every version."""
    aliases = Alias.objects.filter(project=membership.project).select_related("version")
    rows = Version.objects.filter(project=membership.project).select_related("base")
    names = [(alias.name, f"{alias.name} ({alias.version.name})") for alias in aliases]
    names += [
        (row.name, f"{row.name}: {row.method.upper() or row.base.name}")
        for row in rows.order_by("-number")[:100]
    ]
    return {"models": names, "sampling": DEFAULT_CHAT, "turns": []}


@login_required
def chat(request: HttpRequest, slug: str) -> HttpResponse:
    """Show the chat; without JavaScript it also takes a message and answers with the page."""
    membership = get_membership(request, slug)
    context = _chat_context(membership) | {
        "model": request.GET.get("model", ""),
        "beside": request.GET.get("beside", ""),
        "text": "",
    }
    template = "inference/chat.html"
    if request.method != "POST":
        return render(request, template, context)
    context |= {"model": request.POST.get("model", ""), "text": request.POST.get("text", "")}
    turns: list[dict[str, Any]] = []
    try:
        turns = _history(request.POST.get("history", "[]"))
        context["turns"] = turns
        asked = [*turns, {"role": "user", "content": context["text"].strip()}]
        if not asked[-1]["content"]:
            raise gateway.Refusal(400, "Write something first.")
        body = {"model": context["model"], "messages": asked, **DEFAULT_CHAT}
        completion = _completion(membership, body)
        async_to_sync(gateway.answer)(completion, stream=False, options={})
    except gateway.Refusal as refusal:
        context["error"] = refusal.message
        return render(request, template, context, status=refusal.status)
    said = {"role": "assistant", "content": completion.text, "completion": completion}
    context |= {"turns": [*asked, said], "text": ""}
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in context["turns"]]
    context["history"] = json.dumps(plain)
    return render(request, template, context)


def _history(text: str) -> list[dict[str, Any]]:
    """Return the turns so far from the page's hidden field."""
    try:
        turns = read_json(text.encode(errors="replace"))
    except Unreadable:
        turns = None
    if not isinstance(turns, list):
        raise gateway.Refusal(400, "The conversation cannot be read. Start a new chat.")
    if turns:
        gateway.check_messages(turns)
    return turns


def _completion(membership: Membership, body: dict[str, Any]) -> Completion:
    """Return the unsaved completion for a chat request; raise gateway.Refusal where it is wrong."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise gateway.Refusal(400, "Choose a model to talk to.")
    gateway.check_messages(body.get("messages"))
    return Completion(
        id=uuid.uuid4(),
        project=membership.project,
        version=gateway.resolve(membership.project_id, model),
        requested_model=model,
        source=Completion.Source.CHAT,
        messages=body["messages"],
        sampling={key: body[key] for key in gateway.SAMPLING if body.get(key) is not None},
        created_by=membership.user,
    )


@login_required
@require_POST
async def chat_answer(request: HttpRequest, slug: str) -> HttpResponseBase:
    """Stream an answer to the chat page as server-sent events, in the gateway's shape."""
    membership = await sync_to_async(get_membership)(request, slug)
    try:
        body = gateway.read_object(request.body)
        completion = await sync_to_async(_completion)(membership, body)
        return await gateway.answer(
            completion, stream=True, options={"stream_options": {"include_usage": True}}
        )
    except gateway.Refusal as refusal:
        response: JsonResponse = refusal.response()
        return response
