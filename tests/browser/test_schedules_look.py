"""The pages of schedules, for everybody."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from accounts.models import User
from feedback.models import Campaign
from inference.models import Version
from tests.browser.looks import Look, assert_readable

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_it_makes_a_schedule_and_runs_it(
    sign_in: Callable[..., Page],
    make_campaign: Callable[..., Campaign],
    owner: User,
    base_version: Version,
    look: Look,
) -> None:
    make_campaign(name="Tone")
    page = sign_in(
        owner,
        "/p/support/schedules/",
        **look,
    )
    assert_readable(page)
    page.get_by_label("Name").fill("Every Monday")
    page.get_by_label("Tone").check()
    page.get_by_role("button", name="Make the schedule").click()
    page.get_by_role("button", name="Run now").click()
    expect(page.get_by_role("cell", name="exporting")).to_be_visible()
    assert_readable(page)
