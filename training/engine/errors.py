"""The one exception that leaves the engine: why a run ended, and what to change."""

from __future__ import annotations

BAD_INPUT = 2
CRASHED = 1
CANCELLED = 3
NOT_PROVED = 4
PAUSED = 5


class RunError(Exception):
    """A run cannot go on. `code` is the process's exit code, the message a plain sentence."""

    def __init__(self, reason: str, *, code: int = BAD_INPUT) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


def is_out_of_memory(error: BaseException) -> bool:
    """Tell memory that ran out, of whatever device, from other failures."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(one in str(error) for one in words)


class Cancelled(Exception):
    """Somebody asked the run to stop for good."""


class Paused(Exception):
    """Somebody asked the run to stop for now; it goes on from its checkpoint."""
