"""report.json: what a run came to, and what it took. Preflight learns from `throughput`."""

from __future__ import annotations

import math
import resource
import time
from typing import TYPE_CHECKING, Any

import psutil
import torch

from training.engine.data import RowCounts
from training.engine.events import EventLog

if TYPE_CHECKING:
    from training.engine.train import Session


class Clock:
    """Announces the phases of a run and measures how long each took in this attempt."""

    def __init__(self, events: EventLog) -> None:
        self.events = events
        self.phase = ""
        self.begun = time.monotonic()
        self.seconds: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """Begin a phase; the same one again adds to its time."""
        self._end()
        self.phase = phase
        self.events.state(phase)

    def finish(self) -> dict[str, float]:
        """End the last phase; return the seconds of each, rounded."""
        self._end()
        return {name: round(value, 3) for name, value in self.seconds.items()}

    def _end(self) -> None:
        now = time.monotonic()
        if self.phase:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.begun
        self.phase, self.begun = "", now


def make_report(
    session: Session,
    parameters: dict[str, torch.nn.Parameter],
    counts: RowCounts,
    after: dict[str, float] | None,
) -> dict[str, Any]:
    count = sum(value.numel() for value in parameters.values())
    total = sum(_elements(value) for value in session.policy.model.parameters())
    progress = session.progress
    peak = peak_memory_mb(session.device)
    return {
        "method": session.run.method,
        "engine": engine_name(session),
        "weights": "full" if session.run.full else "adapter",
        "precision": session.progress.precision,
        "device": str(session.device),
        "steps": session.progress.step,
        "seconds": round(session.progress.seconds, 3),
        "trainable_parameters": count,
        "total_parameters": total,
        "trainable_share": count / total,
        "rows": counts.as_dict(),
        "prompts": len(session.train),
        "evaluation": {
            "before": session.progress.before,
            "after": after,
            "pairs": sum(len(tree.pairs) for tree in session.heldout),
        },
        "peak_memory_mb": peak,
        "throughput": {
            "processes": session.team.size,
            "sharding": "fsdp" if session.team.sharded else "ddp",
            "tokens": progress.tokens,
            "training_seconds": round(progress.seconds, 3),
            "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-9), 2),
            "peak_memory_mb": peak,
            "seconds": {},  # by phase, for this attempt; filled in at the end
        },
    }


def engine_name(session: Session) -> str:
    """Return what computed the loss: the tree, TRL, or each response alone."""
    if session.trl is not None:
        return "trl"
    return "plain" if session.policy.plain else "tree"


def _elements(parameter: torch.nn.Parameter) -> int:
    """Count a parameter's numbers; 4-bit weights are stored two to a byte."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return math.prod(shape) if shape is not None else parameter.numel()


def memory_mb(device: torch.device) -> float:
    """Return the memory held now: the device's, or on a CPU the process's."""
    if device.type == "cuda":
        return round(torch.cuda.memory_allocated(device) / 2**20, 1)
    return round(float(psutil.Process().memory_info().rss) / 2**20, 1)


def peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)
