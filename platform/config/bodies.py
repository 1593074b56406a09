"""Refuse a body that is larger than its address takes while it arrives, before anybody reads it.

Django keeps a body whole on disk before it looks who asks for what; without this, whoever reaches
the port could fill it.
"""

from __future__ import annotations

import json
import re
from typing import Any

MEGABYTE = 1024 * 1024
# Forms with their documents, and JSON, of which the views take less.
MOST = 32 * MEGABYTE
# A file of 256 MB and the form around it.
MOST_UPLOADED = 257 * MEGABYTE
UPLOADS = re.compile(r"/api/imports/|/p/[^/]+/import/")


async def limited(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Serve an ASGI request, or answer 413 once it turns out to be too large."""
    path = scope.get("path", "")
    most = MOST_UPLOADED if UPLOADS.fullmatch(path) else MOST
    for name, value in scope.get("headers", ()):
        if name == b"content-length" and (not value.isdigit() or int(value[:18]) > most):
            await _refuse(path, most, send)
            return
    read = 0

    async def counted() -> Any:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        # Django gives up on a request whose sender went away, and forgets what it has of it.
        return {"type": "http.disconnect"} if read > most else message

    await app(scope, counted, send)
    if read > most:
        await _refuse(path, most, send)


async def _refuse(path: str, most: int, send: Any) -> None:
    message = f"The request is larger than {most // MEGABYTE} MB. Send less at a time."
    kind = b"application/json"
    body: dict[str, Any] = {"message": message, "extra": {}}
    if path.startswith("/v1/"):
        body = {"error": {"message": message, "type": "invalid_request_error"}}
    text = json.dumps(body)
    if not path.startswith(("/v1/", "/api/")):
        kind, text = b"text/plain", message
    headers = [(b"content-type", kind), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
