"""Who dies in which phase of a run: nothing is lost, nothing is doubled, the losses are the same.

The real processes of a site, supervised, on a tiny model. The training child is frozen in the
phase that is looked for, the victim gets SIGKILL, and the child is woken again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from config import services, supervisor
from config.processes import port_is_free

ROOT = Path(__file__).resolve().parents[2]
VICTIMS = ("child", "trainer", "web", "valkey", "postgres")
PHASES = ("loading", "reference", "training", "saving", "proving")
SHORT = (("postgres", "training"),)
SECONDS = 240
ARGUMENTS = {
    "epochs": 2,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "lora_r": 4,
    "max_length": 256,
    "max_prompt_length": 128,
    "precision": "fp32",
    "checkpoint_every": 1,
}


@dataclass
class Site:
    """A running site, its REST client, and what a run needs."""

    var: Path
    http: httpx.Client
    database: str
    facts: dict[str, Any]
    whole: list[tuple[int, float]]  # the losses of a run that nobody interrupted

    def start(self, seed: int = 3) -> int:
        body = {
            "snapshot": self.facts["snapshot"],
            "start_version": self.facts["version"],
            "method": "dpo",
            "arguments": ARGUMENTS,
            "seed": seed,
        }
        response = self.http.post("/api/runs/", json=body)
        assert response.status_code == 201, response.text
        number: int = response.json()["id"]
        return number

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database) as connection:
            return connection.execute(text, values).fetchall()  # type: ignore[arg-type]

    def wait(self, run: int) -> tuple[str, str]:
        """Wait until a run has ended; return its state and the reason."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                [row] = self.query("SELECT state, reason FROM training_run WHERE id = %s", run)
                if row[0] in ("succeeded", "failed", "cancelled"):
                    return row  # type: ignore[return-value]
            time.sleep(0.3)
        raise AssertionError(f"run {run} never ended")

    def losses(self, run: int) -> list[tuple[int, float]]:
        return self.query(
            "SELECT step, (values->>'loss')::float FROM training_runmetric "
            "WHERE run_id = %s ORDER BY step",
            run,
        )  # type: ignore[return-value]

    def directory(self, run: int) -> Path:
        [(key,)] = self.query("SELECT key FROM training_run WHERE id = %s", run)
        return self.var / "runs" / str(key)

    def pid(self, program: str) -> int:
        state = supervisor.running(self.var)
        assert state is not None
        pid: int = state["programs"][program]["pid"]
        return pid

    def freeze(self, directory: Path, phase: str) -> psutil.Process | None:
        """Stop the training child in a phase; None when it slipped through."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if phase in phases(directory):
                [child] = children(directory)
                child.suspend()
                if phases(directory)[-1] == phase:
                    return child
                child.resume()
                return None
            time.sleep(0.002)
        raise AssertionError(f"the run never came to {phase}")


def phases(directory: Path) -> list[str]:
    with contextlib.suppress(OSError):
        lines = (directory / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return [event["state"] for event in events if event["type"] == "state"]
    return []


def children(directory: Path) -> list[psutil.Process]:
    """Return the process that trains in a directory (not the one that proves it)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[-3:] == ["-m", "training.engine", str(directory)]:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    var = tmp_path_factory.mktemp("kills") / "var"
    port = next(port for port in range(8370, 8470) if port_is_free(port))
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "REDIS_URL")
    } | {
        "LAUREL_VAR": str(var),
        "WEB_PORT": str(port),
        "ENGINE_URL": "http://127.0.0.1:9",
        "WEB_WORKERS": "1",
        "WORKER_CONCURRENCY": "1",
        "RUN_HEARTBEAT_SECONDS": "1",
        "RUN_STALE_SECONDS": "6",
        "RUN_MAX_ATTEMPTS": "9",
        # Two threads add up in another order than one: the bytes of the adapters are compared.
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "config.supervisor", "--quiet"],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not ((state := supervisor.running(var)) and state["ready"]):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        urls = json.loads((var / "services.json").read_text())
        filled = subprocess.run(
            [sys.executable, "-m", "tests.training.kill_fill", str(var)],
            env=environment | {key.upper(): value for key, value in urls.items()},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        facts = json.loads(filled.stdout.splitlines()[-1])
        headers = {"Authorization": f"Bearer {facts['token']}"}
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, trust_env=False
        ) as http:
            found = Site(var, http, urls["database_url"], facts, [])
            run = found.start()
            assert found.wait(run) == ("succeeded", "")
            found.whole = found.losses(run)
            yield found
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        services.remove(var)
        shutil.rmtree(var, ignore_errors=True)


def cells() -> list[Any]:
    """Return every victim in every phase; all but the short list are slow."""
    return [
        pytest.param(victim, phase, marks=() if (victim, phase) in SHORT else pytest.mark.slow)
        for phase in PHASES
        for victim in VICTIMS
    ]


@pytest.mark.parametrize(("victim", "phase"), cells())
def test_a_death_loses_and_doubles_nothing(site: Site, victim: str, phase: str) -> None:
    for _ in range(5):
        run = start_again(site)
        directory = site.directory(run)
        child = site.freeze(directory, phase)
        if child is not None:
            break
        assert site.wait(run) == ("succeeded", "")
    else:
        pytest.fail(f"{phase} is over before it can be seen")
    if victim == "child":
        child.kill()
    else:
        os.kill(site.pid(victim), signal.SIGKILL)
        time.sleep(0.3)
        with contextlib.suppress(psutil.NoSuchProcess):  # it dies with its worker
            child.resume()
    assert site.wait(run) == ("succeeded", ""), (directory / "output.log").read_text()[-2000:]
    losses = site.losses(run)
    assert [step for step, _ in losses] == [step for step, _ in site.whole], "each step once"
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in site.whole], abs=1e-5)
    assert children(directory) == [], "nobody trains on unseen"
    # The same training gives the same bytes, and those are one version, however often it was tried.
    assert site.query("SELECT count(*) FROM inference_version WHERE number > 0") == [(1,)]
    [(attempts, state)] = site.query("SELECT attempts, state FROM training_run WHERE id = %s", run)
    assert (state, attempts > 1) == ("succeeded", victim in ("child", "trainer", "postgres"))


def start_again(site: Site) -> int:
    """Queue a run, once more if the web process is just coming back."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return site.start()
        except (httpx.TransportError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
