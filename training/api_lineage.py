"""REST: the lineage of snapshots, runs, versions, prompts, judgements and annotators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.models import Project, Role
from feedback.models import Judgement, Prompt
from inference.models import Version
from training.lineage import Graph
from training.models import Run, Snapshot
from training.subjects import Subject, find_subject, lineage


class NodeSerializer(serializers.Serializer[Any]):
    kind = serializers.CharField()
    key = serializers.CharField(help_text="Its id within its kind.")
    label = serializers.CharField()  # type: ignore[assignment]  # DRF's own attribute of that name
    note = serializers.CharField()
    name = serializers.CharField(help_text="kind:key, as edges say it.")


class EdgeSerializer(serializers.Serializer[Any]):
    source = serializers.CharField()  # type: ignore[assignment]  # DRF's own attribute of that name
    target = serializers.CharField(help_text="What was made of the source.")
    judgements = serializers.IntegerField(allow_null=True)


class LineageSerializer(serializers.Serializer[Any]):
    focus = serializers.CharField()
    nodes = NodeSerializer(many=True)
    edges = EdgeSerializer(many=True)


def _answer(graph: Graph) -> Response:
    nodes = [asdict(node) | {"name": node.name} for node in graph.nodes]
    edges = [asdict(edge) for edge in graph.edges]
    return Response({"focus": graph.focus, "nodes": nodes, "edges": edges})


class LineageView(ProjectAPIView):
    """What a thing was made of, and what was made of it."""

    role = Role.LEAD

    def answer(self, subject: Subject, project_id: int) -> Response:
        return _answer(lineage(subject, self.membership(project_id).project))


class SnapshotLineageView(LineageView):
    @extend_schema(responses=LineageSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """List the campaigns behind a snapshot and the runs, versions and aliases made of it."""
        found = get_object_or_404(Snapshot, pk=pk)
        return self.answer(found, found.project_id)


class RunLineageView(LineageView):
    @extend_schema(responses=LineageSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """List what a run was trained on and what came of it."""
        found = get_object_or_404(Run, pk=pk)
        return self.answer(found, found.project_id)


class VersionLineageView(LineageView):
    @extend_schema(responses=LineageSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """List the runs, snapshots and campaigns behind a version, and where it went."""
        found = get_object_or_404(Version, pk=pk)
        return self.answer(found, found.project_id)


class PromptLineageView(LineageView):
    @extend_schema(responses=LineageSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """List which snapshots, runs, versions and aliases a prompt went into."""
        found = get_object_or_404(Prompt, pk=pk)
        return self.answer(found, found.project_id)


class JudgementLineageView(LineageView):
    @extend_schema(responses=LineageSerializer)
    def get(self, request: Request, pk: str) -> Response:
        """List which snapshots, runs, versions and aliases a judgement went into."""
        rows = Judgement.objects.select_related("annotator", "campaign", "item__prompt")
        found = get_object_or_404(rows, client_id=pk)
        return self.answer(found, found.campaign.project_id)


class AnnotatorLineageView(LineageView):
    @extend_schema(responses=LineageSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """List which snapshots, runs, versions and aliases an annotator's judgements went into."""
        project: Project = self.project()
        return self.answer(find_subject(project, "annotator", str(pk)), project.pk)
