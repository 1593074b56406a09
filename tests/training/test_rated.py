"""Ratings out: each answer's scores as rows, and back to the judgements that gave them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback import adjudication, gold
from feedback.assignment import Answer, claim, submit
from feedback.extras import HELPSTEER
from feedback.models import Campaign, Judgement, Response, text_digest
from feedback.probes import plant_gold
from inference.models import Version
from tests.training.test_formats import write
from tests.training.test_snapshot_kinds import take
from tests.training.test_snapshots import rows
from training import formats
from training.forms import RunForm
from training.ledger import Exclusion
from training.models import Snapshot
from training.options import Kind, Options
from training.rows import Composer, Row, Said
from training.runs import start_run
from training.snapshots import build_snapshot, heldout_references
from training.views import _options

SCALES = sorted(scale.key for scale in HELPSTEER)


def rate_all(
    campaign: Campaign, annotator: User, shift: int, scales: Sequence[str] = SCALES
) -> None:
    """Have somebody rate all there is: by scale, response and themselves, so that scores differ."""
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        ids = sorted(response.pk for response in task.responses)
        ratings = {
            one: {
                scale: (place * number + shift) % 5 + 1
                for number, scale in enumerate(scales, 1)
            }
            for place, one in enumerate(ids)
        }  # fmt: skip
        submit(
            slot_id=task.slot.pk, token=task.slot.token, client_id=task.client_id,
            annotator=annotator, answer=Answer(ratings=ratings),
        )  # fmt: skip


@pytest.fixture
def rated(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User
) -> Campaign:
    """Return five items of three responses that two annotators rated on HelpSteer's scales."""
    campaign = make_campaign(
        items=5, responses=3, kind=Campaign.Kind.RATING, asks={"preset": "helpsteer"}
    )
    rate_all(campaign, annotator, 0)
    rate_all(campaign, second_annotator, 2)
    return campaign


def judged() -> dict[tuple[str, str], dict[str, int]]:
    """Return what was said, by judgement and digest of the answer, from the database."""
    texts = dict(Response.objects.values_list("pk", "text"))
    return {
        (str(one.client_id), text_digest(texts[int(pk)])): scores
        for one in Judgement.objects.all()
        for pk, scores in one.ratings.items()
    }


