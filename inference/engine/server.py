"""The model server: vLLM's HTTP dialect over the scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from inference.engine.errors import Refusal
from inference.engine.metrics import Metrics
from inference.engine.runtime import Runtime
from inference.engine.scheduler import Failure, Job, Piece, Scheduler, TokenScore
from inference.engine.wire import (
    ChatRequest,
    Generation,
    LoadAdapter,
    UnloadAdapter,
    error_json,
    model_json,
    parse,
    usage_json,
)

BODY_LIMIT = 4 * 1024 * 1024  # bytes; a context of text is far less
Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class Submitted:
    """A job in flight, with the events that the engine's thread sends to this request."""

    job: Job
    events: asyncio.Queue[Piece | Failure]
    id: str
    model: str
    created: int


class Server:
    """Answer requests. One instance a process; its routes make the ASGI application."""

    def __init__(
        self,
        runtime: Runtime,
        scheduler: Scheduler,
        metrics: Metrics,
        *,
        served_name: str,
        api_key: str,
    ) -> None:
        self.runtime = runtime
        self.scheduler = scheduler
        self.metrics = metrics
        self.served_name = served_name
        self._key = api_key.encode()
        self._unloads: set[asyncio.Task[None]] = set()

    def application(self) -> Starlette:
        """Return the ASGI application."""

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            self.scheduler.start()
            yield
            await asyncio.to_thread(self.scheduler.stop)

        def route(path: str, handler: Handler, method: str = "POST") -> Route:
            return Route(path, self._guarded(handler), methods=[method])

        return Starlette(
            routes=[
                Route("/health", self.health, methods=["GET"]),
                route("/metrics", self.show_metrics, "GET"),
                route("/v1/models", self.models, "GET"),
                route("/v1/chat/completions", self.chat),
                route("/v1/load_lora_adapter", self.load_adapter),
                route("/v1/unload_lora_adapter", self.unload_adapter),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _crash},
            lifespan=lifespan,
        )

    async def health(self, request: Request) -> Response:
        """Say whether the engine still steps."""
        return Response(status_code=200 if self.scheduler.alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        """Show the counters."""
        self.metrics.adapters.set(len(self.runtime.bank.loaded()))
        return PlainTextResponse(self.metrics.render())

    async def models(self, request: Request) -> Response:
        """List the base and the loaded adapters."""
        context = self.runtime.context
        base = model_json(
            self.served_name, root=str(self.runtime.folder), parent=None, context=context
        )
        adapters = [
            model_json(adapter.name, root=adapter.path, parent=self.served_name, context=context)
            for adapter in self.runtime.bank.loaded()
        ]
        return JSONResponse({"object": "list", "data": [base, *adapters]})

    async def load_adapter(self, request: Request) -> Response:
        """Load an adapter; the same name and path again is fine."""
        asked = parse(LoadAdapter, await _body(request))
        if asked.lora_name == self.served_name:
            raise Refusal(f"{asked.lora_name} is the base's own name.", code="name_taken")
        await _in_short_thread(self.runtime.bank.load, asked.lora_name, asked.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        """Take an adapter out of service once the requests in flight on it have ended."""
        asked = parse(UnloadAdapter, await _body(request))
        adapter = self.runtime.bank.close(asked.lora_name)

        async def drop_when_idle() -> None:
            while not adapter.idle.is_set():
                await asyncio.sleep(0.01)
            self.runtime.bank.drop(adapter)

        # A task of its own: a caller who leaves must not leave the adapter half unloaded.
        task = asyncio.create_task(drop_when_idle())
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)
        await asyncio.shield(task)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    async def chat(self, request: Request) -> Response:
        """Write the next turn of a conversation, whole or as a stream."""
        asked = parse(ChatRequest, await _body(request))
        # Rendering and tokenizing a long conversation would hold up every stream.
        prompt = await asyncio.to_thread(
            self.runtime.encode_chat, [message.plain() for message in asked.messages]
        )
        submitted = self._submit(asked, prompt)
        if asked.stream:
            return StreamingResponse(
                self._stream(submitted, asked),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        return JSONResponse(await self._collect(submitted, request))

    def _submit(self, asked: Generation, prompt: list[int]) -> Submitted:
        context = self.runtime.context
        room = context - len(prompt)
        sampling = asked.sampling(room)
        if room < 1 or sampling.max_tokens > room:
            wanted = f" plus {sampling.max_tokens} to write" if room >= 1 else ""
            raise Refusal(
                f"This model's context is {context} tokens and the request needs "
                f"{len(prompt)} for the messages{wanted}: shorten them or lower max_tokens.",
                code="context_length_exceeded",
            )
        adapter = (
            None if asked.model == self.served_name else self.runtime.bank.acquire(asked.model)
        )
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Piece | Failure] = asyncio.Queue()

        def emit(event: Piece | Failure) -> None:
            # A closed loop means that the server is gone and nobody listens.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(prompt, sampling, adapter, emit)
        try:
            self.scheduler.submit(job)
        except Refusal:
            if adapter:
                self.runtime.bank.release(adapter)
            raise
        return Submitted(job, events, f"chatcmpl-{uuid.uuid4().hex}", asked.model, int(time.time()))

    async def _pieces(self, submitted: Submitted) -> AsyncGenerator[Piece]:
        """Yield a job's pieces until all samples end; cancel it when the reader leaves."""
        left = submitted.job.sampling.n
        try:
            while left:
                event = await submitted.events.get()
                if isinstance(event, Failure):
                    raise event.refusal
                left -= event.reason is not None
                yield event
        finally:
            if left:
                self.scheduler.cancel(submitted.job)

    async def _collect(self, submitted: Submitted, request: Request) -> dict[str, Any]:
        job = submitted.job
        texts = [""] * job.sampling.n
        reasons: list[str | None] = [None] * job.sampling.n
        written = [0] * job.sampling.n
        scores: list[list[TokenScore]] = [[] for _ in texts]

        async def read() -> None:
            async with contextlib.aclosing(self._pieces(submitted)) as pieces:
                async for piece in pieces:
                    texts[piece.sample] += piece.text
                    reasons[piece.sample] = piece.reason
                    written[piece.sample] = piece.tokens
                    if piece.score:
                        scores[piece.sample].append(piece.score)

        await _unless_disconnected(request, read())
        choices = [
            {
                "index": sample,
                "message": {"role": "assistant", "content": text},
                "logprobs": self._logprobs_json(scores[sample]),
                "finish_reason": reasons[sample],
            }
            for sample, text in enumerate(texts)
        ]
        usage = usage_json(len(job.prompt), sum(written))
        return {**_frame(submitted, "chat.completion"), "choices": choices, "usage": usage}

    async def _stream(self, submitted: Submitted, asked: Generation) -> AsyncIterator[str]:
        frame = _frame(submitted, "chat.completion.chunk")
        if asked.include_usage:
            frame["usage"] = None
        written = [0] * submitted.job.sampling.n

        def chunk(sample: int, delta: dict[str, str], piece: Piece | None = None) -> str:
            choice = {
                "index": sample,
                "delta": delta,
                "logprobs": self._logprobs_json([piece.score] if piece and piece.score else []),
                "finish_reason": piece.reason if piece else None,
            }
            return _event({**frame, "choices": [choice]})

        try:
            async with contextlib.aclosing(self._pieces(submitted)) as pieces:
                for sample in range(submitted.job.sampling.n):
                    yield chunk(sample, {"role": "assistant", "content": ""})
                async for piece in pieces:
                    written[piece.sample] = piece.tokens
                    yield chunk(piece.sample, {"content": piece.text} if piece.text else {}, piece)
        except Refusal as refusal:
            yield _event(error_json(refusal))
            return
        if asked.include_usage:
            usage = usage_json(len(submitted.job.prompt), sum(written))
            yield _event({**frame, "choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    def _logprobs_json(self, scores: list[TokenScore]) -> dict[str, Any] | None:
        if not scores:
            return None

        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = str(self.runtime.tokenizer.decode([token]))
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        content = [
            {
                **entry(score.token, score.logprob),
                "top_logprobs": [entry(token, logprob) for token, logprob in score.top],
            }
            for score in scores
        ]
        return {"content": content, "refusal": None}

    def _guarded(self, handler: Handler) -> Handler:
        """Ask for the key, and answer a Refusal in OpenAI's error shape."""

        async def guarded(request: Request) -> Response:
            try:
                scheme, _, key = request.headers.get("authorization", "").partition(" ")
                if scheme.lower() != "bearer" or not hmac.compare_digest(
                    key.strip().encode(), self._key
                ):
                    raise Refusal(
                        "Send the engine's key as `Authorization: Bearer KEY`.",
                        status=401,
                        code="invalid_api_key",
                    )
                return await handler(request)
            except Refusal as refusal:
                headers = {}
                if refusal.status == 401:
                    headers["WWW-Authenticate"] = "Bearer"
                elif refusal.status in (429, 503):
                    headers["Retry-After"] = str(self.scheduler.retry_after())
                return JSONResponse(error_json(refusal), refusal.status, headers)
            except ClientDisconnect:
                return Response(status_code=499)

        return guarded


async def _unless_disconnected(request: Request, work: Any) -> None:
    """Await work, but give it up as soon as the client goes away."""

    async def wait_for_leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.create_task(work)
    leaving = asyncio.create_task(wait_for_leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect()
        await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _in_short_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run torch work beside the event loop in a thread that ends with it.

    A thread that lives on, as asyncio.to_thread's do, would keep an OpenMP pool (see Runtime).
    """
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
    finally:
        executor.shutdown(wait=False)


async def _body(request: Request) -> bytes:
    """Read a body of bounded size."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT:
            raise Refusal(
                f"The body is larger than {BODY_LIMIT // 1024 // 1024} MB: shorten it.",
                status=413,
                code="too_large",
            )
    return bytes(body)


def _frame(submitted: Submitted, kind: str) -> dict[str, Any]:
    return {
        "id": submitted.id,
        "object": kind,
        "created": submitted.created,
        "model": submitted.model,
    }


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = Refusal(
        f"{request.method} {request.url.path}: {error.detail}.",
        status=error.status_code,
        code="not_found" if error.status_code == 404 else "invalid_request",
    )
    return JSONResponse(error_json(refusal), error.status_code, dict(error.headers or {}))


async def _crash(request: Request, error: Exception) -> Response:
    refusal = Refusal("The engine made a mistake; its log says more.", status=500, code="internal")
    return JSONResponse(error_json(refusal), 500)
