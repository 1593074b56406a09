"""Downloads: a range gives the rest of the same bytes, or the whole where they have changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from accounts.downloads import BLOCK_BYTES, send_file, send_made

SIZE = 3 * BLOCK_BYTES + 7
CONTENT = random.Random(0).randbytes(SIZE)
Send = Callable[..., Any]


@pytest.fixture(params=["read", "made"])
def send(request: pytest.FixtureRequest, tmp_path: Path) -> Send:
    """Return a function that asks for the content, from a file or made on the way."""
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(CONTENT)

    def make() -> Iterator[bytes]:
        for start in range(0, SIZE, 1000):
            yield CONTENT[start : start + 1000]

    def ask(identity: str | None = "one", method: str = "get", **headers: str) -> Any:
        asked = Request(getattr(APIRequestFactory(), method)("/", headers=headers))
        if request.param == "read":
            return send_file(asked, path, identity=identity or "one")
        return send_made(asked, make, identity=identity, filename="a", content_type="text/csv")

    return ask


def test_it_resumes_where_the_first_half_ended(send: Send) -> None:
    whole = send()
    assert (whole.status_code, whole["Accept-Ranges"]) == (200, "bytes")
    held = b"".join(whole)[: SIZE // 2]
    rest = send(**{"Range": f"bytes={len(held)}-", "If-Range": whole["ETag"]})
    assert rest.status_code == 206
    assert rest["Content-Range"] == f"bytes {len(held)}-{SIZE - 1}/{SIZE}"
    assert rest["Content-Length"] == str(SIZE - len(held))
    assert held + b"".join(rest) == CONTENT


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", CONTENT[:1]),
        ("bytes=70000-140000", CONTENT[70000:140001]),
        ("bytes=-10", CONTENT[-10:]),
        (f"bytes=5-{SIZE * 2}", CONTENT[5:]),
        (f"bytes=-{SIZE * 2}", CONTENT),
    ],
)
def test_it_sends_one_range(send: Send, header: str, expected: bytes) -> None:
    part = send(Range=header)
    assert part.status_code == 206
    assert b"".join(part) == expected


def test_it_starts_again_where_the_content_has_changed(send: Send) -> None:
    held = send()["ETag"]
    again = send("another", **{"Range": "bytes=10-", "If-Range": held})
    assert again.status_code == 200
    assert again["ETag"] != held
    assert b"".join(again) == CONTENT
    assert send(**{"If-None-Match": held}).status_code == 304


@pytest.mark.parametrize("header", ["bytes=0-1,4-5", "bytes=5-2", "bytes=-", "lines=1-2", "²"])
def test_it_ignores_what_is_not_one_range(send: Send, header: str) -> None:
    whole = send(Range=header)
    assert whole.status_code == 200
    assert b"".join(whole) == CONTENT


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", "bytes=-0"])
def test_it_refuses_a_range_past_the_end(send: Send, header: str) -> None:
    refused = send(Range=header)
    assert refused.status_code == 416
    assert refused["Content-Range"] == f"bytes */{SIZE}"
    assert refused.data["message"] == f"Ask for bytes below {SIZE}: there are no more."


def test_head_sends_no_content(send: Send) -> None:
    head = send(method="head", Range="bytes=1-2")
    assert (head.status_code, b"".join(head)) == (200, b"")
    assert head["ETag"] == send()["ETag"]


@pytest.mark.parametrize("send", ["made"], indirect=True)
def test_what_may_change_is_not_resumed(send: Send) -> None:
    whole = send(None, Range="bytes=10-")
    assert (whole.status_code, whole["Accept-Ranges"]) == (200, "none")
    assert "ETag" not in whole
    assert b"".join(whole) == CONTENT
