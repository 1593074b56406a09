"""Registration by proof: a fresh process reloads what was saved and gets the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.engine.adapters import load_adapter
from training.engine.errors import NOT_PROVED, RunError
from training.engine.models import DTYPES, keep_score_in_fp32, load_base, pick_device
from training.engine.policy import Policy
from training.engine.rundir import Run, write_json
from training.engine.team import Team
from training.engine.threads import Threads

TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}
MERGED_TOLERANCE = 1e-3  # in fp32, where merging costs only rounding
PROBE_TOKENS = 64
ROWS = 8  # the last places whose logits or scores are kept


@torch.no_grad()
def probe(model: Any, ids: Tensor, head: str, rows: int = ROWS) -> Tensor:
    """Return the logits [rows, V] or scores [rows, 1] at a text's last places, fp32 on the CPU.

    A score alone may happen to be near 0, where a harmless rounding is a large share of it.
    """
    ids = ids.to(next(model.parameters()).device)

    def answer(tokens: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=tokens[None], use_cache=False).logits
        return logits.float().cpu()

    if head != "score":
        return answer(ids)[0, -rows:]
    ends = range(max(1, len(ids) - rows + 1), len(ids) + 1)
    return torch.cat([answer(ids[:end]) for end in ends])


@torch.no_grad()
def write_probe(run: Run, policy: Policy, tokens: list[int], *, precision: str, team: Team) -> None:
    """Store what the trained model says of a real text, for `prove` to reproduce.

    Of a sharded model all processes have to ask, and the first one writes.
    """
    model, ids = policy.model.eval(), torch.tensor(tokens[:PROBE_TOKENS])
    logits = policy.enter(lambda: probe(model, ids, policy.head))
    if not team.first:
        return
    settings = {
        "head": policy.head,
        "precision": precision,
        "tuning": run.arguments.tuning,
        # What was too large for one device is reloaded in the host's memory.
        "device": "cpu" if team.sharded else policy.device.type,
    }
    save_file({"input_ids": ids, "logits": logits.contiguous()}, run.probe, metadata=settings)


def prove(run: Run) -> dict[str, Any]:
    """Reload base and adapter and compare with the probe; write and return proof.json.

    The adapter is reloaded on the base as it was trained, in 4 or 8 bit where that was chosen;
    then `merged` folds it into fp32 weights and compares with the same weights unmerged. Full
    weights are reloaded as they are. Differences are relative to the largest logit.
    """
    (run.directory / "proof.json").unlink(missing_ok=True)  # an older one proves nothing
    probed = _read_probe(run)
    try:
        proof = _prove(run, *probed)
    except RunError as error:
        proof = {"passed": False, "reason": error.reason}
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        proof = {"passed": False, "reason": f"It cannot be loaded: {error!r}"}
    write_json(run.directory / "proof.json", proof)
    return proof


def _read_probe(run: Run) -> tuple[dict[str, str], Tensor, Tensor]:
    """Return the probe's settings, its text's tokens, and what the trained model said of them."""
    try:
        with safe_open(run.probe, framework="pt") as file:
            return file.metadata(), file.get_tensor("input_ids"), file.get_tensor("logits")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{run.probe} cannot be read: train the run first.") from error


def _prove(run: Run, settings: dict[str, str], ids: Tensor, expected: Tensor) -> dict[str, Any]:
    head, precision, tuning = settings["head"], settings["precision"], settings["tuning"]
    device = torch.device("cpu") if settings.get("device") == "cpu" else pick_device()
    threads = Threads()

    def reload(dtype: torch.dtype, tuning: str) -> Any:
        # A fresh score head is random: if the adapter does not carry it, this shows.
        torch.manual_seed(int.from_bytes(run.probe.name.encode(), "little") % 2**31)
        source = run.model if run.full else run.base.path
        base = load_base(source, head=head, tuning=tuning, dtype=dtype, device=device)
        model = base.eval() if run.full else load_adapter(base, run.adapter, head=head).eval()
        if head == "score":
            keep_score_in_fp32(model)
        threads.adapt()
        return model

    trained = reload(DTYPES[precision], tuning)
    # By its own word: what starts from a DoRA is one, whatever the run asked for.
    dora = not run.full and trained.active_peft_config.use_dora
    rows = len(expected)
    found = probe(trained, ids, head, rows)
    difference, tolerance = relative_difference(found, expected), TOLERANCES[precision]
    proof: dict[str, Any] = {
        "passed": difference <= tolerance,
        "weights": "full" if run.full else "dora" if dora else "adapter",
        "tuning": tuning,
        "max_difference": difference,
        "tolerance": tolerance,
        "precision": precision,
    }
    if run.full:
        return proof  # nothing is left to merge
    exact = reload(torch.float32, "lora")
    unmerged = probe(exact, ids, head, rows)
    merged = relative_difference(probe(exact.merge_and_unload(), ids, head, rows), unmerged)
    proof["passed"] = proof["passed"] and merged <= MERGED_TOLERANCE
    return proof | {"merged": {"max_difference": merged, "tolerance": MERGED_TOLERANCE}}


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected value; infinity if not comparable."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def read_proof(directory: Path) -> dict[str, Any]:
    """Return proof.json; RunError unless it passed."""
    try:
        proof: dict[str, Any] = json.loads((directory / "proof.json").read_text())
    except (OSError, ValueError):
        proof = {"passed": False}
    if not proof["passed"]:
        raise RunError(
            "What was saved does not reproduce what was trained, so it is not handed on: see "
            "proof.json and output.log, and train again.",
            code=NOT_PROVED,
        )
    return proof
