from __future__ import annotations

from typing import Any

from django.http import HttpRequest


def navigation(request: HttpRequest) -> dict[str, Any]:
    """Give every page the project and role that the view's getter left on the request."""
    membership = getattr(request, "membership", None)
    if membership is None:
        return {"project": None, "membership": None}
    return {"project": membership.project, "membership": membership}
