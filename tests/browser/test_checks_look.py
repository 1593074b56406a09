"""Gold, trust and disputed items as people see them: no fault, no sideways scroll, both themes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from accounts.models import User
from feedback import adjudication, calibration, code_books, gold, pauses
from feedback.extras import HELPSTEER
from feedback.models import Campaign
from feedback.simulation import Profile
from tests.browser.looks import Look, assert_readable
from tests.feedback.test_known_levels import rate_all
from tests.feedback.test_quality_pages import crowded, name_sources

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_it_shows_the_checks_to_everybody(
    sign_in: Callable[..., Page],
    lead: User,
    annotator: User,
    make_campaign: Callable[..., Campaign],
    look: Look,
) -> None:
    campaign = make_campaign(items=30, responses=2, judgements_per_item=3, kind="pairwise")
    name_sources(campaign)
    crowded(campaign, [*[Profile.HONEST] * 4, Profile.LAZY, Profile.SPAMMING])
    item = campaign.items.order_by("id")[0]
    answer = {"ranking": [[1], [0]]}
    gold.make_gold(item=item, answer=answer, by=lead)
    adjudication.decide(item=item, answer=answer, why="B says where it knows it from.", by=lead)
    Campaign.objects.update(trust=Campaign.Trust.PAUSE)
    pauses.watch_campaigns()
    pauses.pause(campaign=campaign, annotator=annotator, why="On leave until May.", by=lead)
    code_books.publish(campaign=campaign, text="# Tone\n\nKind first.", by=lead)
    code_books.publish(campaign=campaign, text="# Tone\n\nTrue first.", changed="Truth.", by=lead)
    session = calibration.start(
        campaign=campaign,
        name="First reading",
        items=list(campaign.items.filter(role="normal")[:3]),
        members=[lead, annotator],
        by=lead,
    )
    page = sign_in(lead, "/p/support/", **look)
    more = ("code-book", "calibrations", f"calibrations/{session.pk}")
    for what in ("checks", f"items/{item.pk}", "quality", *more):
        page.goto(f"/p/support/campaigns/{campaign.pk}/{what}")
        assert_readable(page)


def test_it_shows_known_and_decided_levels(
    sign_in: Callable[..., Page],
    lead: User,
    annotator: User,
    second_annotator: User,
    make_campaign: Callable[..., Campaign],
    look: Look,
) -> None:
    campaign = make_campaign(items=6, responses=3, kind="rating", asks={"preset": "helpsteer"})
    for user, shift in ((annotator, 0), (second_annotator, 2)):
        rate_all(
            campaign,
            user,
            lambda one, by=shift: {scale.key: (one.position + by) % 5 + 1 for scale in HELPSTEER},
        )
    first, second = campaign.items.order_by("id")[:2]
    answer = {"ratings": {"0": {"helpfulness": 5, "verbosity": 1}, "2": {"correctness": 2}}}
    golden = gold.make_gold(item=first, answer=answer, by=lead)
    adjudication.decide(item=second, answer=answer, why="It answers both questions.", by=lead)
    page = sign_in(lead, "/p/support/", **look)
    for what in (f"items/{second.pk}", f"items/{golden.pk}", "checks", "quality"):
        page.goto(f"/p/support/campaigns/{campaign.pk}/{what}")
        assert_readable(page)
