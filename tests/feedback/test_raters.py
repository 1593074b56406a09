"""What levels on scales are worth: a simulated crowd of raters with known true levels."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable
from statistics import fmean

from django.test import Client
from django.urls import reverse

from accounts.models import User
from feedback import quality
from feedback.assignment import Answer, claim, submit
from feedback.models import Campaign
from feedback.raters import competence
from feedback.scales import Known, Rated, unvaried
from feedback.simulation import Profile, questions, rate_all, true_level
from tests.feedback.test_known_levels import badly, well
from tests.feedback.test_known_levels import rate_all as rate
from training.sources import competences

SCALES = {"tone": 5, "depth": 5}
CROWD = [
    *[Profile.HONEST] * 5,
    *[Profile.NOISY] * 3,
    *[Profile.SPAMMING] * 3,
    *[Profile.LAZY] * 2,
    Profile.LEFT_BIASED,
]


def crowd(seed: int) -> tuple[list[Rated], dict[str, int]]:
    """Return what the crowd gave, and the true level of every response."""
    items, preference, worth = questions(120, responses=2, seed=seed)
    rated = rate_all(items, crowd=CROWD, preference=preference, scales=SCALES, overlap=5, seed=seed)
    return rated, {str(one): true_level(value, 5) for one, value in worth.items()}


def test_it_tells_who_rates_by_the_answer() -> None:
    rated, _ = crowd(seed=1)
    found: dict[str, list[float]] = defaultdict(list)
    for name, knows in competence(rated, SCALES).items():
        found[name.partition(" ")[2]].append(knows)
    assert min(found[Profile.HONEST]) > 0.85
    assert max(found[Profile.SPAMMING]) < 0.35
    assert max(found[Profile.LAZY]) < 0.35, "always the same level"
    assert max(found[Profile.SPAMMING]) < min(found[Profile.NOISY]) < min(found[Profile.HONEST])
    assert found[Profile.LEFT_BIASED][0] < min(found[Profile.HONEST])


def test_it_names_who_gives_the_same_levels_throughout() -> None:
    for seed in range(5):
        rated, _ = crowd(seed)
        assert {name.partition(" ")[2] for name in unvaried(rated)} == {Profile.LAZY}
        assert len(unvaried(rated)) == 2
    lazy = [Rated(item, "a", {str(item): {"safe": 2}}) for item in range(40)]
    assert unvaried(lazy) == set(), "nobody to compare with"
    others = [Rated(item, "b", {str(item): {"safe": 2 - (item % 5 == 0)}}) for item in range(40)]
    assert unvaried([*lazy, *others]) == set(), "where nearly all deserves the same"


def test_weights_bring_the_mean_nearer_to_the_truth() -> None:
    for seed in range(2, 7):
        rated, truth = crowd(seed)
        knows = competence(rated, SCALES)
        errors: dict[str, list[float]] = defaultdict(list)
        given: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for one in rated:
            for response, levels in one.levels.items():
                given[str(response)].append((knows[one.annotator], levels["tone"]))
        for response, of in given.items():
            plain = fmean(level for _, level in of)
            weighted = sum(weight * level for weight, level in of) / sum(w for w, _ in of)
            errors["plain"].append(abs(plain - truth[response]))
            errors["weighted"].append(abs(weighted - truth[response]))
        assert fmean(errors["weighted"]) < 0.8 * fmean(errors["plain"])


def test_known_levels_outweigh_a_wrong_majority() -> None:
    def said(name: str, shift: int) -> list[Rated]:
        return [
            Rated(item, name, {str(item): {"tone": (item + shift) % 5 + 1}}) for item in range(30)
        ]

    rated = [*said("right", 0), *said("wrong", 2), *said("as wrong", 2)]
    known: dict[tuple[Hashable, str], Known] = {
        (str(item), "tone"): Known(item % 5 + 1, 0, 5) for item in range(20)
    }
    alone = competence(rated, {"tone": 5})
    taught = competence(rated, {"tone": 5}, known)
    assert alone["right"] < alone["wrong"]
    assert taught["right"] > 0.8 > 0.5 > taught["wrong"]


def test_nothing_is_said_of_those_whom_nobody_overlaps() -> None:
    rated = [Rated(1, "a", {"1": {"tone": 2}}), Rated(2, "b", {"2": {"tone": 4, "gone": 9}})]
    assert competence(rated, {"tone": 5}) == {}
    assert competence([], {"tone": 5}) == {}


def test_the_quality_page_weighs_raters_and_compares_them_with_themselves(
    make_campaign: Callable[..., Campaign],
    annotator: User,
    second_annotator: User,
    owner: User,
    lead: User,
    login: Callable[[User], Client],
) -> None:
    random.seed(5)
    asks = {"ratings": [{"label": "Tone", "levels": 5}, {"label": "Depth", "levels": 5}]}
    campaign = make_campaign(items=20, responses=2, judgements_per_item=3, kind="rating", asks=asks)
    campaign.repeat_every, campaign.repeat_after = 4, 3
    campaign.save()
    seen = rate(campaign, annotator, well)
    rate(campaign, owner, well)
    rate(campaign, second_annotator, badly)
    rows = {row.username: row for row in quality.report(campaign).rows}
    repeats = [task for task in seen if task["role"] == "repeat"]
    assert rows["anna"].consistency is not None
    assert (rows["anna"].consistency.value, rows["anna"].consistency.n) == (1, len(repeats))
    assert rows["anna"].weight is not None
    assert rows["ben"].weight is not None
    assert rows["anna"].weight > 0.9
    assert rows["ben"].weight < 0.5
    assert competences([campaign.pk])[str(annotator.pk)] > 0.9, "which snapshots weigh by"
    page = login(lead).get(reverse("campaign_quality", args=["support", campaign.pk]))
    assert f"{rows['ben'].weight:.2f}" in page.content.decode()
    assert "rates by the answer" in page.content.decode()


def test_a_thumb_is_compared_with_its_repeat(
    make_campaign: Callable[..., Campaign], annotator: User
) -> None:
    random.seed(2)
    campaign = make_campaign(items=12, responses=1, judgements_per_item=1, kind="thumbs")
    campaign.repeat_every, campaign.repeat_after = 4, 2
    campaign.save()
    repeats = 0
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        again = task.slot.role == "repeat"
        repeats += again
        submit(
            slot_id=task.slot.pk, token=task.slot.token, client_id=task.client_id,
            annotator=annotator, answer=Answer(thumb=-1 if again else 1),
        )  # fmt: skip
    [row] = quality.report(campaign).rows
    assert row.consistency is not None
    assert (row.consistency.value, row.consistency.n) == (0, repeats)
