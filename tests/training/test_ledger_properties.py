"""The ledger balances and the bytes stay the same, whatever people judge and in whatever order."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import uuid
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback.models import Campaign, Item, Judgement, Prompt, Response, Slot, text_digest
from tests.training.test_snapshots import rows
from training.formats import read_rows
from training.ledger import Exclusion, Ledger
from training.models import Snapshot
from training.rows import Composed, Row, margin_of
from training.snapshots import build_snapshot, heldout_prompts
from training.splits import heldout_annotators, is_heldout

ANNOTATORS = 3
GERMAN = "Ich weiß nicht, was ich dazu sagen soll."
ENGLISH = "That is what I would say, too."
MASKED = {f"Ask {one}@example.com.": "Ask <EMAIL_ADDRESS>." for one in ("ada", "bob")}
TEXTS = st.sampled_from(
    ["Yes.", "No.", "", "Maybe\n“so” \U0001f600\t", "\\u0000", ENGLISH, GERMAN, *MASKED]
)
CHOSEN: list[dict[str, Any]] = [{}, {"languages": ["en"]}]
if find_spec("presidio_analyzer"):
    CHOSEN += [{"pii": "report"}, {"pii": "mask"}, {"languages": ["en"], "pii": "drop"}]
OPTIONS = st.sampled_from(CHOSEN)


@dataclass(frozen=True)
class Verdict:
    """What one annotator says of one item; groups are positions of responses, best first."""

    groups: tuple[tuple[int, ...], ...] | None
    thumb: int | None
    strength: int | None
    both_bad: bool
    retracted: bool


@st.composite
def verdicts(draw: st.DrawFn, responses: int) -> Verdict:
    retracted = draw(st.sampled_from([False, False, True]))
    if draw(st.sampled_from([False, False, False, True])):
        return Verdict(None, draw(st.sampled_from([-1, 1])), None, False, retracted)
    order = draw(st.permutations(range(responses)))
    groups: list[list[int]] = [[order[0]]]
    for position in order[1:]:
        if draw(st.booleans()):
            groups.append([])
        groups[-1].append(position)
    return Verdict(
        tuple(map(tuple, groups)),
        None,
        draw(st.sampled_from([None, 1, 2, 3])),
        draw(st.sampled_from([False, False, False, True])),
        retracted,
    )


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, list[str], dict[int, Verdict]]]:
    """Return items: a question, the responses' texts, and the verdicts by annotator."""
    items = []
    for number in range(draw(st.integers(1, 4))):
        texts = draw(st.lists(TEXTS, min_size=2, max_size=4))
        judges = draw(st.sets(st.integers(0, ANNOTATORS - 1)))
        said = {judge: draw(verdicts(len(texts))) for judge in sorted(judges)}
        items.append((f"Question {number}\n“é”?", texts, said))
    return items


def store(
    history: list[tuple[str, list[str], dict[int, Verdict]]],
    project: Project,
    users: list[User],
    seed: int,
) -> Campaign:
    """Store a history in an order that the seed decides; ids differ, what is said does not."""
    chooser = random.Random(seed)
    campaign = Campaign.objects.create(project=project, name="History", state="closed")
    responses: dict[tuple[str, int], int] = {}
    items: dict[str, Item] = {}
    for question, texts, _ in chooser.sample(history, len(history)):
        messages = [{"role": "user", "content": question}]
        prompt, _ = Prompt.objects.get_or_create(
            project=project, digest=text_digest(messages), defaults={"messages": messages}
        )
        items[question] = Item.objects.create(campaign=campaign, prompt=prompt)
        for position in chooser.sample(range(len(texts)), len(texts)):
            made = Response.objects.create(
                item=items[question], position=position, text=texts[position]
            )
            responses[question, position] = made.pk
    said = [
        (question, texts, judge, verdict)
        for question, texts, verdicts in history
        for judge, verdict in verdicts.items()
    ]
    for question, texts, judge, verdict in chooser.sample(said, len(said)):
        item = items[question]
        ranking = verdict.groups and [
            chooser.sample([responses[question, one] for one in group], len(group))
            for group in verdict.groups
        ]
        slot = Slot.objects.create(
            campaign=campaign, item=item, index=judge, shuffle=0, order=list(range(len(texts))),
            state="filled", holder=users[judge],
        )  # fmt: skip
        Judgement.objects.create(
            client_id=uuid.uuid5(uuid.NAMESPACE_OID, f"{question} {judge}"),
            slot=slot, item=item, campaign=campaign, annotator=users[judge], ranking=ranking,
            thumb=verdict.thumb, strength=verdict.strength, both_bad=verdict.both_bad,
            shown=[responses[question, one] for one in range(len(texts))],
            retracted_at="2026-01-01T00:00Z" if verdict.retracted else None,
        )  # fmt: skip
    return campaign


