"""REST: snapshots, runs with their metrics, evaluations."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from django.http import Http404
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import downloads
from accounts.access import ProjectAPIView
from accounts.errors import Conflict, ProductError
from accounts.models import Role, Scope
from accounts.pages import whole
from accounts.pagination import paginated
from accounts.serializers import FiniteField
from feedback.models import Campaign
from inference.models import Version
from training import evaluation, formats, preflight, runs, snapshots, storage
from training.evaluation import so_far
from training.models import Evaluation, Run, Snapshot
from training.options import Imitate, Kind, Margins, Pairs, Pii, Votes


class SnapshotSerializer(serializers.ModelSerializer[Snapshot]):
    project = serializers.CharField(source="project.slug")

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
            "created_at",
        ]


class OptionsSerializer(serializers.Serializer[Any]):
    """What a snapshot takes in and how; what is left out is as ``training.options`` says."""

    pairs = serializers.ChoiceField(choices=Pairs.choices, required=False)
    votes = serializers.ChoiceField(choices=Votes.choices, required=False)
    min_agreement = FiniteField(min_value=0, max_value=1, required=False)
    attributes = serializers.DictField(child=FiniteField(), required=False)
    gap = FiniteField(min_value=0, required=False)
    margins = serializers.ChoiceField(choices=Margins.choices, required=False)
    imitate = serializers.ListField(
        child=serializers.ChoiceField(choices=Imitate.choices), required=False
    )
    max_characters = serializers.IntegerField(min_value=0, required=False)
    pii = serializers.ChoiceField(choices=Pii.choices, required=False)
    languages = serializers.ListField(child=serializers.CharField(max_length=3), required=False)
    feedback = serializers.BooleanField(required=False)
    heldout_annotators = FiniteField(min_value=0, max_value=0.9, required=False)
    near = serializers.BooleanField(required=False)
    leaks = serializers.BooleanField(required=False)


class SnapshotsView(ProjectAPIView):
    role, write_scope = Role.LEAD, Scope.MANAGE

    class Input(serializers.Serializer[Any]):
        campaigns = serializers.ListField(child=serializers.IntegerField(), default=list)
        heldout_fraction = FiniteField(min_value=0, max_value=0.9, default=0.2)
        kind = serializers.ChoiceField(choices=Kind.choices, default=Kind.PREFERENCE)
        options = OptionsSerializer(required=False)

    @extend_schema(responses=SnapshotSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List snapshots, newest first."""
        rows = Snapshot.objects.filter(project__in=self.projects()).select_related("project")
        return paginated(rows.prefetch_related("campaigns"), SnapshotSerializer, request, self)

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


class OneSnapshotView(ProjectAPIView):
    role = Role.LEAD

    def snapshot(self, pk: int) -> Snapshot:
        snapshot = get_object_or_404(Snapshot.objects.select_related("project"), pk=pk)
        self.membership(snapshot.project_id)
        return snapshot

    def file(self, snapshot: Snapshot, name: str) -> Path:
        """Return where a file lies, verified; Http404 where there is none yet or no longer."""
        if snapshot.state != Snapshot.State.READY:
            raise Http404
        try:
            return storage.local_file(snapshot, name)
        except FileNotFoundError as error:
            raise Http404 from error


