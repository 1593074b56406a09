"""Where a snapshot's files are: a folder, or an S3-compatible bucket with copies of what was read.

Whoever reads a snapshot asks here for a path. What lies there has the digest that the manifest
names; otherwise there is no path but a sentence.

In a bucket a snapshot is finished when its manifest is there, which is uploaded last. Where a build
uploads to stands in its row before it begins, so that what a killed one leaves behind is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings
from django.core.files import File
from django.core.files.storage import Storage, storages
from django.db import transaction

from accounts.errors import Unavailable
from inference import artifacts
from training import leases
from training.models import Run, Snapshot

log = structlog.get_logger(__name__)

MANIFEST = "manifest.json"
BUCKET = "snapshots"  # its name among Django's storages
COPY_KEPT_SECONDS = 7 * 24 * 3600
COPY_BYTES = 1 << 20


class Damaged(Unavailable):
    """A file is not what the manifest says; nothing of it may be used."""


def bucket() -> Storage | None:
    """Return the bucket that snapshots are kept in; None where that is a folder."""
    return storages[BUCKET] if BUCKET in settings.STORAGES else None


# Reading


def local_file(snapshot: Snapshot, name: str) -> Path:
    """Return the path of one of a snapshot's parts on this machine, its content verified.

    Raises FileNotFoundError where it is gone, Damaged, or Unavailable where the bucket is.
    """
    path = snapshot.folder / name
    expected = snapshot.manifest.get("files", {}).get(name)
    if expected is None:
        raise FileNotFoundError(f"Snapshot {snapshot.pk} has no {name}.")
    store = bucket()
    if store is None:
        if known_digest(path) != expected:
            raise _damaged(snapshot, name, str(path))
        return path
    if not path.exists() or known_digest(path) != expected:
        _fetch(store, snapshot, name)
    else:
        os.utime(path.parent)
    return path


def local_folder(snapshot: Snapshot) -> Path:
    """Return a folder on this machine with all of a snapshot's parts, verified."""
    for name in sorted(snapshot.manifest["files"]):
        local_file(snapshot, name)
    return snapshot.folder


def known_digest(path: Path) -> str:
    """Return the SHA-256 of a file; read again only where the file has changed since."""
    found = path.stat()
    return _digest(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, *identity: int) -> str:
    return artifacts.file_digest(path)


def _damaged(snapshot: Snapshot, name: str, place: str) -> Damaged:
    log.error("snapshot_file_damaged", snapshot=snapshot.pk, place=place)
    return Damaged(
        f"{name} of snapshot {snapshot.pk} is damaged: its checksum is not the one in the "
        f"manifest, so nothing of it is used. Put {place} back from a backup, or take the same "
        "snapshot again, which writes the file anew if nothing was judged since."
    )


def _fetch(store: Storage, snapshot: Snapshot, name: str) -> None:
    """Copy a file out of the bucket; it appears here when it is whole and verified."""
    target = snapshot.folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{uuid.uuid4().hex}")
    key = f"{snapshot.path}/{name}"
    try:
        with _answering(), store.open(key) as source, draft.open("wb") as file:
            shutil.copyfileobj(source, file, COPY_BYTES)
        if known_digest(draft) != snapshot.manifest["files"][name]:
            raise _damaged(snapshot, name, f"{key} in the bucket")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    sweep_copies()


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Say in a sentence that a bucket refuses or does not answer."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise Unavailable(
            f"The bucket with the snapshots cannot be used: {error}. Look at SNAPSHOT_STORAGE and "
            "at the AWS_… variables, then try again."
        ) from error


# Writing


def manifest_text(manifest: dict[str, Any]) -> bytes:
    """Return a manifest as it is written beside the parts."""
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()


def address(manifest: dict[str, Any]) -> str:
    """Return where a snapshot with this manifest belongs: the same rows to the same place.

    The same rows are other bytes where another pyarrow wrote them; those stay apart.
    """
    digest, files = manifest["digest"], manifest["files"]
    path = f"snapshots/{digest[:2]}/{digest}"
    there = Snapshot.objects.filter(path=path, state=Snapshot.State.READY).only("manifest")
    if any(one.manifest["files"] != files for one in there):
        path += "-" + hashlib.sha256(manifest_text(files)).hexdigest()[:8]
    return path


def publish(draft: Path, snapshot_path: str, manifest: dict[str, Any]) -> None:
    """Put a finished draft where it belongs; what is there already and damaged is replaced."""
    files = [draft / name for name in sorted(manifest["files"])] + [draft / MANIFEST]
    for file in files:
        _sync(file)
    _sync(draft)
    store = bucket()
    if store is None:
        _move(files, Path(settings.ARTIFACTS_DIR) / snapshot_path)
        return
    for file in files:  # the manifest last
        with _answering(), file.open("rb") as source:
            store.save(f"{snapshot_path}/{file.name}", File(source))
    with contextlib.suppress(OSError):  # on another disk it is fetched when it is asked for
        _move(files, Path(settings.COPIES_DIR) / snapshot_path)


def _move(files: list[Path], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.rename(files[0].parent, target)
        _sync(target.parent)
        return
    for file in files:
        there = target / file.name
        if not there.exists() or known_digest(there) != known_digest(file):
            os.replace(file, there)
    _sync(target)


def _sync(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder, through a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Deleting


def delete(snapshot_path: str) -> bool:
    """Delete what lies at a content address, the manifest first; say whether anything did."""
    folders = [Path(root) / snapshot_path for root in (settings.ARTIFACTS_DIR, settings.COPIES_DIR)]
    there = [folder for folder in folders if folder.exists()]
    for folder in there:
        shutil.rmtree(folder)
    store = bucket()
    names: list[str] = []
    if store is not None:
        with _answering():
            names = store.listdir(snapshot_path)[1]
            for name in sorted(names, key=lambda one: one != MANIFEST):
                store.delete(f"{snapshot_path}/{name}")
    return bool(there or names)


def delete_unnamed(*, project_id: int, snapshot_path: str) -> None:
    """Delete what lies at a content address if no snapshot of the project names it."""
    with transaction.atomic():
        leases.lock_project(project_id)  # no build begins to upload there meanwhile
        if not Snapshot.objects.filter(path=snapshot_path).exists():
            delete(snapshot_path)


def sweep_uploads() -> None:
    """Delete what builds uploaded that did not end well."""
    ended = (Snapshot.State.QUEUED, Snapshot.State.FAILED)
    for snapshot in Snapshot.objects.filter(state__in=ended).exclude(path=""):
        mine = Snapshot.objects.filter(pk=snapshot.pk, state__in=ended, path=snapshot.path)
        with transaction.atomic():
            leases.lock_project(snapshot.project_id)
            if mine.update(path=""):
                delete_unnamed(project_id=snapshot.project_id, snapshot_path=snapshot.path)


def sweep_copies() -> None:
    """Delete copies on this machine that nobody read for a week, or that were erased."""
    if bucket() is None:
        return
    root = Path(settings.COPIES_DIR)
    kept = Snapshot.objects.exclude(state=Snapshot.State.ERASED)
    for folder in root.glob("snapshots/*/*"):
        named = kept.filter(path=str(folder.relative_to(root)))
        in_use = Run.objects.live().filter(snapshot__in=named).exists()
        with contextlib.suppress(FileNotFoundError):
            old = time.time() - folder.stat().st_mtime > COPY_KEPT_SECONDS
            if not named.exists() or (old and not in_use):
                shutil.rmtree(folder)