def expected(
    history: list[tuple[str, list[str], dict[int, Verdict]]], options: dict[str, Any]
) -> tuple[Counter[tuple[Any, ...]], Counter[str], int]:
    """Return the rows and exclusions that a history should give, worked out the slow way."""
    foreign = {GERMAN} if "languages" in options else set()
    personal = set(MASKED) if options.get("pii") == "drop" else set()
    pairs: Counter[tuple[Any, ...]] = Counter()
    excluded: Counter[str] = Counter()
    exported = 0
    for question, stored, said in history:
        masked = options.get("pii") == "mask"
        texts = [MASKED.get(text, text) if masked else text for text in stored]
        for judge, verdict in said.items():
            said_so = {
                (texts[better], texts[worse])
                for first, second in itertools.combinations(verdict.groups or (), 2)
                for better in first
                for worse in second
            }
            found = [
                (question, better, worse, float(verdict.strength or 1), judge)
                for better, worse in said_so
                if (worse, better) not in said_so  # neither the same text, nor both ways
            ]
            if verdict.retracted:
                excluded["retracted"] += 1
            elif verdict.groups is None:
                excluded["thumb"] += 1
            elif verdict.both_bad:
                excluded["both_bad"] += 1
            elif len(verdict.groups) == 1:
                excluded["tie"] += 1
            elif not found:
                excluded["equal_texts"] += 1
            elif not (kept := [row for row in found if foreign.isdisjoint(row[1:3])]):
                excluded["language"] += 1
            elif not (clean := [row for row in kept if personal.isdisjoint(row[1:3])]):
                excluded["pii"] += 1
            else:
                exported += 1
                pairs.update(clean)
    return pairs, excluded, exported


def digest_by_hand(snapshot: Snapshot) -> str:
    """Return the digest as training/snapshots.py documents it, from the files alone."""
    import pyarrow.parquet as pq

    whole = ""
    for part in ("train", "heldout"):
        lines = "".join(
            f"{row['prompt_id']}\t{','.join(row['judgement_ids'])}\t{row['margin']}"
            f"\t{row['weight']}\t{row['probability']}\t{row['chosen_id']}\t{row['rejected_id']}\n"
            for row in pq.read_table(snapshot.folder / f"{part}.parquet").to_pylist()
        )
        whole += f"{part}\t{hashlib.sha256(lines.encode()).hexdigest()}\n"
    return hashlib.sha256(whole.encode()).hexdigest()