@pytest.mark.parametrize("suffix", ["", "-csv", "-parquet"])
def test_every_score_comes_back_from_every_file(
    suffix: str, rated: Campaign, project: Project, tmp_path: Path
) -> None:
    snapshot = take(project, "ratings", rated)
    assert snapshot.manifest["ledger"] == {
        "judgements": 10, "exported": 10, "pairs": 30, "excluded": {},
    }  # fmt: skip
    assert snapshot.manifest["scales"]["helpfulness"]["levels"] == 5
    path = write(snapshot, f"helpsteer-ratings{suffix}", tmp_path)
    kind = suffix.removeprefix("-") or "json"
    data = datasets.load_dataset(
        kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert data.column_names == [
        "prompt", "response", "annotators", "judgement_id", "prompt_id", *SCALES,
    ]  # fmt: skip
    found = {
        (row["judgement_id"], text_digest(row["response"])): {name: row[name] for name in SCALES}
        for row in data
    }
    assert found == judged()
    for row in data:
        assert row["prompt_id"] == text_digest([{"role": "user", "content": row["prompt"]}])
        assert row["annotators"] == 1


def test_votes_make_one_row_of_an_answer_with_the_mean(rated: Campaign, project: Project) -> None:
    snapshot = take(project, "ratings", rated, votes="majority")
    everyone: dict[str, list[dict[str, int]]] = defaultdict(list)
    for (_, answer), scores in judged().items():
        everyone[answer].append(scores)
    found = {row["response_id"]: row["ratings"] for row in rows(snapshot)}
    assert found == {
        answer: {name: fmean(one[name] for one in given) for name in SCALES}
        for answer, given in everyone.items()
    }
    assert {row["annotators"] for row in rows(snapshot)} == {2}
    assert all(len(row["judgement_ids"]) == 2 for row in rows(snapshot))
    assert snapshot.manifest["ledger"]["exported"] == 10


def test_competence_weighs_the_mean() -> None:
    """(0.9 x 5 + 0.6 x 2) / 1.5 is 3.8; of tone only the second speaks."""
    said = [
        Said("1", annotator="a", ratings={"x": {"help": 5}}),
        Said("2", annotator="b", ratings={"x": {"help": 2, "tone": 1}}),
        Said("3", annotator="c", ranking=[["x"], ["y"]]),
        Said("4", annotator="c", ratings={"x": {}}),
    ]
    composer = Composer(Kind.RATINGS, Options.read({"votes": "weighted"}), {"a": 0.9, "b": 0.6})
    composed = composer.compose(said)
    assert composed.rows == [
        Row(("1", "2"), "x", "", ratings=(("help", 3.8), ("tone", 1.0)), annotators=2)
    ]
    assert composed.reasons == dict.fromkeys("34", Exclusion.NO_RATING)


def test_the_same_words_rated_twice_by_one_person_count_as_their_mean(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User
) -> None:
    asks = {"ratings": [{"label": "Tone", "key": "prompt"}]}  # as a column is called
    campaign = make_campaign(
        items=1, responses=2, judgements_per_item=1, kind="rating", asks=asks, text="Same."
    )
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    ratings = {one.pk: {"prompt": level} for one, level in zip(task.responses, (1, 4), strict=True)}
    submit(
        slot_id=task.slot.pk, token=task.slot.token, client_id=task.client_id,
        annotator=annotator, answer=Answer(ratings=ratings),
    )  # fmt: skip
    [row] = formats.rated_rows(iter(rows(take(project, "ratings", campaign))))
    assert row["prompt_rating"] == 2.5
    assert row["prompt"] == "Question 0 of Tone?"


def test_the_ratings_part_the_same_bytes_in_row_groups_of_any_size(
    rated: Campaign, project: Project, monkeypatch: pytest.MonkeyPatch, settings: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    found = []
    for limit in (10_000, 4):
        settings.ARTIFACTS_DIR = tmp_path / f"store-{limit}"
        monkeypatch.setattr("training.parts.ROWS_PER_GROUP", limit)
        monkeypatch.setattr("training.formats.ROWS_PER_BATCH", limit)
        snapshot = take(project, "ratings", rated)
        path = write(snapshot, "helpsteer-ratings-parquet", tmp_path)
        data = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / f"{limit}"))
        found.append((snapshot.digest, rows(snapshot), data.to_list()))
    assert found[0] == found[1]


def test_nothing_trains_on_ratings_and_everybody_says_so(
    rated: Campaign, project: Project, base_version: Version, owner: User,
    login: Callable[[User], Client], api: Callable[..., APIClient],
) -> None:  # fmt: skip
    snapshot = take(project, "ratings", rated)
    for method in ("dpo", "sft", "reward"):
        with pytest.raises(ProductError, match="weigh the scales"):
            start_run(
                snapshot=snapshot, start_version=base_version, method=method, arguments={}, by=None
            )
    choices = RunForm(project=project).fields["snapshot"].queryset  # type: ignore[attr-defined]
    assert snapshot not in choices
    assert heldout_references(snapshot) == {}
    browser = login(owner)
    tokens = reverse("rendered_row", args=[project.slug, snapshot.pk])
    assert browser.get(tokens).status_code == 404
    page = browser.get(reverse("snapshot", args=[project.slug, snapshot.pk])).content.decode()
    assert "No method learns from ratings" in page
    assert re.search("Helpfulness [1-5] of 5", page)
    assert reverse("run_new", args=[project.slug]) not in page
    assert f"campaign={rated.pk}&amp;attributes=coherence%3D1" in page
    client = api(owner)
    for name, chosen in formats.FORMATS.items():
        answer = client.get(f"/api/snapshots/{snapshot.pk}/export/{name}")
        assert answer.status_code == (200 if chosen.fits(snapshot) else 400)
        link = f'"{reverse("api_snapshot_export", args=[snapshot.pk, name])}"'
        assert (link in page) == chosen.fits(snapshot)


