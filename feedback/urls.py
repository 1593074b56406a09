from __future__ import annotations

from django.urls import path

from feedback import api, views_quality

urlpatterns = [
    path("api/prompts/", api.PromptsView.as_view()),
    path("api/campaigns/", api.CampaignsView.as_view()),
    path("api/campaigns/<int:pk>/", api.CampaignView.as_view()),
    path("api/campaigns/<int:pk>/state", api.CampaignStateView.as_view()),
    path("api/campaigns/<int:pk>/quality", views_quality.QualityView.as_view()),
    path("api/campaigns/<int:pk>/leaderboard", views_quality.LeaderboardView.as_view()),
    path("api/campaigns/<int:pk>/next", api.NextTaskView.as_view()),
    path("api/campaigns/<int:pk>/undo", api.UndoView.as_view()),
    path("api/judgements/", api.JudgementsView.as_view()),
    path("api/slots/<int:pk>/renew", api.RenewView.as_view()),
    path("api/slots/<int:pk>/skip", api.SkipView.as_view()),
    path("api/completions/<uuid:pk>/feedback", api.CompletionFeedbackView.as_view()),
    path("api/imports/", api.ImportsView.as_view(), name="api_imports"),
    path("api/feedback/", api.FeedbackListView.as_view()),
]
