"""Settings of a project, under ``p/<slug>/``."""

from __future__ import annotations

from django.urls import path

from accounts import views_settings as views
from accounts import views_webhooks as webhooks

urlpatterns = [
    path("settings/tokens/", views.tokens, name="tokens"),
    path("settings/tokens/revoke", views.token_revoke, name="token_revoke"),
    path("settings/members/", views.members, name="members"),
    path("settings/members/<int:pk>/role", views.member_role, name="member_role"),
    path("settings/members/<int:pk>/remove", views.member_remove, name="member_remove"),
    path("settings/webhooks/", webhooks.webhook_list, name="webhooks"),
    path("settings/webhooks/<int:pk>/", webhooks.webhook, name="webhook"),
    path("settings/webhooks/<int:pk>/active", webhooks.webhook_active, name="webhook_active"),
    path("settings/webhooks/<int:pk>/delete", webhooks.webhook_delete, name="webhook_delete"),
    path(
        "settings/webhooks/<int:pk>/messages/<uuid:key>/again",
        webhooks.message_again,
        name="webhook_message_again",
    ),
]
