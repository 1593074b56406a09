"""A snapshot's page: what it holds, for everybody."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from accounts.models import User
from feedback.models import Campaign, Response
from tests.browser.looks import Look, assert_readable
from tests.training.test_snapshots import judge_all, strict, take_snapshot

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_it_shows_a_snapshot_with_its_lengths_to_everybody(
    sign_in: Callable[..., Page],
    make_campaign: Callable[..., Campaign],
    annotator: User,
    lead: User,
    look: Look,
) -> None:
    campaign = make_campaign(items=40, judgements_per_item=1)
    drawn = random.Random(7)
    for number, response in enumerate(Response.objects.order_by("item", "id")):
        length = drawn.lognormvariate(5.2 - number % 4 / 4, 0.7)
        Response.objects.filter(pk=response.pk).update(
            text=f"{response.pk}: " + "word " * int(length / 5)
        )
    judge_all(campaign, annotator, strict)
    snapshot = take_snapshot(campaign.project, campaign)
    address = f"/p/support/snapshots/{snapshot.pk}/"
    page = sign_in(lead, address, **look)
    expect(page.get_by_role("heading", name="Lengths")).to_be_visible()
    expect(page.get_by_text("a model may learn to write more")).to_be_visible()
    assert_readable(page)
