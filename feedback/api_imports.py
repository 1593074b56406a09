"""REST: import a file; a large one is added by a worker, and asked after at an address."""

from __future__ import annotations

from typing import Any

from django.shortcuts import get_object_or_404
from django.urls import reverse
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.errors import TooLarge
from accounts.models import Role, Scope
from accounts.serializers import Body
from feedback import importing, imports
from feedback.models import FileImport


class ProgressSerializer(serializers.Serializer[Any]):
    doing = serializers.CharField(allow_blank=True, help_text="read, stored, or nothing yet.")
    done = serializers.IntegerField(help_text="Rows so far.")
    total = serializers.IntegerField(allow_null=True, help_text="Of how many, where it is known.")


class FindingSerializer(serializers.Serializer[Any]):
    line = serializers.IntegerField()
    message = serializers.CharField()


class ReportSerializer(serializers.Serializer[Any]):
    """What a file holds and what becomes of it: rows = added + known + left out + errors."""

    layout = serializers.CharField(help_text="What its rows are.")
    mapping = serializers.DictField(
        child=serializers.CharField(), help_text="The column of each part of a row."
    )
    unused_columns = serializers.ListField(child=serializers.CharField())
    rows = serializers.IntegerField()
    added = serializers.IntegerField()
    known = serializers.IntegerField(help_text="Rows that the project had.")
    left_out = serializers.DictField(
        child=serializers.IntegerField(), help_text="Sound rows that say nothing, by reason."
    )
    left_out_lines = FindingSerializer(many=True, help_text="The first of them.")
    error_count = serializers.IntegerField()
    errors = FindingSerializer(many=True, help_text="The first of them.")  # type: ignore[assignment]


@extend_schema_field(ReportSerializer)
class ReportField(serializers.JSONField):
    """A report as it was stored; empty until the import has ended."""


class FileImportSerializer(serializers.ModelSerializer[FileImport]):
    project = serializers.CharField(source="project.slug")
    url = serializers.SerializerMethodField()
    report = ReportField(read_only=True)
    progress = serializers.SerializerMethodField()

    class Meta:
        model = FileImport
        fields = [
            "id", "url", "project", "filename", "name", "mapping", "skip_errors", "state",
            "progress", "report", "reason", "campaign", "at",
        ]  # fmt: skip

    def get_url(self, row: FileImport) -> str:
        return reverse("api_import", args=[row.pk])

    @extend_schema_field(ProgressSerializer)
    def get_progress(self, row: FileImport) -> dict[str, Any]:
        return imports.progress(row)


class ImportsView(ProjectAPIView):
    scope, role = Scope.MANAGE, Role.LEAD
    parser_classes = [MultiPartParser]

    class Input(Body):
        file = serializers.FileField(
            help_text="JSON, JSON Lines, CSV, TSV or Parquet, also with .gz; 256 MB at most."
        )
        name = serializers.CharField(max_length=120, allow_blank=True, default="")
        mapping = serializers.JSONField(
            default=dict, help_text="Which column is which part of a row; found out if left out."
        )
        skip_errors = serializers.BooleanField(default=False)
        preview = serializers.BooleanField(default=False, help_text="Say it, and add nothing.")

    class Output(serializers.Serializer[Any]):
        campaign = serializers.IntegerField(
            allow_null=True,
            help_text="Where its rows are; null for prompts, a preview, or several campaigns.",
        )
        report = ReportSerializer()

    @extend_schema(
        request={"multipart/form-data": Input},
        responses={200: Output, 201: Output, 202: FileImportSerializer},
    )
    def post(self, request: Request) -> Response:
        """Import a file of comparisons, labels, answers or prompts: all of it or nothing.

        A file beyond 5 MB is answered with 202 and an address that tells what becomes of it; its
        preview is of the first rows.
        """
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        project = self.project()
        file = values["file"]
        if file.size > importing.MOST_UPLOADED:
            raise TooLarge("The file is larger than 256 MB. Compress or split it.")
        mapping = values["mapping"]
        if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
            raise serializers.ValidationError("mapping: an object of names of columns.")
        large = imports.is_large(file, file.name)
        if values["preview"]:
            plan = importing.preview(
                project=project,
                file=file,
                filename=file.name,
                mapping=mapping,
                most=imports.LOOKED_AT if large else None,
            )
            return Response({"campaign": None, "report": plan.report.as_dict()})
        chosen = {name: values[name] for name in ("name", "mapping", "skip_errors")}
        if large:
            queued = imports.queue_import(
                project=project,
                by=self.user,
                upload=imports.keep_upload(project, file),
                filename=file.name,
                **chosen,
            )
            body = FileImportSerializer(queued).data
            return Response(
                body, status=status.HTTP_202_ACCEPTED, headers={"Location": body["url"]}
            )
        report, campaign = importing.import_file(
            project=project, by=self.user, file=file, filename=file.name, **chosen
        )
        answer = {"campaign": campaign.pk if campaign else None, "report": report.as_dict()}
        return Response(answer, status=status.HTTP_201_CREATED if report.added else 200)


class ImportView(ProjectAPIView):
    role = Role.LEAD

    @extend_schema(responses=FileImportSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Tell how far the import of a large file is, and what became of it."""
        found = get_object_or_404(FileImport, pk=pk)
        self.membership(found.project_id)
        return Response(FileImportSerializer(found).data)
