"""REST: schedules, their rounds, and what they propose."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.models import Project, Role, Scope, User
from accounts.pagination import NewestFirst, paginated
from accounts.serializers import Body
from training import schedules as service
from training.api_methods import ArgumentsField
from training.api_snapshots import OptionsSerializer
from training.models import Schedule, ScheduledRound
from training.views_schedules import ScheduleForm


def _first_rule() -> str:
    return str(settings.EVALUATION_RULES[0])


class ScheduleSerializer(Body, serializers.ModelSerializer[Schedule]):
    arguments = ArgumentsField()
    rule = serializers.CharField(
        default=_first_rule, help_text="One of the site's; its first if left out."
    )
    rhythm = serializers.CharField(read_only=True)
    options = OptionsSerializer(required=False)

    class Meta:
        model = Schedule
        fields = ["id", *ScheduleForm.Meta.fields, "options", "active", "rhythm"]
        read_only_fields = ["id", "active"]


class RoundSerializer(serializers.ModelSerializer[ScheduledRound]):
    class Meta:
        model = ScheduledRound
        fields = [
            "id",
            "schedule",
            "due",
            "state",
            "reason",
            "snapshot",
            "run",
            "evaluation",
            "created_at",
        ]


class SchedulesView(ProjectAPIView):
    role, write_scope, write_role = Role.LEAD, Scope.MANAGE, Role.ADMIN
    pagination_class = NewestFirst

    @extend_schema(responses=ScheduleSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List schedules."""
        rows = Schedule.objects.filter(project__in=self.projects()).prefetch_related("campaigns")
        return paginated(rows, ScheduleSerializer, request, self)

    @extend_schema(request=ScheduleSerializer, responses={201: ScheduleSerializer})
    def post(self, request: Request) -> Response:
        """Make a schedule of rounds."""
        made = _store(request.data, Schedule(), project=self.project(), by=self.user)
        return Response(ScheduleSerializer(made).data, status=201)


def _store(body: Any, schedule: Schedule, *, project: Project, by: User) -> Schedule:
    """Make or change a schedule as a body says."""
    data = ScheduleSerializer(data=body)
    data.is_valid(raise_exception=True)
    form = ScheduleForm(
        _form_data(data.data),
        instance=schedule,
        project=project,
        options=data.validated_data.get("options", {}),
    )
    if not form.is_valid():
        raise serializers.ValidationError(
            {name: [str(one) for one in said] for name, said in form.errors.items()}
        )
    return form.store(by)


def _form_data(data: dict[str, Any]) -> dict[str, Any]:
    """Return a body as the page's form takes it: one place checks both."""
    draft = Schedule()
    initial = {
        name: getattr(draft, name) for name in ScheduleForm.Meta.fields if name != "campaigns"
    }
    values = {name: value for name, value in (initial | data).items() if value is not None}
    return values | {"arguments": json.dumps(values.get("arguments") or {})}


class OneScheduleView(ProjectAPIView):
    role = Role.LEAD

    def schedule(self, pk: int) -> Schedule:
        found = get_object_or_404(Schedule.objects.select_related("project"), pk=pk)
        self.membership(found.project_id)
        return found


class ScheduleView(OneScheduleView):
    write_scope, write_role = Scope.MANAGE, Role.ADMIN

    @extend_schema(responses=ScheduleSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one schedule."""
        return Response(ScheduleSerializer(self.schedule(pk)).data)

    @extend_schema(request=ScheduleSerializer(partial=True), responses=ScheduleSerializer)
    def patch(self, request: Request, pk: int) -> Response:
        """Change what a schedule does; what is left out stays, “options” are replaced whole."""
        found = self.schedule(pk)
        if not isinstance(request.data, dict):
            raise serializers.ValidationError("Send an object of what changes.")
        body = {**ScheduleSerializer(found).data, **request.data}
        made = _store(body, found, project=found.project, by=self.user)
        return Response(ScheduleSerializer(made).data)


class ScheduleActiveView(OneScheduleView):
    scope, role = Scope.MANAGE, Role.ADMIN

    class Input(Body):
        active = serializers.BooleanField()

    @extend_schema(request=Input, responses=ScheduleSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Pause or resume a schedule; what was due meanwhile is not made up for."""
        found = self.schedule(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        service.set_active(schedule=found, active=data.validated_data["active"], by=self.user)
        found.refresh_from_db()
        return Response(ScheduleSerializer(found).data)


class ScheduleRunView(OneScheduleView):
    scope, role = Scope.MANAGE, Role.ADMIN

    @extend_schema(request=None, responses={201: RoundSerializer})
    def post(self, request: Request, pk: int) -> Response:
        """Begin a round now."""
        made = service.run_now(schedule=self.schedule(pk), by=self.user)
        return Response(RoundSerializer(made).data, status=201)


class ScheduleRoundsView(OneScheduleView):
    pagination_class = NewestFirst

    @extend_schema(responses=RoundSerializer(many=True))
    def get(self, request: Request, pk: int) -> Response:
        """List a schedule's rounds, newest first."""
        return paginated(self.schedule(pk).rounds.all(), RoundSerializer, request, self)


class DecideView(ProjectAPIView):
    scope, role = Scope.MANAGE, Role.ADMIN

    class Input(Body):
        promote = serializers.BooleanField()
        why = serializers.CharField(max_length=400, allow_blank=True, default="")

    @extend_schema(request=Input, responses=RoundSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Promote what a round proposes, or decline it."""
        row = get_object_or_404(ScheduledRound.objects.select_related("schedule"), pk=pk)
        self.membership(row.schedule.project_id)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        service.decide(
            row=row,
            accept=data.validated_data["promote"],
            why=data.validated_data["why"],
            by=self.user,
        )
        row.refresh_from_db()
        return Response(RoundSerializer(row).data)
