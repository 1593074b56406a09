"""Simulated crowds with known truth, and what the quality layer catches of them."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from io import StringIO
from typing import Any

import httpx
import pytest
from django.core.management import CommandError, call_command

from accounts.models import Membership, Role
from feedback import trust
from feedback.agreement import left_lean, verdicts
from feedback.extras import define
from feedback.models import Campaign, Judgement
from feedback.simulation import (
    Annotator,
    Profile,
    Question,
    answer,
    judge_all,
    judge_checked,
    questions,
)

WITHIN = 60
CROWD = [
    *[Profile.HONEST] * 12,
    *[Profile.NOISY] * 2,
    *[Profile.SPAMMING] * 2,
    *[Profile.LAZY] * 2,
    *[Profile.LEFT_BIASED] * 2,
]
BAD = {Profile.SPAMMING, Profile.LAZY, Profile.LEFT_BIASED}


def by_length(prompt: str, text: str) -> float:
    return -float(len(text))


def says(profile: Profile, seed: int = 0, **changes: Any) -> dict[str, Any]:
    task = {
        "kind": "ranking",
        "prompt": "Why?",
        "shown": [(4, "long long long"), (2, "short"), (9, "longer text")],
        "preference": by_length,
        "noise": 0.0,
    }
    return answer(**task | changes, profile=profile, chooser=random.Random(seed))


def test_the_honest_rank_by_their_preference() -> None:
    assert says(Profile.HONEST)["ranking"] == [[2], [9], [4]]


def test_the_lazy_never_reorder() -> None:
    assert {str(says(Profile.LAZY, seed)["ranking"]) for seed in range(20)} == {"[[4], [2], [9]]"}


def test_the_left_biased_take_the_leftmost_and_rank_the_rest_honestly() -> None:
    seen = Counter(str(says(Profile.LEFT_BIASED, seed)["ranking"]) for seed in range(300))
    assert set(seen) == {"[[4], [2], [9]]", "[[2], [9], [4]]"}
    assert 0.6 < seen["[[4], [2], [9]]"] / 300 < 0.8


def test_the_spamming_answer_anything_and_fast() -> None:
    assert len({str(says(Profile.SPAMMING, seed)["ranking"]) for seed in range(60)}) == 6
    assert max(says(Profile.SPAMMING, seed)["seconds"] for seed in range(60)) <= 3


def test_the_colluding_answer_alike_whoever_they_are() -> None:
    assert says(Profile.COLLUDING, 1)["ranking"] == says(Profile.COLLUDING, 2)["ranking"]
    by_prompt = {str(says(Profile.COLLUDING, prompt=str(n))["ranking"]) for n in range(60)}
    assert len(by_prompt) >= 6


@pytest.mark.parametrize("profile", Profile)
def test_every_profile_answers_thumbs(profile: Profile) -> None:
    said = says(profile, kind="thumbs", shown=[(1, "text")])
    assert said["thumb"] in (1, -1)
    assert "ranking" not in said


def test_it_deals_items_evenly_and_balances_sides() -> None:
    items, preference, _ = questions(40, responses=2, seed=1)
    judged = judge_all(items, crowd=[Profile.HONEST] * 8, preference=preference, overlap=2)
    assert set(Counter(one.annotator for one in judged).values()) == {10}
    shown = defaultdict(list)
    for one in judged:
        shown[one.item].append(one.shown)
    assert all(first == second[::-1] for first, second in shown.values())


def test_it_is_the_same_crowd_for_the_same_seed() -> None:
    items, preference, _ = questions(20, responses=3, seed=1)

    def run(seed: int) -> list[Any]:
        return judge_all(items, crowd=CROWD, preference=preference, seed=seed)

    assert run(3) == run(3) != run(4)


@pytest.mark.parametrize("responses", [2, 4])
def test_it_flags_bad_annotators_and_spares_good_ones(responses: int) -> None:
    # Flags of position and competence alone: how fast somebody is would be told by construction.
    seen: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    for seed in range(24):
        items, preference, _ = questions(WITHIN * len(CROWD) // 3, responses=responses, seed=seed)
        judged = judge_all(items, crowd=CROWD, preference=preference, seed=seed)
        assert max(Counter(one.annotator for one in judged).values()) <= WITHIN
        for standing in trust.assess(judged):
            profile = standing.annotator.partition(" ")[2]
            seen[profile] += 1
            flagged[profile] += bool(standing.flags)
    rates = {profile: flagged[profile] / seen[profile] for profile in seen}
    assert all(rates[profile] >= 0.9 for profile in BAD), rates
    assert rates[Profile.HONEST] <= 0.05, rates
    assert rates[Profile.NOISY] <= 0.05, rates


@pytest.mark.parametrize(
    ("overlap", "gold_every", "repeat_every", "crowd", "noisy"),
    # Where nobody else judges an item, gold and repeats are all that tells, so more is asked: of
    # more guessers, for a share near nine in ten wants counting. The noisy get five in
    # six of the gold right, the acceptable nine in ten, so the test makes them no promise.
    [
        (3, 10, 0, CROWD, 0.05),
        (2, 10, 0, CROWD, 0.05),
        (1, 4, 6, [*CROWD, *[Profile.SPAMMING] * 6], 0.15),
    ],
)
def test_gold_repeats_and_agreement_find_bad_annotators_and_spare_good_ones(
    overlap: int, gold_every: int, repeat_every: int, crowd: list[Profile], noisy: float
) -> None:
    seen: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    for seed in range(24):
        checked = judge_checked(
            crowd=crowd, each=WITHIN, responses=2, overlap=overlap,
            gold_every=gold_every, repeat_every=repeat_every, seed=seed,
        )  # fmt: skip
        assert set(Counter(one.annotator for one in checked.judged).values()) == {WITHIN}
        for standing in trust.assess(checked.judged, known=checked.known, again=checked.again):
            profile = standing.annotator.partition(" ")[2]
            seen[profile] += 1
            flagged[profile] += bool(standing.flags)
    rates = {profile: flagged[profile] / seen[profile] for profile in seen}
    assert all(rates[profile] >= 0.9 for profile in BAD), rates
    good = seen.keys() - BAD
    assert sum(flagged[one] for one in good) / sum(seen[one] for one in good) <= 0.05, rates
    assert rates[Profile.HONEST] <= 0.02, rates
    assert rates[Profile.NOISY] <= noisy, rates


def test_repeats_come_a_while_later_with_their_sides_swapped() -> None:
    checked = judge_checked(
        crowd=CROWD, each=WITHIN, responses=3, overlap=1, gold_every=5, repeat_every=5
    )
    for name in {one.annotator for one in checked.judged}:
        own = [one for one in checked.judged if one.annotator == name]
        place = {one.item: index for index, one in enumerate(own)}
        again = [one for one in own if (name, one.item) in checked.again]
        for one in again:
            first = own[place[-1 - one.item]]
            assert place[one.item] - place[first.item] > 20
            assert [-1 - shown for shown in one.shown] == list(first.shown[::-1])
        assert len(place) == WITHIN, "nothing comes twice under one name"
    honest = [alike for (name, _), alike in checked.again.items() if "honest" in name]
    lazy = [alike for (name, _), alike in checked.again.items() if "lazy" in name]
    assert sum(honest) / len(honest) > 0.9
    assert set(lazy) == {0}


def test_it_spares_everybody_where_the_task_is_hard() -> None:
    flagged = total = 0
    for seed in range(20):
        items, preference, _ = questions(200, responses=2, seed=seed)
        crowd = [Profile.HONEST] * 10
        # Scale 2.5: right in seven of ten, which is how often people agree on real answers.
        judged = judge_all(items, crowd=crowd, preference=preference, noise=2.5, seed=seed)
        flagged += sum(bool(one.flags) for one in trust.assess(judged))
        total += len(crowd)
    assert flagged / total <= 0.05


def test_its_weights_beat_majority_vote_on_a_noisy_crowd() -> None:
    crowd = [
        *[Profile.HONEST] * 5,
        *[Profile.NOISY] * 3,
        *[Profile.SPAMMING] * 4,
        *[Profile.LAZY] * 2,
        Profile.LEFT_BIASED,
    ]
    gains = []
    for seed in range(10):
        items, preference, worth = questions(200, responses=2, seed=seed)
        found = verdicts(
            judge_all(items, crowd=crowd, preference=preference, overlap=5, noise=0.6, seed=seed)
        )
        model, votes = trust.competence(found), trust.majority(found)
        truth = {one.unit: 1 if worth[one.unit[0]] > worth[one.unit[1]] else -1 for one in found}
        weighted = sum(model.label(unit) == value for unit, value in truth.items()) / len(truth)
        plain = sum(votes[unit] == value for unit, value in truth.items()) / len(truth)
        gains.append(weighted - plain)
    assert min(gains) > 0, gains


def test_it_shows_the_left_lean_of_the_left_biased() -> None:
    items, preference, _ = questions(600, responses=4, seed=0)
    leans = left_lean(judge_all(items, crowd=CROWD, preference=preference))
    for name, lean in leans.items():
        leaning = name.partition(" ")[2] in (Profile.LEFT_BIASED, Profile.LAZY)
        assert (lean.low > 0.5) == leaning, name
    assert isinstance(items[0], Question)


# Over HTTP


def simulate(campaign: Campaign, url: str, **options: Any) -> str:
    out = StringIO()
    call_command("simulate", campaign=campaign.pk, url=url, stdout=out, **options)
    return out.getvalue()


@pytest.mark.django_db(transaction=True)
def test_it_sends_simulated_annotators_over_http(live_server: Any, campaign: Campaign) -> None:
    said = simulate(campaign, live_server.url, profile="lazy", annotators=2)
    judged = Judgement.objects.standing().filter(campaign=campaign)
    assert judged.count() == 6
    assert all(one.ranking == [[shown] for shown in one.shown] for one in judged)
    assert all(one.seconds for one in judged)
    names = set(judged.values_list("annotator__username", flat=True))
    assert names == {"sim-lazy-1", "sim-lazy-2"}
    roles = Membership.objects.filter(user__username__in=names).values_list("role", flat=True)
    assert set(roles) == {Role.ANNOTATOR}
    assert "6 judgements" in said


@pytest.mark.django_db(transaction=True)
def test_it_answers_all_that_a_campaign_asks(
    live_server: Any, make_campaign: Callable[..., Campaign]
) -> None:
    asks = {
        "preset": "helpsteer",
        "safety": ["Safe", "Unsafe"],
        "rationale": "required",
        "correction": "required",
    }
    for number in (1, 3):
        campaign = make_campaign(kind="rating", responses=number, asks=asks, name=f"R{number}")
        simulate(campaign, live_server.url, profile="honest", annotators=2)
        assert campaign.judgements.count() == 6
    levels = {
        level["helpfulness"] for one in campaign.judgements.all() for level in one.ratings.values()
    }
    assert levels == {5}, "equal texts are equally good"


@pytest.mark.django_db(transaction=True)
def test_it_stops_after_as_many_as_asked(live_server: Any, campaign: Campaign) -> None:
    simulate(campaign, live_server.url, profile="spamming", annotators=1, judgements=2)
    assert Judgement.objects.count() == 2
    assert campaign.slots.filter(state="leased").count() == 0


def test_it_says_the_same_again_in_whatever_order_tasks_arrive() -> None:
    texts = {number: "w" * number for number in range(1, 6)}
    tasks = [
        {
            "kind": "ranking",
            "extras": define({}).as_dict(),
            "messages": [{"role": "user", "content": f"question {number}"}],
            "responses": [{"id": one, "text": text} for one, text in texts.items()],
        }
        for number in range(20)
    ]
    turned = [task | {"responses": task["responses"][::-1]} for task in reversed(tasks)]

    def rankings(tasks: list[dict[str, Any]]) -> list[Any]:
        annotator = Annotator("sim", httpx.Client(), 1, lambda _, text: -len(text), noise=1.0)
        return [annotator.answer(task)["ranking"] for task in tasks]

    assert rankings(tasks) == rankings(turned)[::-1]
    assert len({str(ranking) for ranking in rankings(tasks)}) > 5
    assert rankings(tasks) != rankings(tasks + tasks)[len(tasks) :]


def test_it_names_what_it_cannot_find(db: None, campaign: Campaign) -> None:
    with pytest.raises(CommandError, match="no campaign 0"):
        call_command("simulate", campaign=0, url="http://127.0.0.1:9")
    with pytest.raises(CommandError, match="module:function"):
        call_command("simulate", campaign=campaign.pk, preference="nonsense")
