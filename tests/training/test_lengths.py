"""Lengths: flat memory, the same in any order, and a warning where longer answers were chosen."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from django.db.models import Min
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from accounts.models import Project, User
from feedback.models import Campaign, Response, text_digest
from tests.training.test_snapshots import judge_all, strict, take_snapshot
from training.lengths import Histogram, Lengths, Repeats, warning


@given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(1, 99), st.integers(1, 100))
def test_a_quantile_is_its_bin_within_three_percent(
    lengths: list[int], size: int, percent: int
) -> None:
    histogram = Histogram()
    for first in range(0, len(lengths), size):
        histogram.add(np.array(lengths[first : first + size], np.int64))
    exact = sorted(lengths)[-(-percent * len(lengths) // 100) - 1]
    assert exact - exact / 32 <= histogram.at(percent) <= exact
    if exact < 64:
        assert histogram.at(percent) == exact
    found = histogram.as_dict()
    assert found is not None
    assert (found["min"], found["max"]) == (min(lengths), max(lengths))


def test_bias_is_of_the_pairs_whose_lengths_differ() -> None:
    """Three of four that differ: 0.75; the leads 5, 1, 2, -1, 0 are 1.4 on average."""
    lengths = Lengths()
    lengths.add_prompts([10, 20, 30])
    lengths.add_answers(pa.array([9, 3, 4]), pa.array([4, 2, 2]))
    lengths.add_answers(pa.array([1, 8, 7]), pa.array([2, 8, None]))
    found = lengths.as_dict()
    bias = found["bias"]
    assert (bias["pairs"], bias["longer"], bias["shorter"], bias["share"]) == (5, 3, 1, 0.75)
    assert bias["mean_difference"] == 1.4
    assert bias["low"] < 0.5, "three prompts say little, however many rows they have"
    assert warning(bias) == ""
    assert warning(bias | {"low": 0.61}).startswith("The chosen answer is mostly the longer")
    assert warning(bias | {"low": 0.51, "share": 0.6}) == ""
    drawn = found["histogram"]
    assert drawn["from"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert drawn["chosen"] == [1, 0, 1, 1, 0, 0, 1, 2]
    assert Lengths().as_dict()["bias"] is None


def test_repeats_are_counted_in_full_for_a_fair_sample() -> None:
    prompts = [{text_digest(str(n)), text_digest(str(n % 70))} for n in range(500)]
    uses = Counter(answer for prompt in prompts for answer in prompt)
    for kept, shuffle in ((50, 1), (50, 2), (1000, 3)):
        repeats = Repeats(kept)
        for prompt in random.Random(shuffle).sample(prompts, len(prompts)):
            repeats.add(prompt)
        found = repeats.as_dict()
        expected = {one: uses[one] for one in sorted(uses)[:kept]}
        assert repeats.uses == expected
        assert found["repeated"] == sum(count for count in expected.values() if count > 1)
        assert found["sampled"] == (kept < len(uses))


def test_manifest_and_page_warn_where_longer_answers_were_chosen(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    lead: User,
    login: Callable[[User], Client],
) -> None:
    campaign = make_campaign(items=12, responses=2, judgements_per_item=1)
    Response.objects.update(text="A short one.")
    best = Response.objects.values("item").annotate(first=Min("pk")).values("first")
    Response.objects.filter(pk__in=best).update(text="A long answer, \N{EARTH GLOBE AMERICAS}.")
    judge_all(campaign, annotator, strict)
    snapshot = take_snapshot(project, campaign, heldout=0)
    manifest = json.loads((snapshot.folder / "manifest.json").read_text())
    train = manifest["lengths"]["train"]
    assert train["chosen"] == {
        "count": 12, "min": 17, "median": 17, "p95": 17, "max": 17, "mean": 17.0,
    }  # fmt: skip
    assert train["prompt"]["count"] == 12
    assert train["bias"]["mean_difference"] == 5
    assert manifest["lengths"]["heldout"]["chosen"] is None
    assert manifest["repeats"] == {"answers": 24, "repeated": 24, "share": 1.0, "sampled": False}
    page = login(lead).get(reverse("snapshot", args=[project.slug, snapshot.pk])).content.decode()
    assert "so a model may learn to write more instead of better" in page
    assert "Half of the chosen answers have up to 17 characters" in page
    assert 'aria-hidden="true"' in page
    assert "stand word for word under several prompts" in page
