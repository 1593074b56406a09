"""The processes that train one run together: one on a laptop, many under `accelerate launch`.

Every process works off its share of the packs; gradients and sums are added up. The first process
alone writes files. With one process nothing here does anything. RUN_SHARDING says what a process
holds: ddp (the default) the whole model, fsdp a share of its weights (see sharding.py).

On two hosts that share the run directory and the base, with two GPUs each; on host B rank 1:

    RUN_SHARDING=fsdp accelerate launch --multi_gpu --num_machines 2 --num_processes 4 \\
        --machine_rank 0 --main_process_ip HOST_A --main_process_port 29500 \\
        -m training.engine RUN_DIR

For runs that the platform starts, the same options stand in the file that ACCELERATE_CONFIG_FILE
names; on the other hosts the same command is started by hand, or by the cluster.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from training.engine.errors import RunError

T = TypeVar("T")
PR_SET_PDEATHSIG = 1
SHARDINGS = ("ddp", "fsdp")


def _die_with_launcher() -> None:
    """End with the launcher, wherever it puts us: no orphan trains on.

    Without this, one that is killed leaves us behind, and we hold the run's directory.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Team:
    """This process's place among those that train the run."""

    def __init__(self) -> None:
        """Join the others that torch's launcher named in the environment."""
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.sharding = os.environ.get("RUN_SHARDING") or "ddp"
        if self.sharding not in SHARDINGS:
            raise RunError(f"RUN_SHARDING is {self.sharding!r}: set it to ddp or fsdp.")
        if self.size > 1 or os.environ.get("RUN_LAUNCHER") == "accelerate":
            _die_with_launcher()
        if self.size > 1 and not distributed.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def sharded(self) -> bool:
        """Say whether this process holds only a share of the base's weights."""
        return not self.alone and self.sharding == "fsdp"

    def share(self, items: Sequence[T]) -> list[T]:
        """Return what this process works off: every `size`-th item."""
        return list(items[self.rank :: self.size])

    def deal(self, items: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """Yield this process's share, each with whether it counts.

        Layers are gathered by all processes together, so each makes as many passes as the others:
        who has no item left repeats the first one, which does not count.
        """
        mine = self.share(items)
        yield from ((item, True) for item in mine)
        if self.sharded and len(mine) * self.size < len(items):
            yield items[0], False

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

    def agree(self, value: T) -> T:
        """Return the first process's value in all of them: machines may measure differently."""
        return value if self.alone else self._gather(value)[0]

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
        """Add up the gradients; who had no pack in this step adds nothing.

        Those of sharded weights were added up in the backward pass.
        """
        if self.alone:
            return
        for parameter in parameters:
            if isinstance(parameter, DTensor):
                continue
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
