"""REST: who am I, my projects, my tokens."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.models import Membership, Project


class ProjectSerializer(serializers.ModelSerializer[Project]):
    role = serializers.SerializerMethodField()

    class Meta:
        model = Project
        fields = ["id", "name", "slug", "role"]

    def get_role(self, project: Project) -> str:
        return str(self.context["roles"][project.pk])


class MeView(ProjectAPIView):
    class Output(serializers.Serializer[Any]):
        username = serializers.CharField()
        projects = ProjectSerializer(many=True)

    @extend_schema(responses=Output)
    def get(self, request: Request) -> Response:
        """Say who the caller is and what role they have in which project."""
        projects = self.projects()
        roles = dict(
            Membership.objects.filter(user=self.user, project__in=projects).values_list(
                "project_id", "role"
            )
        )
        rows = ProjectSerializer(projects, many=True, context={"roles": roles}).data
        return Response({"username": self.user.username, "projects": rows})
