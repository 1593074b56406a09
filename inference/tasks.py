from __future__ import annotations

import contextlib

from celery import shared_task


@shared_task(name="inference.tasks.keep_engines_warm")
def keep_engines_warm() -> None:
    """Load onto every engine what aliases name; runs every few seconds."""
    from accounts.errors import Unavailable
    from inference import services

    with contextlib.suppress(Unavailable):  # the next tick finds it up
        services.keep_engines_warm()
