"""Gold items and hidden repeats: met by everybody, told apart by nobody."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from accounts.models import User
from feedback import probes
from feedback.assignment import Answer, Task, claim, skip, submit, undo
from feedback.models import Campaign, Item, ItemRole, Judgement, SkipReason, Slot


def judge(task: Task, annotator: User) -> Judgement:
    return submit(
        slot_id=task.slot.pk,
        token=task.slot.token,
        client_id=task.client_id,
        annotator=annotator,
        answer=Answer(ranking=[[response.pk] for response in task.responses]),
    )


def work(campaign: Campaign, annotator: User) -> list[str]:
    """Judge all there is; return the roles in the order met."""
    roles = []
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        judge(task, annotator)
        roles.append(str(task.slot.role))
    return roles


@pytest.fixture
def golden(make_campaign: Callable[..., Campaign]) -> Campaign:
    """Return a campaign of forty items, one in five tasks gold, with ten gold items."""
    random.seed(7)
    campaign = make_campaign(items=50, responses=2, judgements_per_item=3, kind="pairwise")
    for item in campaign.items.order_by("-id")[:10]:
        Slot.objects.filter(item=item).delete()
        Item.objects.filter(pk=item.pk).update(
            role=ItemRole.GOLD, gold_answer={"ranking": [[1], [0]]}
        )
    campaign.gold_every = 5
    campaign.save()
    return campaign


def test_it_gives_gold_at_the_campaigns_rate_and_never_twice_in_a_row(
    golden: Campaign, annotator: User, second_annotator: User
) -> None:
    for user in (annotator, second_annotator):
        roles = work(golden, user)
        assert roles.count("normal") == 40, "gold uses up no normal slot"
        assert 4 <= roles.count("gold") <= 10
        assert all("normal" in both for both in pairwise(roles))
    orders = Slot.objects.filter(role="gold").values_list("order", flat=True)
    assert {tuple(order) for order in orders} == {(0, 1), (1, 0)}


def test_it_shows_nothing_that_tells_gold_from_the_rest(
    golden: Campaign, annotator: User, api: Callable[..., object]
) -> None:
    client, tasks = api(annotator), {}
    body = client.post(f"/api/campaigns/{golden.pk}/next").json()  # type: ignore[attr-defined]
    while body:
        tasks[body["slot"]] = body
        sent = {key: body[key] for key in ("slot", "token", "client_id")}
        ranking = [[response["id"]] for response in body["responses"]]
        answered = client.post(  # type: ignore[attr-defined]
            "/api/judgements/", sent | {"ranking": ranking, "next": True}, format="json"
        )
        body = answered.json()["next"]
    roles = dict(Slot.objects.filter(pk__in=tasks).values_list("pk", "role"))
    gold = [tasks[slot] for slot, role in roles.items() if role == "gold"]
    normal = [tasks[slot] for slot, role in roles.items() if role == "normal"]
    assert gold
    assert {frozenset(task) for task in gold} == {frozenset(task) for task in normal}
    assert {task["token"] for task in gold} == {task["token"] for task in normal} == {1}
    # Ids are drawn: those of slots made last do not come last.
    assert min(task["slot"] for task in gold) < max(task["slot"] for task in normal)


def test_it_costs_a_campaign_without_gold_nothing(campaign: Campaign, annotator: User) -> None:
    with CaptureQueriesContext(
        connection,
    ) as seen:
        probes.plant_by_chance(campaign=campaign, annotator=annotator)
    assert len(seen) == 0


def test_it_repeats_an_own_item_with_sides_swapped_after_a_while(
    make_campaign: Callable[..., Campaign], annotator: User
) -> None:
    random.seed(3)
    campaign = make_campaign(items=30, responses=3, judgements_per_item=1)
    campaign.repeat_every, campaign.repeat_after = 4, 5
    campaign.save()
    work(campaign, annotator)
    judged = list(Judgement.objects.filter(campaign=campaign).select_related("slot__item"))
    place = {one.item_id: index for index, one in enumerate(judged)}
    again = [one for one in judged if one.slot.role == ItemRole.REPEAT]
    assert again
    for one in again:
        original = one.slot.item.repeat_of_id
        assert original is not None
        assert place[one.item_id] - place[original] > campaign.repeat_after
        first = next(each for each in judged if each.item_id == original)
        assert one.slot.order == first.slot.order[::-1]
        texts = [
            [item.responses.get(position=place).text for place in (0, 1, 2)]
            for item in (one.slot.item, Item.objects.get(pk=original))
        ]
        assert texts[0] == texts[1]
        assert not set(one.shown) & set(first.shown), "its responses have ids of their own"


def test_a_skipped_or_undone_probe_stays_with_its_annotator(
    golden: Campaign, annotator: User, second_annotator: User
) -> None:
    assert probes.plant_gold(campaign=golden, annotator=annotator)
    task = claim(campaign=golden, annotator=annotator)
    assert task is not None
    assert task.slot.role == ItemRole.GOLD
    judge(task, annotator)
    assert undo(campaign=golden, annotator=annotator).slot.pk == task.slot.pk
    again = claim(campaign=golden, annotator=annotator)
    assert again is not None
    skip(
        slot_id=again.slot.pk, token=again.slot.token, annotator=annotator, reason=SkipReason.OTHER
    )
    for user in (annotator, second_annotator):
        following = claim(campaign=golden, annotator=user)
        assert following is not None
        assert following.slot.pk != task.slot.pk
    assert Slot.objects.get(pk=task.slot.pk).state == "open"


def test_the_database_keeps_special_slots_apart(
    golden: Campaign, annotator: User, second_annotator: User
) -> None:
    probes.plant_gold(campaign=golden, annotator=annotator)
    slot = Slot.objects.get(role="gold")
    for change in ({"reserved_for": None}, {"holder": second_annotator}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Slot.objects.filter(pk=slot.pk).update(**change)
    with pytest.raises(IntegrityError), transaction.atomic():
        Item.objects.filter(pk=slot.item_id).update(gold_answer=None)
