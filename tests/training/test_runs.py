"""Runs: claimed once, followed live, cancelled, interrupted, resumed, registered by proof."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.db import connections, transaction
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.errors import Conflict, ProductError
from accounts.models import Project, User
from feedback.models import Campaign
from inference import artifacts, services
from inference.models import BaseModel, Version
from tests.inference.engine import tiny
from tests.training.test_snapshots import judge_all, strict, take_snapshot
from training import runs
from training.models import Run, RunMetric, Snapshot

ARGUMENTS = {
    "epochs": 2,
    "batch_size": 2,
    "lora_r": 4,
    "lora_alpha": 8,
    "max_length": 256,
    "max_prompt_length": 128,
    "precision": "fp32",
    "checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("run-base") / "tiny")


@pytest.fixture
def base_version(project: Project, folder: Path) -> Version:
    base = BaseModel.objects.create(
        name="tiny",
        source="made for this test",
        path=str(folder),
        digest=artifacts.folder_digest(folder),
        licence="Apache-2.0",
        size_bytes=1,
        parameters=1,
    )
    return services.adopt_base(project=project, base=base)


@pytest.fixture
def snapshot(make_campaign: Callable[..., Campaign], project: Project, annotator: User) -> Snapshot:
    campaign = make_campaign(items=10, responses=3, judgements_per_item=1)
    judge_all(campaign, annotator, strict)
    return take_snapshot(project, campaign)


@pytest.fixture
def start(snapshot: Snapshot, base_version: Version, owner: User) -> Callable[..., Run]:
    """Return a function that queues a small DPO run."""

    def start_one(**changes: Any) -> Run:
        return runs.start_run(
            snapshot=snapshot,
            start_version=base_version,
            method="dpo",
            arguments=ARGUMENTS | changes,
            by=owner,
            seed=3,
        )

    return start_one


@pytest.mark.django_db(transaction=True)
def test_it_trains_proves_and_registers(start: Callable[..., Run], base_version: Version) -> None:
    run = start()
    runs.execute_run(run_id=run.pk)
    run.refresh_from_db()
    assert run.state == Run.State.SUCCEEDED, run.reason
    assert run.step == run.total_steps > 0
    steps = list(RunMetric.objects.filter(run=run).values_list("step", flat=True))
    assert steps == list(range(1, run.total_steps + 1))
    values = RunMetric.objects.filter(run=run).last().values  # type: ignore[union-attr]
    assert {"loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies"} <= set(values)
    version = run.version
    assert version is not None
    assert (version.number, version.parent, version.method) == (1, base_version, "dpo")
    assert version.proof["passed"] is True
    assert artifacts.adapter_digest(version.folder) == version.digest
    assert version.snapshot_digest == run.snapshot.digest
    before, after = version.metrics["before"], version.metrics["after"]
    assert before["reward_accuracy"] == 0.5
    assert 0 <= after["reward_accuracy"] <= 1


def test_a_run_is_claimed_once(start: Callable[..., Run]) -> None:
    run = start()
    assert runs.claim_run(run.pk) is not None
    assert runs.claim_run(run.pk) is None


def test_a_queued_run_is_cancelled_at_once(start: Callable[..., Run], owner: User) -> None:
    run = start()
    runs.cancel_run(run=run, by=owner)
    runs.execute_run(run_id=run.pk)
    run.refresh_from_db()
    assert run.state == Run.State.CANCELLED
    assert not run.directory.exists()
    with pytest.raises(Conflict, match="already ended"):
        runs.cancel_run(run=run, by=owner)


def test_bad_arguments_are_refused_before_anything_is_queued(start: Callable[..., Run]) -> None:
    with pytest.raises(ProductError, match="did you mean beta"):
        start(betta=0.1)
    assert not Run.objects.exists()


def until(true: Callable[[], Any], what: str) -> Any:
    """Wait a minute at most until something is so; return it."""
    deadline = time.monotonic() + 60
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def child_of(run: Run) -> psutil.Process:
    """Return the process that trains, once it takes steps: the last one, under a launcher."""

    def training() -> list[psutil.Process]:
        if not RunMetric.objects.filter(run=run).exists():
            return []
        ours = psutil.Process().children(recursive=True)
        return [process for process in ours if str(run.directory) in process.cmdline()]

    *_, child = until(training, "the training child never took a step")
    assert isinstance(child, psutil.Process)
    return child


class Worker(threading.Thread):
    """Execute a run as a worker does, in a thread of its own."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run_id = run.pk
        self.start()

    def run(self) -> None:
        try:
            runs.execute_run(run_id=self.run_id)
        finally:
            connections.close_all()


@pytest.mark.django_db(transaction=True)
def test_a_running_run_is_cancelled_within_a_step(start: Callable[..., Run], owner: User) -> None:
    run = start(epochs=500)
    worker = Worker(run)
    child_of(run)
    runs.cancel_run(run=run, by=owner)
    worker.join(60)
    run.refresh_from_db()
    assert run.state == Run.State.CANCELLED
    assert run.step < run.total_steps
    assert run.version is None
    assert not Version.objects.adapters().exists()


