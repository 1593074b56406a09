"""REST: snapshots, their files and exports."""

from __future__ import annotations

import hashlib
from pathlib import Path

from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import downloads
from accounts.access import ProjectAPIView
from accounts.errors import Missing, ProductError
from accounts.models import Role, Scope
from accounts.pagination import NewestFirst, filtered, paginated
from accounts.serializers import Body, FiniteField
from feedback.models import Campaign
from training import formats, snapshots, storage
from training.models import Snapshot
from training.options import Imitate, Kind, Margins, Pairs, Pii, Votes

PARTS = ("train", "heldout")
FILES = (*(f"{part}.parquet" for part in PARTS), storage.MANIFEST)


class SnapshotSerializer(serializers.ModelSerializer[Snapshot]):
    project = serializers.CharField(source="project.slug")
    replaced_by = serializers.IntegerField(source="replaced_by.pk", default=None)
    formats = serializers.SerializerMethodField()

    class Meta:
        model = Snapshot
        fields = [
            "id",
            "project",
            "state",
            "reason",
            "campaigns",
            "kind",
            "options",
            "heldout_fraction",
            "digest",
            "manifest",
            "formats",
            "stale_at",
            "replaces",
            "replaced_by",
            "created_at",
        ]
        extra_kwargs = {
            "stale_at": {"help_text": "Since when it holds something that was retracted."},
            "replaces": {"help_text": "The snapshot that it was taken again for."},
        }

    def get_formats(self, snapshot: Snapshot) -> list[str]:
        """Return the names under export/ that its rows can be written in."""
        return [one.name for one in formats.fitting(snapshot)]


class OptionsSerializer(Body):
    """What a snapshot takes in and how; what is left out is as ``training.options`` says."""

    pairs = serializers.ChoiceField(
        choices=Pairs.choices,
        required=False,
        help_text="Of a ranking; all if left out.",
    )
    votes = serializers.ChoiceField(
        choices=Votes.choices,
        required=False,
        help_text="What several annotators come to; individual if left out.",
    )
    min_agreement = FiniteField(
        min_value=0,
        max_value=1,
        required=False,
        help_text="The least share of the votes that the winner must have; 0 asks for nothing.",
    )
    attributes = serializers.DictField(
        child=FiniteField(),
        required=False,
        help_text="Weights of scales by name; their sum pairs the answers that were rated.",
    )
    gap = FiniteField(
        min_value=0, required=False, help_text="By how much two sums must differ; 1 if left out."
    )
    margins = serializers.ChoiceField(
        choices=Margins.choices, required=False, help_text="What a row's margin is."
    )
    imitate = serializers.ListField(
        child=serializers.ChoiceField(choices=Imitate.choices),
        required=False,
        help_text="For SFT: which answers; corrections and thumbs if left out.",
    )
    max_characters = serializers.IntegerField(
        min_value=0,
        required=False,
        help_text="Of a prompt and its longer answer together; 0 takes all.",
    )
    pii = serializers.ChoiceField(
        choices=Pii.choices, required=False, help_text="What becomes of personal data; off."
    )
    languages = serializers.ListField(
        child=serializers.CharField(max_length=3),
        required=False,
        help_text="ISO 639 codes of those to keep, such as en; all if left out.",
    )
    feedback = serializers.BooleanField(
        required=False, help_text="Also thumbs and corrections given to answers in use."
    )
    heldout_annotators = FiniteField(
        min_value=0,
        max_value=0.9,
        required=False,
        help_text="The share of the annotators who are held out with all that they judged.",
    )
    near = serializers.BooleanField(
        required=False, help_text="Keep near-duplicate prompts on one side of the split."
    )
    leaks = serializers.BooleanField(
        required=False,
        help_text="Leave out of training what was held out or evaluated on before; true.",
    )


