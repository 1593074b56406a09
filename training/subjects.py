"""Find what a lineage or a retraction is about, inside one project."""

from __future__ import annotations

import uuid

from django.http import Http404
from django.shortcuts import get_object_or_404

from accounts.models import Project, User
from feedback.models import Judgement, Prompt
from inference.models import Version
from training.lineage import Graph, annotator_lineage, lineage_of
from training.models import Run, Snapshot

Subject = Snapshot | Run | Version | Prompt | Judgement | User


def find_subject(project: Project, kind: str, key: str) -> Subject:
    """Return the snapshot, run, version, prompt, judgement or annotator, or raise 404.

    A judgement is named by its client id, as in the rows of a snapshot; the rest by their ids. An
    annotator is whoever has judged in the project, member or not any more.
    """
    if kind == "judgement":
        try:
            client_id = uuid.UUID(key)
        except ValueError as error:
            raise Http404 from error
        rows = Judgement.objects.select_related("annotator", "campaign", "item__prompt")
        return get_object_or_404(rows, client_id=client_id, campaign__project=project)
    if not key.isascii() or not key.isdigit() or len(key) > 18:
        raise Http404
    pk = int(key)
    if kind == "snapshot":
        return get_object_or_404(Snapshot, pk=pk, project=project)
    if kind == "run":
        return get_object_or_404(Run, pk=pk, project=project)
    if kind == "version":
        return get_object_or_404(Version, pk=pk, project=project)
    if kind == "prompt":
        return get_object_or_404(Prompt, pk=pk, project=project)
    if kind == "annotator":
        judged = Judgement.objects.filter(annotator=pk, campaign__project=project)
        if judged.exists():
            return get_object_or_404(User, pk=pk)
    raise Http404


def lineage(subject: Subject, project: Project) -> Graph:
    """Return what a subject was made of and what was made of it."""
    if isinstance(subject, User):
        return annotator_lineage(subject, project)
    return lineage_of(subject, project)