@pytest.mark.django_db(transaction=True)
def test_a_running_run_is_paused_within_a_step_and_goes_on(
    start: Callable[..., Run], owner: User
) -> None:
    run = start(epochs=40)
    worker = Worker(run)
    child_of(run)
    runs.pause_run(run=run, by=owner)
    worker.join(60)
    run.refresh_from_db()
    assert (run.state, run.lease, run.attempts) == (Run.State.PAUSED, None, 0)
    assert 0 < run.step < run.total_steps
    assert runs.claim_run(run.pk) is None, "no worker takes it up by itself"
    with pytest.raises(Conflict, match="cannot be paused"):
        runs.pause_run(run=run, by=owner)
    done = run.step
    runs.resume_run(run=run, by=owner)
    runs.execute_run(run_id=run.pk)
    run.refresh_from_db()
    assert run.state == Run.State.SUCCEEDED, run.reason
    steps = list(RunMetric.objects.filter(run=run).values_list("step", flat=True))
    assert steps == list(range(1, run.total_steps + 1))
    assert any(f"Resumed after step {done}" in note.message for note in run.notes.all())


def test_a_waiting_run_is_paused_and_cancelled(start: Callable[..., Run], owner: User) -> None:
    run = start()
    runs.pause_run(run=run, by=owner)
    run.refresh_from_db()
    assert run.state == Run.State.PAUSED
    runs.cancel_run(run=run, by=owner)
    run.refresh_from_db()
    assert run.state == Run.State.CANCELLED
    with pytest.raises(Conflict, match="is not paused"):
        runs.resume_run(run=run, by=owner)


@pytest.mark.django_db(transaction=True)
def test_a_whole_model_is_a_version_that_is_not_served(
    start: Callable[..., Run], owner: User, settings: Any
) -> None:
    settings.RUN_LAUNCHER = "accelerate"
    run = start(tuning="full", learning_rate=1e-4, epochs=1)
    runs.execute_run(run_id=run.pk)
    run.refresh_from_db()
    assert run.state == Run.State.SUCCEEDED, run.reason
    version = run.version
    assert version is not None
    assert version.is_full
    assert artifacts.model_digest(version.folder) == version.digest
    with pytest.raises(ProductError, match="not servable here"):
        services.promote(project=run.project, version=version, by=owner)
    with pytest.raises(ProductError, match="whole model"):
        runs.start_run(
            snapshot=run.snapshot, start_version=version, method="dpo", arguments={}, by=owner
        )


@pytest.mark.django_db(transaction=True)
def test_a_killed_child_interrupts_the_run_and_it_resumes_to_the_same_end(
    start: Callable[..., Run], settings: Any
) -> None:
    whole = start(epochs=6)
    runs.execute_run(run_id=whole.pk)
    run = start(epochs=6)
    worker = Worker(run)
    os.kill(child_of(run).pid, signal.SIGKILL)
    worker.join(60)
    run.refresh_from_db()
    assert run.state == Run.State.INTERRUPTED
    assert "SIGKILL" in run.reason
    assert run.version is None
    runs.execute_run(run_id=run.pk)
    run.refresh_from_db()
    whole.refresh_from_db()
    assert (run.state, run.attempts) == (Run.State.SUCCEEDED, 2), run.reason
    losses = [
        [metric.values["loss"] for metric in RunMetric.objects.filter(run=each)]
        for each in (whole, run)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert run.version == whole.version, "the same bytes are the same version"


@pytest.mark.django_db(transaction=True)
def test_under_a_launcher_the_killed_are_known_and_leave_no_orphan(
    start: Callable[..., Run], owner: User, settings: Any
) -> None:
    settings.RUN_LAUNCHER = "accelerate"  # which ends with 1, whatever ended its processes
    run = start(epochs=500)
    worker = Worker(run)
    child_of(run).kill()
    worker.join(60)
    run.refresh_from_db()
    assert (run.state, run.attempts) == (Run.State.INTERRUPTED, 1), run.reason
    worker = Worker(run)
    steps = until(lambda: Run.objects.get(pk=run.pk).step, "it took no step")
    until(lambda: Run.objects.get(pk=run.pk).step > steps, "it did not resume")
    child = child_of(run)
    child.suspend()  # it will not hear of it
    runs.cancel_run(run=run, by=owner)
    launcher = child.parent()
    assert launcher is not None
    assert str(run.directory) in launcher.cmdline()
    launcher.kill()
    worker.join(60)
    run.refresh_from_db()
    assert (run.state, run.lease) == (Run.State.CANCELLED, None)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "an orphan")


