"""The slot protocol: exactly N judgements for each item."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import IntegrityError, connections, transaction
from django.utils import timezone

from accounts.errors import Conflict, ProductError, TooLarge
from accounts.models import Membership, Project, Role, User
from feedback.assignment import (
    Answer,
    Task,
    claim,
    last_undoable,
    orders,
    renew,
    skip,
    submit,
    undo,
)
from feedback.models import Campaign, Judgement, Skip, SkipReason, Slot


def judge(task: Task, annotator: User) -> Judgement:
    """Submit the responses in the order shown."""
    return submit(
        slot_id=task.slot.pk,
        token=task.slot.token,
        client_id=task.client_id,
        annotator=annotator,
        answer=Answer(ranking=[[response.pk] for response in task.responses]),
    )


def expire(task: Task) -> None:
    Slot.objects.filter(pk=task.slot.pk).update(
        lease_expires_at=timezone.now() - timedelta(seconds=1)
    )


def claimed(campaign: Campaign, annotator: User) -> Task:
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    return task


def test_it_hands_out_every_item_once_to_one_annotator(campaign: Campaign, annotator: User) -> None:
    seen = []
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        seen.append(task.slot.item_id)
        judge(task, annotator)
    assert sorted(seen) == sorted(campaign.items.values_list("id", flat=True))


def test_it_gives_the_task_in_hand_again(campaign: Campaign, annotator: User) -> None:
    first, second = claimed(campaign, annotator), claimed(campaign, annotator)
    assert (first.slot.pk, first.slot.token) == (second.slot.pk, second.slot.token)
    assert first.client_id == second.client_id


def test_it_covers_every_item_before_it_doubles_any(
    campaign: Campaign, annotator: User, second_annotator: User
) -> None:
    items = []
    for who in (annotator, second_annotator, annotator):
        task = claimed(campaign, who)
        items.append(task.slot.item_id)
        judge(task, who)
    assert len(set(items)) == 3


def test_it_stores_the_order_that_was_shown(campaign: Campaign, annotator: User) -> None:
    task = claimed(campaign, annotator)
    stored = judge(task, annotator)
    assert stored.shown == [response.pk for response in task.responses]
    assert [response.position for response in task.responses] == task.slot.order


def test_it_balances_left_and_right_within_an_item() -> None:
    for item_id in range(50):
        first, second, third, fourth = orders(item_id=item_id, seed=1, responses=4, slots=4)
        assert second == first[::-1]
        assert fourth == third[::-1]
    left = Counter(orders(item_id=n, seed=1, responses=2, slots=1)[0][0] for n in range(2000))
    assert abs(left[0] - 1000) < 150


def test_it_answers_the_same_submission_twice_with_one_judgement(
    campaign: Campaign, annotator: User
) -> None:
    task = claimed(campaign, annotator)
    assert judge(task, annotator).pk == judge(task, annotator).pk
    assert Judgement.objects.count() == 1


def test_it_refuses_a_client_id_that_was_used_elsewhere(
    campaign: Campaign, annotator: User
) -> None:
    first = claimed(campaign, annotator)
    judge(first, annotator)
    second = claimed(campaign, annotator)
    with pytest.raises(Conflict, match="fresh UUID"):
        submit(
            slot_id=second.slot.pk,
            token=second.slot.token,
            client_id=first.client_id,
            annotator=annotator,
            answer=Answer(ranking=[[response.pk] for response in second.responses]),
        )
    assert Judgement.objects.count() == 1


def test_it_refuses_a_judgement_with_an_old_token(
    campaign: Campaign, annotator: User, second_annotator: User
) -> None:
    Slot.objects.exclude(pk=campaign.slots.first().pk).delete()  # type: ignore[union-attr]
    lost = claimed(campaign, annotator)
    expire(lost)
    found = claimed(campaign, second_annotator)
    assert found.slot.pk == lost.slot.pk
    assert found.slot.token > lost.slot.token
    with pytest.raises(Conflict, match="somebody else"):
        judge(lost, annotator)
    judge(found, second_annotator)
    assert Judgement.objects.get().annotator == second_annotator


def test_it_takes_a_late_judgement_when_nobody_else_has_the_task(
    campaign: Campaign, annotator: User
) -> None:
    task = claimed(campaign, annotator)
    expire(task)
    assert judge(task, annotator).pk


def test_it_renews_only_a_lease_that_is_held(
    campaign: Campaign, annotator: User, second_annotator: User
) -> None:
    task = claimed(campaign, annotator)
    expire(task)
    renew(slot_id=task.slot.pk, token=task.slot.token, annotator=annotator)
    task.slot.refresh_from_db()
    assert task.slot.lease_expires_at is not None
    assert task.slot.lease_expires_at > timezone.now() + timedelta(minutes=5)
    with pytest.raises(Conflict):
        renew(slot_id=task.slot.pk, token=task.slot.token, annotator=second_annotator)
    with pytest.raises(Conflict):
        renew(slot_id=task.slot.pk, token=task.slot.token + 1, annotator=annotator)


def test_it_does_not_bring_a_skipped_item_back(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User
) -> None:
    campaign = make_campaign(items=1, judgements_per_item=2)
    task = claimed(campaign, annotator)
    skip(
        slot_id=task.slot.pk,
        token=task.slot.token,
        annotator=annotator,
        reason=SkipReason.UNCLEAR,
    )
    assert claim(campaign=campaign, annotator=annotator) is None
    assert claimed(campaign, second_annotator).slot.item_id == task.slot.item_id
    assert Skip.objects.get().reason == "unclear"


def test_it_undoes_the_last_judgement_and_keeps_the_record(
    campaign: Campaign, annotator: User
) -> None:
    task = claimed(campaign, annotator)
    stored = judge(task, annotator)
    claimed(campaign, annotator)
    again = undo(campaign=campaign, annotator=annotator)
    assert again.slot.pk == task.slot.pk
    assert again.client_id != task.client_id
    stored.refresh_from_db()
    assert stored.retracted_at is not None
    corrected = judge(again, annotator)
    assert list(Judgement.objects.standing()) == [corrected]
    assert Slot.objects.filter(state=Slot.State.LEASED).count() == 0


def test_it_undoes_nothing_outside_the_window(
    campaign: Campaign, annotator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(claimed(campaign, annotator), annotator)
    assert last_undoable(campaign=campaign, annotator=annotator) is not None
    monkeypatch.setattr("feedback.assignment.UNDO_WINDOW", timedelta(0))
    assert last_undoable(campaign=campaign, annotator=annotator) is None
    with pytest.raises(Conflict, match="no judgement of yours"):
        undo(campaign=campaign, annotator=annotator)


def test_it_gives_nothing_while_a_campaign_is_paused(campaign: Campaign, annotator: User) -> None:
    task = claimed(campaign, annotator)
    Campaign.objects.update(state=Campaign.State.PAUSED)
    campaign.refresh_from_db()
    assert claimed(campaign, annotator).slot.pk == task.slot.pk, "what is in hand may be finished"
    judge(task, annotator)
    assert claim(campaign=campaign, annotator=annotator) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda ids: [[ids[0]], [ids[1]], [ids[2]]], "leaves out"),
        (lambda ids: [[ids[0]], [ids[0]], ids[1:]], "more than once"),
        (lambda ids: [ids, [999_999]], "does not have"),
        (lambda ids: [ids, []], "empty"),
        (lambda ids: None, "Send a “ranking”"),
    ],
)
def test_it_refuses_a_ranking_that_is_not_whole(
    campaign: Campaign,
    annotator: User,
    change: Callable[[list[int]], list[list[int]] | None],
    sentence: str,
) -> None:
    task = claimed(campaign, annotator)
    with pytest.raises(ProductError, match=sentence):
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=Answer(ranking=change([response.pk for response in task.responses])),
        )
    assert not Judgement.objects.exists()
    assert Slot.objects.get(pk=task.slot.pk).state == Slot.State.LEASED


def test_it_refuses_a_comment_that_is_too_long(campaign: Campaign, annotator: User) -> None:
    task = claimed(campaign, annotator)
    ranking = [[response.pk for response in task.responses]]
    with pytest.raises(TooLarge, match="Shorten it"):
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=Answer(ranking=ranking, comment="x" * 10_001),
        )
    assert not Judgement.objects.exists()


def test_the_database_refuses_two_slots_of_an_item_for_one_annotator(
    campaign: Campaign, annotator: User
) -> None:
    task = claimed(campaign, annotator)
    other = Slot.objects.filter(item=task.slot.item).exclude(pk=task.slot.pk).get()
    with pytest.raises(IntegrityError), transaction.atomic():
        Slot.objects.filter(pk=other.pk).update(state=Slot.State.FILLED, holder=annotator)


def test_the_database_refuses_to_edit_a_judgement(campaign: Campaign, annotator: User) -> None:
    stored = judge(claimed(campaign, annotator), annotator)
    with pytest.raises(IntegrityError, match="never edited"), transaction.atomic():
        Judgement.objects.filter(pk=stored.pk).update(ranking=[[1]])


@pytest.mark.django_db(transaction=True)
def test_it_never_hands_out_or_fills_a_slot_twice_under_a_race(
    make_campaign: Callable[..., Campaign], project: Project
) -> None:
    campaign = make_campaign(items=12, responses=2, judgements_per_item=3, kind="pairwise")
    people = User.objects.bulk_create(User(username=f"racer-{n}") for n in range(12))
    Membership.objects.bulk_create(
        Membership(user=user, project=project, role=Role.ANNOTATOR) for user in people
    )
    held: set[int] = set()
    doubled: list[int] = []
    lock = threading.Lock()

    def work(user: User) -> None:
        try:
            while (task := claim(campaign=campaign, annotator=user)) is not None:
                with lock:
                    if task.slot.pk in held:
                        doubled.append(task.slot.pk)
                    held.add(task.slot.pk)
                judge(task, user)
                judge(task, user)  # a double click
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(people)) as threads:
        list(threads.map(work, people))
    # Whoever found all open slots locked for a moment may have left early: finish alone.
    for user in people:
        work(user)
    assert doubled == []
    per_item = Counter(Judgement.objects.values_list("item_id", flat=True))
    assert set(per_item.values()) == {3}
    assert len(per_item) == 12
    assert Judgement.objects.count() == len(set(Judgement.objects.values_list("slot", flat=True)))


def test_it_stores_a_retry_with_another_content_once(campaign: Campaign, annotator: User) -> None:
    task = claimed(campaign, annotator)
    first = judge(task, annotator)
    reverse = [[response.pk] for response in reversed(task.responses)]
    second = submit(
        slot_id=task.slot.pk,
        token=task.slot.token,
        client_id=task.client_id,
        annotator=annotator,
        answer=Answer(ranking=reverse),
    )
    assert second.pk == first.pk
    assert second.ranking == first.ranking


def test_it_refuses_another_judgement_for_a_filled_slot(
    campaign: Campaign, annotator: User
) -> None:
    task = claimed(campaign, annotator)
    judge(task, annotator)
    with pytest.raises(Conflict, match="already judged"):
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=uuid.uuid4(),
            annotator=annotator,
            answer=Answer(ranking=[[response.pk] for response in task.responses]),
        )