@pytest.fixture
def users(owner: User) -> list[User]:
    return [User.objects.create(username=f"judge-{number}") for number in range(ANNOTATORS)]


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    history=histories(),
    options=OPTIONS,
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
def test_any_history_balances_and_gives_the_same_bytes(
    history: list[tuple[str, list[str], dict[int, Verdict]]],
    options: dict[str, Any],
    seeds: tuple[int, int],
    project: Project,
    users: list[User],
) -> None:
    pairs, excluded, exported = expected(history, options)
    built = []
    for seed in seeds:
        campaign = store(history, project, users, seed)
        snapshot = Snapshot.objects.create(project=project, heldout_fraction=0.3, options=options)
        snapshot.campaigns.set([campaign])
        if not pairs:
            with pytest.raises(ProductError, match="give no pair"):
                build_snapshot(snapshot_id=snapshot.pk)
            snapshot.refresh_from_db()
            assert snapshot.state == Snapshot.State.FAILED
        else:
            built.append(build_snapshot(snapshot_id=snapshot.pk))
        clear(campaign)
    if not pairs:
        return
    first, second = built
    assert first.manifest == second.manifest
    assert first.digest == second.digest == digest_by_hand(first)
    assert first.manifest["ledger"] == {
        "judgements": sum(len(said) for _, _, said in history),
        "exported": exported,
        "pairs": pairs.total(),
        "excluded": dict(sorted(excluded.items())),
    }
    judges = {
        str(uuid.uuid5(uuid.NAMESPACE_OID, f"{question} {judge}")): judge
        for question, _, said in history
        for judge in said
    }
    written = rows(first)
    assert pairs == Counter(
        (
            row["prompt"][0]["content"],
            row["chosen"][0]["content"],
            row["rejected"][0]["content"],
            row["margin"],
            judges[row["judgement_id"]],
        )
        for row in written
    )
    for row in written:
        assert row["prompt_id"] == text_digest(row["prompt"])
        assert row["chosen_id"] == text_digest(row["chosen"][0]["content"])
        assert row["rejected_id"] == text_digest(row["rejected"][0]["content"])
    assert len(heldout_prompts(first)) == first.manifest["prompts"]["heldout"]


@pytest.fixture
def parted(owner: User) -> tuple[list[User], str]:
    """Return three judges and the id of the one that a share of a half holds out."""
    made = {str(one.pk): one for one in (User.objects.create(username=f"j{n}") for n in range(16))}
    heldout = heldout_annotators(made, 0.5)
    first, *_ = sorted(heldout)
    second, third, *_ = sorted(made.keys() - heldout)
    return [made[one] for one in (second, first, third)], first


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=histories(), seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_whoever_is_held_out_shares_no_prompt_with_the_training_part(
    history: list[tuple[str, list[str], dict[int, Verdict]]],
    seeds: tuple[int, int],
    project: Project,
    parted: tuple[list[User], str],
) -> None:
    users, _ = parted
    kept, leaked = [], []
    for question, texts, said in history:
        theirs = {1: said[1]} if 1 in said else {}
        digest = text_digest([{"role": "user", "content": question}])
        sound = any(one.groups and not one.retracted for one in theirs.values())
        if is_heldout(digest, 0.2) or not sound:
            kept.append((question, texts, said))
        else:
            kept.append((question, texts, theirs))
            leaked.append((question, texts, {n: one for n, one in said.items() if n != 1}))
    pairs, excluded, exported = expected(kept, {})
    _, more, withheld = expected(leaked, {})
    excluded.update(more)
    if withheld:
        excluded["heldout_leak"] += withheld
    judges = {n for _, _, said in history for n, one in said.items() if not one.retracted}
    part = 1 in judges and len(judges) > 1
    built = []
    for seed in seeds:
        campaign = store(history, project, users, seed)
        snapshot = Snapshot.objects.create(
            project=project,
            heldout_fraction=0.2,
            options={"heldout_annotators": 0.5, "leaks": False},
        )
        snapshot.campaigns.set([campaign])
        if not (part and pairs):
            alone = "nobody can be held out" if len(judges) == 1 else "would be held out"
            with pytest.raises(ProductError, match="give no pair" if part else alone):
                build_snapshot(snapshot_id=snapshot.pk)
        else:
            built.append(build_snapshot(snapshot_id=snapshot.pk))
        clear(campaign)
    if not built:
        return
    first, second = built
    assert first.digest == second.digest
    assert first.manifest == second.manifest
    assert first.manifest["annotators"] == {"all": len(judges), "heldout": 1}
    assert first.manifest["ledger"] == {
        "judgements": sum(len(said) for _, _, said in history),
        "exported": exported,
        "pairs": pairs.total(),
        "excluded": dict(sorted(excluded.items())),
    }
    learnt = list(read_rows(first.folder / "train.parquet"))
    theirs = {str(uuid.uuid5(uuid.NAMESPACE_OID, f"{question} 1")) for question, _, _ in history}
    assert theirs.isdisjoint(row["judgement_id"] for row in learnt)
    assert {row["prompt_id"] for row in learnt}.isdisjoint(heldout_prompts(first))


