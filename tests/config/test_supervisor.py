"""The supervisor over dummies: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from accounts.processes import find_process, read_pid, wait_until
from config import supervisor
from config.services import ServiceError

SCRIPT = Path(__file__).with_name("supervised.py")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a supervisor over the given roles, and leave nothing of it behind."""
    started = []

    def begin(*roles: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), *roles],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def state(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "supervisor.json").read_text()))
    except (OSError, ValueError):
        return {"ready": False, "programs": {}}


def pid_of(folder: Path, role: str) -> int:
    assert wait_until(lambda: read_pid(folder / f"{role}.pid") is not None, 10)
    pid = read_pid(folder / f"{role}.pid")
    assert pid is not None
    return pid


def gone(pid: int) -> bool:
    return find_process(pid) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_stops_everything_on_a_signal(tmp_path: Path, start: Start, number: int) -> None:
    process = start("plain", "stubborn", "parent")
    assert wait_until(lambda: state(tmp_path)["ready"], 10)
    pids = [pid_of(tmp_path, role) for role in ("plain", "stubborn", "parent", "child")]

    process.send_signal(number)

    assert process.wait(20) == 0
    assert all(gone(pid) for pid in pids)


def test_it_leaves_nothing_when_it_is_killed_itself(tmp_path: Path, start: Start) -> None:
    process = start("plain", "parent")
    assert wait_until(lambda: state(tmp_path)["ready"], 10)
    pids = [pid_of(tmp_path, role) for role in ("plain", "parent", "child")]

    process.kill()

    assert wait_until(lambda: all(gone(pid) for pid in pids), 15)


def test_it_starts_a_killed_program_again_without_its_orphans(tmp_path: Path, start: Start) -> None:
    start("parent")
    assert wait_until(lambda: state(tmp_path)["ready"], 10)
    parent, child = pid_of(tmp_path, "parent"), pid_of(tmp_path, "child")

    os.kill(parent, signal.SIGKILL)

    assert wait_until(lambda: pid_of(tmp_path, "parent") != parent, 10)
    assert wait_until(lambda: pid_of(tmp_path, "child") != child, 10)
    assert gone(child)
    assert state(tmp_path)["programs"]["parent"]["restarts"] == 1


def test_it_gives_up_a_start_that_keeps_failing_and_says_why(tmp_path: Path, start: Start) -> None:
    process = start("plain", "fails")

    output, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "fails does not start: the reason stands here" in output
    assert "all are ready" not in output
    assert gone(pid_of(tmp_path, "plain"))


def test_it_writes_each_programs_log(tmp_path: Path, start: Start) -> None:
    process = start("plain")
    assert wait_until(lambda: state(tmp_path)["ready"], 10)
    process.terminate()
    output, _ = process.communicate(timeout=20)

    assert "plain    | plain speaks" in output
    assert (tmp_path / "logs" / "plain.log").read_text() == "plain speaks\n"


def test_it_runs_once_per_folder(tmp_path: Path) -> None:
    with supervisor.only_one(tmp_path):
        with pytest.raises(ServiceError, match="runs already"), supervisor.only_one(tmp_path):
            pass
        assert supervisor.running(tmp_path) is not None
    assert supervisor.running(tmp_path) is None


def test_it_names_the_holder_and_the_variable_of_a_taken_port() -> None:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ServiceError) as caught:
            supervisor.check_ports({"WEB_PORT": port})
    assert f"Port {port} is in use by {psutil.Process().name()} (pid {os.getpid()})" in str(
        caught.value
    )
    assert f"WEB_PORT={port + 10}" in str(caught.value)
