"""A real Chromium against a real server, for tests marked ``browser``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from accounts.models import User
from tests.browser.looks import Look
from tests.conftest import PASSWORD
from tests.services_plugin import CHROMIUM_NAMES

OPTIONS = ["--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return the system's Chromium, started once a module.

    Not once a session: Playwright's loop would go on in this thread and break what runs its own.
    """
    # Playwright's synchronous interface runs a loop in this thread; Django would refuse queries.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield chromium
        chromium.close()
    if before is None:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]
    else:
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = before


@pytest.fixture
def open_context(
    browser: Browser, live_server: Any, settings: Any
) -> Iterator[Callable[..., BrowserContext]]:
    """Return a maker of browser contexts on the test's server; a script error fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def make(**options: Any) -> BrowserContext:
        context = browser.new_context(
            base_url=live_server.url,
            **{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"} | options,
        )
        context.set_default_timeout(10_000)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        context.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if "Content Security Policy" in message.text
                else None
            ),
        )
        contexts.append(context)
        return context

    yield make
    for context in contexts:
        context.close()
    # The server's threads are idle now; what they pooled would keep the database from going.
    connection.close_pool()
    assert not complaints


@pytest.fixture(params=[(1280, "light"), (360, "dark")], ids=["wide-light", "narrow-dark"])
def look(request: pytest.FixtureRequest) -> Look:
    """Return the options of a window: wide and light, then as narrow as a phone and dark."""
    width, scheme = request.param
    return {"viewport": {"width": width, "height": 740}, "color_scheme": scheme}


@pytest.fixture
def sign_in(open_context: Callable[..., BrowserContext]) -> Callable[..., Page]:
    """Return a function that logs somebody in by keyboard and goes to an address."""

    def go(user: User, address: str, **options: Any) -> Page:
        page = open_context(**options).new_page()
        page.goto(f"/login/?next={address}")
        # A busy machine may give the field its focus after the page is there.
        expect(page.locator("[name=username]")).to_be_focused()
        page.keyboard.type(user.username)
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url: urlsplit(url).path == address)
        return page

    return go
