"""REST: versions and their files, aliases with their ledger, promotion and roll-back."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from django.http import Http404
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import downloads
from accounts.access import ProjectAPIView
from accounts.models import Role, Scope
from accounts.pagination import NewestFirst, filtered, paginated
from accounts.serializers import Body
from inference import services
from inference.models import Alias, AliasMove, AliasName, Completion, Version


class VersionSerializer(serializers.ModelSerializer[Version]):
    name = serializers.CharField(read_only=True)
    served_name = serializers.CharField(read_only=True)
    is_full = serializers.BooleanField(
        read_only=True, help_text="A whole model, which the engines here do not serve."
    )
    is_dora = serializers.BooleanField(
        read_only=True, help_text="A DoRA, which the engines here do not serve."
    )
    base = serializers.CharField(source="base.name")
    project = serializers.CharField(source="project.slug")
    parent_name = serializers.CharField(source="parent.name", default=None)

    class Meta:
        model = Version
        fields = [
            "id",
            "project",
            "name",
            "number",
            "served_name",
            "base",
            "parent",
            "parent_name",
            "method",
            "is_full",
            "is_dora",
            "digest",
            "snapshot_digest",
            "metrics",
            "proof",
            "created_at",
        ]


class MoveSerializer(serializers.ModelSerializer[AliasMove]):
    alias = serializers.CharField(source="alias.name")
    from_version_name = serializers.CharField(source="from_version.name", default=None)
    to_version_name = serializers.CharField(source="to_version.name")
    by = serializers.CharField(source="by.username", default=None)

    class Meta:
        model = AliasMove
        fields = [
            "id",
            "alias",
            "kind",
            "from_version",
            "from_version_name",
            "to_version",
            "to_version_name",
            "by",
            "why",
            "overruled",
            "milliseconds",
            "at",
        ]


class VersionsView(ProjectAPIView):
    pagination_class = NewestFirst

    class Filters(Body):
        method = serializers.CharField(required=False)
        number = serializers.IntegerField(required=False, help_text="0 is the base itself.")
        digest = serializers.CharField(required=False)
        snapshot_digest = serializers.CharField(required=False)

    @extend_schema(parameters=[Filters], responses=VersionSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List versions, newest first."""
        rows = Version.objects.filter(project__in=self.projects()).select_related(
            "base", "project", "parent"
        )
        return paginated(filtered(rows, self.Filters, request), VersionSerializer, request, self)


class OneVersionView(ProjectAPIView):
    """An operation on one version of the caller's projects."""

    role = Role.LEAD

    def version(self, pk: int) -> Version:
        rows = Version.objects.select_related("base", "project", "parent")
        version = get_object_or_404(rows, pk=pk)
        self.membership(version.project_id)
        return version


class VersionView(OneVersionView):
    @extend_schema(responses=VersionSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one version."""
        return Response(VersionSerializer(self.version(pk)).data)


class VersionFilesView(OneVersionView):
    class Output(serializers.Serializer[Any]):
        name = serializers.CharField()
        size = serializers.IntegerField()

    @extend_schema(responses=Output(many=True))
    def get(self, request: Request, pk: int) -> Response:
        """List the files of an adapter."""
        version = self.version(pk)
        if version.is_base:
            return Response([])
        files = sorted(path for path in version.folder.iterdir() if path.is_file())
        return Response([{"name": path.name, "size": path.stat().st_size} for path in files])


class VersionFileView(OneVersionView):
    @extend_schema(parameters=downloads.RANGE_HEADERS, responses=downloads.RANGE_RESPONSES)
    def get(self, request: Request, pk: int, name: str) -> HttpResponseBase:
        """Download one file of an adapter; resumes by range."""
        version = self.version(pk)
        if version.is_base:
            raise Http404
        for path in version.folder.iterdir():  # only what is listed, so no path can be smuggled in
            if path.is_file() and path.name == name:
                identity = f"{version.digest}/{quote(name)}"
                return downloads.send_file(request, path, identity=identity)
        raise Http404


class AliasesView(ProjectAPIView):
    class Output(serializers.Serializer[Any]):
        project = serializers.CharField(source="project.slug")
        name = serializers.CharField()
        version = VersionSerializer()

    @extend_schema(responses=Output(many=True))
    def get(self, request: Request) -> Response:
        """List the aliases with the versions they name now."""
        rows = Alias.objects.filter(project__in=self.projects()).select_related(
            "version__base", "version__project", "version__parent", "project"
        )
        return Response(self.Output(rows, many=True).data)


class MovesView(ProjectAPIView):
    pagination_class = NewestFirst

    class Filters(Body):
        alias = serializers.ChoiceField(
            choices=AliasName.choices, source="alias__name", required=False
        )
        kind = serializers.ChoiceField(choices=AliasMove.Kind.choices, required=False)

    @extend_schema(parameters=[Filters], responses=MoveSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List the alias ledger, newest first."""
        rows = AliasMove.objects.filter(alias__project__in=self.projects()).select_related(
            "alias", "from_version", "to_version", "by"
        )
        return paginated(filtered(rows, self.Filters, request), MoveSerializer, request, self)


class MoveInput(Body):
    alias = serializers.ChoiceField(choices=AliasName.choices, default=AliasName.PRODUCTION)
    why = serializers.CharField(max_length=500, allow_blank=True, default="")


class PromoteView(OneVersionView):
    scope, role = Scope.MANAGE, Role.ADMIN

    @extend_schema(request=MoveInput, responses=MoveSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Put a version behind an alias; one that is not proposed needs a reason why."""
        version = self.version(pk)
        data = MoveInput(data=request.data)
        data.is_valid(raise_exception=True)
        move = services.promote(
            project=version.project,
            version=version,
            by=self.user,
            why=data.validated_data["why"],
            alias_name=AliasName(data.validated_data["alias"]),
        )
        return Response(MoveSerializer(move).data)


class RollBackView(ProjectAPIView):
    scope, role = Scope.MANAGE, Role.ADMIN

    class Input(MoveInput):
        to = serializers.IntegerField(
            required=False,
            help_text="The id of the version that you expect there: a retry walks no second step.",
        )

    @extend_schema(request=Input, responses=MoveSerializer)
    def post(self, request: Request) -> Response:
        """Point an alias back at what it named before."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        move = services.roll_back(
            project=self.project(),
            by=self.user,
            why=data.validated_data["why"],
            alias_name=AliasName(data.validated_data["alias"]),
            to=data.validated_data.get("to"),
        )
        return Response(MoveSerializer(move).data)


class CompletionSerializer(serializers.ModelSerializer[Completion]):
    version_name = serializers.CharField(source="version.name")

    class Meta:
        model = Completion
        fields = [
            "id",
            "version",
            "version_name",
            "requested_model",
            "source",
            "messages",
            "text",
            "sampling",
            "finish_reason",
            "prompt_tokens",
            "completion_tokens",
            "milliseconds",
            "created_at",
        ]


class CompletionView(ProjectAPIView):
    @extend_schema(responses=CompletionSerializer)
    def get(self, request: Request, pk: str) -> Response:
        """Fetch one recorded answer with the version that gave it: your own, or any as a lead."""
        completion = get_object_or_404(Completion.objects.select_related("version"), pk=pk)
        own = Completion.objects.asked_in_use().filter(created_by=self.user, pk=pk)
        if not self.membership(completion.project_id).may(Role.LEAD) and not own.exists():
            raise Http404  # it could tell which model wrote what they judge
        return Response(CompletionSerializer(completion).data)
