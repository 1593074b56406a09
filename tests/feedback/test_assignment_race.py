"""The slot protocol under 200 threads that die, stall, click twice and have wrong clocks."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from accounts.errors import Conflict
from accounts.models import Membership, Project, Role, User
from feedback import informative
from feedback.assignment import Answer, Task, claim, skip, submit
from feedback.models import (
    LEAST_EVERY,
    Campaign,
    ItemRole,
    Judgement,
    Response,
    SkipReason,
    Slot,
)
from feedback.probes import copy_item

THREADS, ITEMS, EACH = 200, 60, 4


class Killed(Exception):
    """The worker process went down with the task in hand."""


def judge(task: Task, user: User) -> UUID:
    answer = Answer(ranking=[[response.pk] for response in task.responses])
    ticket = {"slot_id": task.slot.pk, "token": task.slot.token, "client_id": task.client_id}
    return submit(**ticket, annotator=user, answer=answer).client_id


def one_turn(campaign: Campaign, user: User, chooser: random.Random) -> UUID | None:
    """Take a task and do something with it; return the acknowledged id. Killed when it is over."""
    task = claim(campaign=campaign, annotator=user)
    if task is None:
        raise Killed
    fate = chooser.random()
    if fate < 0.15:
        raise Killed
    if fate < 0.25:
        reason = SkipReason.OTHER
        skip(slot_id=task.slot.pk, token=task.slot.token, annotator=user, reason=reason)
        return None
    if fate < 0.45:  # stalled: the lease ran out, and the answer comes late
        Slot.objects.filter(pk=task.slot.pk, token=task.slot.token, state="leased").update(
            lease_expires_at=Now() - timedelta(seconds=1)
        )
        connection.close()
        threading.Event().wait(0.02)
    acknowledged = judge(task, user)
    if fate > 0.97:  # the order is worked out anew meanwhile
        informative.rank(campaign_id=campaign.pk)
    if fate > 0.9:
        assert judge(task, user) == acknowledged, "a double click is one judgement"
    return acknowledged


@pytest.mark.django_db(transaction=True)
def test_200_threads_end_with_exactly_n_judgements_and_lose_none(
    make_campaign: Callable[..., Campaign], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = make_campaign(items=ITEMS, responses=2, judgements_per_item=EACH, kind="pairwise")
    normal = list(campaign.items.all())
    for item in normal[:5]:
        copy_item(item, role=ItemRole.GOLD, gold_answer={"ranking": [[1], [0]]})
    campaign.gold_every = campaign.repeat_every = LEAST_EVERY
    campaign.repeat_after = 1
    campaign.queue_order = Campaign.Order.INFORMATIVE
    campaign.save()
    Response.objects.filter(position=0).update(source="one model")
    Response.objects.filter(position=1).update(source="another model")
    people = User.objects.bulk_create(User(username=f"racer-{n}") for n in range(THREADS))
    Membership.objects.bulk_create(
        Membership(user=user, project=project, role=Role.ANNOTATOR) for user in people
    )
    clock, real_now = random.Random(1), timezone.now
    monkeypatch.setattr(
        timezone, "now", lambda: real_now() + timedelta(hours=clock.uniform(-24, 24))
    )
    acknowledged: list[UUID] = []
    refused = Counter[str]()
    start = threading.Barrier(THREADS)

    def work(number: int) -> None:
        chooser = random.Random(number)
        start.wait(30)
        try:
            while True:
                try:
                    if (stored := one_turn(campaign, people[number], chooser)) is not None:
                        acknowledged.append(stored)
                except Conflict:
                    refused["late"] += 1
                finally:
                    connection.close()  # back to the pool of 16, as after a request
        except Killed:
            pass

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, range(THREADS)))

    # Whoever died holds a lease: it runs out, and those who are left finish alone.
    Slot.objects.filter(state="leased").update(lease_expires_at=Now() - timedelta(seconds=1))
    for user in people:
        while (task := claim(campaign=campaign, annotator=user)) is not None:
            acknowledged.append(judge(task, user))

    stored = Judgement.objects.standing().filter(campaign=campaign)
    assert set(stored.values_list("client_id", flat=True)) == set(acknowledged)
    assert len(set(stored.values_list("item_id", "annotator_id"))) == stored.count()
    assert len(set(stored.values_list("slot_id", flat=True))) == stored.count()
    assert set(Slot.objects.filter(role="normal").values_list("state", flat=True)) == {"filled"}
    per_item = Counter(stored.filter(item__in=normal).values_list("item_id", flat=True))
    assert (len(per_item), set(per_item.values())) == (ITEMS, {EACH})
    by_role = Counter(stored.values_list("item__role", flat=True))
    by_arm = Counter(stored.values_list("item__role", "slot__arm"))
    assert by_arm.keys() == {
        ("normal", "ordered"), ("normal", "control"), ("gold", ""), ("repeat", "")
    }  # fmt: skip
    assert by_role["gold"], "gold was met on the way"
    assert by_role["repeat"], "so were repeats"
