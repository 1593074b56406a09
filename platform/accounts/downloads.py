"""Downloads: streamed with flat memory by WSGI and ASGI alike, resumed by range (RFC 9110).

A strong ETag stands for the bytes. Whoever holds the first part of them asks for the rest with
``Range`` and ``If-Range``, and is sent the whole again where they have changed.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from django.http import Http404, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_conditional_response
from django.utils.http import content_disposition_header, quote_etag
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

BLOCK_BYTES = 1 << 16
# One range; a longer number than this is no size. Any other header is ignored, as the RFC allows.
ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)
RANGE_HEADERS = [
    OpenApiParameter("Range", str, OpenApiParameter.HEADER, description="One range of bytes."),
    OpenApiParameter(
        "If-Range",
        str,
        OpenApiParameter.HEADER,
        description="The ETag of what you hold; the whole comes if it has changed.",
    ),
]
RANGE_RESPONSES: dict[Any, Any] = {
    (200, "application/octet-stream"): OpenApiTypes.BINARY,
    (206, "application/octet-stream"): OpenApiTypes.BINARY,
    416: OpenApiTypes.OBJECT,
}


class StreamedFile(StreamingHttpResponse):
    """Bytes that are read or made while they are sent, in a thread where the server is ASGI.

    Django's own response would collect a plain iterator whole before ASGI sends it.
    """

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = iter(self)
        while (part := await sync_to_async(partial(next, parts, None))()) is not None:
            yield part


def send_file(request: Request, path: Path, *, identity: str) -> HttpResponseBase:
    """Answer with a file, or the range of it that is asked for; Http404 where it is gone.

    ``identity`` names its content: another content, another identity.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise Http404 from error
    return _send(
        request,
        partial(_read, path),
        size=size,
        etag=quote_etag(identity),
        filename=path.name,
        content_type=mimetypes.guess_type(path.name)[0] or "application/octet-stream",
    )


def send_made(
    request: Request,
    make: Callable[[], Iterator[bytes]],
    *,
    identity: str | None,
    filename: str,
    content_type: str,
) -> HttpResponseBase:
    """Answer with bytes that are made on the way, or the range of them that is asked for.

    A range costs a pass more, to know the size. Without an ``identity`` they may differ from one
    time to the next, so there are no ranges.
    """
    etag = quote_etag(identity) if identity else ""
    return _send(
        request,
        partial(_cut, make),
        size=sum(map(len, make())) if _wanted(request, etag) else None,
        etag=etag,
        filename=filename,
        content_type=content_type,
    )


def _send(
    request: Request,
    read: Callable[[int, int | None], Iterator[bytes]],
    *,
    size: int | None,
    etag: str,
    filename: str,
    content_type: str,
) -> HttpResponseBase:
    headers = {
        "Accept-Ranges": "bytes" if etag else "none",
        "Content-Disposition": content_disposition_header(True, filename),
    }
    if etag:
        headers["ETag"] = etag
        unchanged: HttpResponseBase | None = get_conditional_response(request, etag=etag)
        if unchanged is not None:
            unchanged["ETag"] = etag
            return unchanged
    start, stop, status = 0, size, 200
    wanted = _wanted(request, etag)
    if wanted is not None and size is not None:
        start, stop = _bounds(*wanted, size)
        if start >= stop:
            return Response(
                {"message": f"Ask for bytes below {size}: there are no more.", "extra": {}},
                status=416,
                headers={"Content-Range": f"bytes */{size}"},
            )
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    if stop is not None:
        headers["Content-Length"] = str(stop - start)
    body = iter(()) if request.method == "HEAD" else read(start, stop)
    return StreamedFile(body, status=status, headers=headers, content_type=content_type)


def _wanted(request: Request, etag: str) -> tuple[str, str] | None:
    """Return the first and last byte of the range to obey, as written; None for the whole."""
    if request.method != "GET" or not etag or request.headers.get("If-Range", etag) != etag:
        return None
    found = ONE_RANGE.fullmatch(request.headers.get("Range", "").strip())
    if found is None:
        return None
    first, last = found.groups()
    if not (first or last) or (first and last and int(last) < int(first)):
        return None
    return first, last


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """Return where a range starts and stops; without a first byte it is the ``last`` ones."""
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def _read(path: Path, start: int, stop: int | None) -> Iterator[bytes]:
    assert stop is not None
    with path.open("rb") as file:
        file.seek(start)
        while start < stop and (block := file.read(min(BLOCK_BYTES, stop - start))):
            start += len(block)
            yield block


def _cut(make: Callable[[], Iterator[bytes]], start: int, stop: int | None) -> Iterator[bytes]:
    position = 0
    for block in make():
        piece = block[max(0, start - position) : None if stop is None else stop - position]
        position += len(block)
        if piece:
            yield piece
        if stop is not None and position >= stop:
            return
