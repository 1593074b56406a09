"""How a campaign goes on: page and REST."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView, get_membership
from accounts.models import Role
from feedback import charts
from feedback.dashboard import dashboard
from feedback.models import Campaign


@login_required
@require_GET
def campaign_dashboard(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show a campaign's course in pictures."""
    membership = get_membership(request, slug, Role.LEAD)
    campaign = get_object_or_404(Campaign, project=membership.project, pk=pk)
    found = dashboard(campaign)
    context = {
        "campaign": campaign,
        "dashboard": found,
        "charts": charts.dashboard_charts(found),
        "share_done": found.filled / found.slots if found.slots else None,
        "to_give": max(0, found.slots - found.filled),
    }
    return render(request, "feedback/dashboard.html", context)


# REST


class DashboardOutput(serializers.Serializer[Any]):
    """A campaign's course as a program sees it."""

    class StretchOutput(serializers.Serializer[Any]):
        start = serializers.DateField()
        end = serializers.DateField(help_text="The first day after it.")
        judgements = serializers.IntegerField()
        share_done = serializers.FloatField()

    class WorkedOutput(serializers.Serializer[Any]):
        username = serializers.CharField()
        judgements = serializers.IntegerField()
        median_seconds = serializers.FloatField(allow_null=True)

    class AgreedOutput(serializers.Serializer[Any]):
        until = serializers.DateTimeField()
        alpha = serializers.FloatField(allow_null=True)
        items = serializers.IntegerField()

    judgements = serializers.IntegerField()
    filled = serializers.IntegerField()
    slots = serializers.IntegerField()
    unit = serializers.ChoiceField(choices=["day", "week", "month"])
    stretches = StretchOutput(many=True)
    annotators = WorkedOutput(many=True)
    agreement = AgreedOutput(many=True)


class DashboardView(ProjectAPIView):
    role = Role.LEAD

    @extend_schema(responses=DashboardOutput)
    def get(self, request: Request, pk: int) -> Response:
        """Say how a campaign goes on: by day, by annotator, and how far they agree over time."""
        campaign = get_object_or_404(Campaign, pk=pk)
        self.membership(campaign.project_id)
        return Response(DashboardOutput(asdict(dashboard(campaign))).data)
