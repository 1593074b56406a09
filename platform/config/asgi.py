"""The ASGI entry point of the web process."""

from __future__ import annotations

import asyncio
import gc
import os
import select
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from django.core.asgi import get_asgi_application
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.core.signals import request_started
from django.db import connection
from django.http.response import HttpResponseBase
from django.urls import get_resolver, set_script_prefix

from config.bodies import limited

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

# Where annotators work: only synchronous views.
JUDGING = ("/api/judgements/", "/api/slots/", "/api/campaigns/")
# Each keeps a connection of DATABASE_POOL_SIZE.
THREADS = 8


class ThreadHandler(ASGIHandler):
    """Answer a request whole in one thread of a small pool: middleware, view and database.

    Django's own handler makes a thread for each request and changes to it for each middleware,
    which costs several times what a judgement itself does. Not for asynchronous views.
    """

    def __init__(self) -> None:
        super(ASGIHandler, self).__init__()
        self.load_middleware(is_async=False)
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="judging")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        loop = asyncio.get_running_loop()
        response = await loop.run_in_executor(self.threads, self.respond, scope, body)
        await self.send_response(response, send)
        if response.streaming:
            await loop.run_in_executor(self.threads, response.close)

    def respond(self, scope: Any, body: Any) -> HttpResponseBase:
        """Return the response; the thread keeps its database connection for the next one."""
        if connection.connection is not None and is_gone(connection.connection):
            connection.close()
        set_script_prefix(get_script_prefix(scope))
        request_started.send(sender=self.__class__, scope=scope)
        request, refusal = self.create_request(scope, body)
        if request is None:
            assert refusal is not None
            body.close()
            response: HttpResponseBase = refusal
        else:
            response = self.get_response(request)
        if not response.streaming:
            # Neither a round trip to ask for its health nor a way through the pool each time.
            connection.close_at = None
            connection.health_check_enabled = False  # type: ignore[attr-defined]
            response.close()
        else:
            connection.close()
        return response


def is_gone(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the server has ended this idle connection; asks only our own kernel.

    Nothing is due on an idle connection, so something to read is its end.
    """
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


django = get_asgi_application()
judging = ThreadHandler()
# What is loaded by now, the views included, stays: otherwise each full collection walks through all
# of it, 200 ms in which everybody whom this process serves waits.
_ = get_resolver().url_patterns
gc.collect()
gc.freeze()


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Send what annotators do to the threads, everything else to Django's own handler."""
    chosen = judging if scope.get("path", "").startswith(JUDGING) else django
    await limited(chosen, scope, receive, send)
