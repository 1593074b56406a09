"""What annotators have judged themselves: page and REST."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView, get_membership
from accounts.models import Project
from accounts.pages import asked
from feedback import charts
from feedback.own_progress import own_progress


@login_required
@never_cache
@require_GET
def my_progress(request: HttpRequest, slug: str) -> HttpResponse:
    """Show people what they themselves have judged in the project."""
    membership = get_membership(request, slug)
    found = own_progress(
        annotator=membership.user, projects=Project.objects.filter(pk=membership.project_id)
    )
    chart = charts.recent_days(found.recent, today=timezone.now().date())
    context = {"progress": found, "chart": chart}
    return render(request, "feedback/my_progress.html", context)


# REST


class OwnProgressOutput(serializers.Serializer[Any]):
    """The caller's own work as a program sees it."""

    class OwnCampaignOutput(serializers.Serializer[Any]):
        campaign = serializers.IntegerField()
        name = serializers.CharField()
        project = serializers.CharField(help_text="The project's slug.")
        judged = serializers.IntegerField()
        today = serializers.IntegerField()
        this_week = serializers.IntegerField()
        median_seconds = serializers.FloatField(allow_null=True)
        undone = serializers.IntegerField()
        skipped = serializers.IntegerField()

    class OwnDayOutput(serializers.Serializer[Any]):
        day = serializers.DateField()
        judged = serializers.IntegerField()

    judged = serializers.IntegerField()
    today = serializers.IntegerField()
    this_week = serializers.IntegerField(help_text="Since Monday.")
    days_in_a_row = serializers.IntegerField(
        help_text="Days with a judgement up to now; a weekend off, or today, breaks nothing."
    )
    median_seconds = serializers.FloatField(allow_null=True)
    undone = serializers.IntegerField()
    skipped = serializers.IntegerField()
    recent = OwnDayOutput(many=True)
    campaigns = OwnCampaignOutput(many=True)


class OwnProgressView(ProjectAPIView):
    @extend_schema(parameters=[OpenApiParameter("project", str)], responses=OwnProgressOutput)
    def get(self, request: Request) -> Response:
        """Say what the caller has judged: today, this week, by campaign. Days are UTC's."""
        projects = self.projects()
        if slug := asked(request.query_params, "project"):
            projects = projects.filter(slug=slug)
        found = own_progress(annotator=self.user, projects=projects)
        return Response(OwnProgressOutput(asdict(found)).data)
