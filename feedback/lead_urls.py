"""Pages of leads, under ``p/<slug>/``."""

from __future__ import annotations

from django.urls import path

from feedback import (
    views_checks,
    views_code_books,
    views_dashboard,
    views_dealing,
    views_drafts,
    views_import,
    views_judgements,
    views_live,
    views_order,
    views_quality,
)
from feedback import views_lead as views

urlpatterns = [
    path("prompts/", views.prompts, name="prompts"),
    path("drafts/", views_drafts.drafts, name="drafts"),
    path("drafts/new", views_drafts.drafts_new, name="drafts_new"),
    path("drafts/progress", views_drafts.drafts_progress, name="drafts_progress"),
    path("drafts/place", views_drafts.drafts_place, name="drafts_place"),
    path("drafts/review", views_drafts.drafts_review, name="drafts_review"),
    path("drafts/<int:pk>/", views_drafts.draft, name="draft"),
    path("drafts/<int:pk>/undo", views_drafts.draft_undo, name="draft_undo"),
    path("drafts/requests/<int:pk>/restart", views_drafts.drafts_restart, name="drafts_restart"),
    path("import/", views_import.import_page, name="import"),
    path("import/<int:pk>/", views_import.file_import, name="file_import"),
    path("leaderboard/", views_quality.project_leaderboard, name="project_leaderboard"),
    path("campaigns/", views.campaigns, name="campaigns"),
    path("campaigns/new", views.campaign_new, name="campaign_new"),
    path("campaigns/<int:pk>/", views.campaign, name="campaign"),
    path("campaigns/<int:pk>/progress", views.campaign_progress, name="campaign_progress"),
    path("campaigns/<int:pk>/state", views.campaign_state, name="campaign_state"),
    path("campaigns/<int:pk>/restart", views.campaign_restart, name="campaign_restart"),
    path(
        "campaigns/<int:pk>/dashboard",
        views_dashboard.campaign_dashboard,
        name="campaign_dashboard",
    ),
    path("campaigns/<int:pk>/quality", views_quality.campaign_quality, name="campaign_quality"),
    path(
        "campaigns/<int:pk>/leaderboard",
        views_quality.campaign_leaderboard,
        name="campaign_leaderboard",
    ),
    path("campaigns/<int:pk>/code-book", views_code_books.code_book, name="code_book"),
    path("campaigns/<int:pk>/calibrations", views_code_books.calibrations, name="calibrations"),
    path(
        "campaigns/<int:pk>/calibrations/<int:session>",
        views_code_books.calibration,
        name="calibration",
    ),
    path(
        "campaigns/<int:pk>/calibrations/<int:session>/join",
        views_code_books.calibration_join,
        name="calibration_join",
    ),
    path("campaigns/<int:pk>/checks", views_checks.campaign_checks, name="campaign_checks"),
    path("campaigns/<int:pk>/order", views_order.campaign_order, name="campaign_order"),
    path("campaigns/<int:pk>/pause", views_checks.annotator_pause, name="annotator_pause"),
    path("campaigns/<int:pk>/lift", views_checks.pause_lift, name="pause_lift"),
    path("campaigns/<int:pk>/items/", views_dealing.campaign_items, name="campaign_items"),
    path("campaigns/<int:pk>/items/<int:item>", views_checks.campaign_item, name="campaign_item"),
    path("campaigns/<int:pk>/judgements/", views_judgements.judgement_list, name="judgement_list"),
    path("campaigns/<int:pk>/judgements/<uuid:key>", views_judgements.judgement, name="judgement"),
    path("campaigns/<int:pk>/skips", views_judgements.skip_list, name="skip_list"),
    path("feedback/send", views_live.feedback_send, name="feedback_send"),
    path("feedback/", views.feedback_list, name="feedback_list"),
    path("completions/<uuid:pk>/", views.completion, name="completion"),
]
