"""What runs work on, and what earlier ones took there: the memory of preflight."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from django.conf import settings
from django.db import transaction

from training.engine.estimate import MB, Hardware, Measured
from training.models import Machine, Run, Throughput

# How much a new measurement counts against what was known.
NEW_SHARE = 0.5
# Dense bf16 peaks in GFLOP/s by a part of the name; only until the first run was measured.
GPU_GFLOPS = {"H100": 800e3, "H200": 800e3, "A100": 300e3, "L40": 180e3, "4090": 160e3}
OTHER_GPU_GFLOPS = 50e3
PRODUCT = 768  # the side of the matrices that the CPU is tried with


def local_hardware() -> Hardware:
    """Look at this machine: its GPU if it has one, otherwise its cores and memory."""
    disk = _free_disk(Path(settings.RUNS_DIR))
    gpu = _gpu()
    if gpu is not None:
        name, memory = gpu
        known = (peak for part, peak in GPU_GFLOPS.items() if part in name)
        peak = next(known, OTHER_GPU_GFLOPS)
        return Hardware(
            name=name, device="cuda", memory_mb=memory, disk_mb=disk, gflops=peak, bf16=True
        )
    return Hardware(
        name=f"{psutil.cpu_count()} CPU cores",
        device="cpu",
        memory_mb=_memory_mb(),
        disk_mb=disk,
        gflops=_cpu_gflops(),
        bf16=_cpu_takes_bf16(),
    )


def report_machine() -> Machine:
    """Record what this machine is, so that the web process can plan for it."""
    hardware = local_hardware()
    machine, _ = Machine.objects.update_or_create(
        name=socket.gethostname(),
        defaults={
            "hardware": hardware.name,
            "device": hardware.device,
            "memory_mb": hardware.memory_mb,
            "disk_mb": hardware.disk_mb,
            "gflops": hardware.gflops,
            "bf16": hardware.bf16,
        },
    )
    return machine


def planned_machine() -> Machine:
    """Return the machine that trained last; before the first run, this one."""
    machine = Machine.objects.order_by("-seen_at").first()
    return machine or report_machine()


def measured(machine: Machine, *, base_id: int, method: str, arguments: Any) -> Measured:
    """Return what earlier runs of this kind took on a machine; the newest where several fit."""
    rows = Throughput.objects.filter(
        machine=machine,
        base_id=base_id,
        tuning=str(arguments.tuning),
        gradient_checkpointing=arguments.gradient_checkpointing,
    ).order_by("-updated_at")
    if arguments.precision != "auto":
        rows = rows.filter(precision=arguments.precision)
    if arguments.engine != "auto":
        rows = rows.filter(engine=arguments.engine)
    # Another method on the same base is a better guess than none at all.
    row = rows.filter(method=method).first() or rows.first()
    if row is None:
        return Measured()
    return Measured(
        tokens_per_second=row.tokens_per_second,
        overhead_seconds=row.overhead_seconds,
        memory_factor=row.memory_factor,
        precision=row.precision,
    )


@transaction.atomic
def learn_from(run: Run, report: dict[str, Any], seconds: float) -> None:
    """Correct what is known of this machine by a finished run; ``seconds`` is its whole time.

    A run that was interrupted says nothing about time, and one without a prediction nothing at all.
    """
    foretold = run.prediction
    if not foretold or run.attempts != 1 or not report.get("seconds"):
        return
    if run.continues_id or seconds < report["seconds"]:
        return  # a part of the steps was taken elsewhere, or before a pause
    machine = report_machine()
    steps = report.get("steps") or foretold["steps"]
    tokens = foretold["tokens"] * steps / max(1, foretold["steps"])
    # By the prediction's own count of tokens, so that a run's mean length cancels out.
    rate = tokens / report["seconds"]
    overhead = max(0.0, seconds - report["seconds"] - passes_seconds(report))
    factor = report["peak_memory_mb"] / max(1.0, foretold["uncorrected_memory_mb"])
    found = {
        "tokens_per_second": rate,
        "overhead_seconds": overhead,
        "memory_factor": min(4.0, max(0.25, factor)),
    }
    row, created = Throughput.objects.select_for_update().get_or_create(
        machine=machine,
        base_id=run.start_version.base_id,
        method=run.method,
        engine=report.get("engine", "tree"),
        tuning=run.arguments.get("tuning", "lora"),
        precision=report.get("precision", "fp32"),
        gradient_checkpointing=run.arguments.get("gradient_checkpointing", False),
        defaults=found,
    )
    if created:
        return
    for name, value in found.items():
        known = getattr(row, name)
        setattr(row, name, known + NEW_SHARE * (value - known))
    row.runs += 1
    row.save()


def passes_seconds(report: dict[str, Any]) -> float:
    """Return what a run's passes without a gradient took: the reference, and what was measured."""
    phases = report.get("throughput", {}).get("seconds", {})
    return float(sum(phases.get(name, 0.0) for name in ("reference", "evaluating")))


def _free_disk(folder: Path) -> float:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / MB


def _memory_mb() -> float:
    """Return the memory of the machine, or of the container where that is less."""
    total = float(psutil.virtual_memory().total)
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        total = min(total, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total / MB


def _gpu() -> tuple[str, float] | None:
    """Return the name and memory in MB of the first GPU, as the driver's own tool says it."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
        name, memory = found.stdout.splitlines()[0].rsplit(",", 1)
        return name.strip(), float(memory)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _cpu_gflops() -> float:
    matrix = np.ones((PRODUCT, PRODUCT), dtype=np.float32)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - started)
    return float(2 * PRODUCT**3 / best / 1e9)


def _cpu_takes_bf16() -> bool:
    """Say whether the CPU multiplies bf16 in hardware; the engine measures it when it starts."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