class SnapshotView(OneSnapshotView):
    @extend_schema(responses=SnapshotSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one snapshot with its manifest and ledger."""
        return Response(SnapshotSerializer(self.snapshot(pk)).data)


class SnapshotFileView(OneSnapshotView):
    @extend_schema(parameters=downloads.RANGE_HEADERS, responses=downloads.RANGE_RESPONSES)
    def get(self, request: Request, pk: int, name: str) -> HttpResponseBase:
        """Download train.parquet, heldout.parquet or manifest.json; resumes by range."""
        snapshot = self.snapshot(pk)
        if name not in ("train.parquet", "heldout.parquet", storage.MANIFEST):
            raise Http404
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
            OpenApiParameter("part", enum=["train", "heldout"], default="train"),
            *downloads.RANGE_HEADERS,
        ],
        responses=downloads.RANGE_RESPONSES,
    )
    def get(self, request: Request, pk: int, name: str) -> HttpResponseBase:
        """Download the training or held-out rows in another tool's format; resumes by range."""
        snapshot = self.snapshot(pk)
        part = request.query_params.get("part", "train")
        if name not in formats.FORMATS or part not in ("train", "heldout"):
            raise Http404
        path = self.file(snapshot, f"{part}.parquet")
        chosen = formats.FORMATS[name]
        if not chosen.fits(snapshot):
            raise ProductError(
                f"The rows of this snapshot cannot be written as {name}; its page lists the "
                "formats that they can be written in."
            )
        return downloads.send_made(
            request,
            lambda: formats.blocks(formats.export(path, name)),
            identity=formats.identity(snapshot, part, name),
            filename=chosen.filename(snapshot.pk, part),
            content_type=chosen.content_type,
        )


class RunSerializer(serializers.ModelSerializer[Run]):
    project = serializers.CharField(source="project.slug")
    start_version = serializers.CharField(source="start_version.name")
    version_name = serializers.CharField(source="version.name", default=None)

    class Meta:
        model = Run
        fields = [
            "id",
            "project",
            "snapshot",
            "start_version",
            "method",
            "arguments",
            "seed",
            "round",
            "priority",
            "state",
            "phase",
            "reason",
            "step",
            "total_steps",
            "attempts",
            "prediction",
            "report",
            "version",
            "version_name",
            "created_at",
            "started_at",
            "ended_at",
        ]


class WantedRunView(ProjectAPIView):
    """An operation on a run that is described in the body."""

    class Input(serializers.Serializer[Any]):
        snapshot = serializers.IntegerField(help_text="The id of a ready snapshot.")
        start_version = serializers.IntegerField(
            required=False, help_text="The id of the version to start from; the base if left out."
        )
        method = serializers.CharField(default="dpo")
        arguments = serializers.DictField(default=dict)
        seed = serializers.IntegerField(min_value=0, max_value=2**31 - 1, default=0)

    def wanted(self, request: Request) -> dict[str, Any]:
        """Return the body as ``start_run`` takes it."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = dict(data.validated_data)
        project = self.project()
        versions = Version.objects.filter(project=project).select_related("base")
        start = (
            get_object_or_404(versions, pk=values["start_version"])
            if "start_version" in values
            else get_object_or_404(versions, number=0)
        )
        snapshot = get_object_or_404(Snapshot, pk=values["snapshot"], project=project)
        return values | {"snapshot": snapshot, "start_version": start}


class RunsView(WantedRunView):
    role, write_scope, write_role = Role.LEAD, Scope.MANAGE, Role.ADMIN

    @extend_schema(responses=RunSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List runs, newest first."""
        rows = Run.objects.filter(project__in=self.projects()).select_related(
            "project", "start_version", "version"
        )
        return paginated(rows, RunSerializer, request, self)

    @extend_schema(request=WantedRunView.Input, responses={201: RunSerializer})
    def post(self, request: Request) -> Response:
        """Queue a training run; one that cannot fit is refused with the nearest that does."""
        run = runs.start_run(**self.wanted(request), by=self.user)
        return Response(RunSerializer(run).data, status=201)


class PreflightView(WantedRunView):
    scope, role = Scope.MANAGE, Role.ADMIN

    class Output(serializers.Serializer[Any]):
        fits = serializers.BooleanField()
        problems = serializers.ListField(child=serializers.CharField())
        warnings = serializers.ListField(child=serializers.CharField())
        estimate = serializers.DictField(help_text="Steps, tokens, memory, disk, seconds.")
        hardware = serializers.DictField()
        machine = serializers.CharField()
        cost = serializers.FloatField(allow_null=True)
        currency = serializers.CharField()
        proposal = serializers.DictField(allow_null=True, help_text="The nearest run that fits.")
        measured_runs = serializers.IntegerField()

    @extend_schema(request=WantedRunView.Input, responses=Output)
    def post(self, request: Request) -> Response:
        """Foretell what a run would take; nothing is queued."""
        wanted = self.wanted(request)
        del wanted["seed"]
        found = preflight.check_run(**wanted)
        if found is None:
            raise Conflict("This base or snapshot cannot be read. Restore its files first.")
        return Response(found.as_dict())


class OneRunView(ProjectAPIView):
    role = Role.LEAD

    def run(self, pk: int) -> Run:
        rows = Run.objects.select_related("project", "start_version", "version", "snapshot")
        run = get_object_or_404(rows, pk=pk)
        self.membership(run.project_id)
        return run


class RunView(OneRunView):
    @extend_schema(responses=RunSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one run with its state and report."""
        return Response(RunSerializer(self.run(pk)).data)


class RunMetricsView(OneRunView):
    @extend_schema(responses={200: serializers.ListSerializer(child=serializers.DictField())})
    def get(self, request: Request, pk: int) -> Response:
        """List what the run reported step by step; ?after=N leaves out the steps up to N."""
        after = whole(request.query_params.get("after", ""))
        rows = self.run(pk).metrics.filter(step__gt=after or 0)
        return Response(list(rows.values_list("values", flat=True)))


class CancelRunView(OneRunView):
    scope, role = Scope.MANAGE, Role.ADMIN

    @extend_schema(request=None, responses=RunSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Stop a run within one step."""
        run = self.run(pk)
        runs.cancel_run(run=run, by=self.user)
        run.refresh_from_db()
        return Response(RunSerializer(run).data)


class PauseRunView(OneRunView):
    scope, role = Scope.MANAGE, Role.ADMIN

    @extend_schema(request=None, responses=RunSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Stop a run within one step, to go on later from there."""
        run = self.run(pk)
        runs.pause_run(run=run, by=self.user)
        run.refresh_from_db()
        return Response(RunSerializer(run).data)


class ResumeRunView(OneRunView):
    scope, role = Scope.MANAGE, Role.ADMIN

    @extend_schema(request=None, responses=RunSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Queue a paused run again; it goes on from its last step."""
        run = self.run(pk)
        runs.resume_run(run=run, by=self.user)
        run.refresh_from_db()
        return Response(RunSerializer(run).data)


class RunPriorityView(OneRunView):
    scope, role = Scope.MANAGE, Role.ADMIN

    class Input(serializers.Serializer[Any]):
        priority = serializers.IntegerField(min_value=-100, max_value=100)

    @extend_schema(request=Input, responses=RunSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Say how soon a waiting run goes: the highest first."""
        run = self.run(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        runs.set_priority(run=run, priority=data.validated_data["priority"], by=self.user)
        run.refresh_from_db()
        return Response(RunSerializer(run).data)


class RunAgainView(OneRunView):
    scope, role = Scope.MANAGE, Role.ADMIN

    @extend_schema(request=None, responses={201: RunSerializer})
    def post(self, request: Request, pk: int) -> Response:
        """Queue the same training as a new run."""
        run = runs.run_again(run=self.run(pk), by=self.user)
        return Response(RunSerializer(run).data, status=201)


class EvaluationSerializer(serializers.ModelSerializer[Evaluation]):
    result = serializers.SerializerMethodField()
    proposed = serializers.SerializerMethodField()
    challenger = serializers.CharField(source="challenger.name")
    champion = serializers.CharField(source="champion.name")

    class Meta:
        model = Evaluation
        fields = [
            "id",
            "challenger",
            "champion",
            "snapshot",
            "judge",
            "rule",
            "reward_version",
            "campaign",
            "samples",
            "seed",
            "sampling",
            "state",
            "reason",
            "compared",
            "result",
            "proposed",
            "created_at",
        ]

    def get_result(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return the result, or what people's judgements come to so far."""
        return so_far(evaluation)

    def get_proposed(self, evaluation: Evaluation) -> bool:
        """Say whether the lower bound of the win rate beats the champion."""
        done = evaluation.state == Evaluation.State.DONE
        return done and bool(evaluation.result["win_rate"]["low"] > 0.5)


class EvaluationsView(ProjectAPIView):
    role, write_scope = Role.LEAD, Scope.MANAGE

    class Input(serializers.Serializer[Any]):
        challenger = serializers.IntegerField(help_text="The id of a version.")
        champion = serializers.IntegerField(help_text="The id of the version to beat.")
        snapshot = serializers.IntegerField(help_text="Whose held-out prompts to use.")
        judge = serializers.ChoiceField(
            choices=Evaluation.Judge.choices, default=Evaluation.Judge.RULE
        )
        rule = serializers.CharField(max_length=200, default="training.rules:concise")
        reward_version = serializers.IntegerField(
            required=False, help_text="The reward model's version id, where it judges."
        )
        judgements_per_item = serializers.IntegerField(
            min_value=1, max_value=50, default=3, help_text="Where people judge."
        )
        samples = serializers.IntegerField(min_value=1, max_value=64, default=4)
        seed = serializers.IntegerField(min_value=0, max_value=2**31 - 1, default=0)

    @extend_schema(responses=EvaluationSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List evaluations, newest first."""
        rows = Evaluation.objects.filter(project__in=self.projects())
        rows = rows.select_related("challenger", "champion")
        return paginated(rows, EvaluationSerializer, request, self)

    @extend_schema(request=Input, responses={201: EvaluationSerializer})
    def post(self, request: Request) -> Response:
        """Compare two versions on held-out prompts: by a rule, a reward model, or people."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        project = self.project()
        versions = Version.objects.filter(project=project)
        started = evaluation.start_evaluation(
            challenger=get_object_or_404(versions, pk=values["challenger"]),
            champion=get_object_or_404(versions, pk=values["champion"]),
            snapshot=get_object_or_404(Snapshot, pk=values["snapshot"], project=project),
            judge=values["judge"],
            rule=values["rule"],
            reward_version=(
                get_object_or_404(versions.select_related("base"), pk=values["reward_version"])
                if "reward_version" in values
                else None
            ),
            judgements_per_item=values["judgements_per_item"],
            samples=values["samples"],
            seed=values["seed"],
            by=self.user,
        )
        return Response(EvaluationSerializer(started).data, status=201)


class EvaluationView(ProjectAPIView):
    role = Role.LEAD

    @extend_schema(responses=EvaluationSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one evaluation."""
        found = get_object_or_404(
            Evaluation.objects.select_related("challenger", "champion"), pk=pk
        )
        self.membership(found.project_id)
        return Response(EvaluationSerializer(found).data)
