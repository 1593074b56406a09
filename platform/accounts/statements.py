"""Run one hand-written statement at the least cost: what every judgement needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import psycopg
from django.db import connection, transaction


def one_row(statement: str, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return the first row of a statement, which is a transaction of its own.

    It is prepared once for each connection, as planning costs several times the work; Django's own
    cursors never prepare. Inside a caller's transaction it gets a savepoint, so that a refusal can
    be looked into. Raises Django's database errors.
    """
    savepoint = transaction.atomic() if connection.in_atomic_block else nullcontext()
    with savepoint, connection.wrap_database_errors:
        connection.ensure_connection()
        with psycopg.Cursor(connection.connection) as cursor:
            cursor.execute(statement, values)
            row: tuple[Any, ...] | None = cursor.fetchone()
    return row
