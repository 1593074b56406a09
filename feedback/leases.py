"""When a lease ends: one sentence of SQL that two modules need."""

from __future__ import annotations

from django.conf import settings
from django.db.models import DateTimeField, ExpressionWrapper, Func, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Now


def lease_end() -> Combinable:
    """Return when a lease that is given now runs out, by the database's clock."""
    interval = Func(
        Value(settings.LEASE_SECONDS),
        function="make_interval",
        template="%(function)s(secs => %(expressions)s)",
    )
    return ExpressionWrapper(Now() + interval, output_field=DateTimeField())
