"""Speak to the model servers in vLLM's wire dialect."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from django.conf import settings

from accounts.errors import ProductError, Unavailable
from inference.models import Completion, Version


def seed_of(*parts: object) -> int:
    """Return a sampling seed below 2**31 that depends on every part and on nothing else."""
    written = json.dumps([str(part) for part in parts], ensure_ascii=False, separators=(",", ":"))
    return int(hashlib.sha256(written.encode()).hexdigest()[:8], 16) & 0x7FFFFFFF


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One text from an engine with its accounting."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    milliseconds: float

    def completion(
        self,
        *,
        version: Version,
        source: Completion.Source,
        messages: list[dict[str, Any]],
        sampling: dict[str, Any],
    ) -> Completion:
        """Return the unsaved record of this text, without the zero bytes that Postgres refuses."""
        return Completion(
            project_id=version.project_id,
            version=version,
            requested_model=version.name,
            source=source,
            messages=messages,
            text=self.text.replace("\x00", ""),
            sampling=sampling,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            milliseconds=self.milliseconds,
        )


def headers() -> dict[str, str]:
    """Return the header that opens the engines to us."""
    return {"Authorization": f"Bearer {settings.ENGINE_API_KEY}"}


def error_sentence(response: httpx.Response) -> str:
    """Return the engine's own message, whatever shape the body has."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return response.text[:300] or response.reason_phrase


def load_adapter(*, name: str, path: str, urls: Sequence[str] | None = None) -> None:
    """Load an adapter on every engine; raise Unavailable if one does not answer."""
    for url in urls or settings.ENGINE_URLS:
        _post(url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})


def served_names(url: str) -> set[str]:
    """Return the names that this engine serves now."""
    try:
        response = httpx.get(f"{url}/v1/models", headers=headers(), timeout=10)
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise Unavailable(f"The model server at {url} does not answer: {error}.") from error
    return {row["id"] for row in response.json()["data"]}


def chat(
    client: httpx.Client,
    *,
    url: str,
    model: str,
    messages: list[dict[str, Any]],
    sampling: dict[str, Any],
    patience_seconds: float = 120,
) -> Generated:
    """Generate one answer; wait and try again while the engine is full or unreachable.

    ProductError with the engine's ``status`` where it refuses, Unavailable after the patience.
    """
    body = {"model": model, "messages": messages, **sampling}
    deadline = time.monotonic() + patience_seconds
    while True:
        started = time.monotonic()
        problem: str
        wait = 1.0
        try:
            response = client.post(f"{url}/v1/chat/completions", json=body, headers=headers())
        except httpx.HTTPError as error:
            problem = f"The model server at {url} does not answer: {error!r}."
        else:
            if response.status_code == 200:
                return _generated(response.json(), started)
            problem = error_sentence(response)
            if response.status_code not in (429, 502, 503):
                raise ProductError(problem, status=response.status_code)
            wait = float(response.headers.get("Retry-After", 1))
        if time.monotonic() + wait > deadline:
            raise Unavailable(problem)
        time.sleep(wait)


def _generated(body: dict[str, Any], started: float) -> Generated:
    choice, usage = body["choices"][0], body.get("usage") or {}
    return Generated(
        text=choice["message"]["content"] or "",
        finish_reason=choice.get("finish_reason") or "",
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        milliseconds=(time.monotonic() - started) * 1000,
    )


def _post(url: str, path: str, body: dict[str, Any]) -> None:
    try:
        response = httpx.post(f"{url}{path}", json=body, headers=headers(), timeout=60)
    except httpx.HTTPError as error:
        raise Unavailable(
            f"The model server at {url} does not answer ({error!r}). Nothing was changed; "
            "try again when it is up."
        ) from error
    if response.status_code != 200:
        raise ProductError(f"The model server at {url} refused: {error_sentence(response)}")
