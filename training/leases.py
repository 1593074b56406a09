"""Work that one worker holds at a time: taken by a filtered update, kept by a heartbeat.

For rows that are ``training.models.Leased``. The heartbeat comes from a thread with a connection of
its own, for the work itself may be one long transaction. A worker that dies falls silent with it.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from accounts.models import Project

log = structlog.get_logger(__name__)

FREE = ("queued", "failed")


def claim(rows: QuerySet[Any], *, held: str) -> uuid.UUID | None:
    """Take a row into the state ``held``; None where it is done or another worker has it."""
    lease = uuid.uuid4()
    free = Q(state__in=FREE) | Q(state=held) & (_silent() | Q(heartbeat_at=None))
    taken = rows.filter(free, attempts__lt=settings.RUN_MAX_ATTEMPTS).update(
        state=held, lease=lease, heartbeat_at=Now(), attempts=F("attempts") + 1, reason=""
    )
    return lease if taken else None


def lock_project(project_id: int) -> None:
    """Hold off other builds' ends and retractions in the project until this transaction ends."""
    Project.objects.select_for_update(no_key=True).get(pk=project_id)


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


def take_back(rows: QuerySet[Any], *, held: str) -> list[int]:
    """Queue again what silent workers held and return the ids; give up what was lost too often."""
    silent = rows.filter(_silent(), state=held)
    silent.filter(attempts__gte=settings.RUN_MAX_ATTEMPTS).update(
        state="failed",
        lease=None,
        reason=f"Its worker was lost {settings.RUN_MAX_ATTEMPTS} times; the machine may be short "
        "of memory. Make it smaller, or give the workers more.",
    )
    found = silent.values_list("pk", "lease")
    return [
        pk
        for pk, lease in found
        if silent.filter(pk=pk, lease=lease).update(state="queued", lease=None)
    ]


def _silent() -> Q:
    return Q(heartbeat_at__lt=Now() - timedelta(seconds=settings.RUN_STALE_SECONDS))
