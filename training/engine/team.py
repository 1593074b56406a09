"""The processes that train one run together: one on a laptop, many under `accelerate launch`.

Every process holds the whole model and works off its share of the packs; gradients and sums are
added up. The first process alone writes files. With one process nothing here does anything.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")
PR_SET_PDEATHSIG = 1


def _die_with_launcher() -> None:
    """End with the launcher, which puts us into a session of our own: no orphan trains on."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Team:
    """This process's place among those that train the run."""

    def __init__(self) -> None:
        """Join the others that torch's launcher named in the environment."""
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size > 1 and not distributed.is_initialized():
            _die_with_launcher()
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def share(self, items: Sequence[T]) -> list[T]:
        """Return what this process works off: every `size`-th item."""
        return list(items[self.rank :: self.size])

    def budget(self, budget: int, tokens: int) -> int:
        """Return a token budget that leaves no process idle where there is work for all."""
        return max(1, min(budget, -(-tokens // self.size)))

    def wait(self) -> None:
        """Return when all have come so far."""
        if not self.alone:
            distributed.barrier()

    def any(self, flag: bool) -> bool:
        """Say whether any of the processes says yes; all of them get the same answer."""
        return bool(self.total({"flag": float(flag)})["flag"])

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Add up named numbers over the processes; a process may lack names."""
        if self.alone:
            return sums
        found: dict[str, float] = {}
        for each in self._gather(sums):
            for name, value in each.items():
                found[name] = found.get(name, 0.0) + value
        return found

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients; who had no pack in this step adds nothing."""
        if self.alone:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def gather(self, mine: Sequence[T]) -> list[T]:
        """Put the results of `share` back into the order of what was shared out."""
        if self.alone:
            return list(mine)
        parts = self._gather(list(mine))
        count = sum(map(len, parts))
        return [parts[place % self.size][place // self.size] for place in range(count)]

    def leave(self) -> None:
        """Part from the others, after the last thing that needs them."""
        if not self.alone and distributed.is_initialized():
            distributed.destroy_process_group()

    def _gather(self, mine: Any) -> list[Any]:
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, mine)
        return parts
