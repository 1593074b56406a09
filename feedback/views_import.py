"""The lead's import page: upload, look, confirm."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Role
from accounts.pages import asked, refused
from feedback import importing, imports
from feedback.models import FileImport

TEMPLATE = "feedback/import.html"
RECENT = 5


@login_required
def import_page(request: HttpRequest, slug: str) -> HttpResponse:
    """Take a file, show what would become of it, and add it once that is confirmed."""
    membership = get_membership(request, slug, Role.LEAD)
    project = membership.project
    context: dict[str, Any] = {"parts": list(importing.PARTS), "fewest": importing.FEWEST_ROWS}
    context["recent"] = project.file_imports.all()[:RECENT]
    if request.method != "POST":
        return render(request, TEMPLATE, context)
    uploaded = request.FILES.get("file")
    try:
        if isinstance(uploaded, UploadedFile):
            filename = uploaded.name or "file"
            kept = imports.keep_upload(project, uploaded)
        else:
            filename = asked(request.POST, "filename")[:200]
            kept = request.POST.get("kept", "")
        path = imports.kept_upload(project, kept)
        with path.open("rb") as file:
            large = imports.is_large(file, filename)
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
                    project=project,
                    file=file,
                    filename=filename,
                    mapping=mapping,
                    most=imports.LOOKED_AT if large else None,
                )
            context |= {"report": plan.report, "new": len(plan.entries) - plan.report.known}
            context |= {
                "mapping": plan.report.mapping,
                "large": large,
                "looked_at": imports.LOOKED_AT,
            }
            return render(request, TEMPLATE, context)
        chosen: dict[str, Any] = {
            "name": asked(request.POST, "name"),
            "mapping": mapping,
            "skip_errors": "skip_errors" in request.POST,
        }
        if large:
            queued = imports.queue_import(
                project=project, by=membership.user, upload=kept, filename=filename, **chosen
            )
            return redirect("file_import", slug, queued.pk)
        with path.open("rb") as file:
            report, campaign = importing.import_file(
                project=project, by=membership.user, file=file, filename=filename, **chosen
            )
    except ProductError as error:
        return refused(request, TEMPLATE, context, error)
    imports.drop_upload(project, kept)
    messages.success(request, f"{report.added:,} rows added, {report.known:,} were there already.")
    if campaign is not None:
        return redirect("campaign", slug, campaign.pk)
    return redirect("prompts", slug)


@login_required
@require_GET
def file_import(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show how far an import is, and what became of it; the moving part alone for htmx."""
    membership = get_membership(request, slug, Role.LEAD)
    found = get_object_or_404(FileImport, project=membership.project, pk=pk)
    partial = request.htmx  # type: ignore[attr-defined]
    template = "feedback/_file_import.html" if partial else "feedback/file_import.html"
    context = {"file_import": found, "progress": imports.progress(found)}
    return render(request, template, context)
