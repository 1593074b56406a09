"""The OpenAI-compatible gateway: resolve the name, call an engine, record the completion.

The alias is resolved once per request; the resolved version is what is recorded and what is
answered in ``model``, so a promotion in the middle never mixes two versions in one answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework.exceptions import AuthenticationFailed

from accounts.authentication import find_token
from accounts.models import ApiToken, Membership, Role, Scope
from accounts.parsing import Unreadable, read_json
from inference import client
from inference.models import Alias, AliasName, Completion, Version

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 2 * 1024 * 1024
SAMPLING = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
)
# How long a request waits for an engine (its restart, say) while nothing of its answer was sent.
PATIENCE_SECONDS = 20.0
ATTEMPT_PAUSE_SECONDS = 0.5

_next_engine = itertools.count()
_recordings: set[asyncio.Task[None]] = set()


class Refusal(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", retry_after: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.retry_after = status, message, kind, retry_after

    def response(self) -> JsonResponse:
        """Return the JSON response that the openai client turns into its own exceptions."""
        body = {"message": self.message, "type": self.kind, "param": None, "code": None}
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        return JsonResponse({"error": body}, status=self.status, headers=headers)


def authorise(request: HttpRequest, scope: Scope) -> ApiToken:
    """Return the request's token; raise Refusal 401/403 with a sentence."""
    header = request.headers.get("Authorization", "")
    kind, _, text = header.partition(" ")
    if kind.lower() != "bearer" or not text:
        raise Refusal(401, "Send a project token as “Authorization: Bearer laurel_…”.", "auth")
    try:
        token = find_token(text.strip())
    except AuthenticationFailed as error:
        raise Refusal(401, str(error.detail), "auth") from None
    if scope not in token.scopes:
        raise Refusal(403, f"This token has not the scope “{scope}”.", "auth")
    member = Membership.objects.filter(user=token.user, project=token.project)
    if not member.at_least(Role.ANNOTATOR).exists():
        raise Refusal(403, "The owner of this token is no longer a member of its project.", "auth")
    return token


def resolve(project_id: int, name: str) -> Version:
    """Return the version behind an alias, ``base``, ``vN``, a served name or the base's name."""
    versions = Version.objects.select_related("base")
    name = name.replace("\x00", "")
    if name in AliasName.values:
        alias = Alias.objects.filter(project_id=project_id, name=name).first()
        if alias is not None:
            return versions.get(pk=alias.version_id)
    else:
        for version in versions.filter(project_id=project_id).filter(_named(name)):
            if name in (version.name, version.served_name):
                return version
    raise Refusal(404, f"There is no model “{name[:100]}” here. GET /v1/models lists them.")


def _named(name: str) -> Any:
    from django.db.models import Q

    if name.startswith("v-"):
        return Q(digest__startswith=name[2:])
    if name.startswith("v") and name[1:].isdecimal() and len(name) < 9:
        return Q(number=int(name[1:]))
    return Q(number=0)


@csrf_exempt
async def models(request: HttpRequest) -> HttpResponse:
    """List the aliases and versions of the token's project, as OpenAI's /v1/models does."""
    try:
        if request.method != "GET":
            raise Refusal(405, "Use GET.")
        token = await sync_to_async(authorise)(request, Scope.CHAT)
        return JsonResponse(
            {"object": "list", "data": await sync_to_async(_model_rows)(token.project_id)}
        )
    except Refusal as refusal:
        return refusal.response()


def _model_rows(project_id: int) -> list[dict[str, Any]]:
    aliases = Alias.objects.filter(project_id=project_id).select_related("version__base")
    versions = Version.objects.filter(project_id=project_id).select_related("base")
    named = [(alias.name, alias.version) for alias in aliases]
    named += [(version.name, version) for version in versions]
    return [
        {
            "id": name,
            "object": "model",
            "created": int(version.created_at.timestamp()),
            "owned_by": "laurel",
            "root": version.served_name,
        }
        for name, version in named
    ]


