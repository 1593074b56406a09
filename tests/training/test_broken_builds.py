"""A build that is killed or runs out of disk leaves no snapshot that looks finished."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from accounts.models import Project, User
from feedback.models import Campaign, Response
from tests.training.test_snapshots import judge_all, strict
from training import leases
from training.models import Snapshot
from training.snapshots import build_snapshot, sweep_builds

# One row a row group: slow enough to be killed between two of them.
BUILD = """
import os, sys
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
django.setup()
from django.conf import settings
from pathlib import Path
from training import parts, snapshots
settings.ARTIFACTS_DIR = Path(sys.argv[2])
parts.ROWS_PER_GROUP = 1
snapshots.build_snapshot(snapshot_id=int(sys.argv[1]))
"""


@pytest.fixture
def judged(make_campaign: Callable[..., Campaign], project: Project, annotator: User) -> Snapshot:
    """Return a queued snapshot of 60 rankings whose texts do not compress."""
    campaign = make_campaign(items=60, judgements_per_item=1)
    for response in Response.objects.all():
        Response.objects.filter(pk=response.pk).update(text=secrets.token_hex(400))
    judge_all(campaign, annotator, strict)
    snapshot = Snapshot.objects.create(project=project, heldout_fraction=0.3)
    snapshot.campaigns.set([campaign])
    return snapshot


@pytest.fixture
def tiny_disk(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """Return a file system of 64 kB that artifacts are written to."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    settings.ARTIFACTS_DIR = folder
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def finished(root: Path) -> list[Path]:
    """Return the files at content addresses: all but those of drafts."""
    return [
        path
        for path in (root / "snapshots").rglob("*")
        if path.is_file() and ".draft-" not in str(path)
    ]


@pytest.mark.django_db(transaction=True)
def test_a_killed_build_leaves_nothing_finished(judged: Snapshot, settings: Any) -> None:
    url = urlsplit(os.environ["DATABASE_URL"])
    database = url._replace(path=f"/{connection.settings_dict['NAME']}").geturl()
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(judged.pk), str(settings.ARTIFACTS_DIR)],
        env={**os.environ, "DATABASE_URL": database},
    )
    deadline = time.monotonic() + 60
    while not any(
        file.stat().st_size > 10_000 for file in settings.ARTIFACTS_DIR.rglob("train.parquet")
    ):
        assert builder.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    builder.send_signal(signal.SIGKILL)
    assert builder.wait() == -signal.SIGKILL
    judged.refresh_from_db()
    assert (judged.state, judged.digest, judged.path) == (Snapshot.State.BUILDING, "", "")
    assert finished(settings.ARTIFACTS_DIR) == []
    [draft] = (settings.ARTIFACTS_DIR / "snapshots").iterdir()
    early = build_snapshot(snapshot_id=judged.pk)
    assert early.state == Snapshot.State.BUILDING, "until it is silent, another may be building it"
    assert (sweep_builds(), draft.exists()) == (0, True)
    Snapshot.objects.update(heartbeat_at=Now() - timedelta(minutes=1))
    assert (sweep_builds(), draft.exists()) == (1, False)
    again = build_snapshot(snapshot_id=judged.pk)
    assert again.state == Snapshot.State.READY
    assert again.manifest["ledger"]["exported"] == 60
    assert {file.name for file in finished(settings.ARTIFACTS_DIR)} == {
        "train.parquet", "heldout.parquet", "manifest.json",
    }  # fmt: skip


@pytest.mark.django_db(transaction=True)
def test_a_heart_beats_through_a_long_transaction(judged: Snapshot, settings: Any) -> None:
    settings.RUN_HEARTBEAT_SECONDS = 0.05
    rows = Snapshot.objects.filter(pk=judged.pk)
    silent = rows.filter(heartbeat_at__lt=Now() - timedelta(seconds=30))
    assert leases.claim(rows, held=Snapshot.State.BUILDING)
    rows.update(heartbeat_at=Now() - timedelta(minutes=1))
    assert silent.exists()
    with leases.keep(rows), transaction.atomic():
        deadline = time.monotonic() + 10
        while silent.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert sweep_builds() == 0


def test_what_is_lost_again_and_again_is_given_up(judged: Snapshot, settings: Any) -> None:
    long_ago = Now() - timedelta(minutes=1)
    for attempt in range(settings.RUN_MAX_ATTEMPTS):
        assert leases.claim(Snapshot.objects.all(), held=Snapshot.State.BUILDING)
        Snapshot.objects.update(heartbeat_at=long_ago)
        assert sweep_builds() == (attempt < settings.RUN_MAX_ATTEMPTS - 1)
    judged.refresh_from_db()
    assert judged.state == Snapshot.State.FAILED
    assert "lost 5 times" in judged.reason
    assert build_snapshot(snapshot_id=judged.pk).state == Snapshot.State.FAILED


def test_a_full_disk_fails_the_build_and_says_so(
    judged: Snapshot, tiny_disk: Path, settings: Any, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="No space left"):
        build_snapshot(snapshot_id=judged.pk)
    judged.refresh_from_db()
    assert (judged.state, judged.digest) == (Snapshot.State.FAILED, "")
    assert judged.reason.startswith("No space left")
    assert [path for path in tiny_disk.rglob("*") if path.is_file()] == [], (
        "the space is given back"
    )
    settings.ARTIFACTS_DIR = tmp_path / "larger"
    assert build_snapshot(snapshot_id=judged.pk).state == Snapshot.State.READY
