"""Formats out: each is loaded by what reads it, and leads back to the judgements."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient
from trl.data_utils import extract_prompt, is_conversational, unpair_preference_dataset

from accounts.downloads import StreamedFile
from accounts.models import Project, User
from feedback.models import Campaign, Judgement, text_digest
from feedback.services import add_prompts
from tests.training.test_snapshots import judge_all, middle_tied, rows, strict, take_snapshot
from training import formats
from training.models import Snapshot

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a tie?"},
    {"role": "assistant", "content": "Nobody wins."},
    {"role": "user", "content": "[1] And “two”,\n\na, b?"},
]


@pytest.fixture
def snapshot(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    second_annotator: User,
) -> Snapshot:
    """Return a snapshot of two annotators' rankings; one prompt is a conversation."""
    campaign = make_campaign(items=12, judgements_per_item=2)
    for number in range(3):  # one of them is in the training part, whatever the split
        talk = [*CONVERSATION[:-1], {"role": "user", "content": f"And {number}?"}]
        [prompt] = add_prompts(project=project, prompts=[talk if number else CONVERSATION])
        campaign.items.filter(pk=campaign.items.all()[number].pk).update(prompt=prompt)
    judge_all(campaign, annotator, strict)
    judge_all(campaign, second_annotator, middle_tied)
    return take_snapshot(project, campaign, heldout=0.2)


def write(snapshot: Snapshot, name: str, folder: Path, part: str = "train") -> Path:
    chosen = formats.FORMATS[name]
    path = folder / chosen.filename(snapshot.pk, part)
    path.write_bytes(b"".join(formats.export(snapshot.folder / f"{part}.parquet", name)))
    return path


def load(snapshot: Snapshot, name: str, folder: Path) -> datasets.Dataset:
    path = write(snapshot, name, folder)
    return datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(folder / "cache")
    )


def canonical(snapshot: Snapshot) -> list[dict[str, Any]]:
    return list(formats.read_rows(snapshot.folder / "train.parquet"))


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["judgement_id"], row["chosen_id"], row["rejected_id"]


