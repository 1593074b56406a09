"""events.jsonl: what a run tells its parent while it works."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from training.engine.trackers import Tracker, numbers


class EventLog:
    """Append events, one JSON object a line, flushed, so a reader may follow the file.

    Steps go to the trackers as well.
    """

    def __init__(self, path: Path) -> None:
        self.trackers: list[Tracker] = []
        written = path.read_bytes() if path.exists() else b""
        self.stream = path.open("a", encoding="utf-8")
        if written and not written.endswith(b"\n"):
            self.stream.write("\n")  # a line torn by a kill must not swallow the next one

    def write(self, kind: str, **values: Any) -> None:
        """Write one event; numbers that JSON does not know become null."""
        event = {"type": kind, **{key: _plain(value) for key, value in values.items()}}
        self.stream.write(json.dumps({**event, "time": round(time.time(), 3)}) + "\n")
        self.stream.flush()

    def step(self, step: int, **values: Any) -> None:
        """Write the figures of one step, here and to the trackers."""
        self.write("step", step=step, **values)
        for tracker in self.trackers:
            tracker.step(step, numbers(values))

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()
        self.stream.close()

    def state(self, state: str) -> None:
        self.write("state", state=state)

    def note(self, message: str) -> None:
        self.write("note", message=message)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
