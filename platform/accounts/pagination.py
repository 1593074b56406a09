"""Lists over REST: one page by cursor, of the rows that the query string asks for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol, TypeVar

from django.db.models import QuerySet
from rest_framework.exceptions import NotFound
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from accounts.pages import whole
from accounts.serializers import Body

Rows = TypeVar("Rows", bound=QuerySet[Any, Any])
# Lists are paged by these; a browser's session names its project, too.
ALWAYS = frozenset({"cursor", "limit", "project"})


class NewestFirst(CursorPagination):
    """Page by cursor from the newest row; ``?cursor=`` comes from ``next`` and ``previous``."""

    ordering = "-id"
    page_size = 50
    page_size_query_param = "limit"
    max_page_size = 500
    cursor_query_description = "Where a page begins: it stands in next and previous."
    page_size_query_description = "How many a page holds: 50 if left out, 500 at most."

    def decode_cursor(self, request: Request) -> Cursor | None:
        """Return where to go on; NotFound for a cursor that no page gave, as rows go by number."""
        cursor: Cursor | None = super().decode_cursor(request)
        if cursor and cursor.position is not None and whole(str(cursor.position)) is None:
            raise NotFound(self.invalid_cursor_message)
        return cursor


class Listing(Protocol):
    """A view that lists; the schema reads its pages off the same attribute."""

    pagination_class: type[NewestFirst]


def query(request: Request, *, without: Collection[str] = ALWAYS) -> dict[str, str]:
    """Return the query string by name, without what every operation or list takes."""
    given = request.query_params.dict()
    return {name: value for name, value in given.items() if name not in without}


def paginated(
    rows: QuerySet[Any], serializer: type[BaseSerializer[Any]], request: Request, view: Listing
) -> Response:
    """Return one page of the rows in the shape {next, previous, results}."""
    pages = view.pagination_class()
    page = pages.paginate_queryset(rows, request, view=view)  # type: ignore[arg-type]
    return pages.get_paginated_response(serializer(page, many=True).data)


def filtered(rows: Rows, filters: type[Body], request: Request) -> Rows:
    """Return the rows that the query string asks for; each field of ``filters`` is a look-up.

    A name or a value that makes no sense is refused: all rows would not be what was asked for.
    """
    asked = filters(data=query(request))
    asked.is_valid(raise_exception=True)
    return rows.filter(**asked.validated_data)