def test_the_same_ratings_give_pairs_by_a_weighted_sum(rated: Campaign, project: Project) -> None:
    weights = {"helpfulness": 1.0, "verbosity": -0.5}
    snapshot = take(project, "preference", rated, attributes=weights, gap=2)
    said = judged()

    def total(row: dict[str, Any], side: str) -> float:
        scores = said[row["judgement_id"], row[f"{side}_id"]]
        return sum(weight * scores[name] for name, weight in weights.items())

    assert rows(snapshot)
    assert all(total(row, "chosen") - total(row, "rejected") >= 2 for row in rows(snapshot))
    ledger = snapshot.manifest["ledger"]
    assert ledger["exported"] + ledger["excluded"].get("tie", 0) == 10
    assert {row["margin"] for row in rows(snapshot)} == {1.0}
    led = take(project, "preference", rated, attributes=weights, gap=2, margins="lead")
    assert led.manifest["options"]["margins"] == "lead"
    assert "margins by the lead of the sum" in _options(led)
    assert led.digest != snapshot.digest
    assert led.manifest["ledger"] == ledger
    for row in rows(led):
        assert row["margin"] == pytest.approx(total(row, "chosen") - total(row, "rejected"))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("preference", {"attributes": {"helpfullness": 1}}, "no scale “helpfullness”. There are"),
        ("ratings", {"min_agreement": 0.5}, "averaged, not voted on"),
    ],
)
def test_it_refuses_scales_that_are_not_there(
    kind: str, options: dict[str, Any], said: str, rated: Campaign, project: Project
) -> None:
    with pytest.raises(ProductError, match=said):
        take(project, kind, rated, **options)


def test_scales_with_other_levels_share_no_column(
    rated: Campaign, make_campaign: Callable[..., Campaign], project: Project
) -> None:
    asks = {"ratings": [{"label": "Helpfulness", "levels": 7}]}
    other = make_campaign(name="Other", kind="rating", asks=asks)
    with pytest.raises(ProductError, match="Take a snapshot of each"):
        take(project, "ratings", rated, other)
    with pytest.raises(ProductError, match="asks for ratings"):
        take(project, "ratings", make_campaign(name="Plain"))
    Campaign.objects.filter(pk=rated.pk).update(extras=other.extras)  # behind our back
    snapshot = Snapshot.objects.create(project=project, kind="ratings")
    snapshot.campaigns.set([rated])
    with pytest.raises(AssertionError, match="asks for coherence"):
        build_snapshot(snapshot_id=snapshot.pk)


def test_known_levels_teach_nothing_and_decided_ones_are_the_label(
    rated: Campaign, project: Project, lead: User
) -> None:
    first, second = rated.items.order_by("id")[:2]
    levels = {"0": dict.fromkeys(SCALES, 5)}
    golden = gold.make_gold(item=first, answer={"ratings": levels, "within": 0}, by=lead)
    assert plant_gold(campaign=rated, annotator=lead)
    rate_all(rated, lead, 1)
    assert golden.judgements.count() == 1
    adjudication.decide(item=second, answer={"ratings": levels}, why="A classic.", by=lead)
    snapshot = take(project, "ratings", rated, votes="majority")
    assert snapshot.manifest["ledger"]["excluded"] == {"gold": 1}
    text = text_digest(second.responses.get(position=0).text)
    found = {row["response_id"]: row for row in rows(snapshot)}
    assert found[text]["ratings"] == dict.fromkeys(SCALES, 5.0)
    assert len(found) == 15
