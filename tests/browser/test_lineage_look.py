"""The lineage page: drawn and listed, for everybody."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from accounts.models import User
from feedback.models import Campaign
from inference.models import Version
from tests.browser.looks import Look, assert_readable
from tests.training.test_lineage import trained
from tests.training.test_snapshots import judge_all, strict, take_snapshot

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_it_shows_a_lineage_to_everybody(
    sign_in: Callable[..., Page],
    make_campaign: Callable[..., Campaign],
    annotator: User,
    lead: User,
    base_version: Version,
    look: Look,
) -> None:
    campaigns = [make_campaign(name=name, items=8) for name in ("Tone", "Safety", "Brevity_" * 9)]
    for campaign in campaigns:
        judge_all(campaign, annotator, strict)
    snapshot = take_snapshot(base_version.project, *campaigns)
    second = take_snapshot(base_version.project, campaigns[0])
    _, first = trained(snapshot, base_version, 1)
    trained(snapshot, base_version, 2)
    trained(second, first, 3, alias="production")
    address = f"/p/support/lineage/version/{first.pk}/"
    page = sign_in(lead, address, **look)
    expect(page.get_by_role("heading", name="Lineage of v1")).to_be_visible()
    page.goto(f"/p/support/lineage/snapshot/{snapshot.pk}/")
    assert_readable(page)
    page.get_by_role("link", name="version v3").click()
    expect(page).to_have_url(re.compile("/versions/"))


def test_it_shows_a_retraction_to_everybody(
    sign_in: Callable[..., Page],
    make_campaign: Callable[..., Campaign],
    annotator: User,
    owner: User,
    base_version: Version,
    look: Look,
) -> None:
    campaign = make_campaign(items=8)
    judge_all(campaign, annotator, strict)
    snapshot = take_snapshot(base_version.project, campaign)
    trained(snapshot, base_version, 1, alias="production")
    address = f"/p/support/lineage/annotator/{annotator.pk}/"
    page = sign_in(owner, address, **look)
    page.get_by_role("link", name="Retract…").click()
    assert_readable(page)
    page.get_by_label("Why").fill("A spammer, as the gold items showed.")
    page.get_by_role("button", name="Retract the judgements of anna").click()
    page.get_by_role("button", name="Rebuild and train again").click()
    expect(page.get_by_role("cell", name="Snapshot").last).to_be_visible()
    assert_readable(page)
