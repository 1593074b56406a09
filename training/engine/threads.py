"""Use as many threads as there are free cores.

Threads of one product wait for one another hundreds of times in a pass. When other processes want
the cores as well, each wait lasts until the scheduler comes round: two threads on two busy cores
were seen to be ten times slower than one.
"""

from __future__ import annotations

import time

import psutil
import torch

WINDOW = 1.0  # seconds of observation before the count may change
SHARE = 0.6  # a core that others leave at least this much of counts as free


class Threads:
    """Adapts torch's thread count to what other processes leave of the cores."""

    def __init__(self) -> None:
        self.most = torch.get_num_threads()
        self.process = psutil.Process()
        self.last = self._read()

    def adapt(self) -> None:
        """Set the count from what was seen since the last change; to be called between passes."""
        now, busy, own = self._read()
        seconds = now - self.last[0]
        if seconds < WINDOW or self.most == 1:
            return
        others = max(0.0, (busy - self.last[1]) - (own - self.last[2])) / seconds
        free = int((psutil.cpu_count() or 1) - others + 1 - SHARE)
        wanted = max(1, min(self.most, free))
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
        self.last = now, busy, own

    def _read(self) -> tuple[float, float, float]:
        """Return the time, and the core seconds spent by all processes and by this one."""
        total, mine = psutil.cpu_times(), self.process.cpu_times()
        idle = total.idle + getattr(total, "iowait", 0.0)
        # guest times are part of user and nice already
        guests = getattr(total, "guest", 0.0) + getattr(total, "guest_nice", 0.0)
        return time.monotonic(), sum(total) - idle - guests, mine.user + mine.system
