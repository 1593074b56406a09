"""What every page owes its readers: no accessibility fault, no sideways scroll, both themes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from accounts.models import User
from feedback.models import Campaign, Prompt
from tests.browser.looks import TEXT, assert_readable, faults

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

KINDS = {"ranking": 9, "pairwise": 2, "thumbs": 1}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1280, 360])
def test_it_shows_a_task_to_everybody(
    sign_in: Callable[..., Page],
    annotator: User,
    make_campaign: Callable[..., Campaign],
    kind: str,
    width: int,
    scheme: str,
) -> None:
    campaign = make_campaign(kind=kind, responses=KINDS[kind], text=TEXT)
    Campaign.objects.update(instructions="Be **kind**.")
    Prompt.objects.update(messages=[{"role": "user", "content": "A long question. " * 200}])
    page = sign_in(
        annotator,
        f"/p/{campaign.project.slug}/campaigns/{campaign.pk}/task/",
        viewport={"width": width, "height": 740},
        color_scheme=scheme,
    )
    page.keyboard.press("1")
    assert_readable(page)
    if scheme == "light":
        for key in ("?", "s", "i"):
            page.keyboard.press(key)
            assert faults(page) == []
            page.keyboard.press("Escape")


@pytest.mark.parametrize("width", [1280, 360])
def test_it_shows_the_queue_and_the_front_page_to_everybody(
    sign_in: Callable[..., Page],
    lead: User,
    make_campaign: Callable[..., Campaign],
    base_version: Any,
    width: int,
) -> None:
    make_campaign(name="A campaign with a_very_long_name_that_has_no_space_in_it_at_all")
    make_campaign(name="Paused")
    Campaign.objects.filter(name="Paused").update(state="paused")
    page = sign_in(lead, "/p/support/", viewport={"width": width, "height": 740})
    for address in ("/p/support/", "/p/support/queue/", "/?all", "/nowhere"):
        page.goto(address)
        assert_readable(page)


def test_it_shows_the_log_in_to_everybody(open_context: Callable[..., Any], db: None) -> None:
    page = open_context(viewport={"width": 360, "height": 740}).new_page()
    page.goto("/login/")
    assert_readable(page)


def test_it_remembers_the_theme(open_context: Callable[..., Any], db: None) -> None:
    page = open_context(color_scheme="light").new_page()
    page.goto("/login/")
    switch = page.get_by_role("button", name="Theme: auto")
    switch.click()
    page.get_by_role("button", name="Theme: light").click()
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(18, 21, 18)"


def test_it_opens_the_menu_on_a_phone(sign_in: Callable[..., Page], annotator: User) -> None:
    page = sign_in(annotator, "/p/support/queue/", viewport={"width": 360, "height": 740})
    expect(page.get_by_role("link", name="Queue", exact=True)).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    expect(page.get_by_role("link", name="Queue", exact=True)).to_be_visible()
    assert faults(page) == []