class SnapshotsView(ProjectAPIView):
    role, write_scope = Role.LEAD, Scope.MANAGE
    pagination_class = NewestFirst

    class Filters(Body):
        state = serializers.ChoiceField(choices=Snapshot.State.choices, required=False)
        kind = serializers.ChoiceField(choices=Kind.choices, required=False)
        campaign = serializers.IntegerField(source="campaigns", required=False)

    class Input(Body):
        campaigns = serializers.ListField(
            child=serializers.IntegerField(), default=list, help_text="Ids, one at least."
        )
        heldout_fraction = FiniteField(
            min_value=0, max_value=0.9, default=0.2, help_text="The share of the prompts."
        )
        kind = serializers.ChoiceField(choices=Kind.choices, default=Kind.PREFERENCE)
        options = OptionsSerializer(required=False)

    @extend_schema(parameters=[Filters], responses=SnapshotSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List snapshots, newest first."""
        rows = Snapshot.objects.filter(project__in=self.projects())
        rows = rows.select_related("project", "replaced_by").prefetch_related("campaigns")
        rows = filtered(rows, self.Filters, request)
        return paginated(rows, SnapshotSerializer, request, self)

    @extend_schema(request=Input, responses={201: SnapshotSerializer})
    def post(self, request: Request) -> Response:
        """Take a snapshot of what campaigns have collected so far."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        project = self.project()
        wanted = data.validated_data["campaigns"]
        campaigns = list(Campaign.objects.filter(project=project, pk__in=wanted))
        if len(campaigns) != len(set(wanted)):
            raise serializers.ValidationError("campaigns: one of them is not in this project.")
        snapshot = snapshots.create_snapshot(
            project=project,
            campaigns=campaigns,
            by=self.user,
            heldout_fraction=data.validated_data["heldout_fraction"],
            kind=data.validated_data["kind"],
            options=data.validated_data.get("options"),
        )
        return Response(SnapshotSerializer(snapshot).data, status=201)


WRITING = "This snapshot is still being written. Ask for its files when its state is ready."
NO_FILES = {
    Snapshot.State.QUEUED: WRITING,
    Snapshot.State.BUILDING: WRITING,
    Snapshot.State.FAILED: "This snapshot could not be made, so it has no files; it says why.",
    Snapshot.State.ERASED: "The files of this snapshot were erased. Take it again.",
}


class OneSnapshotView(ProjectAPIView):
    role = Role.LEAD

    def snapshot(self, pk: int) -> Snapshot:
        snapshot = get_object_or_404(Snapshot.objects.select_related("project"), pk=pk)
        self.membership(snapshot.project_id)
        return snapshot

    def file(self, snapshot: Snapshot, name: str) -> Path:
        """Return where a file lies, verified; Missing where there is none yet or no longer."""
        if snapshot.state != Snapshot.State.READY:
            raise Missing(NO_FILES[Snapshot.State(snapshot.state)])
        try:
            return storage.local_file(snapshot, name)
        except FileNotFoundError as error:
            raise Missing(
                f"{name} is gone from the store. Restore it, or take the snapshot again."
            ) from error


class SnapshotView(OneSnapshotView):
    @extend_schema(responses=SnapshotSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one snapshot with its manifest and ledger."""
        return Response(SnapshotSerializer(self.snapshot(pk)).data)


class SnapshotFileView(OneSnapshotView):
    @extend_schema(
        parameters=[
            OpenApiParameter("name", location="path", enum=FILES),
            *downloads.RANGE_HEADERS,
        ],
        responses=downloads.RANGE_RESPONSES,
    )
    def get(self, request: Request, pk: int, name: str) -> HttpResponseBase:
        """Download train.parquet, heldout.parquet or manifest.json; resumes by range."""
        snapshot = self.snapshot(pk)
        if name not in FILES:
            raise Missing(f"A snapshot has no file “{name}”. There are {', '.join(FILES)}.")
        if name == storage.MANIFEST and snapshot.state == Snapshot.State.READY:
            text = storage.manifest_text(snapshot.manifest)
            return downloads.send_made(
                request,
                lambda: iter([text]),
                identity=hashlib.sha256(text).hexdigest(),
                filename=name,
                content_type="application/json",
            )
        path = self.file(snapshot, name)
        return downloads.send_file(request, path, identity=snapshot.manifest["files"][name])


class SnapshotExportView(OneSnapshotView):
    @extend_schema(
        parameters=[
            OpenApiParameter("name", location="path", enum=list(formats.FORMATS)),
            OpenApiParameter("part", enum=PARTS, default="train"),
            *downloads.RANGE_HEADERS,
        ],
        responses=downloads.RANGE_RESPONSES,
    )
    def get(self, request: Request, pk: int, name: str) -> HttpResponseBase:
        """Download the training or held-out rows in another tool's format; resumes by range."""
        snapshot = self.snapshot(pk)
        part = request.query_params.get("part", "train")
        fitting = [one.name for one in formats.fitting(snapshot)]
        if name not in formats.FORMATS:
            raise Missing(f"There is no format “{name}”. Choose one of {', '.join(fitting)}.")
        if part not in PARTS:
            raise Missing(f"A snapshot has no part “{part}”. Choose {' or '.join(PARTS)}.")
        path = self.file(snapshot, f"{part}.parquet")
        if name not in fitting:
            raise ProductError(
                f"The rows of this snapshot cannot be written as {name}. "
                f"Choose one of {', '.join(fitting)}."
            )
        chosen = formats.FORMATS[name]
        return downloads.send_made(
            request,
            lambda: formats.blocks(formats.export(path, name)),
            identity=formats.identity(snapshot, part, name),
            filename=chosen.filename(snapshot.pk, part),
            content_type=chosen.content_type,
        )
