"""REST: retract judgements, annotators and prompts, and make again what was made of them."""

from __future__ import annotations

from typing import Any

from django.http import Http404
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.errors import Missing
from accounts.models import Project, Role, Scope, User
from accounts.pagination import NewestFirst, paginated, query
from accounts.serializers import Body
from feedback.models import Campaign, Judgement, Prompt
from training import retraction as service
from training.models import Retraction
from training.subjects import find_subject


class RetractionSerializer(serializers.ModelSerializer[Retraction]):
    subject = serializers.CharField()
    rebuild_state = serializers.CharField()

    class Meta:
        model = Retraction
        fields = [
            "id",
            "kind",
            "subject",
            "campaign",
            "why",
            "erase",
            "judgements",
            "snapshots",
            "runs",
            "versions",
            "aliases",
            "created_at",
            "rebuild_state",
            "rebuild_note",
        ]


class RetractionInput(Body):
    kind = serializers.ChoiceField(choices=Retraction.Kind.choices)
    key = serializers.CharField(
        max_length=40, help_text="A judgement's client id, an annotator's or a prompt's id."
    )
    campaign = serializers.IntegerField(
        required=False, help_text="Only an annotator's judgements in this campaign."
    )

    def subject(self, project: Project) -> tuple[service.Subject, Campaign | None]:
        """Return what is to be taken back and where, or raise 404."""
        values = self.validated_data
        try:
            subject = find_subject(project, values["kind"], values["key"])
        except Http404:
            raise Missing(
                f"No {values['kind']} of this project has the key {values['key']}. A judgement is "
                "named by its client_id, an annotator and a prompt by their ids."
            ) from None
        assert isinstance(subject, Judgement | User | Prompt)
        campaign = None
        if values.get("campaign") is not None:
            campaign = get_object_or_404(Campaign, pk=values["campaign"], project=project)
        return subject, campaign


def _rows() -> Any:
    return Retraction.objects.select_related(
        "annotator", "campaign", "judgement", "prompt"
    ).prefetch_related("snapshots", "runs", "versions")


class RetractionsView(ProjectAPIView):
    role, write_scope, write_role = Role.LEAD, Scope.MANAGE, Role.ADMIN
    pagination_class = NewestFirst

    class Input(RetractionInput):
        why = serializers.CharField(max_length=service.MAX_WHY)
        erase = serializers.BooleanField(
            default=False, help_text="Remove the texts and the snapshots' files, too."
        )

    @extend_schema(responses=RetractionSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List what was taken back, newest first."""
        rows = _rows().filter(project__in=self.projects())
        return paginated(rows, RetractionSerializer, request, self)

    @extend_schema(request=Input, responses={201: RetractionSerializer})
    def post(self, request: Request) -> Response:
        """Retract a judgement, an annotator's judgements or a prompt."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        project = self.project()
        subject, campaign = data.subject(project)
        made = service.retract(
            project=project,
            subject=subject,
            campaign=campaign,
            why=data.validated_data["why"],
            erase=data.validated_data["erase"],
            by=self.user,
        )
        return Response(RetractionSerializer(made).data, status=201)


class RetractionPreviewView(ProjectAPIView):
    role = Role.ADMIN

    class Output(serializers.Serializer[Any]):
        judgements = serializers.IntegerField()
        snapshots = serializers.ListField(child=serializers.IntegerField())
        runs = serializers.ListField(child=serializers.IntegerField())
        versions = serializers.ListField(child=serializers.IntegerField())
        aliases = serializers.ListField(child=serializers.CharField())

    @extend_schema(
        parameters=[
            OpenApiParameter("kind", enum=Retraction.Kind.values, required=True),
            OpenApiParameter("key", required=True),
            OpenApiParameter("campaign", int),
        ],
        responses=Output,
    )
    def get(self, request: Request) -> Response:
        """Say what a retraction would touch, without touching it."""
        data = RetractionInput(data=query(request))
        data.is_valid(raise_exception=True)
        project = self.project()
        subject, campaign = data.subject(project)
        found = service.affected_by(project=project, subject=subject, campaign=campaign)
        return Response(
            {
                "judgements": found.judgements,
                "snapshots": list(found.snapshots.values_list("pk", flat=True)),
                "runs": list(found.runs.values_list("pk", flat=True)),
                "versions": list(found.versions.values_list("pk", flat=True)),
                "aliases": [alias.name for alias in found.aliases],
            }
        )


class RetractionView(ProjectAPIView):
    role = Role.LEAD

    @extend_schema(responses=RetractionSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one retraction with what it touched."""
        found = get_object_or_404(_rows(), pk=pk)
        self.membership(found.project_id)
        return Response(RetractionSerializer(found).data)


class RebuildView(ProjectAPIView):
    scope, role = Scope.MANAGE, Role.ADMIN

    @extend_schema(request=None, responses=RetractionSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Build the affected snapshots again and queue the same runs; twice does nothing twice."""
        found = get_object_or_404(_rows(), pk=pk)
        self.membership(found.project_id)
        service.rebuild(retraction=found, by=self.user)
        found.refresh_from_db()
        return Response(RetractionSerializer(found).data)
