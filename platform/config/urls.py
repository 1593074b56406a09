"""Every address of the web process: pages, /api/, /v1/ and the health check."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from config import dashboard
from config.missing import no_such_operation


def health(request: HttpRequest) -> HttpResponse:
    """Say that the process answers; touches nothing else."""
    return HttpResponse("ok", content_type="text/plain")


urlpatterns = [
    path("health", health),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs/", SpectacularSwaggerSplitView.as_view(url_name="schema"), name="docs"),
    path("", include("accounts.urls")),
    path("", include("inference.urls")),
    path("", include("feedback.urls")),
    path("", include("training.urls")),
    path("p/<slug:slug>/", dashboard.project, name="project"),
    path("p/<slug:slug>/", include("feedback.page_urls")),
    path("p/<slug:slug>/", include("accounts.settings_urls")),
    path("p/<slug:slug>/", include("inference.page_urls")),
    path("p/<slug:slug>/", include("feedback.lead_urls")),
    path("p/<slug:slug>/", include("training.page_urls")),
    re_path("^api/", no_such_operation),
]
