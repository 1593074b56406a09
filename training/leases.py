"""Work that one worker holds at a time: claimed while it waits, kept by a heartbeat, taken back.

For rows that are ``training.models.Leased``: runs, builds of snapshots, evaluations. A filtered
update claims a row and stamps a fresh lease; whoever lost the lease finds nothing under it any more
and lets go. The heartbeat comes from a thread with a connection of its own, for the work itself may
be one long transaction or one long copy. A worker that dies falls silent with it, and a sweep takes
back what it held.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from accounts.models import Project

log = structlog.get_logger(__name__)

Rows = TypeVar("Rows", bound=QuerySet[Any])


def claim(
    rows: QuerySet[Any], *, held: str, free: Collection[str] = ("queued", "failed"), **changes: Any
) -> uuid.UUID | None:
    """Take a row that is free into the state ``held``; None where it is not, or was just taken.

    What was given up is not free. What waits is, however often it was begun.
    """
    lease = uuid.uuid4()
    given_up = Q(state="failed", attempts__gte=settings.RUN_MAX_ATTEMPTS)
    taken = rows.filter(~given_up, state__in=free).update(
        state=held,
        lease=lease,
        heartbeat_at=Now(),
        attempts=F("attempts") + 1,
        reason="",
        **changes,
    )
    return lease if taken else None


@contextmanager
def keep(rows: QuerySet[Any]) -> Iterator[None]:
    """Renew the heartbeat of what is held for as long as the body takes."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(settings.RUN_HEARTBEAT_SECONDS):
            try:
                rows.update(heartbeat_at=Now())
            except (OperationalError, InterfaceError):
                log.warning("heartbeat_missed", exc_info=True)  # the database was restarted
            finally:
                connection.close()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def silent(rows: Rows) -> Rows:
    """Return the rows whose worker has not been heard of for too long, or never was."""
    patience = timedelta(seconds=settings.RUN_STALE_SECONDS)
    return rows.filter(Q(heartbeat_at__lt=Now() - patience) | Q(heartbeat_at=None))


def spent(rows: Rows) -> Rows:
    """Return the rows that were begun so often that they are given up when they are lost."""
    return rows.filter(attempts__gte=settings.RUN_MAX_ATTEMPTS)


def take_back(rows: QuerySet[Any], *, held: str) -> list[int]:
    """Queue again what silent workers held and return the ids; give up what was lost too often."""
    lost = silent(rows.filter(state=held))
    spent(lost).update(
        state="failed",
        lease=None,
        reason=f"Its worker was lost {settings.RUN_MAX_ATTEMPTS} times; the machine may be short "
        "of memory. Make it smaller, or give the workers more.",
    )
    return [
        pk
        for pk, lease in lost.values_list("pk", "lease")
        if lost.filter(pk=pk, lease=lease).update(state="queued", lease=None)
    ]


def lock_project(project_id: int) -> None:
    """Hold off other builds' ends and retractions in the project until this transaction ends."""
    Project.objects.select_for_update(no_key=True).get(pk=project_id)
