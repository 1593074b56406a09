"""Snapshots of every kind, from campaigns and from feedback on answers in use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient
from trl.data_utils import is_conversational

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback import adjudication
from feedback.assignment import Answer, claim, submit
from feedback.extras import define
from feedback.models import (
    Campaign,
    CompletionFeedback,
    Item,
    Judgement,
    Response,
    Skip,
    text_digest,
)
from inference.models import Completion, Version
from tests.training.test_formats import load
from tests.training.test_snapshots import judge_all, rows, strict
from training.models import Snapshot
from training.runs import start_run
from training.snapshots import build_snapshot, create_snapshot


@pytest.fixture
def in_use(base_version: Version, project: Project, owner: User) -> list[Completion]:
    """Return six answers to two prompts: up, down, corrected; up, a comment, a complaint."""
    said: list[dict[str, Any]] = [
        {"thumb": 1},
        {"thumb": -1},
        {"thumb": -1, "correction": "As it should be."},
        {"thumb": 1},
        {"comment": "Hm."},
        {"complaint": True},
    ]
    answers = []
    for number, fields in enumerate(said):
        answer = Completion.objects.create(
            project=project,
            version=base_version,
            source=Completion.Source.CHAT,
            messages=[{"role": "user", "content": f"Prompt {number // 3}?"}],
            text=f"Answer {number}.",
        )
        CompletionFeedback.objects.create(completion=answer, user=owner, **fields)
        answers.append(answer)
    return answers


def take(project: Project, kind: str, *campaigns: Campaign, **options: Any) -> Snapshot:
    made = create_snapshot(
        project=project, campaigns=campaigns, by=None, heldout_fraction=0, kind=kind,
        options={"feedback": True, **options},
    )  # fmt: skip
    return build_snapshot(snapshot_id=made.pk)


def said(row: dict[str, Any], side: str) -> str | None:
    return None if row[side] is None else row[side][0]["content"]


def test_feedback_in_use_becomes_rows_of_every_kind(
    in_use: list[Completion], project: Project
) -> None:
    pairs = take(project, "preference")
    assert {(said(row, "chosen"), said(row, "rejected")) for row in rows(pairs)} == {
        ("Answer 0.", "Answer 1."),
        ("As it should be.", "Answer 2."),
    }
    assert pairs.manifest["ledger"] == {
        "judgements": 6, "exported": 3, "pairs": 2, "excluded": {"no_verdict": 2, "thumb": 1},
    }  # fmt: skip
    [thumbs] = [row for row in rows(pairs) if said(row, "chosen") == "Answer 0."]
    assert {one.partition("/")[0] for one in thumbs["judgement_ids"]} == {
        str(in_use[0].pk), str(in_use[1].pk),
    }  # fmt: skip
    assert thumbs["prompt_id"] == text_digest(in_use[0].messages)

    single = take(project, "unpaired")
    assert {said(row, "chosen") for row in rows(single)} == {
        "Answer 0.", "Answer 3.", "As it should be.", None,
    }  # fmt: skip
    assert {said(row, "rejected") for row in rows(single)} == {"Answer 1.", "Answer 2.", None}
    imitated = take(project, "sft")
    assert len(rows(imitated)) == 3
    assert imitated.manifest["ledger"]["excluded"] == {"no_verdict": 2, "thumb_down": 1}


def test_a_thumbs_campaign_and_its_skips_are_accounted_for(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User
) -> None:
    campaign = make_campaign(items=5, responses=1, kind="thumbs", judgements_per_item=1)
    for number in range(4):
        task = claim(campaign=campaign, annotator=annotator)
        assert task is not None
        submit(
            slot_id=task.slot.pk, token=task.slot.token, client_id=task.client_id,
            annotator=annotator, answer=Answer(thumb=1 if number % 2 else -1),
        )  # fmt: skip
    item = campaign.items.filter(judgements__isnull=True).get()
    Skip.objects.create(item=item, annotator=annotator, reason="other")
    snapshot = take(project, "unpaired", campaign)
    assert snapshot.manifest["ledger"] == {
        "judgements": 5, "exported": 4, "pairs": 4, "excluded": {"skipped": 1},
    }  # fmt: skip
    with pytest.raises(ProductError, match="give no pair: 1 skipped, 4 thumb"):
        take(project, "preference", campaign)


def test_votes_are_counted_over_an_item(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    second_annotator: User,
    lead: User,
) -> None:
    campaign = make_campaign(items=6, responses=2, judgements_per_item=3)
    for user, groups in ((annotator, strict), (second_annotator, strict), (lead, backwards)):
        judge_all(campaign, user, groups)
    voted = take(project, "preference", campaign, votes="majority")
    assert voted.manifest["ledger"]["excluded"] == {"outvoted": 6}
    assert {len(row["judgement_ids"]) for row in rows(voted)} == {2}
    soft = take(project, "preference", campaign, votes="weighted")
    assert {len(row["judgement_ids"]) for row in rows(soft)} == {3}
    assert all(0.5 < row["probability"] < 1 for row in rows(soft))
    assert soft.manifest["agreement"] == {"compared": 18, "opposed": 12, "label_smoothing": 0.5}
    assert soft.manifest["ledger"]["exported"] == 18


def test_what_a_lead_decided_is_the_label(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    second_annotator: User,
    lead: User,
) -> None:
    campaign = make_campaign(items=3, responses=2, judgements_per_item=2)
    judge_all(campaign, annotator, strict)
    judge_all(campaign, second_annotator, backwards)
    first, second = campaign.items.order_by("id")[:2]
    for item, best in ((first, 0), (second, 0), (first, 1)):
        answer = {"ranking": [[best], [1 - best]]}
        adjudication.decide(item=item, answer=answer, why="It cites its source.", by=lead)
    wanted = {first.responses.get(position=1).text, second.responses.get(position=0).text}
    voted = take(project, "preference", campaign, votes="majority")
    assert {said(row, "chosen") for row in rows(voted)} == wanted
    assert voted.manifest["ledger"] == {
        "judgements": 6, "exported": 2, "pairs": 2, "excluded": {"no_majority": 2, "overruled": 2},
    }  # fmt: skip
    soft = take(project, "preference", campaign, votes="weighted")
    assert wanted <= {said(row, "chosen") for row in rows(soft) if row["probability"] == 1}
    assert len(rows(take(project, "preference", campaign))) == 6, "each judgement is a row"


def test_rows_that_are_too_long_are_left_out_by_name(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User
) -> None:
    campaign = make_campaign(items=3, responses=3, judgements_per_item=1)
    prompt = len("Question 0 of Tone?")
    first, second, _ = campaign.items.order_by("id")
    first.responses.filter(position=2).update(text="x" * 81)  # one answer of three, so two pairs
    second.responses.filter(position__gt=0).update(text="x" * 90)
    second.responses.filter(position=1).update(text="y" * 90)
    judge_all(campaign, annotator, strict)
    snapshot = take(project, "preference", campaign, max_characters=prompt + 80)
    assert snapshot.manifest["ledger"] == {
        "judgements": 3, "exported": 2, "pairs": 4, "excluded": {"too_long": 1},
    }  # fmt: skip
    assert snapshot.manifest["lengths"]["train"]["rejected"]["max"] <= 80
    more = take(project, "preference", campaign, max_characters=prompt + 81)
    assert more.manifest["ledger"]["pairs"] == 6


def backwards(ids: list[int]) -> list[list[int]]:
    return [[one] for one in sorted(ids, reverse=True)]


def test_a_run_refuses_rows_that_its_method_cannot_learn_from(
    in_use: list[Completion], project: Project, base_version: Version
) -> None:
    snapshot = take(project, "unpaired")
    with pytest.raises(ProductError, match=r"DPO cannot learn.*KTO or SFT"):
        start_run(
            snapshot=snapshot, start_version=base_version, method="dpo", arguments={}, by=None
        )
    run = start_run(
        snapshot=snapshot, start_version=base_version, method="kto", arguments={}, by=None
    )
    assert run.method == "kto"


def test_each_kind_is_written_in_the_formats_that_fit(
    in_use: list[Completion], project: Project, tmp_path: Path, lead: User,
    api: Callable[..., APIClient],
) -> None:  # fmt: skip
    single = take(project, "unpaired")
    kto = load(single, "trl-kto", tmp_path)
    assert is_conversational(kto[0])
    answers = [one[0]["content"] for one in kto["completion"]]
    assert sorted(zip(answers, kto["label"], strict=True)) == [
        ("Answer 0.", True), ("Answer 1.", False), ("Answer 2.", False), ("Answer 3.", True),
        ("As it should be.", True),
    ]  # fmt: skip
    imitated = take(project, "sft")
    best = load(imitated, "sft-messages", tmp_path)
    assert {row["messages"][-1]["content"] for row in best} == {
        "Answer 0.", "Answer 3.", "As it should be.",
    }  # fmt: skip
    by_id = {str(one.pk): one.text for one in in_use}
    for row in best:
        assert row["judgement_id"].partition("/")[0] in by_id
    client = api(lead)
    path = f"/api/snapshots/{single.pk}/export/trl-preference"
    assert client.get(path).status_code == 400
    assert client.get(f"/api/snapshots/{single.pk}/export/trl-kto").status_code == 200


def test_rest_and_page_take_a_snapshot_with_options(
    in_use: list[Completion], project: Project, lead: User,
    api: Callable[..., APIClient], login: Callable[[User], Client],
) -> None:  # fmt: skip
    wanted = {"kind": "sft", "options": {"feedback": True, "imitate": ["corrections"]}}
    client = api(lead)
    made = client.post("/api/snapshots/", wanted, format="json")
    assert made.status_code == 201, made.content
    assert made.json()["options"]["imitate"] == ["corrections"]
    assert client.post("/api/snapshots/", {}).status_code == 400
    wrong = {"kind": "sft", "options": {"votes": "loudest"}}
    assert client.post("/api/snapshots/", wrong, format="json").status_code == 400
    browser = login(lead)
    answer = browser.post(
        reverse("snapshots", args=[project.slug]),
        {"feedback": "on", "kind": "unpaired", "heldout_fraction": "0", "votes": "majority"},
    )
    snapshot = Snapshot.objects.get(kind="unpaired")
    assert answer["Location"] == reverse("snapshot", args=[project.slug, snapshot.pk])
    assert snapshot.options["votes"] == "majority"
    build_snapshot(snapshot_id=snapshot.pk)
    page = browser.get(answer["Location"]).content.decode()
    assert "single answers called good or bad" in page
    assert "a comment alone" in page
    assert "trl-kto.jsonl" in page
    assert "openai-dpo" not in page
    snapshot.refresh_from_db()
    assert json.loads((snapshot.folder / "manifest.json").read_text())["kind"] == "unpaired"


def test_ratings_corrections_and_test_items(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User
) -> None:
    campaign = make_campaign(items=4, responses=2, judgements_per_item=1)
    judge_all(campaign, annotator, strict)
    asks = define({"preset": "helpsteer"}).as_dict()
    Campaign.objects.filter(pk=campaign.pk).update(extras=asks)
    campaign.refresh_from_db()
    rated, corrected, gold, plain = Judgement.objects.order_by("id")
    first, second = sorted(rated.shown)
    rated.ratings = {str(first): {"helpfulness": 2}, str(second): {"helpfulness": 4}}
    corrected.correction, corrected.corrected_id = "Better.", corrected.shown[0]
    for one in (rated, corrected):  # what was said is never changed, so it is said anew
        Judgement.objects.filter(pk=one.pk).delete()
        one.save(force_insert=True)
    Item.objects.filter(pk=gold.item_id).update(role="gold", gold_answer={"ranking": [[0], [1]]})
    snapshot = take(project, "preference", campaign, attributes={"helpfulness": 1})
    ledger = snapshot.manifest["ledger"]
    assert (ledger["exported"], ledger["excluded"]) == (3, {"gold": 1})
    found = {one["judgement_id"]: one for one in rows(snapshot)}
    assert str(plain.client_id) in found
    assert said(found[str(rated.client_id)], "chosen") == Response.objects.get(pk=second).text
    better = [said(row, "rejected") for row in rows(snapshot) if said(row, "chosen") == "Better."]
    assert better == [Response.objects.get(pk=corrected.shown[0]).text]
    assert [said(row, "chosen") for row in rows(take(project, "sft", campaign))] == ["Better."]
