"""Bodies that never end are refused while they arrive, by whatever way they come."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.core.asgi import get_asgi_application

from config import bodies

PART = b"x" * 65_536


def send(
    path: str, parts: int, headers: list[tuple[bytes, bytes]] | None = None
) -> tuple[int, bytes, int]:
    """Return status and body of the answer to so many parts, and how many of them were read."""
    sent: list[dict[str, Any]] = []
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        if read == parts:
            await asyncio.Event().wait()
        read += 1
        return {"type": "http.request", "body": PART, "more_body": read < parts}

    async def answer(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), *(headers or [(b"transfer-encoding", b"chunked")])],
    }
    asyncio.run(bodies.limited(get_asgi_application(), scope, receive, answer))
    return sent[0]["status"], sent[1]["body"], read


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MOST", 4 * len(PART))
    monkeypatch.setattr(bodies, "MOST_UPLOADED", 8 * len(PART))


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("/login/", 4),
        ("/api/prompts/", 4),
        ("/v1/chat/completions", 4),
        ("/api/imports/", 8),
        ("/p/support/import/", 8),
    ],
)
def test_it_stops_reading_a_body_without_end(path: str, most: int) -> None:
    status, body, read = send(path, parts=10_000)
    assert (status, read) == (413, most + 1)
    assert b"larger than" in body


def test_it_reads_nothing_of_what_says_that_it_is_too_large() -> None:
    said = [(b"content-length", str(5 * len(PART)).encode())]
    assert send("/api/me", parts=5, headers=said)[::2] == (413, 0)
    assert send("/api/me", parts=1, headers=[(b"content-length", b"-1")])[::2] == (413, 0)


@pytest.mark.django_db(transaction=True)
def test_it_lets_through_what_is_small_enough() -> None:
    assert send("/api/me", parts=4)[0] == 401