def clear(campaign: Campaign) -> None:
    """Take a history away again, so that the next order finds the same judgement ids free."""
    for table in (Judgement, Slot, Item):
        table.objects.filter(campaign=campaign).delete()


def test_the_files_are_the_same_bytes(project: Project, users: list[User], settings: Any) -> None:
    ranked = Verdict(((0,), (1, 2)), None, 3, False, False)
    history = [(f"Q{n}", ["a", "b", "c"], {0: ranked, 1: ranked}) for n in range(20)]
    contents = []
    for seed in (1, 2):
        settings.ARTIFACTS_DIR = settings.ARTIFACTS_DIR.parent / f"store-{seed}"
        campaign = store(history, project, users, seed)
        snapshot = Snapshot.objects.create(project=project)
        snapshot.campaigns.set([campaign])
        folder = build_snapshot(snapshot_id=snapshot.pk).folder
        contents.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
        clear(campaign)
    assert contents[0] == contents[1]
    assert json.loads(contents[0]["manifest.json"])["ledger"]["pairs"] == 80


def test_row_groups_end_anywhere_and_change_nothing_said(
    project: Project, users: list[User], monkeypatch: pytest.MonkeyPatch, settings: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    ranked = Verdict(((0,), (1,), (2,)), None, 2, False, False)
    history = [(f"Q{n}", ["a", "b", "c"], {0: ranked, 1: ranked}) for n in range(9)]
    campaign = store(history, project, users, 0)
    found = []
    for limit in (10_000, 4, 1):
        settings.ARTIFACTS_DIR = tmp_path / f"store-{limit}"
        monkeypatch.setattr("training.parts.ROWS_PER_GROUP", limit)
        snapshot = Snapshot.objects.create(project=project)
        snapshot.campaigns.set([campaign])
        built = build_snapshot(snapshot_id=snapshot.pk)
        counted = [built.manifest[name] for name in ("prompts", "lengths", "repeats")]
        found.append((built.digest, counted, rows(built)))
    assert found[0] == found[1] == found[2]


def test_a_judgement_that_is_lost_fails_the_build() -> None:
    composed = Composed(rows=[Row(("one",), "a", "b")], reasons={"two": Exclusion.TIE})
    ledger = Ledger()
    ledger.account(["one", "two"], composed)
    ledger.check(2)
    with pytest.raises(AssertionError, match="does not balance"):
        ledger.check(3)
    for said in (["one"], ["one", "two", "three"]):
        with pytest.raises(AssertionError, match="gave rows"):
            Ledger().account(said, composed)
    composed.reasons["one"] = Exclusion.TIE
    with pytest.raises(AssertionError, match="gave rows"):
        Ledger().account(["one", "two"], composed)


def test_strength_becomes_margin() -> None:
    assert [margin_of(strength) for strength in (None, 1, 2, 3)] == [1.0, 1.0, 2.0, 3.0]


def test_a_prompt_that_was_changed_behind_our_back_fails_the_build(
    project: Project, users: list[User]
) -> None:
    ranked = Verdict(((0,), (1,)), None, None, False, False)
    campaign = store([("Q", ["a", "b"], {0: ranked})], project, users, 0)
    Prompt.objects.update(messages=[{"role": "user", "content": "Another?"}])
    snapshot = Snapshot.objects.create(project=project)
    snapshot.campaigns.set([campaign])
    with pytest.raises(AssertionError, match="does not match its digest"):
        build_snapshot(snapshot_id=snapshot.pk)
    snapshot.refresh_from_db()
    assert snapshot.state == Snapshot.State.FAILED
