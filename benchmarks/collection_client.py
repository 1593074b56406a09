"""N annotators who never think, in one process that costs as little CPU as it can.

Reads its orders as JSON on stdin and writes what it saw as JSON on stdout. Each annotator has one
keep-alive connection, as a browser would, and does next → submit until the campaigns are done or
the time is up. No Django in here: it knows the product only by HTTP.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TypedDict

import uvloop


class Orders(TypedDict):
    """What to do: ``apart`` is every how many turns submit and next are two requests, not one."""

    port: int
    tokens: list[str]
    campaigns: list[int]
    seconds: float
    apart: int


@dataclass
class Seen:
    """What all annotators saw together; milliseconds as a client measures them."""

    next_ms: list[float] = field(default_factory=list)
    submit_ms: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    handed_out: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    last: float = 0.0


class Connection(asyncio.Protocol):
    """The client's half of HTTP/1.1 with Content-Length: all that our server sends here."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0 or self.answer is None or self.answer.done():
            return
        head = bytes(self.buffer[:end]).lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r", 1)[0]) if at >= 0 else 0
        if len(self.buffer) >= end + 4 + length:
            body = bytes(self.buffer[end + 4 : end + 4 + length])
            self.buffer.clear()
            self.answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionResetError("the server hung up"))


@dataclass
class Annotator:
    port: int
    token: str
    seen: Seen
    deadline: float
    connection: Connection | None = None

    async def work(self, campaigns: list[int], apart: int) -> None:
        """Judge the campaigns one after the other; an error is counted and the task asked again."""
        turn = 0
        for campaign in campaigns:
            task = await self.next(campaign)
            while task is not None and time.monotonic() < self.deadline:
                turn += 1
                stored = await self.submit(task, bring_next=turn % apart != 0)
                task = (stored or {}).get("next")
                if stored is None or turn % apart == 0:
                    task = await self.next(campaign)
                elif task is not None:
                    self.seen.handed_out[task["slot"]] += 1

    async def next(self, campaign: int) -> dict[str, Any] | None:
        if time.monotonic() >= self.deadline:
            return None
        task = await self.post(f"/api/campaigns/{campaign}/next", b"", self.seen.next_ms)
        if task is not None:
            self.seen.handed_out[task["slot"]] += 1
        return task

    async def submit(self, task: dict[str, Any], *, bring_next: bool) -> dict[str, Any] | None:
        body = {
            "slot": task["slot"],
            "token": task["token"],
            "client_id": task["client_id"],
            "ranking": [[response["id"]] for response in task["responses"]],
            "strength": 2,
            "seconds": 1.5,
            "next": bring_next,
        }
        stored = await self.post("/api/judgements/", json.dumps(body).encode(), self.seen.submit_ms)
        if stored is not None:
            self.seen.acknowledged.append(stored["client_id"])
            self.seen.last = time.monotonic()
        return stored

    async def post(self, path: str, body: bytes, times: list[float]) -> dict[str, Any] | None:
        """Return the answer's JSON, or None for 204 and for an error, which is counted."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        try:
            if self.connection is None:
                _, self.connection = await loop.create_connection(
                    Connection, "127.0.0.1", self.port
                )
            self.connection.answer = loop.create_future()
            started = time.monotonic()
            self.connection.transport.write(head.encode() + body)
            status, content = await asyncio.wait_for(self.connection.answer, 30)
        except (OSError, TimeoutError) as error:
            self.seen.errors[type(error).__name__] += 1
            self.connection = None
            return None
        times.append((time.monotonic() - started) * 1000)
        if status == 204:
            return None
        if status not in (200, 201):
            self.seen.errors[f"{status} {content[:200].decode(errors='replace')}"] += 1
            return None
        found: dict[str, Any] = json.loads(content)
        return found


async def run(orders: Orders) -> dict[str, Any]:
    """Let every annotator work at once; return the figures for the parent process."""
    seen = Seen()
    started = time.monotonic()
    deadline = started + orders["seconds"]
    await asyncio.gather(
        *(
            Annotator(orders["port"], token, seen, deadline).work(
                orders["campaigns"], orders["apart"]
            )
            for token in orders["tokens"]
        )
    )
    return {
        "seconds": seen.last - started,
        "next_ms": seen.next_ms,
        "submit_ms": seen.submit_ms,
        "acknowledged": seen.acknowledged,
        "double_handouts": sum(count - 1 for count in seen.handed_out.values()),
        "errors": dict(seen.errors),
    }


if __name__ == "__main__":
    json.dump(uvloop.run(run(json.load(sys.stdin))), sys.stdout)
