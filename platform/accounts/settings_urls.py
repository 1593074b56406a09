"""Settings of a project, under ``p/<slug>/``."""

from __future__ import annotations

from django.urls import path

from accounts import views_settings as views

urlpatterns = [
    path("settings/tokens/", views.tokens, name="tokens"),
    path("settings/tokens/revoke", views.token_revoke, name="token_revoke"),
    path("settings/members/", views.members, name="members"),
    path("settings/members/<int:pk>/role", views.member_role, name="member_role"),
    path("settings/members/<int:pk>/remove", views.member_remove, name="member_remove"),
]