@pytest.mark.django_db(transaction=True)
def test_the_heart_beats_while_the_version_is_registered(
    start: Callable[..., Run], settings: Any
) -> None:
    settings.RUN_HEARTBEAT_SECONDS = 0.05
    run = start(epochs=1)
    with transaction.atomic():  # another one registers in this project, and takes its time
        Project.objects.select_for_update(no_key=True).get(pk=run.project_id)
        worker = Worker(run)
        until((run.directory / "report.json").exists, "no report came")
        time.sleep(4 * runs.POLL_SECONDS)  # by now its worker has seen that, and waits here
        last = Run.objects.get(pk=run.pk).heartbeat_at
        until(lambda: Run.objects.get(pk=run.pk).heartbeat_at != last, "its heart stopped")
    worker.join(60)
    run.refresh_from_db()
    assert run.state == Run.State.SUCCEEDED, run.reason


def test_a_run_can_be_started_again(start: Callable[..., Run], owner: User) -> None:
    run = start()
    with pytest.raises(Conflict, match="has not ended"):
        runs.run_again(run=run, by=owner)
    runs.cancel_run(run=run, by=owner)
    run.refresh_from_db()
    again = runs.run_again(run=run, by=owner)
    assert (again.state, again.arguments) == (Run.State.QUEUED, run.arguments)


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_lost_its_lease_stops_its_child_and_lets_go(
    start: Callable[..., Run],
) -> None:
    run = start(epochs=500)
    worker = Worker(run)
    child = child_of(run)
    Run.objects.filter(pk=run.pk).update(lease=uuid.uuid4())  # another worker took it over
    worker.join(60)
    assert not child.is_running()
    run.refresh_from_db()
    assert run.state == Run.State.RUNNING, "the one that lost it leaves the row to its new holder"


def test_a_silent_worker_loses_its_run(start: Callable[..., Run], settings: Any) -> None:
    run = start()
    assert runs.claim_run(run.pk) is not None
    runs.sweep_runs()
    run.refresh_from_db()
    assert run.state == Run.State.RUNNING
    silent = timezone.now() - timedelta(seconds=settings.RUN_STALE_SECONDS + 1)
    Run.objects.filter(pk=run.pk).update(heartbeat_at=silent)
    runs.sweep_runs()
    run.refresh_from_db()
    assert run.state == Run.State.INTERRUPTED
    assert "worker was lost" in run.notes.get().message
    assert runs.claim_run(run.pk) is not None


def test_what_waits_is_taken_up_however_often_it_was_begun(
    start: Callable[..., Run], settings: Any
) -> None:
    run = start()
    Run.objects.filter(pk=run.pk).update(state=Run.State.INTERRUPTED, attempts=3)
    settings.RUN_MAX_ATTEMPTS = 2  # less than when it was interrupted
    assert runs.claim_run(run.pk) is not None


@pytest.mark.parametrize(
    ("asked", "state"),
    [("cancel_requested", Run.State.CANCELLED), ("pause_requested", Run.State.PAUSED)],
)
def test_a_lost_run_that_was_asked_to_stop_has_stopped(
    start: Callable[..., Run], settings: Any, asked: str, state: str
) -> None:
    run = start()
    for _ in range(settings.RUN_MAX_ATTEMPTS):  # the last attempt is as good as any
        Run.objects.filter(pk=run.pk).update(state=Run.State.INTERRUPTED)
        assert runs.claim_run(run.pk) is not None
    long_ago = timezone.now() - timedelta(hours=1)
    Run.objects.filter(pk=run.pk).update(**{asked: True}, heartbeat_at=long_ago)
    runs.sweep_runs()
    run.refresh_from_db()
    assert (run.state, run.lease, run.phase) == (state, None, "")
    if state == Run.State.PAUSED:
        runs.resume_run(run=run, by=None)
        assert runs.claim_run(run.pk) is not None


def test_a_run_that_is_interrupted_too_often_is_given_up(
    start: Callable[..., Run], settings: Any
) -> None:
    run = start()
    for _ in range(settings.RUN_MAX_ATTEMPTS):
        assert runs.claim_run(run.pk) is not None
        Run.objects.filter(pk=run.pk).update(heartbeat_at=timezone.now() - timedelta(hours=1))
        runs.sweep_runs()
    run.refresh_from_db()
    assert run.state == Run.State.FAILED
    assert "Interrupted" in run.reason


def test_rest_starts_shows_and_cancels_runs(
    snapshot: Snapshot,
    base_version: Version,
    owner: User,
    lead: User,
    annotator: User,
    api: Callable[..., APIClient],
) -> None:
    body = {"snapshot": snapshot.pk, "method": "dpo", "arguments": ARGUMENTS}
    assert api(lead).post("/api/runs/", body).status_code == 403
    refused = api(owner).post("/api/runs/", body | {"arguments": {"beta": "much"}})
    assert refused.status_code == 400
    assert "beta must be a number" in refused.json()["message"]
    created = api(owner).post("/api/runs/", body)
    assert created.status_code == 201, created.content
    path = f"/api/runs/{created.json()['id']}/"
    assert api(annotator).get(path).status_code == 403
    assert api(lead).get(path).json()["state"] == "queued"
    assert api(lead).get(f"{path}metrics").json() == []
    assert api(owner).post(f"{path}cancel").json()["state"] == "cancelled"
    assert api(owner).post(f"{path}cancel").status_code == 409
    assert api(owner).post(f"{path}again").status_code == 201
