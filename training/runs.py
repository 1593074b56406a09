"""Training runs: queue, claim, execute as a child process, follow, finish, take up again.

Postgres holds the state; Celery only rings the bell. A worker holds a run by a lease, as builds and
evaluations are held (``training.leases``), and stops its child when it lost it. What a dead worker
held is made claimable again by ``sweep_runs``; the child resumes from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import IO, Any

import structlog
from django.conf import settings
from django.core.cache import cache
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from accounts.errors import Conflict, ProductError
from accounts.models import User
from accounts.processes import die_with_parent
from accounts.services import audit
from inference.models import Version
from inference.services import register_version
from training import leases, machines, preflight, storage
from training.models import Run, RunMetric, RunNote, RunQuerySet, Snapshot

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
RING_SECONDS = 30


@transaction.atomic
def start_run(
    *,
    snapshot: Snapshot,
    start_version: Version,
    method: str,
    arguments: dict[str, Any],
    by: User | None,
    seed: int = 0,
) -> Run:
    """Queue a training of an adapter on a snapshot, from the base or from an earlier adapter."""
    from training.engine.arguments import ArgumentError, parse_arguments
    from training.tasks import execute_run

    try:
        parsed = parse_arguments(method, arguments)
    except ArgumentError as error:
        raise ProductError(str(error)) from error
    arguments = dataclasses.asdict(parsed) | preflight.kept_shape(start_version, parsed)
    checked = preflight.check_run(
        snapshot=snapshot, start_version=start_version, method=method, arguments=arguments
    )
    if checked is not None and not checked.fits:
        raise ProductError(_cannot_fit(checked), preflight=checked.as_dict())
    run = Run(
        project=snapshot.project,
        snapshot=snapshot,
        start_version=start_version,
        method=method,
        arguments=arguments,
        seed=seed,
        prediction=checked.prediction() if checked is not None else {},
        created_by=by,
    )
    run.full_clean()
    run.save()
    audit(project=run.project, by=by, action="run.start", target=f"run {run.pk}", method=method)
    execute_run.delay_on_commit(run.pk)
    return run


def _cannot_fit(checked: preflight.Preflight) -> str:
    """Say why a run is refused, and the nearest one that would fit."""
    reason = " ".join(checked.problems)
    if checked.proposal is None:
        return f"This run cannot fit. {reason} Use a smaller base, or another machine."
    changes = ", ".join(f"{name} = {value}" for name, value in checked.proposal.changes.items())
    return f"This run cannot fit. {reason} The nearest that does: {changes}."


def cancel_run(*, run: Run, by: User | None) -> None:
    """Stop a run within one step; one that has not begun never begins."""
    waiting = (Run.State.QUEUED, Run.State.INTERRUPTED, Run.State.PAUSED)
    ended = Run.objects.filter(pk=run.pk, state__in=waiting).update(
        state=Run.State.CANCELLED, cancel_requested=True, ended_at=Now()
    )
    asked = Run.objects.filter(pk=run.pk, state=Run.State.RUNNING).update(cancel_requested=True)
    if not ended and not asked:
        raise Conflict("This run has already ended.")
    audit(project=run.project, by=by, action="run.cancel", target=f"run {run.pk}")


def pause_run(*, run: Run, by: User | None) -> None:
    """Stop a run within one step, to go on later from there; one that waits just stays."""
    waiting = (Run.State.QUEUED, Run.State.INTERRUPTED)
    paused = Run.objects.filter(pk=run.pk, state__in=waiting).update(state=Run.State.PAUSED)
    asked = Run.objects.filter(
        pk=run.pk, state=Run.State.RUNNING, cancel_requested=False, pause_requested=False
    ).update(pause_requested=True)
    if not paused and not asked:
        raise Conflict("This run cannot be paused: it has ended, is paused, or is being stopped.")
    audit(project=run.project, by=by, action="run.pause", target=f"run {run.pk}")


def resume_run(*, run: Run, by: User | None) -> None:
    """Queue a paused run again; it goes on from its last step."""
    queued = Run.objects.filter(pk=run.pk, state=Run.State.PAUSED).update(
        state=Run.State.QUEUED, pause_requested=False
    )
    if not queued:
        raise Conflict("This run is not paused.")
    audit(project=run.project, by=by, action="run.resume", target=f"run {run.pk}")
    transaction.on_commit(lambda: _ring(run.pk))


@transaction.atomic
def run_again(*, run: Run, by: User | None) -> Run:
    """Queue the same training once more as a new run."""
    if run.is_live:
        raise Conflict("This run has not ended. Cancel it first, or wait.")
    return start_run(
        snapshot=run.snapshot,
        start_version=run.start_version,
        method=run.method,
        arguments=run.arguments,
        seed=run.seed,
        by=by,
    )


def claim_run(run_id: int) -> uuid.UUID | None:
    """Take a waiting run for this worker; None when another one was first or it is not waiting."""
    cache.delete(f"run-bell:{run_id}")
    return leases.claim(
        Run.objects.filter(pk=run_id, cancel_requested=False),
        held=Run.State.RUNNING,
        free=Run.WAITING,
        started_at=Now(),
        pause_requested=False,
        phase="starting",
    )


def execute_run(*, run_id: int) -> None:
    """Execute a waiting run from its directory to its registered version.

    The bell may ring for one run while another waits with a higher priority: that one goes first.
    """
    first = _most_urgent(run_id)
    if first != run_id:
        execute_run(run_id=first)
        cache.delete(f"run-bell:{run_id}")
        _ring(run_id)
        return
    lease = claim_run(run_id)
    if lease is None:
        return
    run = Run.objects.select_related("snapshot", "start_version__base", "project", "continues").get(
        pk=run_id
    )
    mine = Run.objects.filter(pk=run_id, lease=lease, state=Run.State.RUNNING)
    try:
        with leases.keep(mine):
            _attempt(run, mine)
    except (ProductError, OSError, ValueError, KeyError) as error:
        log.exception("run_failed", run=run_id)
        _finish(mine, Run.State.FAILED, str(error) or repr(error))


def _attempt(run: Run, mine: RunQuerySet) -> None:
    """Take a claimed run as far as it goes; ``mine`` is its row for as long as it is held."""
    began = time.monotonic()
    machine = machines.report_machine()
    directory = _prepare(run)
    code = _follow(run, directory, mine)
    if code is None:
        return  # the lease went to another worker, which goes on with it
    ending = _ending(directory) if code else ""
    if ending == "cancelled":
        _finish(mine, Run.State.CANCELLED, "Cancelled.")
    elif ending == "paused":
        _pause(mine)
    elif _was_killed(directory, code):
        if _let_go(run, mine, _reason(directory, code)):
            _ring(run.pk)
    elif code != 0:
        _finish(mine, Run.State.FAILED, _reason(directory, code))
    else:
        report = json.loads((directory / "report.json").read_text())
        report["hardware"] = machine.hardware
        version = _register(run, directory, report)
        _finish(mine, Run.State.SUCCEEDED, report=report, version=version)
        machines.learn_from(run, report, time.monotonic() - began)


def _finish(mine: RunQuerySet, state: Run.State, reason: str = "", **changes: Any) -> bool:
    ended = {"lease": None, "phase": "", "ended_at": Now(), "reason": reason[:1000]}
    return bool(mine.update(state=state, **ended, **changes))


def _pause(mine: RunQuerySet) -> bool:
    # Not a failed attempt: pausing must not use them up.
    attempts = F("attempts") - 1
    return bool(mine.update(state=Run.State.PAUSED, lease=None, phase="", attempts=attempts))


def _most_urgent(run_id: int) -> int:
    """Return the waiting run that should go first: of a higher priority, or this one."""
    waiting = Run.objects.waiting().filter(priority__gt=_priority(run_id))
    first = waiting.order_by("-priority", "pk").values_list("pk", flat=True).first()
    return run_id if first is None else first


def _priority(run_id: int) -> int:
    found = Run.objects.filter(pk=run_id).values_list("priority", flat=True).first()
    return found or 0


def set_priority(*, run: Run, priority: int, by: User | None) -> None:
    """Say how soon a waiting run goes: the highest first, among equals the oldest."""
    if not -100 <= priority <= 100:
        raise ProductError("A priority lies between -100 and 100.")
    changed = Run.objects.filter(pk=run.pk, state__in=(*Run.WAITING, Run.State.PAUSED))
    if not changed.update(priority=priority):
        raise Conflict("Only a run that waits has a priority; this one has begun or ended.")
    audit(project=run.project, by=by, action="run.priority", target=f"run {run.pk}", to=priority)


def _prepare(run: Run) -> Path:
    """Write run.json once; a run that is taken up again keeps its directory and checkpoints."""
    directory = run.directory
    directory.mkdir(parents=True, exist_ok=True)
    storage.local_folder(run.snapshot)  # what it trains on is here, and sound
    target = directory / "run.json"
    if not target.exists():
        description = _description(run)
        if run.continues is not None:
            description["continues"] = _copy_checkpoints(run.continues, directory)
        draft = directory / ".run.json"
        draft.write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
        os.replace(draft, target)
    return directory


def _copy_checkpoints(before: Run, directory: Path) -> str:
    """Let a run begin where an earlier one of its round ended; without files it starts afresh.

    Return the digest by which its checkpoints name what it was asked for; "" where there are none.
    """
    from training.engine.errors import RunError
    from training.engine.rundir import read_run

    source, draft = before.directory / "checkpoints", directory / ".checkpoints"
    if not source.is_dir():
        return ""
    try:
        asked = read_run(before.directory).asked
    except RunError as error:
        raise ProductError(error.reason) from error
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(source, draft)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    os.rename(draft, directory / "checkpoints")
    return asked


def _description(run: Run) -> dict[str, Any]:
    start = run.start_version
    return {
        "id": str(run.key),
        "method": run.method,
        "base": {"path": start.base.path, "digest": start.base.digest},
        "parent": None if start.is_base else {"path": str(start.folder), "digest": start.digest},
        "snapshot": {"path": str(run.snapshot.folder), "digest": run.snapshot.digest},
        "seed": run.seed,
        "code_version": _code_version(),
        "arguments": run.arguments,
    }


def _code_version() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=settings.BASE_DIR,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _follow(run: Run, directory: Path, mine: RunQuerySet) -> int | None:
    """Run the child and copy its events into the database; return its exit code.

    None means that this worker no longer holds the run; then the child is stopped.
    """
    tail = EventTail(directory / "events.jsonl", run)
    with (directory / "output.log").open("ab") as output:
        child = subprocess.Popen(
            launch_command(directory),
            cwd=settings.BASE_DIR,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),  # no orphan trains on unseen
        )
    try:
        while child.poll() is None:
            tail.read()
            asked = mine.values_list("cancel_requested", "pause_requested").first()
            if asked is None:
                return None
            _ask_to_stop(directory, cancel=asked[0], pause=asked[1])
            time.sleep(POLL_SECONDS)
        tail.read()
        return child.returncode
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _ask_to_stop(directory: Path, *, cancel: bool, pause: bool) -> None:
    """Put down what the run is asked, for its processes on every host to see.

    Again each time it is gone: a child that has just started clears what is old.
    """
    word = "cancel" if cancel else "pause" if pause else ""
    target = directory / "stop"
    if word and (not target.exists() or target.read_text() != word):
        draft = directory / ".stop"
        draft.write_text(word)
        os.replace(draft, target)


def _ending(directory: Path) -> str:
    """Return the last state that the child reported: what it says, whatever launched it."""
    events = _events(directory / "events.jsonl")
    states = [event["state"] for event in events if event.get("type") == "state"]
    return str(states[-1]) if states else ""


def launch_command(directory: Path) -> list[str]:
    """Return the command that trains in a directory, by RUN_LAUNCHER: here, or over processes.

    For `accelerate` hosts, ports and the like stand in the file that ACCELERATE_CONFIG_FILE names
    (`accelerate config` writes one); RUN_PROCESSES and RUN_SHARDING stand over it. How to launch
    over two hosts is written down in training.engine.team.
    """
    here = ["-m", "training.engine", str(directory)]
    if settings.RUN_LAUNCHER == "local":
        return [sys.executable, *here]
    if settings.RUN_LAUNCHER != "accelerate":
        raise ProductError(
            f"RUN_LAUNCHER is {settings.RUN_LAUNCHER!r}: set it to local or accelerate."
        )
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    if file := os.environ.get("ACCELERATE_CONFIG_FILE"):
        launch += ["--config_file", file]
    if settings.RUN_PROCESSES:
        launch += ["--num_processes", str(settings.RUN_PROCESSES)]
    return [*launch, *here]


def child_environment() -> dict[str, str]:
    """Return the environment without what the child has no business knowing."""
    hidden = ("SECRET_KEY", "DATABASE_URL", "REDIS_URL", "ENGINE_API_KEY", "DJANGO_SETTINGS_MODULE")
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return kept | {
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LAUREL_VAR": str(settings.VAR_DIR),
        "RUN_LAUNCHER": settings.RUN_LAUNCHER,
        "RUN_SHARDING": settings.RUN_SHARDING,
    }


def _was_killed(directory: Path, code: int) -> bool:
    """Say whether the child was killed rather than failed.

    A launcher ends with 1 whatever ended its processes: what failed said why, what was killed not.
    """
    return code < 0 or (code > 0 and settings.RUN_LAUNCHER != "local" and not _own_error(directory))


def _own_error(directory: Path) -> str:
    """Return the error that the child reported in this attempt; "" where it said nothing."""
    for event in reversed(_events(directory / "events.jsonl")):
        if event.get("type") == "error":
            return str(event["reason"])
        if event.get("type") == "state" and event.get("state") == "loading":
            break  # an error before this belongs to an earlier attempt
    return ""


def _reason(directory: Path, code: int) -> str:
    """Return the child's own last error, or what its exit code means."""
    if error := _own_error(directory):
        return error
    if code < 0:
        name = signal.Signals(-code).name
        hint = " The machine may be short of memory." if code == -signal.SIGKILL else ""
        return f"The training process was ended by {name}.{hint}"
    return f"The training process ended with code {code}; see output.log in {directory}."


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed child may be torn
    return events


