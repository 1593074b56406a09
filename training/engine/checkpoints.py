"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from inference.artifacts import file_digest
from training.engine.rundir import write_json
from training.engine.sharding import share_like, whole

KEPT = 2
TENSORS = "state.safetensors"


@dataclass
class Progress:
    """How far a run has come; the step is also its position in the data."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    token_budget: int = 0
    halved: bool = False
    plain: bool = False
    precision: str = ""
    before: dict[str, Any] | None = None
    asked: str = ""  # the digest of what run.json asked for
    notes: list[str] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    progress: Progress,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    write: bool = True,
) -> None:
    """Write checkpoints/step-N whole or not at all, and drop all but the last two.

    Shares are gathered, so of several processes all have to call, and the first one to `write`.
    """
    tensors = _gathered(parameters, optimizer, keep=write)
    if not write:
        return
    draft, target = folder / f".step-{progress.step}", folder / f"step-{progress.step}"
    if target.exists():
        return
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(tensors | random_state(), draft / TENSORS)
    _flush(draft / TENSORS)
    digest = file_digest(draft / TENSORS)
    write_json(draft / "progress.json", {**asdict(progress), "digest": digest})
    os.rename(draft, target)
    _flush(folder)
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _gathered(
    parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, *, keep: bool
) -> dict[str, Tensor]:
    """Return parameters and optimizer state on the CPU; one whole tensor exists at a time."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {})
        values = {f"optimizer/{key}/{name}": value for key, value in state.items()}
        for label, value in (values | {f"parameter/{name}": parameter.detach()}).items():
            gathered = whole(value)
            if keep:
                found[label] = gathered.cpu().contiguous()
    return found


def load_checkpoint(folder: Path) -> tuple[Progress, dict[str, Tensor]] | None:
    """Return the newest checkpoint that is whole; None if there is none."""
    for path, progress in _whole_ones(folder):
        with suppress(OSError, SafetensorError):
            return progress, load_file(path / TENSORS)
    return None


def load_progress(folder: Path) -> Progress | None:
    """Return how far the newest checkpoint came, and leave its tensors on the disk."""
    return next((progress for _, progress in _whole_ones(folder)), None)


def _whole_ones(folder: Path) -> Iterator[tuple[Path, Progress]]:
    for path in _newest_first(folder):
        try:
            given = json.loads((path / "progress.json").read_text())
            if given.pop("digest") == file_digest(path / TENSORS):
                yield path, Progress(**given)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: the one before it will do


def restore(
    tensors: dict[str, Tensor],
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put a checkpoint's tensors back in place, the random state included."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(share_like(tensors[f"parameter/{name}"], parameter))
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, what, name = key.split("/", 2)
            parameter = parameters[name]
            share = value if what == "step" else share_like(value, parameter)
            optimizer.state[parameter][what] = share
    set_random_state(tensors)


def random_state() -> dict[str, Tensor]:
    """Return the state that dropout is drawn from, of the CPU and of the device."""
    found = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["random/cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(state: dict[str, Tensor]) -> None:
    """Go back to a state that `random_state` returned, here or on another machine."""
    torch.set_rng_state(state["random/cpu"])
    if "random/cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random/cuda"])


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: -int(path.name[5:]))


def _flush(path: Path) -> None:
    """Make sure that a file, or a rename in a folder, survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
