from __future__ import annotations

from django.urls import path

from feedback import (
    api,
    api_checks,
    api_code_books,
    api_imports,
    views_dashboard,
    views_own_progress,
    views_quality,
)

urlpatterns = [
    path("api/prompts/", api.PromptsView.as_view()),
    path("api/campaigns/", api.CampaignsView.as_view()),
    path("api/campaigns/<int:pk>/", api.CampaignView.as_view()),
    path("api/campaigns/<int:pk>/completions", api.CampaignCompletionsView.as_view()),
    path("api/campaigns/<int:pk>/state", api.CampaignStateView.as_view()),
    path("api/campaigns/<int:pk>/quality", views_quality.QualityView.as_view()),
    path("api/campaigns/<int:pk>/leaderboard", views_quality.LeaderboardView.as_view()),
    path("api/campaigns/<int:pk>/dashboard", views_dashboard.DashboardView.as_view()),
    path("api/me/progress", views_own_progress.OwnProgressView.as_view()),
    path("api/leaderboard", views_quality.ProjectLeaderboardView.as_view()),
    path("api/campaigns/<int:pk>/checks", api_checks.ChecksView.as_view()),
    path("api/campaigns/<int:pk>/gold", api_checks.GoldView.as_view()),
    path("api/campaigns/<int:pk>/pauses", api_checks.PausesView.as_view()),
    path("api/campaigns/<int:pk>/code-books", api_code_books.CodeBooksView.as_view()),
    path("api/campaigns/<int:pk>/calibrations", api_code_books.CalibrationsView.as_view()),
    path("api/calibrations/<int:pk>/", api_code_books.CalibrationView.as_view()),
    path("api/calibrations/<int:pk>/notes", api_code_books.NotesView.as_view()),
    path("api/code-books/<int:pk>/confirm", api_code_books.ConfirmView.as_view()),
    path("api/pauses/<int:pk>/lift", api_checks.LiftView.as_view()),
    path("api/items/<int:pk>/priority", api_checks.PriorityView.as_view()),
    path("api/items/<int:pk>/assign", api_checks.AssignView.as_view()),
    path("api/items/<int:pk>/gold", api_checks.ItemGoldView.as_view()),
    path("api/items/<int:pk>/decisions", api_checks.DecisionsView.as_view()),
    path("api/campaigns/<int:pk>/next", api.NextTaskView.as_view()),
    path("api/campaigns/<int:pk>/undo", api.UndoView.as_view()),
    path("api/judgements/", api.JudgementsView.as_view()),
    path("api/slots/<int:pk>/renew", api.RenewView.as_view()),
    path("api/slots/<int:pk>/skip", api.SkipView.as_view()),
    path("api/completions/<uuid:pk>/feedback", api.CompletionFeedbackView.as_view()),
    path("api/imports/", api_imports.ImportsView.as_view(), name="api_imports"),
    path("api/imports/<int:pk>/", api_imports.ImportView.as_view(), name="api_import"),
    path("api/feedback/", api.FeedbackListView.as_view()),
]
