"""Pages of versions and the chat, under ``p/<slug>/``."""

from __future__ import annotations

from django.urls import path

from inference import views

urlpatterns = [
    path("versions/", views.versions, name="versions"),
    path("versions/ledger", views.alias_ledger, name="alias_ledger"),
    path("versions/rollback", views.alias_roll_back, name="alias_roll_back"),
    path("versions/<int:pk>/", views.version, name="version"),
    path("versions/<int:pk>/promote", views.version_promote, name="version_promote"),
    path("chat/", views.chat, name="chat"),
    path("chat/answer", views.chat_answer, name="chat_answer"),
]
