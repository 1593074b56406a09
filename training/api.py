"""REST: runs with their metrics, evaluations."""

from __future__ import annotations

from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.errors import Conflict, ProductError
from accounts.models import Project, Role, Scope
from accounts.pagination import NewestFirst, filtered, paginated, query
from accounts.serializers import Body, named
from inference.models import Version
from training import evaluation, preflight, runs
from training.api_methods import ArgumentsField
from training.engine.arguments import METHODS
from training.evaluation import so_far
from training.models import Evaluation, Run, RunNote, Snapshot


class RunSerializer(serializers.ModelSerializer[Run]):
    project = serializers.CharField(source="project.slug")
    start_version_name = serializers.CharField(source="start_version.name")
    version_name = serializers.CharField(source="version.name", default=None)

    class Meta:
        model = Run
        fields = [
            "id",
            "project",
            "snapshot",
            "start_version",
            "start_version_name",
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


def trained_on(project: Project, values: dict[str, Any]) -> tuple[Snapshot, Version]:
    """Return the snapshot and the version that a body names; the base if it names no version."""
    snapshot = named(Snapshot.objects.filter(project=project), "snapshot", values["snapshot"])
    versions = Version.objects.filter(project=project).select_related("base")
    if "start_version" in values:
        return snapshot, named(versions, "start_version", values["start_version"])
    base = versions.filter(number=0).first()
    if base is None:
        raise ProductError("This project has no base. Adopt one with manage.py adopt_base.")
    return snapshot, base


class WantedRunView(ProjectAPIView):
    """An operation on a run that is described in the body."""

    class Input(Body):
        snapshot = serializers.IntegerField(help_text="The id of a ready snapshot.")
        start_version = serializers.IntegerField(
            required=False, help_text="The id of the version to start from; the base if left out."
        )
        method = serializers.ChoiceField(choices=list(METHODS), default="dpo")
        arguments = ArgumentsField()
        seed = serializers.IntegerField(min_value=0, max_value=2**31 - 1, default=0)

    def wanted(self, request: Request) -> dict[str, Any]:
        """Return the body as ``start_run`` takes it."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        snapshot, start = trained_on(self.project(), data.validated_data)
        return {**data.validated_data, "snapshot": snapshot, "start_version": start}


class RunsView(WantedRunView):
    role, write_scope, write_role = Role.LEAD, Scope.MANAGE, Role.ADMIN
    pagination_class = NewestFirst

    class Filters(Body):
        state = serializers.ChoiceField(choices=Run.State.choices, required=False)
        method = serializers.ChoiceField(choices=list(METHODS), required=False)
        snapshot = serializers.IntegerField(required=False)
        start_version = serializers.IntegerField(required=False)
        version = serializers.IntegerField(required=False)
        round = serializers.IntegerField(required=False)

    @extend_schema(parameters=[Filters], responses=RunSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List runs, newest first."""
        rows = Run.objects.filter(project__in=self.projects()).select_related(
            "project", "start_version", "version"
        )
        return paginated(filtered(rows, self.Filters, request), RunSerializer, request, self)

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
    class Asked(Body):
        after = serializers.IntegerField(
            min_value=0, default=0, help_text="Leave out the steps up to this one."
        )
        limit = serializers.IntegerField(
            min_value=1, max_value=10_000, default=1000, help_text="So many steps at most."
        )

    @extend_schema(
        parameters=[Asked],
        responses={200: serializers.ListSerializer(child=serializers.DictField())},
    )
    def get(self, request: Request, pk: int) -> Response:
        """List what the run reported step by step; ask on with ?after= the last step seen."""
        run = self.run(pk)
        asked = self.Asked(data=query(request, without={"project"}))
        asked.is_valid(raise_exception=True)
        rows = run.metrics.filter(step__gt=asked.validated_data["after"])
        values = rows.order_by("step").values_list("values", flat=True)
        return Response(list(values[: asked.validated_data["limit"]]))


class RunNotesView(OneRunView):
    class Output(serializers.Serializer[Any]):
        class NoteSerializer(serializers.ModelSerializer[RunNote]):
            class Meta:
                model = RunNote
                fields = ["id", "at", "message"]

        warnings = serializers.ListField(
            child=serializers.CharField(), help_text="What its metrics give cause for."
        )
        notes = NoteSerializer(many=True, help_text="What it told of itself, oldest first.")

    @extend_schema(responses=Output)
    def get(self, request: Request, pk: int) -> Response:
        """Say in words what happened in a run, and what its metrics warn of."""
        run = self.run(pk)
        said = {"warnings": run.warnings(), "notes": run.notes.all()}
        return Response(self.Output(said).data)


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

    class Input(Body):
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
    challenger_name = serializers.CharField(source="challenger.name")
    champion_name = serializers.CharField(source="champion.name")

    class Meta:
        model = Evaluation
        fields = [
            "id",
            "challenger",
            "challenger_name",
            "champion",
            "champion_name",
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
    pagination_class = NewestFirst

    class Input(Body):
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

    class Filters(Body):
        state = serializers.ChoiceField(choices=Evaluation.State.choices, required=False)
        judge = serializers.ChoiceField(choices=Evaluation.Judge.choices, required=False)
        challenger = serializers.IntegerField(required=False)
        champion = serializers.IntegerField(required=False)
        snapshot = serializers.IntegerField(required=False)

    @extend_schema(parameters=[Filters], responses=EvaluationSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List evaluations, newest first."""
        rows = Evaluation.objects.filter(project__in=self.projects())
        rows = filtered(rows.select_related("challenger", "champion"), self.Filters, request)
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
            challenger=named(versions, "challenger", values["challenger"]),
            champion=named(versions, "champion", values["champion"]),
            snapshot=named(
                Snapshot.objects.filter(project=project), "snapshot", values["snapshot"]
            ),
            judge=values["judge"],
            rule=values["rule"],
            reward_version=(
                named(versions.select_related("base"), "reward_version", values["reward_version"])
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
