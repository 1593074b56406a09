from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from rest_framework.exceptions import NotFound
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView

from accounts.pages import whole


class NewestFirst(CursorPagination):
    """Page by cursor from the newest row; ``?cursor=`` comes from ``next`` and ``previous``."""

    ordering = "-id"
    page_size = 50
    page_size_query_param = "limit"
    max_page_size = 500

    def decode_cursor(self, request: Request) -> Cursor | None:
        """Return where to go on; NotFound for a cursor that no page gave, as rows go by number."""
        cursor: Cursor | None = super().decode_cursor(request)
        if cursor and cursor.position is not None and whole(str(cursor.position)) is None:
            raise NotFound(self.invalid_cursor_message)
        return cursor


def paginated(
    rows: QuerySet[Any],
    serializer: type[BaseSerializer[Any]],
    request: Request,
    view: APIView,
    ordering: str = "-id",
) -> Response:
    """Return one page of the rows in the shape {next, previous, results}."""
    pages = NewestFirst()
    pages.ordering = ordering
    page = pages.paginate_queryset(rows, request, view=view)
    return pages.get_paginated_response(serializer(page, many=True).data)
