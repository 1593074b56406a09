"""What goes out first: least judged, by lot, or what the leaderboard can foretell least."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
import pytest
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback import dealing, informative, ratings, services
from feedback.assignment import Answer, Task, claim, submit
from feedback.models import Campaign, Judgement, Response, Slot
from inference.models import Version

Login = Callable[[User], Client]
Connect = Callable[..., APIClient]
Make = Callable[..., Campaign]


def between(campaign: Campaign, pairs: Sequence[tuple[str, str]]) -> None:
    """Say which two models wrote the responses of each item."""
    for item, pair in zip(campaign.items.order_by("pk"), pairs, strict=True):
        for position, model in enumerate(pair):
            Response.objects.filter(item=item, position=position).update(source=model)


def models_of(task: Task) -> set[str]:
    rows = Response.objects.filter(item=task.slot.item_id)
    return set(rows.values_list("source", flat=True))


def judge(task: Task, annotator: User, *, best: int | None = None) -> None:
    """Name one response the better, or the one that is shown first."""
    shown = [response.pk for response in task.responses]
    first = shown[0] if best is None else best
    ranking = [[first], [one for one in shown if one != first]]
    submit(
        slot_id=task.slot.pk,
        token=task.slot.token,
        client_id=task.client_id,
        annotator=annotator,
        answer=Answer(ranking=ranking),
    )


def claimed(campaign: Campaign, annotator: User) -> Task:
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    return task


def test_it_draws_by_lot_whatever_was_judged_already(
    make_campaign: Make, annotator: User, second_annotator: User
) -> None:
    campaign = make_campaign(items=8, responses=2, judgements_per_item=2)
    campaign.queue_order = Campaign.Order.RANDOM
    by_lot = list(Slot.objects.order_by("shuffle").values_list("pk", flat=True))
    items: dict[int, int] = dict(Slot.objects.values_list("pk", "item_id"))
    met: set[int] = set()
    for _ in range(6):
        task = claimed(campaign, annotator)
        assert task.slot.pk == next(slot for slot in by_lot if items[slot] not in met)
        met.add(task.slot.item_id)
        judge(task, annotator)
    free = Slot.objects.filter(state="open").earliest("shuffle")
    assert claimed(campaign, second_annotator).slot.pk == free.pk
    assert set(Slot.objects.values_list("arm", flat=True)) == {""}


def test_what_the_leaderboard_foretells_least_goes_out_first(
    make_campaign: Make, annotator: User
) -> None:
    campaign = make_campaign(items=14, responses=2, judgements_per_item=1)
    between(campaign, [("strong", "weak")] * 12 + [("weak", "new"), ("strong", "strong")])
    for slot in Slot.objects.filter(item__in=campaign.items.order_by("pk")[:8]):
        dealing.assign(item=slot.item, annotators=[annotator], by=annotator)
        task = claimed(campaign, annotator)
        judge(task, annotator, best=task.slot.item.responses.get(source="strong").pk)
    campaign.queue_order = Campaign.Order.INFORMATIVE
    campaign.save()
    assert informative.rank_campaigns() == 1
    assert informative.rank_campaigns() == 0, "nobody has judged since"
    order = [
        set(slot.item.responses.values_list("source", flat=True))
        for slot in Slot.objects.filter(state="open").order_by("-gain", "index", "shuffle")
    ]
    assert order[0] == {"weak", "new"}
    assert order[-1] == {"strong"}, "a version against itself tells nothing of versions"
    gains = Slot.objects.filter(state="open").order_by("-gain").values_list("gain", flat=True)
    assert (gains[0], list(gains)[-1]) == (1000, 0)
    campaign.queue_order = Campaign.Order.LEAST_JUDGED
    campaign.save()
    informative.rank(campaign_id=campaign.pk)
    assert not Slot.objects.filter(gain__gt=0, state="open").exists()


def test_it_keeps_a_share_by_lot_and_says_of_each_task_which_it_was(
    make_campaign: Make, annotator: User, second_annotator: User
) -> None:
    campaign = make_campaign(items=80, responses=2, judgements_per_item=1)
    campaign.queue_order, campaign.control_percent = Campaign.Order.INFORMATIVE, 50
    campaign.save()
    for _ in range(60):
        judge(claimed(campaign, annotator), annotator)
    dealt = Counter(Judgement.objects.values_list("slot__arm", flat=True))
    assert dealt.keys() == {"ordered", "control"}
    assert 12 < dealt["control"] < 48, "60 coins, four standard deviations"
    # A lease that ran out goes on to somebody else as what it was.
    task = claimed(campaign, annotator)
    arm = Slot.objects.get(pk=task.slot.pk).arm
    Slot.objects.filter(state="open").delete()
    Slot.objects.filter(pk=task.slot.pk).update(lease_expires_at=Now() - timedelta(hours=1))
    assert claimed(campaign, second_annotator).slot.pk == task.slot.pk
    assert Slot.objects.get(pk=task.slot.pk).arm == arm


def test_a_simulated_crowd_tells_neighbours_apart_with_fewer_judgements(
    make_campaign: Make, annotator: User
) -> None:
    """Six models, two of them in fewer items; the crowd is wrong as Bradley and Terry say."""
    share = [2, 2, 2, 2, 1, 1]
    most, every = 200, 20

    def errors(order: Campaign.Order) -> list[float]:
        """Return the standard error between neighbours after every 20 judgements."""
        chooser = random.Random(7)
        pairs: list[tuple[int, int]] = []
        while len(pairs) < 400:
            one, other = chooser.choices(range(len(share)), share, k=2)
            if one != other:
                pairs.append((one, other))
        campaign = make_campaign(items=400, responses=2, judgements_per_item=1, name=order)
        between(campaign, [(f"model {one}", f"model {other}") for one, other in pairs])
        campaign.queue_order = order
        campaign.save()
        items = campaign.items.order_by("pk").values_list("pk", flat=True)
        pair_of = dict(zip(items, pairs, strict=True))
        told, found = np.eye(len(share)) * ratings.RIDGE, []
        for number in range(1, most + 1):
            task = claimed(campaign, annotator)
            one, other = pair_of[task.slot.item_id]
            # A model is better than the one before by odds of e to 1.
            wins = 1 / (1 + math.exp(other - one))
            best = one if chooser.random() < wins else other
            judge(task, annotator, best=task.slot.item.responses.get(source=f"model {best}").pk)
            row = np.zeros(len(share))
            row[one], row[other] = 1, -1
            told += wins * (1 - wins) * np.outer(row, row)
            if number % every == 0:
                informative.rank(campaign_id=campaign.pk)
                steps = np.diff(np.eye(len(share)), axis=0)
                found.append(float(np.trace(steps @ np.linalg.inv(told) @ steps.T)))
        return found

    by_lot, ordered = errors(Campaign.Order.RANDOM), errors(Campaign.Order.INFORMATIVE)
    as_sure = next(step for step, error in enumerate(ordered, 1) if error <= by_lot[-1])
    assert as_sure * every <= 0.8 * most, f"{as_sure * every} of {most}"
    arms = informative.arms(Campaign.objects.latest("pk"))
    assert arms.judgements == most
    assert arms.worth is not None
    assert arms.worth > 1


def test_leads_choose_the_order_and_see_what_it_brings(
    make_campaign: Make, login: Login, api: Connect, lead: User, annotator: User, stranger: User
) -> None:
    campaign = make_campaign(items=12, responses=2)
    page = reverse("campaign_order", args=["support", campaign.pk])
    assert [login(who).get(page).status_code for who in (stranger, annotator)] == [404, 403]
    assert "Nothing yet" in login(lead).get(page).text
    wanted = {"queue_order": "informative", "control_percent": 30}
    assert login(lead).post(page, wanted).status_code == 302
    said = login(lead).get(reverse("campaign", args=["support", campaign.pk])).text
    assert "Most informative first." in said
    campaign.refresh_from_db()
    for _ in range(12):
        judge(claimed(campaign, annotator), annotator)
    assert "judgements by the order" in login(lead).get(page).text
    address = f"/api/campaigns/{campaign.pk}/order"
    found = api(lead).get(address).json()
    assert (found["queue_order"], found["control_percent"]) == ("informative", 30)
    assert found["arms"]["ordered"] + found["arms"]["control"] == 12
    listed = api(lead).get(f"/api/campaigns/{campaign.pk}/arms").json()["results"]
    assert {one["arm"] for one in listed} <= {"ordered", "control"}
    assert api(annotator).get(f"/api/campaigns/{campaign.pk}/arms").status_code == 403
    assert api(annotator).post(address, wanted, format="json").status_code == 403
    assert api(lead).post(address, {"queue_order": "random"}, format="json").json()[
        "queue_order"
    ] == "random"  # fmt: skip
    assert login(lead).post(page, wanted | {"control_percent": 0}).status_code == 400
    thumbs = make_campaign(items=1, responses=1, kind="thumbs", name="Thumbs")
    refusal = api(lead).post(f"/api/campaigns/{thumbs.pk}/order", wanted, format="json")
    assert (refusal.status_code, "Choose another" in refusal.json()["message"]) == (400, True)


def test_one_version_alone_has_no_informative_order(
    project: Project, base_version: Version, lead: User
) -> None:
    with pytest.raises(ProductError, match="at least two"):
        services.create_campaign(
            project=project,
            by=lead,
            name="Alone",
            kind=Campaign.Kind.PAIRWISE,
            prompts=services.add_prompts(project=project, prompts=["Why?"]),
            sources=[{"version": base_version.pk}],
            queue_order=Campaign.Order.INFORMATIVE,
        )
