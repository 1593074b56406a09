"""What every page does about a refusal that its own view did not expect."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.deprecation import MiddlewareMixin

from accounts.errors import ProductError


class RefusalMiddleware(MiddlewareMixin):
    """Show a ProductError that no view caught, such as a damaged file, as a page of its own."""

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, ProductError):
            return None
        return render(request, "refused.html", {"error": error.message}, status=error.status_code)
