from __future__ import annotations

from django.urls import path

from training import api, api_lineage, api_rendered, api_retraction, api_rounds, api_schedules

urlpatterns = [
    path("api/snapshots/", api.SnapshotsView.as_view()),
    path("api/snapshots/<int:pk>/", api.SnapshotView.as_view()),
    path(
        "api/snapshots/<int:pk>/files/<str:name>",
        api.SnapshotFileView.as_view(),
        name="api_snapshot_file",
    ),
    path(
        "api/snapshots/<int:pk>/export/<slug:name>",
        api.SnapshotExportView.as_view(),
        name="api_snapshot_export",
    ),
    path("api/snapshots/<int:pk>/rendered", api_rendered.SnapshotPreviewView.as_view()),
    path("api/snapshots/<int:pk>/lineage", api_lineage.SnapshotLineageView.as_view()),
    path("api/runs/<int:pk>/lineage", api_lineage.RunLineageView.as_view()),
    path("api/versions/<int:pk>/lineage", api_lineage.VersionLineageView.as_view()),
    path("api/prompts/<int:pk>/lineage", api_lineage.PromptLineageView.as_view()),
    path("api/judgements/<uuid:pk>/lineage", api_lineage.JudgementLineageView.as_view()),
    path("api/annotators/<int:pk>/lineage", api_lineage.AnnotatorLineageView.as_view()),
    path("api/retractions/", api_retraction.RetractionsView.as_view()),
    path("api/retractions/preview", api_retraction.RetractionPreviewView.as_view()),
    path("api/retractions/<int:pk>/", api_retraction.RetractionView.as_view()),
    path("api/retractions/<int:pk>/rebuild", api_retraction.RebuildView.as_view()),
    path("api/schedules/", api_schedules.SchedulesView.as_view()),
    path("api/schedules/<int:pk>/", api_schedules.ScheduleView.as_view()),
    path("api/schedules/<int:pk>/active", api_schedules.ScheduleActiveView.as_view()),
    path("api/schedules/<int:pk>/run", api_schedules.ScheduleRunView.as_view()),
    path("api/schedules/<int:pk>/rounds", api_schedules.ScheduleRoundsView.as_view()),
    path("api/proposals/<int:pk>/decision", api_schedules.DecideView.as_view()),
    path("api/runs/", api.RunsView.as_view()),
    path("api/runs/preflight", api.PreflightView.as_view()),
    path("api/runs/<int:pk>/", api.RunView.as_view()),
    path("api/runs/<int:pk>/metrics", api.RunMetricsView.as_view(), name="api_run_metrics"),
    path("api/runs/<int:pk>/cancel", api.CancelRunView.as_view()),
    path("api/runs/<int:pk>/pause", api.PauseRunView.as_view()),
    path("api/runs/<int:pk>/resume", api.ResumeRunView.as_view()),
    path("api/runs/<int:pk>/priority", api.RunPriorityView.as_view()),
    path("api/runs/<int:pk>/again", api.RunAgainView.as_view()),
    path("api/rounds/", api_rounds.RoundsView.as_view()),
    path("api/rounds/<int:pk>/", api_rounds.RoundView.as_view()),
    path("api/rounds/<int:pk>/cancel", api_rounds.CancelRoundView.as_view()),
    path("api/evaluations/", api.EvaluationsView.as_view()),
    path("api/evaluations/<int:pk>/", api.EvaluationView.as_view()),
]
