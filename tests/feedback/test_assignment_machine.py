"""The slot protocol driven through random sequences, checked after every step."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db.models import CharField, F, Value
from django.db.models.functions import Concat, Now
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from accounts.errors import Conflict
from accounts.models import Membership, Project, Role, User
from feedback import informative
from feedback.assignment import Answer, Task, claim, renew, skip, submit, undo
from feedback.models import (
    LEAST_EVERY,
    Campaign,
    ItemRole,
    Judgement,
    Response,
    Skip,
    SkipReason,
    Slot,
)
from feedback.probes import copy_item

PEOPLE, ITEMS, EACH = 4, 3, 3
Ticket = tuple[Task, User]


def test_no_sequence_breaks_the_slots(
    make_campaign: Callable[..., Campaign], project: Project
) -> None:
    people = User.objects.bulk_create(User(username=f"person-{n}") for n in range(PEOPLE))
    Membership.objects.bulk_create(
        Membership(user=user, project=project, role=Role.ANNOTATOR) for user in people
    )
    names = itertools.count()

    class Slots(RuleBasedStateMachine):
        """People who take, judge, skip, undo and stall in any order, with old tickets too.

        Every second task is gold or a repeat, and leads change what goes out first.
        """

        tickets: Bundle[Ticket] = Bundle("tickets")
        person = st.sampled_from(people)

        def __init__(self) -> None:
            super().__init__()
            self.campaign = make_campaign(
                items=ITEMS,
                responses=2,
                judgements_per_item=EACH,
                kind="pairwise",
                name=f"Run {next(names)}",
            )
            items = list(self.campaign.items.order_by("id"))
            for item in items[:2]:
                copy_item(item, role=ItemRole.GOLD, gold_answer={"ranking": [[1], [0]]})
            Campaign.objects.filter(pk=self.campaign.pk).update(
                gold_every=LEAST_EVERY, repeat_every=LEAST_EVERY, repeat_after=1
            )
            Response.objects.filter(item__campaign=self.campaign).update(
                source=Concat(Value("model "), F("position"), output_field=CharField())
            )
            self.campaign.refresh_from_db()
            self.acknowledged: dict[UUID, int] = {}
            self.retracted: set[int] = set()

        def slot(self, task: Task) -> Slot:
            return Slot.objects.get(pk=task.slot.pk)

        def is_held(self, task: Task, user: User) -> bool:
            slot = self.slot(task)
            held = (slot.state, slot.holder_id, slot.token)
            return held == ("leased", user.pk, task.slot.token)

        @rule(target=tickets, user=person)
        def take(self, user: User) -> Any:
            mine = Slot.objects.filter(campaign=self.campaign, holder=user)
            held = mine.filter(state="leased").first()
            done = set(mine.values_list("item_id", flat=True)) | set(
                Skip.objects.filter(annotator=user).values_list("item_id", flat=True)
            )
            task = claim(campaign=self.campaign, annotator=user)
            if task is None:
                free = Slot.objects.filter(campaign=self.campaign).exclude(item__in=done)
                free = free.filter(reserved_for=None) | free.filter(reserved_for=user)
                free_now = free.filter(state="open") | free.filter(lease_expires_at__lt=Now())
                assert held is None
                assert not free_now.exists(), "there was something to do"
                return multiple()
            assert self.is_held(task, user)
            if held is not None:
                assert (task.slot.pk, task.slot.token) == (held.pk, held.token)
            else:
                assert task.slot.item_id not in done
                last = Judgement.objects.filter(campaign=self.campaign, annotator=user).last()
                if last is not None and last.slot.role != "normal":
                    untouched = task.slot.token > 1  # given back in an undo, and taken up again
                    assert task.slot.role == "normal" or untouched
            return (task, user)

        @rule(ticket=tickets)
        def judge(self, ticket: Ticket) -> None:
            task, user = ticket
            held, known = self.is_held(task, user), task.client_id in self.acknowledged
            answer = Answer(ranking=[[response.pk] for response in task.responses])
            given = {"slot_id": task.slot.pk, "token": task.slot.token}
            try:
                stored = submit(**given, client_id=task.client_id, annotator=user, answer=answer)
            except Conflict:
                assert not held
                assert not known
                return
            assert held or known
            assert self.acknowledged.setdefault(task.client_id, stored.pk) == stored.pk

        @rule(ticket=tickets, reason=st.sampled_from(SkipReason))
        def skip(self, ticket: Ticket, reason: SkipReason) -> None:
            task, user = ticket
            held = self.is_held(task, user)
            try:
                skip(slot_id=task.slot.pk, token=task.slot.token, annotator=user, reason=reason)
            except Conflict:
                assert not held
                return
            assert held
            assert self.slot(task).state == "open"

        @rule(ticket=tickets)
        def renew(self, ticket: Ticket) -> None:
            task, user = ticket
            held = self.is_held(task, user)
            try:
                renew(slot_id=task.slot.pk, token=task.slot.token, annotator=user)
            except Conflict:
                assert not held
                return
            assert held

        @rule(ticket=tickets)
        def expire(self, ticket: Ticket) -> None:
            Slot.objects.filter(pk=ticket[0].slot.pk, state="leased").update(
                lease_expires_at=Now() - timedelta(seconds=1)
            )

        @rule(target=tickets, user=person)
        def undo(self, user: User) -> Any:
            own = Judgement.objects.standing().filter(campaign=self.campaign, annotator=user)
            last = own.order_by("-id").first()
            try:
                task = undo(campaign=self.campaign, annotator=user)
            except Conflict:
                assert last is None
                return multiple()
            assert last is not None
            assert task.slot.pk == last.slot_id
            self.retracted.add(last.pk)
            return (task, user)

        @rule(order=st.sampled_from(Campaign.Order), control=st.sampled_from([5, 50]))
        def reorder(self, order: Campaign.Order, control: int) -> None:
            self.campaign.queue_order, self.campaign.control_percent = order, control
            self.campaign.save(update_fields=["queue_order", "control_percent"])
            informative.rank(campaign_id=self.campaign.pk)
            if order != Campaign.Order.INFORMATIVE:
                free = Slot.objects.filter(campaign=self.campaign, state="open")
                assert not free.filter(gain__gt=0).exists()

        @invariant()
        def judgements_are_exact(self) -> None:
            rows = Judgement.objects.filter(campaign=self.campaign)
            standing = list(rows.standing().values_list("pk", "slot", "item", "annotator"))
            assert {row[0] for row in standing} == (
                set(self.acknowledged.values()) - self.retracted
            ), "what was acknowledged stands until it is undone"
            assert rows.count() == len(set(self.acknowledged.values()))
            normal = set(self.campaign.items.filter(role="normal").values_list("pk", flat=True))
            per_item = Counter(row[2] for row in standing if row[2] in normal)
            assert all(count <= EACH for count in per_item.values())
            assert len({(row[2], row[3]) for row in standing}) == len(standing)
            slots = list(Slot.objects.filter(campaign=self.campaign))
            filled = {(s.pk, s.item_id, s.holder_id) for s in slots if s.state == "filled"}
            assert filled == {row[1:] for row in standing}

        @invariant()
        def slots_are_whole(self) -> None:
            slots = list(Slot.objects.filter(campaign=self.campaign).select_related("item"))
            leases = Counter(slot.holder_id for slot in slots if slot.state == "leased")
            assert all(count == 1 for count in leases.values())
            for slot in slots:
                assert slot.role == slot.item.role
                assert (slot.role == "normal") == (slot.reserved_for_id is None)
            slots = [slot for slot in slots if slot.role == "normal"]
            for item in {slot.item_id for slot in slots}:
                orders = [tuple(slot.order) for slot in slots if slot.item_id == item]
                assert len(orders) == EACH
                assert abs(orders.count((0, 1)) - orders.count((1, 0))) <= 1

    run_state_machine_as_test(
        Slots,
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
