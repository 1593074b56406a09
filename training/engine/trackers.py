"""Where a run's figures go beside events.jsonl: TensorBoard always, MLflow and W&B by setting.

RUN_TRACKERS names further ones, with commas between: `mlflow` (MLFLOW_TRACKING_URI says where to)
and `wandb` (WANDB_PROJECT, WANDB_MODE and WANDB_API_KEY are W&B's own).
"""

from __future__ import annotations

import importlib
import math
import os
import time
from dataclasses import asdict
from typing import Any, Protocol

from training.engine.errors import RunError
from training.engine.rundir import Run

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}


class Tracker(Protocol):
    """Takes the figures of one step after another."""

    def step(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files under tensorboard/ in the run directory, written without torch or TensorFlow."""

    def __init__(self, run: Run) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(run.directory / "tensorboard"), flush_secs=5)
        self.begun = False

    def step(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not self.begun:  # what a killed attempt wrote from here on is taken back
            self.begun = True
            start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
            start.wall_time = time.time()
            self.writer.add_event(start)
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = Event(step=step, summary=Summary(value=scalars))
        event.wall_time = time.time()
        self.writer.add_event(event)

    def close(self) -> None:
        self.writer.close()


class Mlflow:
    """One MLflow run for a run directory; a resumed run goes on in it."""

    def __init__(self, run: Run) -> None:
        self.mlflow = _package("mlflow")
        self.mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "laurel"))
        marker = run.directory / "mlflow_run"
        known = marker.read_text() if marker.exists() else None
        begun = self.mlflow.start_run(run_id=known, run_name=None if known else run.directory.name)
        marker.write_text(begun.info.run_id)
        if known is None:
            self.mlflow.log_params({"method": run.method, **asdict(run.arguments)})

    def step(self, step: int, values: dict[str, float]) -> None:
        # MLflow's names know no parentheses or quotes, but slashes are fine.
        self.mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


class Wandb:
    """One W&B run for a run directory; a resumed run goes on in it."""

    def __init__(self, run: Run) -> None:
        self.run = _package("wandb").init(
            project=os.environ.get("WANDB_PROJECT", "laurel"),
            id=run.directory.name,
            resume="allow",
            dir=str(run.directory),
            config={"method": run.method, **asdict(run.arguments)},
        )

    def step(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


def open_trackers(run: Run) -> list[Tracker]:
    """Open TensorBoard's files and what RUN_TRACKERS names; RunError says what is missing."""
    kinds: dict[str, Any] = {"mlflow": Mlflow, "wandb": Wandb}
    named = [one.strip() for one in os.environ.get("RUN_TRACKERS", "").split(",") if one.strip()]
    for name in named:
        if name not in kinds:
            raise RunError(
                f"RUN_TRACKERS names {name!r}, which is not known: choose {' or '.join(kinds)}."
            )
    return [TensorBoard(run), *(kinds[name](run) for name in named)]


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers among a step's values."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _package(name: str) -> Any:
    try:
        return importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise RunError(
            f"RUN_TRACKERS asks for {name}, which is not installed: pip install {name} where the "
            "trainer runs, or leave it out of RUN_TRACKERS."
        ) from error
