"""Snapshots: nothing is lost but what the ledger names."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyarrow.parquet as pq
import pytest
from rest_framework.test import APIClient

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback.assignment import Answer, claim, submit
from feedback.models import Campaign, Judgement
from training.ledger import Ledger
from training.models import Snapshot
from training.snapshots import build_snapshot, create_snapshot, heldout_prompts
from training.splits import is_heldout

Groups = Callable[[list[int]], list[list[int]]]


def strict(ids: list[int]) -> list[list[int]]:
    return [[one] for one in sorted(ids)]


def all_tied(ids: list[int]) -> list[list[int]]:
    return [ids]


def middle_tied(ids: list[int]) -> list[list[int]]:
    first, *middle, last = sorted(ids)
    return [[first], middle, [last]]


def judge_all(campaign: Campaign, annotator: User, groups: Groups) -> None:
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=Answer(ranking=groups([response.pk for response in task.responses])),
        )


def take_snapshot(project: Project, *campaigns: Campaign, heldout: float = 0.3) -> Snapshot:
    snapshot = create_snapshot(
        project=project, campaigns=campaigns, by=None, heldout_fraction=heldout
    )
    return build_snapshot(snapshot_id=snapshot.pk)


def rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [
        row
        for part in ("train", "heldout")
        for row in pq.read_table(snapshot.folder / f"{part}.parquet").to_pylist()
    ]


def test_it_writes_every_ordered_pair(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User
) -> None:
    campaign = make_campaign(items=8, judgements_per_item=1)
    judge_all(campaign, annotator, strict)
    snapshot = take_snapshot(project, campaign)
    assert snapshot.state == Snapshot.State.READY
    assert len(rows(snapshot)) == 8 * 6
    ledger = snapshot.manifest["ledger"]
    assert (ledger["judgements"], ledger["exported"], ledger["pairs"]) == (8, 8, 48)
    row = rows(snapshot)[0]
    assert row["prompt"][-1]["role"] == "user"
    assert row["chosen"][0]["role"] == row["rejected"][0]["role"] == "assistant"
    assert row["chosen"] != row["rejected"]


def test_it_pairs_around_a_tie(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User
) -> None:
    campaign = make_campaign(items=4, judgements_per_item=1)
    judge_all(campaign, annotator, middle_tied)
    snapshot = take_snapshot(project, campaign)
    assert snapshot.manifest["ledger"]["pairs"] == 4 * 5, "six pairs less the tied one"


def test_it_names_what_it_leaves_out(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    second_annotator: User,
    lead: User,
) -> None:
    campaign = make_campaign(items=4, judgements_per_item=3)
    judge_all(campaign, annotator, strict)
    judge_all(campaign, second_annotator, all_tied)
    judge_all(campaign, lead, strict)
    Judgement.objects.filter(annotator=lead).update(retracted_at="2026-01-01T00:00Z")
    ledger = take_snapshot(project, campaign).manifest["ledger"]
    assert ledger["judgements"] == 12
    assert ledger["exported"] == 4
    assert ledger["excluded"] == {"retracted": 4, "tie": 4}


def test_it_leaves_out_equal_texts(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User
) -> None:
    same = make_campaign(items=2, name="Same", text="All alike.", judgements_per_item=1)
    judge_all(same, annotator, strict)
    with pytest.raises(ProductError, match="2 equal_texts"):
        take_snapshot(project, same)
    snapshot = Snapshot.objects.get()
    assert snapshot.state == Snapshot.State.FAILED
    assert snapshot.digest == ""


def test_the_same_judgements_give_the_same_bytes(
    campaign: Campaign, project: Project, annotator: User
) -> None:
    judge_all(campaign, annotator, strict)
    first, second = take_snapshot(project, campaign), take_snapshot(project, campaign)
    assert first.digest == second.digest
    assert first.manifest == second.manifest
    assert first.folder == second.folder


def test_another_judgement_gives_another_digest(
    campaign: Campaign, project: Project, annotator: User, second_annotator: User
) -> None:
    judge_all(campaign, annotator, strict)
    first = take_snapshot(project, campaign)
    judge_all(campaign, second_annotator, strict)
    assert take_snapshot(project, campaign).digest != first.digest


def test_the_split_is_by_prompt_and_never_moves(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User
) -> None:
    campaign = make_campaign(items=30, judgements_per_item=1)
    judge_all(campaign, annotator, strict)
    snapshot = take_snapshot(project, campaign)
    parts = {
        part: {
            row["prompt_id"]
            for row in pq.read_table(snapshot.folder / f"{part}.parquet").to_pylist()
        }
        for part in ("train", "heldout")
    }
    assert parts["train"]
    assert parts["heldout"]
    assert not parts["train"] & parts["heldout"]
    assert sorted(parts["heldout"]) == heldout_prompts(snapshot)
    points = [f"prompt-{number}" for number in range(2000)]
    sides = [[is_heldout(point, fraction) for point in points] for fraction in (0.1, 0.3, 0.5)]
    for fewer, more in pairwise(sides):
        assert all(b for a, b in zip(fewer, more, strict=True) if a), "a larger part only grows"
    assert abs(sum(sides[1]) / 2000 - 0.3) < 0.04


def test_a_ledger_that_does_not_balance_fails_the_build() -> None:
    ledger = Ledger(judgements=3, exported=1)
    ledger.excluded["tie"] = 1
    with pytest.raises(AssertionError, match="does not balance"):
        ledger.check(3)


def test_a_build_that_breaks_leaves_nothing_finished(
    campaign: Campaign,
    project: Project,
    annotator: User,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> None:
    judge_all(campaign, annotator, strict)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.storage.os.rename", full)
    with pytest.raises(OSError, match="No space"):
        take_snapshot(project, campaign)
    snapshot = Snapshot.objects.get()
    assert snapshot.state == Snapshot.State.FAILED
    assert "No space left" in snapshot.reason
    left = [path for path in (settings.ARTIFACTS_DIR / "snapshots").rglob("*") if path.is_file()]
    assert left == []


def test_rest_takes_a_snapshot_and_serves_its_files(
    campaign: Campaign,
    project: Project,
    annotator: User,
    lead: User,
    api: Callable[..., APIClient],
) -> None:
    judge_all(campaign, annotator, strict)
    client = api(lead)
    created = client.post("/api/snapshots/", {"campaigns": [campaign.pk]})
    assert created.status_code == 201, created.content
    path = f"/api/snapshots/{created.json()['id']}/"
    assert client.get(f"{path}files/train.parquet").status_code == 404, "not before it is ready"
    build_snapshot(snapshot_id=created.json()["id"])
    assert client.get(path).json()["state"] == "ready"
    assert client.get(f"{path}files/manifest.json").status_code == 200
    assert client.get(f"{path}files/passwd").status_code == 404
    assert api(annotator).get(path).status_code == 403
    assert client.post("/api/snapshots/", {"campaigns": [999]}).status_code == 400