def _register(run: Run, directory: Path, report: dict[str, Any]) -> Version:
    start = run.start_version
    return register_version(
        project=run.project,
        base=start.base,
        parent=start,
        method=run.method,
        adapter_folder=directory / ("model" if report.get("weights") == "full" else "adapter"),
        snapshot_digest=run.snapshot.digest,
        metrics=report.get("evaluation", {}),
        proof=report.get("proof", {}),
        by=run.created_by,
    )


class EventTail:
    """Copy new lines of events.jsonl into the database; reading a line twice changes nothing."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.run = run
        self.file: IO[bytes] | None = None
        self.rest = b""

    def read(self) -> None:
        """Take in everything that was appended since the last call."""
        if self.file is None:
            try:
                self.file = self.path.open("rb")
            except FileNotFoundError:
                return
        *lines, self.rest = (self.rest + self.file.read()).split(b"\n")
        metrics: dict[int, RunMetric] = {}
        changes: dict[str, Any] = {}
        for line in lines:
            try:
                # NaN and infinity are no JSON: Postgres would refuse the whole batch.
                event = json.loads(line, parse_constant=lambda _: None)
            except ValueError:
                continue
            kind = event.pop("type", "")
            if kind == "step":
                changes |= {"step": event["step"], "total_steps": event["total_steps"]}
                metrics[event["step"]] = RunMetric(run=self.run, step=event["step"], values=event)
            elif kind == "state":
                changes["phase"] = str(event.get("state", ""))[:20]
            elif kind == "note":
                message = str(event["message"])[:1000]
                if not RunNote.objects.filter(run=self.run, message=message).exists():
                    RunNote.objects.create(run=self.run, message=message)
        if metrics:
            RunMetric.objects.bulk_create(
                metrics.values(),
                update_conflicts=True,
                unique_fields=["run", "step"],
                update_fields=["values"],
            )
        if changes:
            Run.objects.filter(pk=self.run.pk).update(**changes)


def sweep_runs() -> int:
    """Take back runs whose worker fell silent and ring for every waiting one.

    Return how many were rung for.
    """
    lost = leases.silent(Run.objects.filter(state=Run.State.RUNNING))
    for run in lost:
        _let_go(run, lost.filter(pk=run.pk, lease=run.lease), "Its worker was lost.")
    waiting = Run.objects.waiting().order_by("-priority", "pk").values_list("pk", flat=True)
    return sum(_ring(run_id) for run_id in waiting)


def _let_go(run: Run, held: RunQuerySet, reason: str) -> bool:
    """Put a run that lost its worker or child among the waiting; say whether it is there.

    One that was asked to stop has stopped, and one that was begun too often is given up.
    """
    given_up = f"Interrupted {run.attempts} times. {reason} See output.log, then run it again."
    stopped = (
        _finish(held.filter(cancel_requested=True), Run.State.CANCELLED, "Cancelled.")
        or _pause(held.filter(pause_requested=True))
        or _finish(leases.spent(held), Run.State.FAILED, given_up)
    )
    # Asked only now to stop, it stays silent, and the next sweep stops it.
    unasked = held.filter(cancel_requested=False, pause_requested=False)
    waits = {"state": Run.State.INTERRUPTED, "lease": None, "phase": "", "reason": reason[:1000]}
    if stopped or not unasked.update(**waits):
        return False
    run.refresh_from_db(fields=["step"])
    RunNote.objects.create(run=run, message=f"{reason} Stopped at step {run.step}; it resumes.")
    return True


def _ring(run_id: int) -> bool:
    """Ring for a waiting run, unless a bell for it was rung just now and nobody heard it yet."""
    from training.tasks import execute_run

    if not cache.add(f"run-bell:{run_id}", True, RING_SECONDS):
        return False
    execute_run.delay(run_id)
    return True
