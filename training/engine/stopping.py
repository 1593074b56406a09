"""How a run is asked to stop: by a signal, or by a file that works across hosts."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from training.engine.errors import Cancelled, Paused
from training.engine.team import Team

FILE = "stop"  # in the run directory; it holds one of the words below
WORDS = {"cancel": Cancelled, "pause": Paused}


class Stop:
    """Remembers that somebody asked the run to stop, and whether for good."""

    def __init__(self, directory: Path, team: Team) -> None:
        """Forget what an earlier attempt was asked; its parent asks again if it still holds."""
        self.file = directory / FILE
        self.team = team
        self.asked = ""
        if team.first:
            self.file.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, number: int, *_: object) -> None:
        self.asked = "pause" if number == signal.SIGUSR1 else "cancel"

    def check(self) -> None:
        """Raise Cancelled or Paused if that was asked of a run that trains alone."""
        if self.team.alone:
            self._raise(self._wanted())

    def agree(self) -> None:
        """Raise in all processes alike; to be called by all of them at the same place."""
        wanted = self._wanted()
        if self.team.any(wanted == "cancel"):
            self._raise("cancel")
        if self.team.any(wanted == "pause"):
            self._raise("pause")

    def _wanted(self) -> str:
        with contextlib.suppress(OSError):
            self.asked = self.asked or self.file.read_text().strip()
        return self.asked

    def _raise(self, wanted: str) -> None:
        if wanted in WORDS:
            raise WORDS[wanted]
