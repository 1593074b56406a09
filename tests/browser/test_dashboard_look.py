"""The dashboard, one's own progress and the project's leaderboard: no fault, no sideways scroll."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.utils import timezone
from playwright.sync_api import Page

from accounts.models import User
from feedback.models import Campaign
from tests.browser.looks import Look, assert_readable
from tests.feedback.test_dashboard import store, two_weeks
from tests.feedback.test_quality_pages import name_sources

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_it_shows_how_work_goes_on_to_everybody(
    sign_in: Callable[..., Page],
    lead: User,
    annotator: User,
    make_campaign: Callable[..., Campaign],
    look: Look,
) -> None:
    campaign = make_campaign(items=60, responses=2, judgements_per_item=3, kind="pairwise")
    name_sources(campaign)
    two_weeks(campaign, lead, annotator)
    store(lead, make_campaign(name="Of today").items.all(), at=timezone.now())
    page = sign_in(
        lead,
        "/p/support/",
        **look,
    )
    for what in (
        f"campaigns/{campaign.pk}/dashboard",
        "queue/progress",
        "leaderboard/",
        "leaderboard/?control=both",
    ):
        page.goto(f"/p/support/{what}")
        assert_readable(page)
