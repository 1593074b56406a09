"""One error shape for the whole of /api/: ``{"message": sentence, "extra": {...}}``."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import InterfaceError, OperationalError
from django.http import Http404
from rest_framework import exceptions, status
from rest_framework.response import Response
from rest_framework.views import set_rollback


class ProductError(Exception):
    """A refusal that a person can act on; ``message`` says what to do next."""

    status_code: int = status.HTTP_400_BAD_REQUEST

    def __init__(self, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.message = message
        self.extra = extra


class Missing(ProductError):
    """What is asked for is not here, and it is known why."""

    status_code = status.HTTP_404_NOT_FOUND


class Conflict(ProductError):
    """The request was sound, but the thing has moved on since."""

    status_code = status.HTTP_409_CONFLICT


class TooLarge(ProductError):
    """More was sent than the field takes."""

    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE


class Unavailable(ProductError):
    """A part of the product that is needed now does not answer."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """Map every expected exception to its status and one sentence; the rest becomes a 500."""
    headers: dict[str, str] = {}
    extra: dict[str, Any] = {}
    code: int
    if isinstance(exc, ProductError):
        code, message, extra = exc.status_code, exc.message, exc.extra
    elif isinstance(exc, RequestDataTooBig):
        code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
        message = "The request is larger than 4 MB. Send less text."
    elif isinstance(exc, Http404):
        code = status.HTTP_404_NOT_FOUND
        message = "There is no such thing here, or your projects do not include it."
    elif isinstance(exc, PermissionDenied):
        code = status.HTTP_403_FORBIDDEN
        message = str(exc) or "Your role in this project does not allow this. Ask an admin of it."
    elif isinstance(exc, DjangoValidationError):
        code = status.HTTP_400_BAD_REQUEST
        message = " ".join(exc.messages)
    elif isinstance(exc, exceptions.ValidationError):
        code = exc.status_code
        message, extra = _first_sentence(exc.detail), {"fields": exc.detail}
    elif isinstance(exc, exceptions.APIException):
        code = exc.status_code
        message = _WHAT_TO_SEND.get(type(exc)) or str(exc.detail)
        if isinstance(exc, exceptions.UnsupportedMediaType):
            takes = " or ".join(parser.media_type for parser in context["view"].parser_classes)
            message = f"{message} Send {takes}."
        if wait := getattr(exc, "wait", None):
            headers["Retry-After"] = str(int(wait) + 1)
        if auth_header := getattr(exc, "auth_header", None):
            headers["WWW-Authenticate"] = auth_header
    elif isinstance(exc, OperationalError | InterfaceError):
        # It was restarted, or has no connection free. What was sent may be stored: ids tell.
        code = status.HTTP_503_SERVICE_UNAVAILABLE
        message = "The database does not answer just now. Send the same again in a moment."
        headers["Retry-After"] = "1"
    else:
        return None
    set_rollback()
    return Response({"message": message, "extra": extra}, status=code, headers=headers)


_WHAT_TO_SEND: dict[type[exceptions.APIException], str] = {
    exceptions.NotAuthenticated: "Send “Authorization: Bearer laurel_…”: a project's tokens page "
    "makes such a token.",
}


def _first_sentence(detail: Any, name: str = "") -> str:
    """Return the first message of nested validation errors, with the field's name in front."""
    if isinstance(detail, dict):
        for key, value in detail.items():
            if value:
                if key in ("non_field_errors", "__all__"):
                    return _first_sentence(value)
                return _first_sentence(value, f"{name}.{key}" if name else key)
    if isinstance(detail, list) and detail:
        for index, value in enumerate(detail):
            if value:
                nested = isinstance(value, dict | list)
                return _first_sentence(value, f"{name}[{index}]" if nested else name)
    return f"{name}: {detail}" if name else str(detail)
