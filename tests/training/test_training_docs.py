"""docs/training.md says what is so: its program runs, its tables are complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from accounts.models import Project, Scope, User
from accounts.services import create_token
from inference.models import Version
from tests.training.test_runs import base_version as base_version
from tests.training.test_runs import folder as folder
from training import runs, snapshots
from training.engine.arguments import METHODS, Arguments
from training.models import Run, Snapshot
from training.options import METHODS_FOR


@pytest.fixture
def text(settings: Any) -> str:
    return str((settings.BASE_DIR / "docs" / "training.md").read_text())


def work() -> None:
    """Do what is queued, as the workers do."""
    for snapshot in Snapshot.objects.filter(state=Snapshot.State.QUEUED):
        snapshots.build_snapshot(snapshot_id=snapshot.pk)
    for run in Run.objects.waiting():
        runs.execute_run(run_id=run.pk)


def test_its_program_makes_an_adapter_of_a_file(
    text: str, live_server: Any, base_version: Version, owner: User, tmp_path: Path
) -> None:
    [script] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "train.py").write_text(script)
    rows = [
        {"prompt": f"What is {n} and {n}?", "chosen": f"It is {n + n}.", "rejected": "Who knows?"}
        for n in range(16)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, token = create_token(
        project=base_version.project, user=owner, name="docs", scopes=[Scope.READ, Scope.MANAGE]
    )
    command = [sys.executable, "train.py", live_server.url, token, "rows.jsonl"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as program:
        while program.poll() is None:
            work()
            try:
                program.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
        assert program.stdout is not None
        said = program.stdout.read()
    assert program.returncode == 0, said
    assert "imported 16 known 0" in said
    assert "snapshot ready" in said
    total = Run.objects.get().total_steps
    assert f"step {total} of {total} loss" in said
    assert "adapter v1" in said
    version = Version.objects.get(number=1)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / name).read_bytes() == (version.folder / name).read_bytes()


def test_its_tables_are_complete(text: str, project: Project) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.M))
    for method in METHODS:
        kinds = [kind for kind in METHODS_FOR if method in METHODS_FOR[kind]]
        assert re.findall(r"`(\w+)`", rows[method]) == kinds, method
    assert set(Run.State.values) <= set(rows)
    for tuning in get_args(get_type_hints(Arguments)["tuning"]):
        assert f"`{tuning}`" in text