def keys(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    """Return (judgement, chosen, rejected) of every training row, and check the judgements."""
    found = [key(row) for row in canonical(snapshot)]
    known = {str(one) for one in Judgement.objects.values_list("client_id", flat=True)}
    assert found
    assert {judgement for judgement, _, _ in found} <= known
    return found


def text(messages: list[dict[str, str]]) -> str:
    [message] = messages
    assert message["role"] == "assistant"
    return message["content"]


def test_trl_reads_conversational_preferences(snapshot: Snapshot, tmp_path: Path) -> None:
    data = load(snapshot, "trl-preference", tmp_path)
    assert all(is_conversational(row) for row in data)
    assert [
        (row["judgement_id"], text_digest(text(row["chosen"])), text_digest(text(row["rejected"])))
        for row in data
    ] == keys(snapshot)
    assert all(text_digest(row["prompt"]) == row["prompt_id"] for row in data)


def test_trl_reads_plain_preferences(snapshot: Snapshot, tmp_path: Path) -> None:
    data = load(snapshot, "trl-preference-standard", tmp_path)
    assert not any(is_conversational(row) for row in data)
    for row, origin in zip(data, canonical(snapshot), strict=True):
        assert row["judgement_id"] == origin["judgement_id"]
        assert row["prompt"].endswith(origin["prompt"][-1]["content"]) or row["prompt"].endswith(
            origin["prompt"][-1]["content"] + "\n\nAssistant:"
        )
        assert text_digest(row["chosen"].removeprefix(" ")) == origin["chosen_id"]
        assert text_digest(row["rejected"].removeprefix(" ")) == origin["rejected_id"]


def test_trl_finds_the_implicit_prompt(snapshot: Snapshot, tmp_path: Path) -> None:
    data = load(snapshot, "trl-implicit-prompt", tmp_path)
    assert all(is_conversational(row) for row in data)
    for row, origin in zip(data.map(extract_prompt), canonical(snapshot), strict=True):
        assert row["prompt"] == origin["prompt"]
        assert row["chosen"] == origin["chosen"]
        assert row["rejected"] == origin["rejected"]
        assert row["judgement_id"] == origin["judgement_id"]


def test_the_unpaired_rows_are_those_trl_would_make(snapshot: Snapshot, tmp_path: Path) -> None:
    ours = load(snapshot, "trl-kto", tmp_path)
    pairs = load(snapshot, "trl-preference", tmp_path)
    theirs = unpair_preference_dataset(
        pairs.select_columns(["prompt", "chosen", "rejected"]), num_proc=None
    )

    def marks(data: datasets.Dataset) -> list[tuple[str, str, bool]]:
        return sorted(
            (text_digest(row["prompt"]), text(row["completion"]), row["label"]) for row in data
        )

    assert marks(ours) == marks(theirs)
    assert all(is_conversational(row) for row in ours)
    assert {row["judgement_id"] for row in ours} == {one for one, _, _ in keys(snapshot)}


def test_sft_rows_are_the_best_answers(snapshot: Snapshot, tmp_path: Path) -> None:
    data = load(snapshot, "sft-messages", tmp_path)
    assert is_conversational(data[0])
    best = {}
    for judgement in Judgement.objects.prefetch_related("item__responses"):
        texts = {one.pk: one.text for one in judgement.item.responses.all()}
        best[str(judgement.client_id)] = {texts[one] for one in judgement.ranking[0]}
    assert len(data) == len({one for one, _, _ in keys(snapshot)})
    for row in data:
        assert row["messages"][-1]["content"] in best[row["judgement_id"]]
        assert text_digest(row["messages"][:-1]) == row["prompt_id"]


def test_reward_rows_have_their_margin(snapshot: Snapshot, tmp_path: Path) -> None:
    data = load(snapshot, "reward-margin", tmp_path)
    assert [row["margin"] for row in data] == [row["margin"] for row in canonical(snapshot)]
    assert [row["judgement_id"] for row in data] == [one for one, _, _ in keys(snapshot)]
    assert is_conversational(data[0])


def test_rankings_come_back_whole(snapshot: Snapshot, tmp_path: Path) -> None:
    data = load(snapshot, "rankings", tmp_path)
    judgements = {
        str(one.client_id): one for one in Judgement.objects.prefetch_related("item__responses")
    }
    for row in data:
        judgement = judgements[row["judgement_id"]]
        ids = {one.text: one.pk for one in judgement.item.responses.all()}
        groups: dict[int, list[int]] = {}
        for rank, answer in zip(row["ranks"], row["responses"], strict=True):
            groups.setdefault(rank, []).append(ids[answer])
        assert [sorted(group) for _, group in sorted(groups.items())] == [
            sorted(group) for group in judgement.ranking
        ]


def test_openai_rows_keep_its_shape_and_lead_back(snapshot: Snapshot, tmp_path: Path) -> None:
    lines = write(snapshot, "openai-dpo", tmp_path).read_text().splitlines()
    found = []
    for line in lines:
        row = json.loads(line)
        assert set(row) == {"input", "preferred_output", "non_preferred_output"}
        assert set(row["input"]) == {"messages", "tools", "parallel_tool_calls"}
        assert all(set(message) == {"role", "content"} for message in row["input"]["messages"])
        assert row["input"]["messages"][-1]["role"] == "user"
        found.append(
            (
                text_digest(row["input"]["messages"]),
                text_digest(text(row["preferred_output"])),
                text_digest(text(row["non_preferred_output"])),
            )
        )
    assert found == [
        (row["prompt_id"], row["chosen_id"], row["rejected_id"]) for row in canonical(snapshot)
    ]


def test_helpsteer_keeps_every_single_judgement(snapshot: Snapshot, tmp_path: Path) -> None:
    data = load(snapshot, "helpsteer", tmp_path)
    found = []
    for row in data:
        sides = text_digest(row["response1"]), text_digest(row["response2"])
        for one in row["individual_preference"]:
            chosen, rejected = sides if one["score"] < 0 else sides[::-1]
            found.append((one["judgement_id"], chosen, rejected))
    assert sorted(found) == sorted(keys(snapshot))
    signs = {one["score"] > 0 for row in data for one in row["individual_preference"]}
    assert signs == {True, False}, "the better answer stands on either side"


def test_arena_battles_name_models_and_judges(snapshot: Snapshot, tmp_path: Path) -> None:
    data = load(snapshot, "arena", tmp_path)
    found = []
    for row in data:
        a, b = (text_digest(row[f"conversation_{side}"][-1]["content"]) for side in "ab")
        found.append((row["judgement_id"], *((a, b) if row["winner"] == "model_a" else (b, a))))
        assert row["judge"].startswith("annotator-")
        assert row["tstamp"] > 0
    assert found == keys(snapshot)
    assert {row["winner"] for row in data} == {"model_a", "model_b"}


def test_csv_comes_back_with_conversations_and_line_breaks(
    snapshot: Snapshot, tmp_path: Path
) -> None:
    path = write(snapshot, "csv", tmp_path)
    table = pd.read_csv(path, keep_default_na=False)
    data = datasets.load_dataset(
        "csv", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(data) == len(table)
    found = [
        (row["judgement_id"], text_digest(row["chosen"]), text_digest(row["rejected"]))
        for row in table.to_dict("records")
    ]
    assert found == keys(snapshot)
    for cell, origin in zip(table["prompt"], canonical(snapshot), strict=True):
        messages = json.loads(cell) if cell.startswith("[") else [{"role": "user", "content": cell}]
        assert messages == origin["prompt"]


def test_both_parts_together_hold_every_row(snapshot: Snapshot, tmp_path: Path) -> None:
    lines = [
        line
        for part in ("train", "heldout")
        for line in write(snapshot, "openai-dpo", tmp_path, part).read_text().splitlines()
    ]
    assert len(lines) == len(rows(snapshot))


OF_PAIRS = [one.name for one in formats.FORMATS.values() if "preference" in one.kinds]


@pytest.mark.parametrize("name", OF_PAIRS)
def test_rest_streams_every_format(
    name: str, snapshot: Snapshot, lead: User, annotator: User, api: Callable[..., APIClient]
) -> None:
    path = f"/api/snapshots/{snapshot.pk}/export/{name}"
    response = api(lead).get(path, {"part": "train"})
    assert response.status_code == 200
    assert response.streaming
    sent = b"".join(response)
    assert sent == b"".join(formats.export(snapshot.folder / "train.parquet", name))
    assert f"train-{name}." in response["Content-Disposition"]
    assert api(annotator).get(path).status_code == 403
    assert APIClient().get(path).status_code == 401


async def test_it_streams_the_same_bytes_by_asgi() -> None:
    made: list[int] = []

    def parts() -> Any:
        for number in range(3):
            made.append(number)
            yield b"%d" % number

    sent = []
    async for part in StreamedFile(parts()):
        sent.append(part)
        assert len(made) <= len(sent) + 1, "nothing is made ahead of its sending"
    assert b"".join(sent) == b"012"


def test_the_page_links_every_format(
    snapshot: Snapshot, lead: User, login: Callable[[User], Client]
) -> None:
    address = reverse("snapshot", args=[snapshot.project.slug, snapshot.pk])
    page = login(lead).get(address).content.decode()
    for name in OF_PAIRS:
        assert reverse("api_snapshot_export", args=[snapshot.pk, name]) in page


def test_rest_refuses_what_is_not_there(
    snapshot: Snapshot, lead: User, api: Callable[..., APIClient]
) -> None:
    client = api(lead)
    assert client.get(f"/api/snapshots/{snapshot.pk}/export/xml").status_code == 404
    path = f"/api/snapshots/{snapshot.pk}/export/csv"
    assert client.get(path, {"part": "../train"}).status_code == 404
    Snapshot.objects.update(state=Snapshot.State.BUILDING)
    assert client.get(path).status_code == 404


def test_blocks_hold_the_same_bytes() -> None:
    source = [bytes([number % 256]) * 1000 for number in range(200)]
    parts = list(formats.blocks(iter(source)))
    assert b"".join(parts) == b"".join(source)
    assert len(parts) < 10
