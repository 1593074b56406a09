"""Known and decided levels of rating campaigns: what leads say, and what follows from it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import ProductError
from accounts.models import User
from feedback import adjudication, gold, pauses, quality
from feedback.agreement import Judged
from feedback.assignment import Answer, claim, submit
from feedback.models import Campaign, Judgement, Pause, Response
from feedback.scales import Graded, Known, Rated, grade, right_on_gold
from feedback.trust import FALSE_ALARM, assess, graded_step

Login = Callable[[User], Client]
Connect = Callable[..., APIClient]
# What the texts of make_campaign deserve, by position.
RIGHT = {0: {"tone": 5, "depth": 2}, 1: {"tone": 1, "depth": 4}}


def well(response: Response) -> Mapping[str, int]:
    return RIGHT[response.position]


def badly(response: Response) -> Mapping[str, int]:
    return {"tone": 3, "depth": 3}


@pytest.fixture
def rating(make_campaign: Callable[..., Campaign]) -> Campaign:
    """Return sixteen items of two responses to rate for tone and depth, two judgements each."""
    asks = {"ratings": [{"label": "Tone", "levels": 5}, {"label": "Depth", "levels": 5}]}
    return make_campaign(items=16, responses=2, kind="rating", asks=asks)


def rate_all(
    campaign: Campaign, annotator: User, how: Callable[[Response], Mapping[str, int]]
) -> list[dict[str, Any]]:
    """Judge until nothing is left; return how the tasks looked."""
    seen = []
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        seen.append({"role": str(task.slot.role), "responses": len(task.responses)})
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=Answer(ratings={one.pk: how(one) for one in task.responses}),
        )
    return seen


def test_a_guess_meets_a_known_level_by_its_share_of_the_scale() -> None:
    assert Known(3, 1, 5).chance == pytest.approx(3 / 5)
    assert Known(5, 1, 5).chance == pytest.approx(2 / 5), "nothing lies above the end"
    rated = [Rated(7, "a", {"1": {"tone": 4}, "2": {"tone": 1}}), Rated(8, "a", {"3": {"tone": 1}})]
    found = grade(rated, {("1", "tone"): Known(5, 1, 5), ("2", "tone"): Known(5, 1, 5)})
    assert found == [Graded(7, "a", ((True, 2 / 5), (False, 2 / 5)))]
    share = right_on_gold(found)["a"]
    assert (share.value, share.n) == (0.5, 1)
    # Met: 0.4 / 0.92; missed: 0.6 / 0.08. Their mean is (0.43478 + 7.5) / 2 = 3.96739.
    assert graded_step(found[0].hits) == pytest.approx(math.log(3.96739), rel=1e-5)


def test_the_stated_rate_holds_for_the_acceptable_and_guessers_are_caught() -> None:
    # Six levels an item that hang together as far as can be: all are met, or none is.
    def crowd(right: float, seed: int) -> bool:
        chooser = random.Random(seed)
        hits = [chooser.random() < right for _ in range(30)]
        graded = [Graded(item, "a", ((hit, 0.4),) * 6) for item, hit in enumerate(hits)]
        judged = [Judged(item, "a", (1, 2)) for item in range(len(hits))]
        [standing] = assess(judged, graded=graded)
        return bool(standing.flags)

    assert sum(crowd(0.92, seed) for seed in range(1000)) / 1000 <= FALSE_ALARM / 2
    assert sum(crowd(0.4, seed) for seed in range(200)) / 200 > 0.99


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({}, "by position and scale"),
        ({"ratings": {"0": {}}}, "at least one scale"),
        ({"ratings": [4]}, "by position and scale"),
        ({"ratings": {"2": {"tone": 4}}}, "no response at position 2"),
        ({"ratings": {"0": {"wit": 4}}}, "no scale “wit”"),
        ({"ratings": {"0": {"tone": 6}}}, "from 1 to 5"),
        ({"ratings": {"0": {"tone": True}}}, "from 1 to 5"),
        ({"ratings": {"0": {"tone": 3}}, "within": 2}, "nobody could be wrong"),
        ({"ratings": {"0": {"tone": 3}}, "within": -1}, "levels off"),
    ],
)
def test_it_refuses_what_nobody_could_miss(
    rating: Campaign, answer: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ProductError, match=sentence):
        gold.check_gold(rating, answer, 2)


def test_known_levels_look_like_any_task_and_grade_everybody(
    rating: Campaign, api: Connect, annotator: User, second_annotator: User, lead: User
) -> None:
    random.seed(3)
    address = f"/api/campaigns/{rating.pk}/gold"
    for number in range(8):
        sent = {
            "prompt": f"Clear {number}?",
            "responses": ["Yes, because.", "No."],
            "answer": {"ratings": {"0": {"tone": 5}, "1": {"tone": 1, "depth": 4}}},
        }
        made = api(lead).post(address, sent, format="json")
        assert made.status_code == 201
    assert made.json()["gold_answer"]["within"] == gold.WITHIN
    assert api(annotator).get(address).status_code == 403
    Campaign.objects.filter(pk=rating.pk).update(gold_every=4, trust=Campaign.Trust.PAUSE)
    rating.refresh_from_db()
    seen = rate_all(rating, annotator, well)
    rate_all(rating, second_annotator, badly)
    assert {task["responses"] for task in seen if task["role"] == "gold"} == {2}
    rows = {row.username: row for row in quality.report(rating).rows}
    assert rows["anna"].gold is not None
    assert rows["anna"].gold.value == 1
    assert rows["ben"].gold is not None
    assert rows["ben"].gold.value == pytest.approx(1 / 3), "of depth, 3 is near enough to 4"
    assert rows["ben"].flags == ("no better than chance", "same levels throughout")
    assert rows["anna"].flags == ()
    own = api(annotator).get("/api/judgements/?mine=1").content.decode()
    assert "gold" not in own
    assert pauses.watch_campaigns() == 1
    pause = Pause.objects.get()
    assert pause.annotator == second_annotator
    pauses.lift(paused=pause, by=lead, why="We talked about depth.")
    Campaign.objects.update(tested_to=0)
    assert pauses.watch_campaigns() == 0, "what was forgiven does not count again"


def test_a_lead_decides_levels_by_rest(rating: Campaign, api: Connect, lead: User) -> None:
    item = rating.items.order_by("id")[0]
    address = f"/api/items/{item.pk}/decisions"
    sent = {"ratings": {"1": {"tone": 2}}, "why": "It shouts."}
    made = api(lead).post(address, sent, format="json")
    assert (made.status_code, made.json()["answer"]) == (201, {"ratings": {"1": {"tone": 2}}})
    wrong = sent | {"ratings": {"1": {"tone": 9}}}
    assert "from 1 to 5" in api(lead).post(address, wrong, format="json").json()["message"]
    sent = {"ratings": {"1": {"tone": 2}}, "within": 0}
    made = api(lead).post(f"/api/items/{item.pk}/gold", sent, format="json")
    assert made.json()["gold_answer"] == sent
    changed = api(lead).post(
        f"/api/items/{made.json()['id']}/gold", sent | {"within": 1}, format="json"
    )
    assert changed.json()["gold_answer"]["within"] == 1


def test_a_lead_decides_levels_and_makes_them_gold(
    rating: Campaign, login: Login, annotator: User, second_annotator: User, lead: User
) -> None:
    rate_all(rating, annotator, well)
    rate_all(rating, second_annotator, badly)
    before = list(Judgement.objects.values())
    item = rating.items.order_by("id")[0]
    page = reverse("campaign_item", args=[rating.project.slug, rating.pk, item.pk])
    shown = login(lead).get(page).content.decode()
    assert "A: Tone 5, Depth 2<br>B: Tone 1, Depth 4" in shown
    form = {"act": "decide", "level-0-tone": "4", "level-1-depth": "5"}
    refused = login(lead).post(page, form)
    assert refused.status_code == 400
    assert '<option value="4" selected>' in refused.content.decode(), "what was chosen stays"
    assert login(lead).post(page, form | {"why": "It quotes."}).status_code == 302
    assert "A: Tone 4; B: Depth 5" in login(lead).get(page).content.decode()
    ids = dict(item.responses.values_list("position", "pk"))
    assert adjudication.decided_responses([rating.pk]) == {
        item.pk: {"ratings": {ids[0]: {"tone": 4}, ids[1]: {"depth": 5}}}
    }
    assert list(Judgement.objects.values()) == before
    wide = login(lead).post(page, {"act": "gold", "level-0-tone": "3", "within": "2"})
    assert "nobody could be wrong" in wide.content.decode()
    assert login(lead).post(page, form | {"act": "gold", "within": "0"}).status_code == 302
    golden = rating.items.get(role="gold")
    assert golden.gold_answer == {
        "ratings": {"0": {"tone": 4}, "1": {"depth": 5}}, "within": 0,
    }  # fmt: skip
    checks = login(lead).get(reverse("campaign_checks", args=[rating.project.slug, rating.pk]))
    assert "A: Tone 4; B: Depth 5" in checks.content.decode()
    again = reverse("campaign_item", args=[rating.project.slug, rating.pk, golden.pk])
    assert '<option value="4" selected>' in login(lead).get(again).content.decode()
