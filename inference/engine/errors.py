"""The engine's one exception."""

from __future__ import annotations


class Refusal(Exception):
    """Say why something asked of the engine is not done, and what to do instead.

    `status` is the HTTP status a request gets; the command line prints the message and exits 2.
    """

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
