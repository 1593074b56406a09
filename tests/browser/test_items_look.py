"""A campaign's items and their order as leads see them: no fault, no sideways scroll."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from accounts.models import User
from feedback import dealing
from feedback.models import Campaign
from tests.browser.looks import Look, assert_readable
from tests.feedback.test_quality_pages import name_sources

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_a_lead_chooses_items_and_their_order(
    sign_in: Callable[..., Page],
    lead: User,
    annotator: User,
    make_campaign: Callable[..., Campaign],
    look: Look,
) -> None:
    campaign = make_campaign(items=6, responses=2, judgements_per_item=2, kind="pairwise")
    name_sources(campaign)
    Campaign.objects.update(queue_order=Campaign.Order.INFORMATIVE)
    campaign.refresh_from_db()
    dealing.assign(item=campaign.items.order_by("id")[0], annotators=[annotator, lead], by=lead)
    page = sign_in(
        lead,
        f"/p/support/campaigns/{campaign.pk}/items/",
        **look,
    )
    page.get_by_role("checkbox").nth(1).check()
    page.get_by_label("Priority").fill("9")
    page.get_by_role("button", name="Set the priority").click()
    page.get_by_text("1 item now of priority 9.").wait_for()
    for what in ("items/", "order", ""):
        page.goto(f"/p/support/campaigns/{campaign.pk}/{what}")
        assert_readable(page)
