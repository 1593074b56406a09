"""Postgres is killed under load: nothing that was acknowledged is lost, nothing stored twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest

from accounts.processes import port_is_free
from benchmarks import collection
from config import services
from config.supervisor import laurel
from feedback.simulation import Annotator

PEOPLE = 6
FILL = """
import json, os
import django
from benchmarks import collection
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
tokens, project = collection.make_annotators({people})
[campaign] = collection.fill(project, items=1000, overlap=1, seconds=0)
print(json.dumps([tokens, campaign]))
"""


@pytest.fixture
def own_var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a data folder whose servers are apart from the tests' own."""
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAUREL_VAR", str(tmp_path))
    monkeypatch.setenv("ENGINE_URL", "http://127.0.0.1:9")
    services.start(tmp_path, owned=True)
    yield tmp_path
    services.remove(tmp_path)


def test_a_killed_postgres_loses_no_acknowledged_judgement(own_var: Path) -> None:
    port = next(port for port in range(8270, 8370) if port_is_free(port))
    tiers, _, environment = laurel(own_var, port, port)
    filling = subprocess.Popen(
        [sys.executable, "-c", FILL.format(people=PEOPLE)],
        env=dict(environment()),
        cwd=collection.ROOT,
        stdout=subprocess.PIPE,
    )
    stopped = threading.Event()
    judged: list[float] = []

    def work(token: str, campaign: int) -> list[str]:
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=40, trust_env=False
        ) as http:
            annotator = Annotator(token, http, campaign, lambda _, text: len(text))

            def on_judged() -> None:
                judged.append(time.monotonic())
                if stopped.is_set():
                    raise InterruptedError

            with contextlib.suppress(InterruptedError):
                annotator.work(on_judged)
            return annotator.acknowledged

    def wait_for(count: int) -> None:
        before, deadline = len(judged), time.monotonic() + 60
        while len(judged) < before + count:
            assert time.monotonic() < deadline, "nobody judges any more"
            time.sleep(0.02)

    postgres = services.Postgres(own_var)
    with (
        collection.web_server(tiers, environment(), port),
        ThreadPoolExecutor(PEOPLE) as threads,
    ):
        tokens, campaign = json.loads(filling.communicate()[0])
        working = [threads.submit(work, token, campaign) for token in tokens]
        try:
            wait_for(40)
            pid = postgres.pid()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            services.start(own_var, owned=True)
            wait_for(40)
        finally:
            stopped.set()
        acknowledged = [client_id for each in working for client_id in each.result()]

    with psycopg.connect(postgres.url()) as connection:
        rows = connection.execute("SELECT client_id, slot_id FROM feedback_judgement").fetchall()
        states = connection.execute(
            "SELECT count(*) FROM feedback_slot WHERE state = 'filled'"
        ).fetchone()
    stored = {str(client_id) for client_id, _ in rows}
    assert set(acknowledged) == stored, "an answer that was lost on the way is sent again"
    assert len(rows) == len({slot for _, slot in rows})
    assert states == (len(rows),)