@csrf_exempt
async def chat_completions(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """Answer a chat, plain or streaming, and record it with the version that gave the answer."""
    try:
        if request.method != "POST":
            raise Refusal(405, "Use POST.")
        token = await sync_to_async(authorise)(request, Scope.CHAT)
        body = _read_body(request)
        version = await sync_to_async(resolve)(token.project_id, body["model"])
        completion = Completion(
            id=uuid.uuid4(),
            project_id=token.project_id,
            version=version,
            requested_model=body["model"],
            source=Completion.Source.GATEWAY,
            messages=body["messages"],
            sampling={key: body[key] for key in SAMPLING if body.get(key) is not None},
            created_by=token.user,
        )
        return await answer(completion, stream=bool(body.get("stream")), options=body)
    except Refusal as refusal:
        return refusal.response()


def _read_body(request: HttpRequest) -> dict[str, Any]:
    if int(request.headers.get("Content-Length") or 0) > MAX_BODY_BYTES:
        raise Refusal(413, "The request is larger than 2 MB. Send less text.")
    body = read_object(request.body)
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Refusal(400, "Name a “model”: an alias such as “production”, or a version.")
    check_messages(body.get("messages"))
    if body.get("n") not in (None, 1):
        raise Refusal(400, "Ask for one answer a request (“n”: 1); each answer is recorded.")
    return body


def read_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is, fit to be stored; raise Refusal 400."""
    try:
        body = read_json(text)
    except Unreadable as error:
        raise Refusal(400, f"{error} Send {{“model”, “messages”}}.") from None
    if not isinstance(body, dict):
        raise Refusal(400, "The body must be a JSON object with “model” and “messages”.")
    if not isinstance(body.get("stream_options") or {}, dict):
        raise Refusal(400, "“stream_options” must be a JSON object.")
    return body


def check_messages(messages: Any) -> None:
    """Refuse anything but a non-empty list of {role, content: text} that ends with the user."""
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "“messages” must be a list of {“role”, “content”} with at least one.")
    for index, message in enumerate(messages):
        if (
            not isinstance(message, dict)
            or message.get("role") not in ("system", "user", "assistant")
            or not isinstance(message.get("content"), str)
        ):
            raise Refusal(
                400,
                f"messages[{index}] must have a “role” (system, user or assistant) and a “content” "
                "that is text.",
            )
        if "\x00" in message["content"]:
            raise Refusal(400, f"messages[{index}] has a NUL character. Remove it.")


async def answer(
    completion: Completion, *, stream: bool, options: dict[str, Any]
) -> HttpResponse | StreamingHttpResponse:
    """Generate for an unsaved completion and save it; raise Refusal when the engine cannot."""
    version = completion.version
    upstream_body = {
        "model": version.served_name,
        "messages": completion.messages,
        **completion.sampling,
    }
    if not {"max_tokens", "max_completion_tokens"} & completion.sampling.keys():
        upstream_body["max_tokens"] = settings.DEFAULT_MAX_TOKENS
    if not stream:
        http = _http()
        async with http:
            started = time.monotonic()
            response = await _send(http, version, upstream_body)
            body = json.loads(await response.aread())
        choice, usage = body["choices"][0], body.get("usage") or {}
        completion.text = (choice["message"]["content"] or "").replace("\x00", "")
        completion.finish_reason = choice.get("finish_reason") or ""
        completion.prompt_tokens = usage.get("prompt_tokens", 0)
        completion.completion_tokens = usage.get("completion_tokens", 0)
        completion.milliseconds = (time.monotonic() - started) * 1000
        await completion.asave(force_insert=True)
        return JsonResponse(
            {
                "id": str(completion.id),
                "object": "chat.completion",
                "created": int(completion.created_at.timestamp()),
                "model": version.name,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": completion.text},
                        "finish_reason": completion.finish_reason,
                        "logprobs": None,
                    }
                ],
                "usage": usage,
            }
        )
    upstream_body |= {"stream": True, "stream_options": {"include_usage": True}}
    http = _http()
    started = time.monotonic()
    try:
        response = await _send(http, version, upstream_body, stream=True)
    except BaseException:
        await http.aclose()
        raise
    wants_usage = bool((options.get("stream_options") or {}).get("include_usage"))
    return StreamingHttpResponse(
        _relay(completion, http, response, started, wants_usage),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _relay(
    completion: Completion,
    http: httpx.AsyncClient,
    response: httpx.Response,
    started: float,
    wants_usage: bool,
) -> AsyncIterator[bytes]:
    """Pass the engine's chunks on under our id and record the whole at the end, come what may."""
    parts: list[str] = []
    created = int(time.time())
    finish = ""
    try:
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            data = line[len("data: ") :]
            if data == "[DONE]":
                break
            chunk = json.loads(data)
            if usage := chunk.get("usage"):
                completion.prompt_tokens = usage.get("prompt_tokens", 0)
                completion.completion_tokens = usage.get("completion_tokens", 0)
            for choice in chunk.get("choices", []):
                parts.append(choice.get("delta", {}).get("content") or "")
                finish = choice.get("finish_reason") or finish
            if chunk.get("choices") or wants_usage:
                chunk |= {
                    "id": str(completion.id),
                    "created": created,
                    "model": completion.version.name,
                }
                yield f"data: {json.dumps(chunk)}\n\n".encode()
        await _record(completion, parts, finish or "stop", started)
        yield b"data: [DONE]\n\n"
    except httpx.HTTPError:
        log.warning("engine_broke_off", completion=str(completion.id))
        message = "The model server broke off in the middle of this answer. Ask again."
        yield f"data: {json.dumps({'error': {'message': message}})}\n\n".encode()
        await _record(completion, parts, "error", started)
    except (GeneratorExit, asyncio.CancelledError):
        # The reader went away: what was shown is still recorded.
        recording = asyncio.create_task(_record(completion, parts, "cancelled", started))
        _recordings.add(recording)  # the loop itself holds tasks only weakly
        recording.add_done_callback(_recordings.discard)
        raise
    finally:
        await response.aclose()
        await http.aclose()


async def _record(completion: Completion, parts: list[str], finish: str, started: float) -> None:
    completion.text = "".join(parts).replace("\x00", "")  # PostgreSQL keeps no NUL
    completion.finish_reason = finish
    completion.milliseconds = (time.monotonic() - started) * 1000
    await completion.asave(force_insert=True)


def _http() -> httpx.AsyncClient:
    timeout = httpx.Timeout(settings.ENGINE_TIMEOUT_SECONDS, connect=5)
    return httpx.AsyncClient(headers=client.headers(), timeout=timeout)


async def _send(
    http: httpx.AsyncClient, version: Version, body: dict[str, Any], *, stream: bool = False
) -> httpx.Response:
    """Send to the engines in turn until one accepts.

    An engine that restarted does not know the adapter yet: it is loaded and asked again. An engine
    that is down is passed over. Nothing has been answered yet, so trying again is safe.
    """
    urls = settings.ENGINE_URLS
    first = next(_next_engine)
    refusal = Refusal(503, "No model server answers. Try again in a minute.", "unavailable", "5")
    deadline = time.monotonic() + PATIENCE_SECONDS
    for attempt in itertools.count():
        if time.monotonic() > deadline:
            break
        url = urls[(first + attempt) % len(urls)]
        request = http.build_request("POST", f"{url}/v1/chat/completions", json=body)
        try:
            response = await http.send(request, stream=stream)
        except httpx.HTTPError as error:
            log.warning("engine_unreachable", url=url, error=repr(error))
            await asyncio.sleep(ATTEMPT_PAUSE_SECONDS)
            continue
        if response.status_code == 200:
            return response
        await response.aread()
        sentence = client.error_sentence(response)
        await response.aclose()
        if response.status_code == 404 and not version.is_base:
            await _load(http, url, version)
        elif response.status_code == 429:
            wait = response.headers.get("Retry-After", "1")
            refusal = Refusal(429, "The model server is full. Try again shortly.", "busy", wait)
            if len(urls) == 1:
                raise refusal
        elif response.status_code < 500:
            raise Refusal(response.status_code, sentence)
        else:
            log.warning("engine_failed", url=url, status=response.status_code, error=sentence)
            await asyncio.sleep(ATTEMPT_PAUSE_SECONDS)
    raise refusal


async def _load(http: httpx.AsyncClient, url: str, version: Version) -> None:
    body = {"lora_name": version.served_name, "lora_path": str(version.folder)}
    try:
        response = await http.post(f"{url}/v1/load_lora_adapter", json=body)
    except httpx.HTTPError:
        await asyncio.sleep(ATTEMPT_PAUSE_SECONDS)
        return
    if response.status_code != 200:
        # The engine's sentence names paths on the server: for the log, not for the caller.
        log.error("adapter_not_loaded", version=version.pk, error=client.error_sentence(response))
        raise Refusal(503, f"{version.name} cannot be loaded now. Ask an admin of the project.")
