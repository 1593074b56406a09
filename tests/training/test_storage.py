"""Snapshots in a folder and in a bucket: what is read is what was written, or nothing is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse
from moto.server import ThreadedMotoServer
from rest_framework.test import APIClient

from accounts.errors import Unavailable
from accounts.models import Project, User
from config.environment import BadSetting
from config.storage import snapshot_storage
from feedback.models import Campaign
from tests.training.test_snapshots import judge_all, rows, strict, take_snapshot
from training import retraction, storage
from training.models import Snapshot
from training.snapshots import build_snapshot, heldout_prompts, sweep_builds

FILES = {"train.parquet", "heldout.parquet", "manifest.json"}
# Killed where the manifest would go into the bucket, behind the parts.
BUILD = """
import os, signal, sys
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
django.setup()
from django.conf import settings
from pathlib import Path
from storages.backends.s3 import S3Storage
settings.ARTIFACTS_DIR = Path(sys.argv[2])
save = S3Storage.save
def killed(self, name, content, max_length=None):
    if name.endswith("manifest.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    return save(self, name, content, max_length)
S3Storage.save = killed
from training import snapshots
snapshots.build_snapshot(snapshot_id=int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """Return the address of an S3 server, moto's."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a new bucket in which snapshots are kept."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "SNAPSHOT_STORAGE": "s3://laurel/some/where",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").create_bucket(Bucket="laurel")
    settings.STORAGES = settings.STORAGES | snapshot_storage("s3://laurel/some/where")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def judged(make_campaign: Callable[..., Campaign], annotator: User) -> Campaign:
    campaign = make_campaign(items=12, judgements_per_item=1)
    judge_all(campaign, annotator, strict)
    return campaign


def names(bucket: Any) -> set[str]:
    return {Path(one.key).name for one in bucket.objects.all()}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_file_is_named_and_never_read(
    project: Project,
    judged: Campaign,
    lead: User,
    api: Callable[..., APIClient],
    login: Callable[[User], Client],
) -> None:
    snapshot = take_snapshot(project, judged)
    path = snapshot.folder / "heldout.parquet"
    sound = path.read_bytes()
    heldout_prompts(snapshot)
    damage(path)
    with pytest.raises(storage.Damaged, match=rf"heldout\.parquet of snapshot {snapshot.pk} is"):
        heldout_prompts(snapshot)
    answer = api(lead).get(f"/api/snapshots/{snapshot.pk}/files/heldout.parquet")
    assert answer.status_code == 503
    assert "take the same snapshot again" in answer.json()["message"]
    assert api(lead).get(f"/api/snapshots/{snapshot.pk}/files/train.parquet").status_code == 200
    damage(snapshot.folder / "train.parquet")
    page = login(lead).get(reverse("snapshot", args=[project.slug, snapshot.pk]))
    assert "train.parquet of snapshot" in page.content.decode()
    with pytest.raises(storage.Damaged):
        storage.local_folder(snapshot)
    again = take_snapshot(project, judged)
    assert again.digest == snapshot.digest
    assert path.read_bytes() == sound, "taken again, it is whole again"
    assert storage.local_folder(snapshot) == snapshot.folder


def test_a_bucket_serves_like_a_folder(
    project: Project, judged: Campaign, lead: User, bucket: Any, api: Callable[..., APIClient]
) -> None:
    snapshot = take_snapshot(project, judged)
    assert snapshot.state == Snapshot.State.READY
    keys = {one.key for one in bucket.objects.all()}
    assert keys == {f"some/where/{snapshot.path}/{name}" for name in FILES}
    kept = rows(snapshot)
    shutil.rmtree(snapshot.folder)  # as on another machine
    assert len(kept) == 12 * 6
    assert rows_read(snapshot) == kept
    (storage.local_file(snapshot, "train.parquet")).unlink()
    client = api(lead)
    address = f"/api/snapshots/{snapshot.pk}/files/train.parquet"
    whole = b"".join(client.get(address))
    part = client.get(address, headers={"Range": "bytes=4-"})
    assert (part.status_code, b"".join(part)) == (206, whole[4:])
    manifest = client.get(f"/api/snapshots/{snapshot.pk}/files/manifest.json")
    assert json.loads(b"".join(manifest)) == snapshot.manifest
    exported = client.get(f"/api/snapshots/{snapshot.pk}/export/trl-preference")
    assert len(b"".join(exported).splitlines()) == snapshot.manifest["rows"]["train"]
    os.utime(snapshot.folder, (0, 0))
    storage.sweep_copies()
    assert not snapshot.folder.exists(), "what nobody read for a week goes"
    retraction_of(project, judged, lead)
    assert names(bucket) == set()
    assert client.get(address).status_code == 404


def rows_read(snapshot: Snapshot) -> list[dict[str, Any]]:
    storage.local_folder(snapshot)
    return rows(snapshot)


def retraction_of(project: Project, campaign: Campaign, lead: User) -> None:
    """Erase what the snapshots hold."""
    for prompt in project.prompts.all():
        retraction.retract(project=project, subject=prompt, why="asked to", by=lead, erase=True)
    retraction.erase_files()


def test_a_damaged_object_is_not_let_in(project: Project, judged: Campaign, bucket: Any) -> None:
    snapshot = take_snapshot(project, judged)
    [one] = [one for one in bucket.objects.all() if one.key.endswith("train.parquet")]
    sound = one.get()["Body"].read()
    bucket.put_object(Key=one.key, Body=sound[:-9] + b"x" + sound[-8:])
    damage(snapshot.folder / "train.parquet")
    with pytest.raises(storage.Damaged, match=f"Put {snapshot.path}/train.parquet in the bucket"):
        storage.local_file(snapshot, "train.parquet")
    assert [path.name for path in snapshot.folder.glob(".*")] == []
    bucket.put_object(Key=one.key, Body=sound)
    assert storage.local_file(snapshot, "train.parquet").read_bytes() == sound
    shutil.rmtree(snapshot.folder)
    one.delete()
    with pytest.raises(FileNotFoundError):
        storage.local_file(snapshot, "train.parquet")
    take_snapshot(project, judged)
    assert names(bucket) == FILES


@pytest.mark.django_db(transaction=True)
def test_a_kill_before_the_manifest_leaves_nothing_finished(
    project: Project, judged: Campaign, bucket: Any, settings: Any
) -> None:
    snapshot = Snapshot.objects.create(project=project, heldout_fraction=0.3)
    snapshot.campaigns.set([judged])
    url = urlsplit(os.environ["DATABASE_URL"])
    database = url._replace(path=f"/{connection.settings_dict['NAME']}").geturl()
    killed = subprocess.run(
        [sys.executable, "-c", BUILD, str(snapshot.pk), str(settings.ARTIFACTS_DIR)],
        env={**os.environ, "DATABASE_URL": database},
    )
    assert killed.returncode == -signal.SIGKILL
    snapshot.refresh_from_db()
    assert (snapshot.state, snapshot.digest) == (Snapshot.State.BUILDING, "")
    assert names(bucket) == FILES - {"manifest.json"}
    sweep_builds()
    assert names(bucket), "its worker may still be at it"
    Snapshot.objects.update(heartbeat_at=Now() - timedelta(minutes=1))
    assert sweep_builds() == 1
    assert names(bucket) == set(), "nobody names what it uploaded"
    assert build_snapshot(snapshot_id=snapshot.pk).state == Snapshot.State.READY
    assert names(bucket) == FILES


def test_it_says_what_is_wrong_with_a_bucket(
    project: Project, judged: Campaign, settings: Any, bucket: Any
) -> None:
    settings.STORAGES = settings.STORAGES | snapshot_storage("s3://nowhere")
    with pytest.raises(Unavailable, match="SNAPSHOT_STORAGE"):
        take_snapshot(project, judged)
    snapshot = Snapshot.objects.get()
    assert snapshot.state == Snapshot.State.FAILED
    assert "NoSuchBucket" in snapshot.reason
    with pytest.raises(BadSetting, match="s3://bucket"):
        snapshot_storage("/var/somewhere")
