"""Pages of snapshots, runs and evaluations, under ``p/<slug>/``."""

from __future__ import annotations

from django.urls import path

from training import (
    views,
    views_lineage,
    views_rendered,
    views_retraction,
    views_rounds,
    views_schedules,
)

urlpatterns = [
    path("snapshots/", views.snapshot_index, name="snapshots"),
    path("snapshots/<int:pk>/", views.snapshot, name="snapshot"),
    path("snapshots/<int:pk>/rendered", views_rendered.rendered_row, name="rendered_row"),
    path("snapshots/<int:pk>/body", views.snapshot_body, name="snapshot_body"),
    path("lineage/<str:kind>/<str:key>/", views_lineage.lineage, name="lineage"),
    path("retract/<str:kind>/<str:key>/", views_retraction.retract, name="retract"),
    path("retractions/", views_retraction.retraction_index, name="retractions"),
    path("retractions/<int:pk>/", views_retraction.retraction, name="retraction"),
    path("retractions/<int:pk>/body", views_retraction.retraction_body, name="retraction_body"),
    path("retractions/<int:pk>/rebuild", views_retraction.rebuild, name="rebuild"),
    path("schedules/", views_schedules.schedule_index, name="schedules"),
    path("schedules/<int:pk>/", views_schedules.schedule, name="schedule"),
    path("schedules/<int:pk>/active", views_schedules.schedule_active, name="schedule_active"),
    path("schedules/<int:pk>/run", views_schedules.schedule_run, name="schedule_run"),
    path("proposals/<int:pk>/decide", views_schedules.proposal_decide, name="proposal_decide"),
    path("runs/", views.run_index, name="runs"),
    path("runs/new", views.run_new, name="run_new"),
    path("runs/preflight", views.run_preflight, name="run_preflight"),
    path("runs/compare", views.run_compare, name="run_compare"),
    path("runs/<int:pk>/", views.run, name="run"),
    path("runs/<int:pk>/status", views.run_status, name="run_status"),
    path("runs/<int:pk>/charts", views.run_charts, name="run_charts"),
    path("runs/<int:pk>/cancel", views.run_cancel, name="run_cancel"),
    path("runs/<int:pk>/pause", views.run_pause, name="run_pause"),
    path("runs/<int:pk>/resume", views.run_resume, name="run_resume"),
    path("runs/<int:pk>/priority", views.run_priority, name="run_priority"),
    path("runs/<int:pk>/again", views.run_again, name="run_again"),
    path("rounds/", views_rounds.round_index, name="rounds"),
    path("rounds/new", views_rounds.round_new, name="round_new"),
    path("rounds/<int:pk>/", views_rounds.round_page, name="round"),
    path("rounds/<int:pk>/body", views_rounds.round_body, name="round_body"),
    path("rounds/<int:pk>/cancel", views_rounds.round_cancel, name="round_cancel"),
    path("evaluations/", views.evaluation_index, name="evaluations"),
    path("evaluations/new", views.evaluation_new, name="evaluation_new"),
    path("evaluations/<int:pk>/", views.evaluation_page, name="evaluation"),
    path("evaluations/<int:pk>/body", views.evaluation_body, name="evaluation_body"),
]
