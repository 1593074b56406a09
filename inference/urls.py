from __future__ import annotations

from django.urls import path

from inference import api, gateway

urlpatterns = [
    path("v1/models", gateway.models),
    path("v1/chat/completions", gateway.chat_completions),
    path("api/versions/", api.VersionsView.as_view()),
    path("api/versions/<int:pk>/", api.VersionView.as_view()),
    path("api/versions/<int:pk>/files/", api.VersionFilesView.as_view()),
    path(
        "api/versions/<int:pk>/files/<str:name>",
        api.VersionFileView.as_view(),
        name="api_version_file",
    ),
    path("api/versions/<int:pk>/promote", api.PromoteView.as_view()),
    path("api/aliases/", api.AliasesView.as_view()),
    path("api/aliases/moves/", api.MovesView.as_view()),
    path("api/rollback", api.RollBackView.as_view()),
    path("api/completions/<uuid:pk>/", api.CompletionView.as_view()),
]
