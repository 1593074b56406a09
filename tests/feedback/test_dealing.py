"""Items that go out first, and items for chosen people only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import connection
from rest_framework.test import APIClient

from accounts.errors import Conflict
from accounts.models import User
from feedback import dealing
from feedback.assignment import _CLAIM_BY_LOT, _CLAIM_OPEN, claim, skip
from feedback.models import Campaign, SkipReason

Connect = Callable[..., APIClient]


def test_it_hands_out_the_higher_priority_first(
    make_campaign: Callable[..., Campaign], api: Connect, annotator: User, lead: User
) -> None:
    campaign = make_campaign(items=12)
    urgent = campaign.items.order_by("-id")[0]
    address = f"/api/items/{urgent.pk}/priority"
    assert api(annotator).post(address, {"priority": 5}, format="json").status_code == 403
    assert api(lead).post(address, {"priority": 5}, format="json").status_code == 204
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    assert task.slot.item_id == urgent.pk


def test_it_keeps_an_item_for_whom_it_was_assigned_to(
    make_campaign: Callable[..., Campaign],
    api: Connect,
    annotator: User,
    second_annotator: User,
    lead: User,
) -> None:
    campaign = make_campaign(items=1, judgements_per_item=2)
    item = campaign.items.get()
    address = f"/api/items/{item.pk}/assign"
    few = api(lead).post(address, {"annotators": ["anna"]}, format="json")
    assert (few.status_code, "2 judgements" in few.json()["message"]) == (409, True)
    named = {"annotators": ["anna", "lena"]}
    assert api(lead).post(address, named, format="json").status_code == 204
    assert claim(campaign=campaign, annotator=second_annotator) is None
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    assert task.slot.item_id == item.pk
    with pytest.raises(Conflict):
        dealing.assign(item=item, annotators=[lead], by=lead)
    # A skipped one goes to anybody, so that the item still gets its two judgements.
    ticket = {"slot_id": task.slot.pk, "token": task.slot.token}
    skip(**ticket, annotator=annotator, reason=SkipReason.OTHER)
    assert claim(campaign=campaign, annotator=second_annotator) is not None


@pytest.mark.parametrize(
    ("statement", "index"), [(_CLAIM_OPEN, "slot_open"), (_CLAIM_BY_LOT, "slot_by_lot")]
)
def test_a_claim_walks_one_index(
    make_campaign: Callable[..., Campaign], annotator: User, statement: str, index: str
) -> None:
    campaign = make_campaign(items=1)
    item = campaign.items.get()
    values = {"me": annotator.pk, "campaign": campaign.pk, "lease": 60, "open": True, "arm": ""}
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO feedback_slot (id, campaign_id, item_id, index, shuffle, gain, "order",
                                          state, token)
               SELECT -n, %s, %s, n, -n, CASE WHEN n < 1000 THEN n ELSE 0 END, '{0}', 'open', 0
                 FROM generate_series(10, 20000) AS n""",
            [campaign.pk, item.pk],
        )
        cursor.execute("ANALYZE feedback_slot")
        cursor.execute("EXPLAIN " + statement, values)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert f"using {index} on feedback_slot candidate" in plan, plan
    assert "Sort Key: candidate.priority" not in plan, plan
