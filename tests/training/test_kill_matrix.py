"""Who dies in which phase of a run: nothing is lost, nothing is doubled, the losses are the same.

The real processes of a site, supervised, on a tiny model. Each row of the matrix is one run that
meets a death in every phase, each time another victim's; the rows together are every victim in
every phase. What goes on in a phase is frozen while the victim gets SIGKILL, and woken again.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from accounts.processes import port_is_free
from config import services, supervisor

ROOT = Path(__file__).resolve().parents[2]
# "machine" is a reboot: everything at once, the supervisor included, which then starts anew.
VICTIMS = ("valkey", "trainer", "postgres", "child", "machine", "web")
PHASES = ("queued", "reference", "training", "checkpoint", "proving", "registering")
CHILDLESS = ("queued", "registering")
INTERRUPTING = ("trainer", "postgres", "child", "machine")
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


def deaths(row: int) -> list[tuple[str, str]]:
    """Return who dies in which phase of a row's run, in the order of the phases."""
    pairs = [(phase, VICTIMS[(row + at) % len(VICTIMS)]) for at, phase in enumerate(PHASES)]
    return [(phase, who) for phase, who in pairs if who != "child" or phase not in CHILDLESS]


def interrupts(phase: str, victim: str) -> bool:
    """Say whether a death ends the attempt: who only watches or waits takes nothing along."""
    return phase != "queued" and victim in INTERRUPTING


def until(true: Callable[[], Any], what: str, pause: float = 0.0) -> Any:
    """Wait until something is so; return it."""
    deadline = time.monotonic() + SECONDS
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(pause)
    return found


@dataclass
class Site:
    """A running site, its REST client, and what a run needs."""

    var: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)
    http: httpx.Client = field(init=False)
    facts: dict[str, Any] = field(init=False)
    whole: list[tuple[int, float]] = field(init=False)  # the losses of an undisturbed run

    def boot(self) -> None:
        """Start every process, and wait until they serve."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "config.supervisor", "--quiet"],
            cwd=ROOT,
            env=self.environment,
            start_new_session=True,
        )

        def ready() -> bool:
            assert self.process.poll() is None
            state = supervisor.running(self.var)
            return bool(state and state["ready"])

        until(ready, "the site never came up", 0.1)

    def fill(self) -> None:
        """Make a project with a snapshot, and a client of it."""
        filled = subprocess.run(
            [sys.executable, "-m", "tests.training.kill_fill", str(self.var)],
            env=self.environment | {key.upper(): value for key, value in self.urls().items()},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        self.facts = json.loads(filled.stdout.splitlines()[-1])
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.environment['WEB_PORT']}",
            headers={"Authorization": f"Bearer {self.facts['token']}"},
            timeout=60,
            trust_env=False,
        )

    def urls(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.var / "services.json").read_text())
        return found

    def start(self) -> int:
        """Queue the run; once more if the web process is just coming back."""
        body = {
            "snapshot": self.facts["snapshot"],
            "start_version": self.facts["version"],
            "method": "dpo",
            "arguments": ARGUMENTS,
            "seed": 3,
        }

        def queued() -> httpx.Response | None:
            with contextlib.suppress(httpx.TransportError):
                response = self.http.post("/api/runs/", json=body)
                return response if response.status_code == 201 else None
            return None

        number: int = until(queued, "no run could be queued", 0.3).json()["id"]
        return number

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the database, as soon as it is back."""

        def answer() -> list[tuple[Any, ...]] | None:
            with (
                contextlib.suppress(psycopg.OperationalError, KeyError),
                psycopg.connect(self.urls()["database_url"]) as connection,
            ):
                return connection.execute(text, values).fetchall()  # type: ignore[arg-type]
            return None

        found: list[tuple[Any, ...]] = until(answer, "the database stayed away", 0.1)
        return found

    def wait(self, run: int) -> tuple[str, str]:
        """Wait until a run has ended; return its state and the reason."""

        def ended() -> tuple[str, str] | None:
            [row] = self.query("SELECT state, reason FROM training_run WHERE id = %s", run)
            return row if row[0] in ("succeeded", "failed", "cancelled") else None  # type: ignore[return-value]

        found: tuple[str, str] = until(ended, f"run {run} never ended", 0.2)
        return found

    def losses(self, run: int) -> list[tuple[int, float]]:
        return self.query(
            "SELECT step, (values->>'loss')::float FROM training_runmetric "
            "WHERE run_id = %s ORDER BY step",
            run,
        )  # type: ignore[return-value]

    def directory(self, run: int) -> Path:
        [(key,)] = self.query("SELECT key FROM training_run WHERE id = %s", run)
        return self.var / "runs" / str(key)

    def program(self, name: str) -> psutil.Process:
        """Return a program's process, waiting for one that is being started again."""

        def found() -> psutil.Process | None:
            state = supervisor.running(self.var) or {"programs": {}}
            pid = state["programs"].get(name, {}).get("pid")
            with contextlib.suppress(psutil.Error):
                return alive(psutil.Process(pid)) if pid else None
            return None

        process: psutil.Process = until(found, f"{name} does not run", 0.02)
        return process

    def kill(self, victim: str, child: psutil.Process | None) -> None:
        """Kill a victim without warning."""
        if victim == "child":
            assert child is not None
            child.kill()
        elif victim == "machine":
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
            self.boot()
        else:
            self.program(victim).kill()

    def processes(self) -> list[psutil.Process]:
        """Return every process of this site, the supervisor first."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("LAUREL_VAR") == str(self.var):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid != self.process.pid)

    def shut_down(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        services.remove(self.var)
        shutil.rmtree(self.var, ignore_errors=True)


def alive(process: psutil.Process) -> psutil.Process | None:
    """Return a process that still runs; None for one that is gone or only waited for."""
    with contextlib.suppress(psutil.Error):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def children(directory: Path) -> list[psutil.Process]:
    """Return the process that trains in a directory (not the one that proves it)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[-3:] == ["-m", "training.engine", str(directory)]:
                found.append(process)
    return found


