"""What lies under /api/ and is no operation: an answer in the API's own shape, not a page."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect, JsonResponse
from django.urls import is_valid_path
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
def no_such_operation(request: HttpRequest) -> HttpResponse:
    """Send on to the same address with or without its last slash, or say that there is none.

    308 keeps method and body; Django's own 301 would have a POST come back as a GET, whose answer
    looks like success.
    """
    path = request.path_info
    other = path.removesuffix("/") if path.endswith("/") else f"{path}/"
    found = is_valid_path(other)
    if found and found.func is not no_such_operation:
        query = request.META.get("QUERY_STRING", "")
        return HttpResponsePermanentRedirect(
            f"{other}?{query}" if query else other, preserve_request=True
        )
    message = f"There is no operation at {path}. /api/docs/ lists all that there are."
    return JsonResponse({"message": message, "extra": {}}, status=404)
