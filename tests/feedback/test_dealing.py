"""Items that go out first, and items for chosen people only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import Conflict
from accounts.models import User
from feedback import dealing
from feedback.assignment import _CLAIM_BY_LOT, _CLAIM_OPEN, claim, skip
from feedback.models import Campaign, Item, SkipReason, Slot

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


def test_a_lead_chooses_items_on_the_page(
    make_campaign: Callable[..., Campaign],
    login: Callable[[User], Client],
    api: Connect,
    annotator: User,
    second_annotator: User,
    lead: User,
    stranger: User,
) -> None:
    campaign = make_campaign(items=3, judgements_per_item=2)
    first, second, third = campaign.items.order_by("pk")
    page = reverse("campaign_items", args=["support", campaign.pk])
    assert [login(who).get(page).status_code for who in (stranger, annotator)] == [404, 403]
    browser = login(lead)

    def post(act: str, *items: Item, **fields: object) -> str:
        form = {"act": act, "item": [item.pk for item in items]} | fields
        return browser.post(page, form, follow=True).text

    assert "No item is like that" in browser.get(page, {"show": "first"}).text
    assert "Choose at least one item" in post("priority", priority=5)
    assert "whole number" in post("priority", first, priority="soon")
    assert "2 items now of priority 5" in post("priority", second, third, priority=5)
    assert browser.get(page, {"show": "first"}).text.count('name="item"') == 2
    refusal = post("assign", first, second, annotator=["anna"])
    assert f"Item {first.pk}: 2 judgements of this item are free" in refusal
    assert f'value="{second.pk}" aria-label="Choose item {second.pk}" checked' in refusal
    # One of them cannot be: none of them is.
    Slot.objects.filter(item=third, index=0).update(state="filled", holder=second_annotator)
    post("assign", second, third, annotator=["anna", "ben"])
    assert not Slot.objects.exclude(reserved_for=None).exists()
    assert "1 item now for anna, ben." in post("assign", second, annotator=["anna", "ben"])
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    assert task.slot.item_id == second.pk
    assert "anna, at it" in browser.get(page, {"show": "named"}).text
    assert "for anybody" in post("release", second)
    still = Slot.objects.exclude(reserved_for=None).get()
    assert still.holder == annotator, "what is in hand stays theirs"
    assert api(lead).delete(f"/api/items/{second.pk}/assign").status_code == 204
    assert api(annotator).delete(f"/api/items/{second.pk}/assign").status_code == 403
