"""A campaign's items and their order as leads see them: no fault, no sideways scroll."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from accounts.models import User
from feedback import dealing
from feedback.models import Campaign
from tests.browser.test_look import faults, overflow
from tests.feedback.test_quality_pages import name_sources

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_a_lead_chooses_items_and_their_order(
    sign_in: Callable[..., Page],
    lead: User,
    annotator: User,
    make_campaign: Callable[..., Campaign],
    width: int,
    scheme: str,
    tmp_path: Path,
) -> None:
    campaign = make_campaign(items=6, responses=2, judgements_per_item=2, kind="pairwise")
    name_sources(campaign)
    Campaign.objects.update(queue_order=Campaign.Order.INFORMATIVE)
    campaign.refresh_from_db()
    dealing.assign(item=campaign.items.order_by("id")[0], annotators=[annotator, lead], by=lead)
    page = sign_in(
        lead,
        f"/p/support/campaigns/{campaign.pk}/items/",
        viewport={"width": width, "height": 740},
        color_scheme=scheme,
    )
    page.get_by_role("checkbox").nth(1).check()
    page.get_by_label("Priority").fill("9")
    page.get_by_role("button", name="Set the priority").click()
    page.get_by_text("1 item now of priority 9.").wait_for()
    for what in ("items/", "order", ""):
        page.goto(f"/p/support/campaigns/{campaign.pk}/{what}")
        page.screenshot(path=tmp_path / f"{what.strip('/') or 'campaign'}.png", full_page=True)
        assert overflow(page) <= 0, what
        assert faults(page) == [], what