class Frozen:
    """One run, followed from phase to phase; what works on it stands still when one is found."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.site, self.directory = site, directory
        self.child: psutil.Process | None = None
        self.asleep: list[psutil.Process] = []
        self.read = 0  # bytes of the events that belong to phases before
        self.left: set[tuple[str, int]] = set()  # half written checkpoints of before

    def freeze(self, phase: str) -> bool:
        """Stop what works on the run in a phase; False where it slipped through."""
        if phase == "registering":
            return self._before_registering()
        self._find_child()
        assert self.child is not None
        while alive(self.child):
            if not self._is_there(phase):
                time.sleep(0.001)
                continue
            self.child.suspend()
            if self._is_there(phase):
                self.asleep = [self.child]
                return True
            self.child.resume()
            if phase != "checkpoint":  # of those there are many
                return False
        return False

    def wake(self) -> None:
        """Let go on what is left; what is written from here on belongs to the next phase."""
        with contextlib.suppress(OSError):
            self.read = (self.directory / "events.jsonl").stat().st_size
        self.left = self._drafts()
        for process in self.asleep:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self.asleep = []

    def _find_child(self) -> None:
        if self.child is None or not alive(self.child):
            [self.child, *_] = until(lambda: children(self.directory), "nobody trains", 0.02)

    def _is_there(self, phase: str) -> bool:
        if phase == "checkpoint":
            return bool(self._drafts() - self.left)
        events = self._events()
        states = [event["state"] for event in events if event["type"] == "state"]
        if phase == "training" and (not events or events[-1]["type"] != "step"):
            return False
        return states[-1:] == [phase]

    def _drafts(self) -> set[tuple[str, int]]:
        """Return the checkpoints that are being written, or that somebody left half written."""
        found = set()
        for path in (self.directory / "checkpoints").glob(".step-*"):
            with contextlib.suppress(OSError):
                found.add((path.name, path.stat().st_mtime_ns))
        return found

    def _events(self) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError), (self.directory / "events.jsonl").open("rb") as file:
            file.seek(self.read)
            return [json.loads(line) for line in file.read().splitlines() if line.endswith(b"}")]
        return []

    def _before_registering(self) -> bool:
        """Stop the worker between the report and its next look at the child."""
        self._find_child()
        assert self.child is not None
        worker = self.child.parent()
        assert worker is not None
        until((self.directory / "report.json").exists, "no report came", 0.001)
        worker.suspend()
        self.asleep = [worker]
        return True


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    port = next(port for port in range(8370, 8470) if port_is_free(port))
    var = tmp_path_factory.mktemp("kills") / "var"
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
    found = Site(var, environment)
    try:
        found.boot()
        found.fill()
        run = found.start()
        assert found.wait(run) == ("succeeded", "")
        found.whole = found.losses(run)
        yield found
    finally:
        found.shut_down()


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.slow if row else ()) for row in range(len(VICTIMS))],
)
def test_a_death_in_every_phase_loses_and_doubles_nothing(site: Site, row: int) -> None:
    run, directory = None, None
    for _ in range(4):
        run, directory, missed = die_in_every_phase(site, deaths(row))
        assert site.wait(run) == ("succeeded", ""), (directory / "output.log").read_text()[-2000:]
        if not missed:
            break
    else:
        pytest.fail(f"{missed} is over before it can be seen")
    losses = site.losses(run)
    assert [step for step, _ in losses] == [step for step, _ in site.whole], "each step once"
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in site.whole], abs=1e-5)
    assert children(directory) == [], "nobody trains on unseen"
    # The same training gives the same bytes, and those are one version, however often it was tried.
    assert site.query("SELECT count(*) FROM inference_version WHERE number > 0") == [(1,)]
    [(attempts,)] = site.query("SELECT attempts FROM training_run WHERE id = %s", run)
    assert attempts == 1 + sum(interrupts(*death) for death in deaths(row))


def die_in_every_phase(site: Site, deaths: list[tuple[str, str]]) -> tuple[int, Path, str]:
    """Take one run through its deaths; return it, its directory and a phase that slipped by."""
    shutil.rmtree(site.var / "reference", ignore_errors=True)  # or there is nothing to compute
    trainer = site.program("trainer")
    trainer.suspend()  # nobody claims it while it waits
    run = site.start()
    directory = site.directory(run)
    frozen = Frozen(site, directory)
    frozen.asleep = [trainer]
    if deaths[0][0] != "queued":
        frozen.wake()
    for phase, victim in deaths:
        if phase != "queued" and not frozen.freeze(phase):
            return run, directory, phase
        site.kill(victim, frozen.child)
        time.sleep(0.2)
        if interrupts(phase, victim) and phase != "registering":
            # It dies where it was frozen: woken first, it would hurry through the phases to come.
            until(lambda: not (frozen.child and alive(frozen.child)), f"{victim} left an orphan")
        frozen.wake()
    return run, directory, ""
