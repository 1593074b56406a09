"""REST: rounds of several runs on one snapshot."""

from __future__ import annotations

import dataclasses
from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.models import Role, Scope
from accounts.pagination import NewestFirst, paginated
from accounts.serializers import Body
from training import rounds
from training.api import trained_on
from training.api_methods import ArgumentsField
from training.engine.arguments import METHODS
from training.models import Round


class OutcomeSerializer(serializers.Serializer[Any]):
    rank = serializers.IntegerField(allow_null=True)
    run = serializers.IntegerField(source="run.pk")
    rung = serializers.IntegerField(source="run.rung")
    method = serializers.CharField(source="run.method")
    state = serializers.CharField(source="run.state")
    differs = serializers.DictField(help_text="The arguments in which the round's runs differ.")
    accuracy = serializers.SerializerMethodField()
    win_rate = serializers.DictField(allow_null=True)
    seconds = serializers.FloatField(allow_null=True)
    peak_memory_mb = serializers.FloatField(allow_null=True)
    saved_bytes = serializers.IntegerField(allow_null=True)
    trainable_share = serializers.FloatField(allow_null=True)
    hardware = serializers.CharField(help_text="What it trained on; empty before it has.")
    version = serializers.IntegerField(source="run.version_id", allow_null=True)
    version_name = serializers.CharField(source="run.version.name", default=None)

    def get_accuracy(self, outcome: rounds.Outcome) -> dict[str, Any] | None:
        """Return the share of held-out pairs in the right order, with its 95 % interval."""
        return dataclasses.asdict(outcome.accuracy) if outcome.accuracy else None


class TrainingRoundSerializer(serializers.ModelSerializer[Round]):
    start_version_name = serializers.CharField(source="start_version.name")
    state = serializers.CharField(read_only=True)
    outcomes = serializers.SerializerMethodField()

    class Meta:
        model = Round
        fields = [
            "id",
            "name",
            "snapshot",
            "start_version",
            "start_version_name",
            "seed",
            "first_steps",
            "state",
            "outcomes",
            "created_at",
        ]

    @extend_schema(responses=OutcomeSerializer(many=True))
    def get_outcomes(self, found: Round) -> list[dict[str, Any]]:
        """Return the round's runs, the best first."""
        return list(OutcomeSerializer(rounds.outcomes(found), many=True).data)


class RoundsView(ProjectAPIView):
    role, write_scope, write_role = Role.LEAD, Scope.MANAGE, Role.ADMIN
    pagination_class = NewestFirst

    class Input(Body):
        snapshot = serializers.IntegerField(help_text="The id of a ready snapshot.")
        start_version = serializers.IntegerField(
            required=False, help_text="The id of the version to start from; the base if left out."
        )
        methods = serializers.ListField(
            child=serializers.ChoiceField(choices=[(name, name) for name in METHODS]),
            default=list(rounds.PREFERENCE_METHODS),
        )
        arguments = ArgumentsField(help_text="For every run alike.")
        grid = serializers.DictField(
            child=serializers.ListField(),
            default=dict,
            help_text='Values to try of each argument, as in {"beta": [0.1, 0.3]}.',
        )
        suite = serializers.BooleanField(default=False, help_text="Not methods and grid.")
        first_steps = serializers.IntegerField(
            min_value=0, default=0, help_text="Above 0: halve, with so many steps at first."
        )
        name = serializers.CharField(max_length=120, allow_blank=True, default="")
        seed = serializers.IntegerField(min_value=0, max_value=2**31 - 1, default=0)

    @extend_schema(responses=TrainingRoundSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List rounds, newest first."""
        rows = Round.objects.filter(project__in=self.projects()).select_related("start_version")
        return paginated(rows, TrainingRoundSerializer, request, self)

    @extend_schema(request=Input, responses={201: TrainingRoundSerializer})
    def post(self, request: Request) -> Response:
        """Train several methods and settings on one snapshot; all are queued, or none."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        snapshot, start = trained_on(self.project(), values)
        entries = (
            rounds.suite(values["arguments"])
            if values["suite"]
            else rounds.expand(
                values["methods"], arguments=values["arguments"], grid=values["grid"]
            )
        )
        started = rounds.start_round(
            snapshot=snapshot,
            start_version=start,
            entries=entries,
            name=values["name"],
            seed=values["seed"],
            first_steps=values["first_steps"],
            by=self.user,
        )
        return Response(TrainingRoundSerializer(started).data, status=201)


class OneRoundView(ProjectAPIView):
    role = Role.LEAD

    def round(self, pk: int) -> Round:
        found = get_object_or_404(Round.objects.select_related("project", "start_version"), pk=pk)
        self.membership(found.project_id)
        return found


class RoundView(OneRoundView):
    @extend_schema(responses=TrainingRoundSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one round with its ranked outcomes."""
        return Response(TrainingRoundSerializer(self.round(pk)).data)


class CancelRoundView(OneRoundView):
    scope, role = Scope.MANAGE, Role.ADMIN

    @extend_schema(request=None, responses=TrainingRoundSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Cancel what has not ended of a round."""
        found = self.round(pk)
        rounds.cancel_round(round=found, by=self.user)
        found.refresh_from_db()
        return Response(TrainingRoundSerializer(found).data)
