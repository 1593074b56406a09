"""Single judgements as leads see them: no fault, no sideways scroll, both themes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from accounts.models import User
from feedback.assignment import Answer, claim, submit
from feedback.models import Campaign, Judgement
from tests.browser.looks import TEXT, Look, assert_readable

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
ASKS = {
    "preset": "helpsteer",
    "safety": ["Safe", "Unsafe"],
    "reasons": ["Too long", "Wrong facts"],
    "correction": "optional",
}


def test_it_shows_judgements_to_everybody(
    sign_in: Callable[..., Page],
    lead: User,
    annotator: User,
    make_campaign: Callable[..., Campaign],
    look: Look,
) -> None:
    campaign = make_campaign(responses=3, asks=ASKS, text=TEXT)
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        ids = [response.pk for response in task.responses]
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=Answer(
                ranking=[[ids[1]], [ids[0], ids[2]]],
                ratings={
                    one: {scale["key"]: 3 for scale in campaign.extras["ratings"]} for one in ids
                },
                safety=dict.fromkeys(ids, "safe"),
                reasons=["too_long"],
                comment="B is the only one that answers.",
                correction=task.responses[0].text.replace("one", "three, or four"),
                corrected=ids[0],
                seconds=73.0,
            ),
        )
    judgement = Judgement.objects.latest("id")
    page = sign_in(lead, "/p/support/", **look)
    for place in ("judgements/", f"judgements/{judgement.client_id}", "skips"):
        page.goto(f"/p/support/campaigns/{campaign.pk}/{place}")
        assert_readable(page)
