"""Gold set by leads, disputes decided, and annotators paused by the trust test."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import Conflict, ProductError
from accounts.models import AuditEntry, User
from feedback import adjudication, gold, pauses, quality
from feedback.assignment import Answer, claim, submit
from feedback.models import Campaign, Decision, Item, ItemRole, Judgement, Pause, Slot
from feedback.probes import plant_gold

Login = Callable[[User], Client]
Connect = Callable[..., APIClient]


@pytest.fixture
def pairs(make_campaign: Callable[..., Campaign]) -> Campaign:
    """Return an open campaign of forty pairs, three judgements each."""
    return make_campaign(items=40, responses=2, judgements_per_item=3, kind="pairwise")


def judge(
    campaign: Campaign, annotator: User, how: Callable[[list[Any]], list[Any]], most: int = 1000
) -> int:
    """Judge until nothing is left; ``how`` puts the responses in order, best first."""
    done = 0
    while done < most and (task := claim(campaign=campaign, annotator=annotator)) is not None:
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=Answer(ranking=[[one.pk] for one in how(task.responses)]),
        )
        done += 1
    return done


def well(responses: list[Any]) -> list[Any]:
    return sorted(responses, key=lambda one: one.position)


def badly(responses: list[Any]) -> list[Any]:
    return random.sample(responses, len(responses))


def test_a_lead_makes_a_disputed_item_gold(
    pairs: Campaign, api: Connect, annotator: User, second_annotator: User, lead: User
) -> None:
    item = pairs.items.order_by("id")[0]
    address = f"/api/items/{item.pk}/gold"
    assert api(annotator).post(address, {"ranking": [[1], [0]]}, format="json").status_code == 403
    refused = api(lead).post(address, {"ranking": [[0, 1]]}, format="json")
    assert (refused.status_code, "tell" in refused.json()["message"]) == (400, True)
    made = api(lead).post(address, {"ranking": [[1], [0]]}, format="json").json()
    copy = Item.objects.get(pk=made["id"])
    assert (copy.role, copy.repeat_of_id, copy.gold_answer) == (
        "gold",
        item.pk,
        {"ranking": [[1], [0]]},
    )
    assert [one.text for one in copy.responses.all()] == [one.text for one in item.responses.all()]
    assert api(lead).post(address, {"ranking": [[1], [0]]}, format="json").status_code == 409
    # A new answer holds at once, for what was judged before, too.
    (unit,) = gold.known_truths(pairs)
    before = gold.known_truths(pairs)[unit]
    api(lead).post(f"/api/items/{copy.pk}/gold", {"ranking": [[0], [1]]}, format="json")
    assert gold.known_truths(pairs)[unit] == -before
    assert AuditEntry.objects.filter(action__startswith="gold.").count() == 2


def test_it_grades_everybody_on_gold_of_the_leads_own(
    pairs: Campaign, api: Connect, annotator: User, second_annotator: User, lead: User
) -> None:
    clear = {
        "prompt": "Clear?",
        "responses": ["Yes.", "No."],
        "answer": {"ranking": [[0], [1]]},
    }
    address = f"/api/campaigns/{pairs.pk}/gold"
    assert api(lead).post(address, clear, format="json").status_code == 201
    checks = {"gold_every": 4, "repeat_every": 0, "repeat_after": 20, "trust": "flag"}
    address = f"/api/campaigns/{pairs.pk}/checks"
    assert api(lead).post(address, checks | {"gold_every": 2}, format="json").status_code == 400
    assert api(lead).post(address, checks, format="json").json() == checks
    pairs.refresh_from_db()
    for user, how in ((annotator, well), (second_annotator, lambda r: well(r)[::-1])):
        judge(pairs, user, how)
    rows = {row.username: row for row in quality.report(pairs).rows}
    right, wrong = rows["anna"].gold, rows["ben"].gold
    assert right is not None
    assert wrong is not None
    assert (right.value, right.n, wrong.value, wrong.n) == (1, 1, 0, 1)


def test_a_decision_is_a_row_of_its_own_that_stands_as_the_label(
    pairs: Campaign, login: Login, annotator: User, second_annotator: User, lead: User
) -> None:
    judge(pairs, annotator, well)
    judge(pairs, second_annotator, lambda responses: well(responses)[::-1])
    before = list(Judgement.objects.values())
    item = pairs.items.order_by("id")[0]
    page = reverse("campaign_item", args=[pairs.project.slug, pairs.pk, item.pk])
    assert login(annotator).get(page).status_code == 403
    shown = login(lead).get(page).content.decode()
    assert "A &gt; B" in shown
    assert "B &gt; A" in shown
    form = {"act": "decide", "place-0": "2", "place-1": "1"}
    refused = login(lead).post(page, form)
    assert refused.status_code == 400
    assert "Say why" in refused.content.decode()
    assert login(lead).post(page, form | {"why": "B names the source."}).status_code == 302
    assert "B names the source." in login(lead).get(page).content.decode()
    first, second = sorted(item.responses.all(), key=lambda one: one.pk)
    assert adjudication.decided_truths(pairs) == {
        (first.pk, second.pk): 1 if first.position == 1 else -1
    }
    assert list(Judgement.objects.values()) == before
    with pytest.raises(IntegrityError), transaction.atomic():
        Decision.objects.update(why="changed")
    adjudication.decide(item=item, answer={"ranking": [[0], [1]]}, why="On reflection.", by=lead)
    assert adjudication.decided_answers(pairs) == {item.pk: {"ranking": [[0], [1]]}}
    assert Decision.objects.filter(item=item).count() == 2


def test_the_trust_test_pauses_whom_it_finds_and_a_lead_lifts_it(
    pairs: Campaign,
    login: Login,
    api: Connect,
    annotator: User,
    second_annotator: User,
    lead: User,
) -> None:
    random.seed(11)
    Campaign.objects.filter(pk=pairs.pk).update(trust=Campaign.Trust.PAUSE)
    pairs.refresh_from_db()
    judge(pairs, annotator, well)
    judge(pairs, lead, well)
    # Turned round, so that the test has all it needs within forty.
    judge(pairs, second_annotator, lambda responses: well(responses)[::-1], most=38)
    assert claim(campaign=pairs, annotator=second_annotator) is not None
    assert pauses.watch_campaigns() == 1
    assert pauses.watch_campaigns() == 0, "nothing new to look at"
    pause = Pause.objects.get()
    assert (pause.annotator, pause.started_by) == (second_annotator, None)
    assert pause.figures["flags"] == ["no better than chance"]
    assert not Slot.objects.filter(holder=second_annotator, state="leased").exists()
    assert claim(campaign=pairs, annotator=second_annotator) is None
    answer = api(second_annotator).post(f"/api/campaigns/{pairs.pk}/next")
    assert answer.status_code == 409
    page = login(second_annotator).get(reverse("task", args=[pairs.project.slug, pairs.pk]))
    assert "What you judged is stored" in page.content.decode()

    with pytest.raises(ProductError):
        pauses.lift(paused=pause, by=lead, why=" ")
    lift = {"pause": pause.pk, "why": "They read the prompt the other way round."}
    address = reverse("pause_lift", args=[pairs.project.slug, pairs.pk])
    assert login(annotator).post(address, lift).status_code == 403
    assert login(lead).post(address, lift).status_code == 302
    with pytest.raises(Conflict):
        pauses.lift(paused=pause, by=lead, why="Again.")
    assert claim(campaign=pairs, annotator=second_annotator) is not None
    # What was judged before no longer counts: the test does not pause them again at once.
    assert len(pauses.forgiven(pairs)) == 38
    Campaign.objects.update(tested_to=0)
    assert pauses.watch_campaigns() == 0
    checks = login(lead).get(reverse("campaign_checks", args=[pairs.project.slug, pairs.pk]))
    assert "They read the prompt the other way round." in checks.content.decode()


def test_it_names_who_contradicts_themselves_where_nobody_else_judged(
    pairs: Campaign, second_annotator: User
) -> None:
    random.seed(4)
    pairs.repeat_every, pairs.repeat_after, pairs.trust = 4, 1, Campaign.Trust.PAUSE
    pairs.save()
    while (task := claim(campaign=pairs, annotator=second_annotator)) is not None:
        again = task.slot.role == ItemRole.REPEAT
        order = well(task.responses)[:: -1 if again else 1]
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=second_annotator,
            answer=Answer(ranking=[[one.pk] for one in order]),
        )
    [row] = quality.report(pairs).rows
    assert row.consistency is not None
    assert row.consistency.value == 0
    assert row.flags == ("no better than chance",)
    assert pauses.watch_campaigns() == 1
    assert Pause.objects.get().annotator == second_annotator


def test_a_campaign_that_only_flags_pauses_nobody(pairs: Campaign, annotator: User) -> None:
    judge(pairs, annotator, lambda responses: responses)
    assert "never reorders" in quality.report(pairs).rows[0].flags
    assert pauses.watch_campaigns() == 0


def test_a_paused_annotator_meets_no_gold_either(
    pairs: Campaign, annotator: User, lead: User
) -> None:
    gold.make_gold(item=pairs.items.all()[0], answer={"ranking": [[0], [1]]}, by=lead)
    pauses.pause(campaign=pairs, annotator=annotator, why="Needs a rest.", by=lead)
    assert not plant_gold(campaign=pairs, annotator=annotator)
    assert not Slot.objects.filter(role=ItemRole.GOLD).exists()
    with pytest.raises(Conflict):
        pauses.pause(campaign=pairs, annotator=annotator, why="Twice.", by=lead)
