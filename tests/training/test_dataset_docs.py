"""docs/datasets.md says what is so: its program runs, its samples have the right fields."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accounts.models import Project, User
from feedback.models import Campaign
from tests.training.test_rated import rate_all
from tests.training.test_snapshot_kinds import take
from tests.training.test_snapshots import judge_all, strict, take_snapshot
from training import formats, snapshots
from training.models import Snapshot
from training.parts import SCHEMA, ratings_schema


@pytest.fixture
def text(settings: Any) -> str:
    return str((settings.BASE_DIR / "docs" / "datasets.md").read_text())


@pytest.fixture
def snapshot(make_campaign: Callable[..., Campaign], project: Project, annotator: User) -> Snapshot:
    campaign = make_campaign(items=10, judgements_per_item=1)
    judge_all(campaign, annotator, strict)
    return take_snapshot(project, campaign)


def test_duckdb_reads_a_snapshot_as_the_docs_say(
    text: str, snapshot: Snapshot, tmp_path: Path
) -> None:
    [script] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "read.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "read.py", str(snapshot.folder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    numbers = re.findall(r"[0-9.]+", done.stdout)
    assert {"60", "10"} <= set(numbers)
    assert done.stdout.count("\n  Response ") == 6, "three questions with two answers each"


@pytest.fixture
def rated(
    make_campaign: Callable[..., Campaign], project: Project, second_annotator: User
) -> Snapshot:
    asks = {"ratings": [{"label": "Correctness"}, {"label": "Helpfulness"}]}
    campaign = make_campaign(name="Rated", items=1, responses=2, kind="rating", asks=asks)
    rate_all(campaign, second_annotator, 0, ["correctness", "helpfulness"])
    return take(project, "ratings", campaign)


def test_every_format_has_a_sample_with_its_fields(
    text: str, snapshot: Snapshot, rated: Snapshot
) -> None:
    samples = dict(re.findall(r"^`([a-z-]+)` – [^\n]*\n\n```\w+\n(.*?)\n```", text, re.M | re.S))
    assert {*samples, "helpsteer-ratings-parquet"} == set(formats.FORMATS)
    assert "`helpsteer-ratings-parquet`" in text
    for name, sample in samples.items():
        written = snapshot if formats.FORMATS[name].fits(snapshot) else rated
        first, *_ = formats.export(written.folder / "train.parquet", name)
        if formats.FORMATS[name].extension == "csv":
            assert sample.splitlines()[0] == first.decode().splitlines()[0]
        else:
            assert list(json.loads(sample)) == list(json.loads(first)), name


def test_every_column_is_explained(text: str, snapshot: Snapshot) -> None:
    assert snapshots.FORMAT in text
    for name in (*SCHEMA.names, *ratings_schema([]).names, *snapshot.manifest["files"]):
        assert f"`{name}`" in text
