"""The whole round on the real model, with kill -9 for one part after another."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from config import services

pytestmark = pytest.mark.slow
SECONDS = 1500
# When this much of the demo's output is there, these processes die.
KILLS = [
    (r"answered by the base: (\d+)", 4, ("inference.engine", "serve")),
    (r"answered by the base: (\d+)", 20, ("celery", "--queues=default")),
    (r"judgements: (\d+)", 1, ("uvicorn", "config.asgi")),
    (r"training steps: (\d+)", 3, ("training.engine",)),
    (r"training steps: (\d+)", 12, ("celery", "--queues=train")),
]


def test_no_death_loses_a_judgement_or_leaves_half_a_version(tmp_path: Path) -> None:
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("DATABASE_URL", "REDIS_URL", "ENGINE_URL")
    } | {
        "LAUREL_VAR": str(tmp_path / "var"),
        "WEB_PORT": str(free_port()),
        "ENGINE_PORT": str(free_port()),
        "PYTHONUNBUFFERED": "1",
    }
    log = tmp_path / "demo.log"
    with log.open("w") as output:
        demo = subprocess.Popen(
            [sys.executable, "-m", "config.demo", "--once"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        for pattern, count, words in KILLS:
            wait_for(log, pattern, count, demo)
            assert kill_all(words, environment["LAUREL_VAR"]) > 0, words
        assert demo.wait(SECONDS) == 0, log.read_text()[-3000:]
        report = json.loads((tmp_path / "var" / "demo" / "report.json").read_text())
    finally:
        if demo.poll() is None:
            demo.terminate()
            demo.wait(60)
        services.remove(tmp_path / "var")
        shutil.rmtree(tmp_path / "var", ignore_errors=True)
    assert report["judgements"]["lost"] == report["judgements"]["duplicated"] == 0
    assert report["run"]["state"] == "succeeded"


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
    return port


def wait_for(log: Path, pattern: str, count: int, demo: subprocess.Popen[bytes]) -> None:
    """Wait until the last number after the pattern has reached the count."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert demo.poll() is None, log.read_text()[-3000:]
        found = re.findall(pattern, log.read_text())
        if found and int(found[-1]) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"never saw {pattern} reach {count}")


def kill_all(words: tuple[str, ...], var: str) -> int:
    """Kill the processes of this folder whose command line holds all words; return how many."""
    killed = 0
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            if all(word in command for word in words) and process.environ()["LAUREL_VAR"] == var:
                process.send_signal(signal.SIGKILL)
                killed += 1
        except (psutil.Error, KeyError):
            continue
    return killed
