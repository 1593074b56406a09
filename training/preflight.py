"""Preflight: what a run will take on the machine that trains, before anything is queued.

A run that cannot fit is refused with the reason and the nearest one that does. The prediction is
kept on the run and stands beside the outcome.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.core.cache import cache

from accounts.errors import ProductError
from inference.models import BaseModel, Version
from training import machines, storage, symptoms
from training.engine.arguments import ArgumentError, Arguments, parse_arguments, refuse_shards
from training.engine.errors import RunError
from training.engine.estimate import (
    HEADROOM,
    QUANTISED,
    Estimate,
    Hardware,
    Measured,
    Shape,
    Tokens,
    estimate,
    is_full,
    read_shape,
    targeted,
    too_large_rank,
)
from training.engine.tokens import count_snapshot, limits_of
from training.models import Machine, Snapshot
from training.options import refuse_method

log = structlog.get_logger(__name__)

CACHE_SECONDS = 7 * 24 * 3600
# What training.engine.methods says of each method, for a process without torch.
NEEDS_REFERENCE = ("dpo", "kto")
SCORE_HEAD = ("reward",)
SHORTEST = 64  # tokens; nothing is proposed below it


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The nearest run that fits: which arguments change, and why that one."""

    changes: dict[str, Any]
    sentence: str
    estimate: Estimate


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """A run before it is queued: the prediction, what speaks against it, and what would fit."""

    estimate: Estimate
    hardware: Hardware
    machine: str
    cost: float | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    proposal: Proposal | None
    measured_runs: int

    @property
    def fits(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as REST answers them."""
        found = dataclasses.asdict(self)
        found["estimate"]["trainable_share"] = self.estimate.trainable_share
        if self.proposal is not None:
            found["proposal"]["estimate"]["trainable_share"] = (
                self.proposal.estimate.trainable_share
            )
        return found | {"fits": self.fits, "currency": settings.PRICE_CURRENCY}

    def prediction(self) -> dict[str, Any]:
        """Return what a run keeps of it, to stand beside the outcome."""
        found = self.estimate
        return {
            "machine": self.machine,
            "seconds": found.seconds,
            "training_seconds": found.training_seconds,
            "passes_seconds": found.passes_seconds,
            "overhead_seconds": found.overhead_seconds,
            "tokens": found.tokens,
            "steps": found.steps,
            "peak_memory_mb": found.peak_memory_mb,
            "uncorrected_memory_mb": round(sum(found.memory_mb.values()), 1),
            "disk_mb": found.needed_disk_mb,
            "trainable_parameters": found.trainable_parameters,
            "total_parameters": found.total_parameters,
            "lengths": {"chosen": found.chosen_length, "rejected": found.rejected_length},
            "cost": self.cost,
            "currency": settings.PRICE_CURRENCY,
        }


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One run with everything that decides its estimate but the arguments."""

    method: str
    snapshot: Snapshot
    base: BaseModel
    shape: Shape
    hardware: Hardware
    machine: Machine

    def tokens(self, arguments: Arguments) -> Tokens:
        return snapshot_tokens(
            snapshot=self.snapshot, base=self.base, method=self.method, arguments=arguments
        )

    def measured(self, arguments: Arguments) -> Measured:
        return machines.measured(
            self.machine, base_id=self.base.pk, method=self.method, arguments=arguments
        )

    def estimate(self, arguments: Arguments) -> Estimate:
        return estimate(
            self.shape,
            arguments,
            self.tokens(arguments),
            self.hardware,
            method=self.method,
            reference=self.method in NEEDS_REFERENCE,
            head="score" if self.method in SCORE_HEAD else "lm",
            measured=self.measured(arguments),
        )


def check_run(
    *, snapshot: Snapshot, start_version: Version, method: str, arguments: dict[str, Any]
) -> Preflight | None:
    """Foretell a run and say whether it fits; None where base or snapshot cannot be read.

    Raises ProductError for what no machine could run.
    """
    _refuse(snapshot, start_version, method)
    try:
        given = parse_arguments(method, arguments)
        kept = kept_shape(start_version, given)
        parsed = dataclasses.replace(given, **kept)
    except ArgumentError as error:
        raise ProductError(str(error)) from error
    if is_full(parsed) and not start_version.is_base:
        raise ProductError("Full weights are trained from the base: start there, or use a LoRA.")
    machine = machines.planned_machine()
    hardware = dataclasses.replace(machine.as_hardware(), shards=_shards())
    base = start_version.base
    try:
        case = _Case(
            method=method,
            snapshot=snapshot,
            base=base,
            shape=read_shape(Path(base.path)),
            hardware=hardware,
            machine=machine,
        )
        found = case.estimate(parsed)
    except (OSError, ValueError, KeyError, StopIteration, RunError) as error:
        log.warning("no_preflight", snapshot=snapshot.pk, base=base.name, error=repr(error))
        return None
    problems = _problems(parsed, found, hardware)
    return Preflight(
        estimate=found,
        hardware=hardware,
        machine=machine.name,
        cost=_cost(found),
        problems=tuple(problems),
        warnings=(
            *_kept_warning(start_version, given, kept),
            *_warnings(case, parsed, found),
        ),
        proposal=_nearest(case, parsed) if problems else None,
        measured_runs=machine.throughputs.filter(base=base, method=method).count(),
    )


def _refuse(snapshot: Snapshot, start_version: Version, method: str) -> None:
    """Raise ProductError where the snapshot or the version is nothing to train on."""
    if snapshot.state != Snapshot.State.READY:
        raise ProductError("This snapshot is not ready. Wait until it is, then start the run.")
    if snapshot.stale_at is not None:
        raise ProductError(
            "This snapshot holds judgements that were retracted. Take it again, then train."
        )
    if start_version.project_id != snapshot.project_id:
        raise ProductError("The version to start from belongs to another project.")
    if start_version.is_full:
        raise ProductError(
            f"{start_version.name} is a whole model, and runs start from a base or an adapter: "
            "choose another version."
        )
    if start_version.method == "reward" and method != "reward":
        raise ProductError(
            f"{start_version.name} is a reward model, which writes no answers: start from the base "
            "or another adapter."
        )
    refuse_method(snapshot.kind, method)


def kept_shape(start_version: Version, arguments: Arguments) -> dict[str, Any]:
    """Return the arguments that follow from the adapter a run goes on with: its shape stays."""
    if start_version.is_base or is_full(arguments):
        return {}
    try:
        config = json.loads((start_version.folder / "adapter_config.json").read_text())
    except OSError:
        return {}  # the run will say so
    names = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    kept = {name: config[key] for name, key in names.items() if key in config}
    if isinstance(config.get("target_modules"), list):
        kept["target_modules"] = sorted(config["target_modules"])
    if start_version.is_dora or arguments.tuning == "dora":
        kept["tuning"] = "dora" if start_version.is_dora else "lora"
    return kept


def _kept_warning(start_version: Version, given: Arguments, kept: dict[str, Any]) -> Iterator[str]:
    changed = [
        f"{name} {value}"
        for name, value in kept.items()
        if name != "target_modules" and getattr(given, name) != value
    ]
    if changed:
        yield f"It goes on with the adapter of {start_version.name} as it is: {', '.join(changed)}."


def _sharded() -> bool:
    return settings.RUN_LAUNCHER == "accelerate" and settings.RUN_SHARDING == "fsdp"


def _shards() -> int:
    return max(1, settings.RUN_PROCESSES) if _sharded() else 1


def snapshot_tokens(
    *, snapshot: Snapshot, base: BaseModel, method: str, arguments: Arguments
) -> Tokens:
    """Return what training would read of a snapshot; counted once for each set of limits."""
    limits = limits_of(method, arguments)
    key = ":".join(["tokens-2", snapshot.digest[:32], base.digest[:32], *map(str, limits.values())])
    known: Tokens | None = cache.get(key)
    if known is None:
        known = count_snapshot(storage.local_folder(snapshot), Path(base.path), limits)
        cache.set(key, known, CACHE_SECONDS)
    return known


def _cost(found: Estimate) -> float | None:
    price = settings.PRICE_PER_HOUR
    return round(found.seconds / 3600 * price, 4) if price else None


def _problems(arguments: Arguments, found: Estimate, hardware: Hardware) -> list[str]:
    problems = []
    if _sharded() and (refusal := refuse_shards(arguments)):
        problems.append(refusal)
    room = hardware.memory_mb * HEADROOM
    if found.trees == 0:
        problems.append(
            "None of the rows can be learnt from: each needs two different responses, and a "
            "prompt that leaves room for them below max_length."
        )
    if found.peak_memory_mb > room:
        problems.append(
            f"It needs about {found.peak_memory_mb:,.0f} MB of memory, and {hardware.name} "
            f"has {room:,.0f} MB for it."
        )
    if found.needed_disk_mb > hardware.disk_mb:
        problems.append(
            f"It writes about {found.needed_disk_mb:,.0f} MB, and {hardware.disk_mb:,.0f} MB of "
            "the disk are free."
        )
    return problems


def _warnings(case: _Case, arguments: Arguments, found: Estimate) -> Iterator[str]:
    if not is_full(arguments):
        layers = too_large_rank(arguments.lora_r, targeted(case.shape, arguments.target_modules))
        if layers:
            yield (
                f"Rank {arguments.lora_r} saves nothing on {', '.join(layers)}: the LoRA has as "
                "many weights as the layer itself. Lower lora_r."
            )
    if found.truncated:
        yield (
            f"{found.truncated:,} of {found.used:,} rows are cut at max_length or "
            "max_prompt_length. Raise them to learn from whole texts."
        )
    if longer := symptoms.length(found.chosen_length, found.rejected_length):
        yield longer
    if 0 < found.trees < symptoms.FEW_PROMPTS:
        yield f"{found.trees} prompts are few to learn from; expect it to fit them by heart."


def _nearest(case: _Case, arguments: Arguments) -> Proposal | None:
    """Return the nearest run that fits: smaller packs, then fewer bits, then shorter texts."""
    for changes, sentence in _alternatives(case, arguments):
        try:
            changed = parse_arguments(case.method, dataclasses.asdict(arguments) | changes)
        except ArgumentError:
            continue
        found = case.estimate(changed)
        if not _problems(changed, found, case.hardware):
            return Proposal(changes=changes, sentence=sentence, estimate=found)
    return None


def _alternatives(case: _Case, arguments: Arguments) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield changes in the order of what they cost; each keeps those before it."""
    if _sharded() and refuse_shards(arguments):
        yield {"tuning": "lora", "engine": "auto"}, "The base whole in numbers, sharded instead."
    found = case.estimate(arguments)
    changes: dict[str, Any] = {}
    budget = found.pack_tokens // 2
    while budget >= found.longest:
        changes = {"token_budget": budget}
        yield changes, f"Packs of {budget:,} tokens: slower, the same result."
        budget //= 2
    changes = {"token_budget": max(1, found.longest)}
    yield changes, f"Packs of {found.longest:,} tokens: slower, the same result."
    changes |= {"gradient_checkpointing": True}
    yield changes, "Activations computed twice: a third slower, the same result."
    for tuning, sentence in (
        ("qlora8", "The base held in 8 bits."),
        ("qlora4", "The base held in 4 bits (NF4)."),
    ):
        if QUANTISED[tuning] < QUANTISED.get(str(arguments.tuning), 4.0):
            changes |= {"tuning": tuning}
            yield changes, sentence
    length = arguments.max_length // 2
    while length >= SHORTEST:
        shorter = {"max_length": length, "max_prompt_length": length // 2}
        sentence = f"Texts cut at {length} tokens."
        yield changes | shorter | {"token_budget": length}, sentence
        length //= 2
