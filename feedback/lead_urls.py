"""Pages of leads, under ``p/<slug>/``."""

from __future__ import annotations

from django.urls import path

from feedback import views_import, views_quality
from feedback import views_lead as views

urlpatterns = [
    path("prompts/", views.prompts, name="prompts"),
    path("import/", views_import.import_page, name="import"),
    path("campaigns/", views.campaigns, name="campaigns"),
    path("campaigns/new", views.campaign_new, name="campaign_new"),
    path("campaigns/<int:pk>/", views.campaign, name="campaign"),
    path("campaigns/<int:pk>/progress", views.campaign_progress, name="campaign_progress"),
    path("campaigns/<int:pk>/state", views.campaign_state, name="campaign_state"),
    path("campaigns/<int:pk>/restart", views.campaign_restart, name="campaign_restart"),
    path("campaigns/<int:pk>/quality", views_quality.campaign_quality, name="campaign_quality"),
    path(
        "campaigns/<int:pk>/leaderboard",
        views_quality.campaign_leaderboard,
        name="campaign_leaderboard",
    ),
    path("feedback/", views.feedback_list, name="feedback_list"),
    path("completions/<uuid:pk>/", views.completion, name="completion"),
]
