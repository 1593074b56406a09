"""The lead's import page: upload, look, confirm."""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from accounts.access import get_membership
from accounts.errors import ProductError, TooLarge
from accounts.models import Project, Role
from accounts.pages import refused
from feedback import importing

KEPT_SECONDS = 24 * 3600
TEMPLATE = "feedback/import.html"
_KEPT_NAME = re.compile(r"^[0-9a-f]{64}$")


@login_required
def import_page(request: HttpRequest, slug: str) -> HttpResponse:
    """Take a file, show what would become of it, and add it once that is confirmed."""
    membership = get_membership(request, slug, Role.LEAD)
    project = membership.project
    context: dict[str, Any] = {"parts": list(importing.PARTS), "fewest": importing.FEWEST_ROWS}
    if request.method != "POST":
        return render(request, TEMPLATE, context)
    uploaded = request.FILES.get("file")
    try:
        if isinstance(uploaded, UploadedFile):
            filename = uploaded.name or "file"
            kept = _keep(project, uploaded)
        else:
            filename = request.POST.get("filename", "")[:200]
            kept = request.POST.get("kept", "")
        path = _kept(project, kept)
        mapping = {
            part: request.POST[f"part-{part}"]
            for part in importing.PARTS
            if request.POST.get(f"part-{part}")
        }
        context |= {"filename": filename, "kept": kept, "chosen": mapping}
        context["columns"] = importing.columns_of(path, filename)
        if "confirm" not in request.POST:
            with path.open("rb") as file:
                plan = importing.preview(
                    project=project, file=file, filename=filename, mapping=mapping
                )
            context |= {"report": plan.report, "new": len(plan.entries) - plan.report.known}
            context["mapping"] = plan.report.mapping
            return render(request, TEMPLATE, context)
        with path.open("rb") as file:
            report, campaign = importing.import_file(
                project=project,
                by=membership.user,
                file=file,
                filename=filename,
                name=request.POST.get("name", "").replace("\x00", "").strip(),
                mapping=mapping,
                skip_errors="skip_errors" in request.POST,
            )
    except ProductError as error:
        return refused(request, TEMPLATE, context, error)
    path.unlink(missing_ok=True)
    messages.success(request, f"{report.added:,} rows added, {report.known:,} were there already.")
    if campaign is not None:
        return redirect("campaign", slug, campaign.pk)
    return redirect("prompts", slug)


def _folder(project: Project) -> Path:
    return Path(settings.ARTIFACTS_DIR) / "imports" / str(project.pk)


def _keep(project: Project, uploaded: UploadedFile[Any]) -> str:
    """Keep an upload until it is confirmed, a day at most; return the name it is kept under."""
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


def _kept(project: Project, name: str) -> Path:
    """Return where an upload of this project is kept, or raise ProductError."""
    path = _folder(project) / name
    if not _KEPT_NAME.match(name) or not path.is_file():
        raise ProductError("Choose a file; one that was uploaded before is kept for a day only.")
    return path
