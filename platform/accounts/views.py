"""Pages before and between projects: log-in and the list of projects."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_safe
from django_htmx.http import HttpResponseClientRedirect

from accounts.models import Membership
from accounts.templatetags.laurel import find_url


class LoginView(auth_views.LoginView):
    """Log in; a fragment asked for after the session ended sends the whole page here."""

    template_name = "accounts/login.html"

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        details = getattr(request, "htmx", None)
        if details:
            query = {"next": details.current_url_abs_path or "/"}
            return HttpResponseClientRedirect(reverse("login", query=query))
        return super().get(request, *args, **kwargs)


@require_safe
@login_required
def home(request: HttpRequest) -> HttpResponse:
    """List the user's projects, or go to the only one."""
    memberships = list(
        Membership.objects.filter(user=request.user.pk)
        .select_related("project")
        .order_by("project__name")[:500]
    )
    if len(memberships) == 1 and (url := find_url("project", memberships[0].project.slug)):
        return redirect(url)
    return render(request, "accounts/home.html", {"memberships": memberships})
