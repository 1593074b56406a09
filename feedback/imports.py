"""Imports outside the request: an upload is kept, a worker adds it, and its progress is told.

The worker holds the row's lock for as long as its one transaction takes. If it dies, the lock and
all that it stored go with it, and the next one begins anew.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.cache import cache
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.utils import timezone

from accounts.errors import ProductError, TooLarge
from accounts.models import Project, User
from feedback import importing
from feedback.import_store import Watch
from feedback.models import FileImport

# What is larger is added by a worker; a compressed file counts for what it holds.
LARGE_BYTES = 5_000_000
# Parquet is compressed inside; of text to about so much.
COMPRESSION = 4
# No more of a large file is looked at before it is added.
LOOKED_AT = 1000
KEPT_SECONDS = 24 * 3600
LOST_AFTER = timedelta(minutes=2)
# A worker waits for its turn; a person does not.
WORKER_PATIENCE_SECONDS = 3600
_KEPT_NAME = re.compile(r"^[0-9a-f]{64}$")


def is_large(file: IO[bytes], filename: str) -> bool:
    """Say whether a file is for a worker to add; it stands at its beginning afterwards."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    name = filename.lower()
    if name.endswith(".gz"):
        try:
            size = len(gzip.GzipFile(fileobj=file).read(LARGE_BYTES + 1))
        except (OSError, EOFError, zlib.error):
            size = 0  # whoever reads it says what is wrong
        finally:
            file.seek(0)
    if name.removesuffix(".gz").endswith(".parquet"):
        size *= COMPRESSION
    return size > LARGE_BYTES


# Uploads


def keep_upload(project: Project, uploaded: UploadedFile[Any]) -> str:
    """Keep an upload, a day at most; return the name it is kept under. TooLarge."""
    if (uploaded.size or 0) > importing.MOST_UPLOADED:
        raise TooLarge("The file is larger than 256 MB. Compress or split it.")
    folder = _folder(project)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                old.unlink()
    digest = hashlib.sha256()
    for chunk in uploaded.chunks():
        digest.update(chunk)
    draft = folder / f".{digest.hexdigest()}"
    uploaded.seek(0)
    with draft.open("wb") as file:
        for chunk in uploaded.chunks():
            file.write(chunk)
    draft.replace(folder / digest.hexdigest())
    return digest.hexdigest()


def kept_upload(project: Project, name: str) -> Path:
    """Return where an upload of this project is kept, or raise ProductError."""
    path = _folder(project) / name
    if not _KEPT_NAME.match(name) or not path.is_file():
        raise ProductError("Choose a file; one that was uploaded before is kept for a day only.")
    return path


def drop_upload(project: Project, name: str) -> None:
    """Delete an upload, unless an import still needs it."""
    if not project.file_imports.filter(upload=name, state__in=FileImport.LIVE).exists():
        kept_upload(project, name).unlink(missing_ok=True)


def _folder(project: Project) -> Path:
    return Path(settings.ARTIFACTS_DIR) / "imports" / str(project.pk)


# Imports


@transaction.atomic
def queue_import(
    *,
    project: Project,
    by: User | None,
    upload: str,
    filename: str,
    name: str = "",
    mapping: Mapping[str, str] | None = None,
    skip_errors: bool = False,
) -> FileImport:
    """Have a worker add an upload that is kept; ProductError where its beginning makes no sense."""
    from feedback.tasks import import_file

    with kept_upload(project, upload).open("rb") as file:
        importing.understand(file, filename, mapping, most=importing.COLUMN_ROWS)
    queued = FileImport.objects.create(
        project=project,
        by=by,
        upload=upload,
        filename=filename[-200:],
        name=name[:120],
        mapping=dict(mapping or {}),
        skip_errors=skip_errors,
    )
    import_file.delay_on_commit(queued.pk)
    return queued


def run_import(*, import_id: int) -> None:
    """Add a queued file; harmless where that is done or another worker is at it."""
    with transaction.atomic():
        found = _claim(import_id)
        if found is None:
            return
        found.state = FileImport.State.RUNNING
        found.attempts += 1
        if found.attempts > settings.RUN_MAX_ATTEMPTS:
            found.state = FileImport.State.FAILED
            found.reason = (
                f"Its worker was lost {settings.RUN_MAX_ATTEMPTS} times; the machine may be short "
                "of memory. Split the file, or give the workers more."
            )
        found.save(update_fields=["state", "attempts", "reason"])
    with transaction.atomic():
        found = _claim(import_id)
        if found is None:
            return
        _add(found)
    if not found.live:
        drop_upload(found.project, found.upload)


def _claim(import_id: int) -> FileImport | None:
    """Return a live import locked until commit; None where another worker has it."""
    rows = FileImport.objects.select_for_update(skip_locked=True, of=("self",))
    return rows.filter(pk=import_id, state__in=FileImport.LIVE).select_related("project").first()


def _add(found: FileImport) -> None:
    try:
        with kept_upload(found.project, found.upload).open("rb") as file:
            report, found.campaign = importing.import_file(
                project=found.project,
                by=found.by,
                file=file,
                filename=found.filename,
                name=found.name,
                mapping=found.mapping,
                skip_errors=found.skip_errors,
                patience=WORKER_PATIENCE_SECONDS,
                watch=_teller(found.pk),
            )
    except ProductError as error:
        found.state, found.reason = FileImport.State.FAILED, error.message
        found.report = error.extra
    else:
        found.state, found.report = FileImport.State.DONE, report.as_dict()
    found.save(update_fields=["state", "reason", "report", "campaign"])


def resume_imports() -> None:
    """Ring again for imports that no worker is at, such as those whose worker was killed."""
    from feedback.tasks import import_file

    with transaction.atomic():
        lost = FileImport.objects.filter(
            state__in=FileImport.LIVE, rung_at__lt=timezone.now() - LOST_AFTER
        ).select_for_update(skip_locked=True)
        for found in lost:
            found.rung_at = timezone.now()
            found.save(update_fields=["rung_at"])
            import_file.delay_on_commit(found.pk)


# Progress, which others see before the transaction ends


def _key(import_id: int) -> str:
    return f"import:{import_id}"


def _teller(import_id: int) -> Watch:
    def tell(doing: str, done: int, total: int | None) -> None:
        cache.set(_key(import_id), {"doing": doing, "done": done, "total": total}, KEPT_SECONDS)

    return tell


def progress(found: FileImport) -> dict[str, Any]:
    """Return what a worker does just now: ``doing`` (read, stored), ``done`` rows, ``total``."""
    known: dict[str, Any] | None = cache.get(_key(found.pk)) if found.live else None
    return known or {"doing": "", "done": 0, "total": None}
