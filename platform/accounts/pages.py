"""What the pages of every floor share: ordered and paged tables, and refusals kept on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render

from accounts.errors import ProductError

ROWS_PER_PAGE = 50
# As a column of whole numbers takes them; other alphabets have digits, too.
_WHOLE = re.compile(r"-?[0-9]{1,18}")
Rows = TypeVar("Rows", bound=QuerySet[Any])


def asked(values: QueryDict, name: str) -> str:
    """Return what the address or form says under a name, without what PostgreSQL cannot search."""
    return values.get(name, "").replace("\x00", "").strip()


def all_asked(values: QueryDict, name: str) -> list[str]:
    """Return all that a form says under a name, each as ``asked`` would."""
    return [value.replace("\x00", "").strip() for value in values.getlist(name)]


def whole(text: str) -> int | None:
    """Return the whole number that an address or form says, None where it says no such thing."""
    return int(text) if _WHOLE.fullmatch(text) else None


def page_of(request: HttpRequest, rows: QuerySet[Any], size: int = ROWS_PER_PAGE) -> Page[Any]:
    """Return the page that ``?page=`` asks for; one out of range gives the nearest. Two queries."""
    return Paginator(rows, size).get_page(request.GET.get("page"))


def ordered(
    request: HttpRequest, rows: Rows, columns: Mapping[str, str], default: str
) -> tuple[Rows, str]:
    """Order the rows as ``?sort=name`` or ``?sort=-name`` asks; return them and the sort in force.

    ``columns`` maps the names in the address to fields; the row's id settles equals.
    """
    sort = request.GET.get("sort", "")
    if sort.removeprefix("-") not in columns:
        sort = default
    sign = "-" if sort.startswith("-") else ""
    return rows.order_by(sign + columns[sort.removeprefix("-")], f"{sign}id"), sort


def sentence(error: ProductError | ValidationError) -> str:
    """Return what a service refused, as one sentence for the page."""
    return error.message if isinstance(error, ProductError) else " ".join(error.messages)


def refused(
    request: HttpRequest,
    template: str,
    context: dict[str, Any],
    error: ProductError | ValidationError | str,
) -> HttpResponse:
    """Show the same page again with what was typed, the sentence on top, and the right status."""
    status = error.status_code if isinstance(error, ProductError) else 400
    message = error if isinstance(error, str) else sentence(error)
    return render(request, template, context | {"error": message}, status=status)
