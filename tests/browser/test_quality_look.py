"""Quality and leaderboard as people see them: no fault, no sideways scroll, both themes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from accounts.models import User
from feedback.models import Campaign
from feedback.simulation import Profile
from tests.browser.looks import Look, assert_readable
from tests.feedback.test_quality_pages import crowded, name_sources

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_it_shows_quality_and_leaderboard_to_everybody(
    sign_in: Callable[..., Page],
    lead: User,
    make_campaign: Callable[..., Campaign],
    look: Look,
) -> None:
    campaign = make_campaign(items=60, responses=2, judgements_per_item=3, kind="pairwise")
    name_sources(campaign)
    crowded(campaign, [*[Profile.HONEST] * 4, Profile.LAZY, Profile.SPAMMING])
    page = sign_in(lead, "/p/support/", **look)
    for what in ("quality", "leaderboard", "leaderboard?control=both"):
        page.goto(f"/p/support/campaigns/{campaign.pk}/{what}")
        assert_readable(page)
