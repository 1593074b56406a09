"""Near-duplicate prompts stay together, and what was held out once is never trained on."""

from __future__ import annotations

import random
from collections.abc import Callable

from accounts.models import Project, User
from feedback.models import Campaign, Judgement, Pause, Prompt, text_digest
from inference.models import Completion, Version
from tests.training.test_snapshots import judge_all, rows, strict
from training.models import Snapshot
from training.near import groups
from training.snapshots import build_snapshot, create_snapshot, heldout_prompts


def variant(number: int, topic: str = "sea") -> str:
    """Return a question of 60 words on a topic, with ``number`` words more at its end."""
    words = [f"{topic}{place}" for place in range(60)]
    return " ".join([*words, *["please", "kindly"][:number]])


def test_near_duplicates_are_grouped_in_any_order() -> None:
    prompts = [(f"a{number}", variant(number)) for number in range(3)]
    prompts += [("b", "What is the capital of France?"), ("c", "What is the capital of Spain?")]
    prompts += [("d", ""), ("e", "Salt?")]
    found = groups(prompts)
    assert found == {"a0": "a0", "a1": "a0", "a2": "a0"}
    assert groups(random.Random(3).sample(prompts, len(prompts))) == found
    assert groups([]) == {}
    # What is compared with, but not taken in, never gives the key.
    outside = [
        ("0", variant(2)),
        ("1", "Salt?"),
        ("2", variant(0, "air")),
        ("3", variant(1, "air")),
    ]
    found = groups(prompts, outside)
    assert found == dict.fromkeys(("a0", "a1", "a2", "0"), "a0") | {
        "e": "e", "1": "e", "2": "2", "3": "2",
    }  # fmt: skip


def take(project: Project, campaign: Campaign, heldout: float, **options: bool) -> Snapshot:
    made = create_snapshot(
        project=project, campaigns=[campaign], by=None, heldout_fraction=heldout, options=options
    )
    return build_snapshot(snapshot_id=made.pk)


def test_near_duplicate_prompts_lie_on_one_side(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User
) -> None:
    campaign = make_campaign(items=24, judgements_per_item=1)
    for number, prompt in enumerate(Prompt.objects.order_by("id")):
        content = variant(number % 3, topic=f"topic{number // 3}x")
        messages = [{"role": "user", "content": content}]
        Prompt.objects.filter(pk=prompt.pk).update(messages=messages, digest=text_digest(messages))
    judge_all(campaign, annotator, strict)
    together = take(project, campaign, 0.4, near=True, leaks=False)
    held = set(heldout_prompts(together))
    prompts = list(Prompt.objects.order_by("id").values_list("digest", flat=True))
    sides = [{one in held for one in prompts[at : at + 3]} for at in range(0, 24, 3)]
    assert all(len(side) == 1 for side in sides)
    assert together.manifest["near_duplicates"] == 24
    apart = set(heldout_prompts(take(project, campaign, 0.4, leaks=False)))
    assert any(0 < len(apart & set(prompts[at : at + 3])) < 3 for at in range(0, 24, 3))


def test_what_was_held_out_is_never_trained_on(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User
) -> None:
    campaign = make_campaign(items=20, judgements_per_item=1)
    judge_all(campaign, annotator, strict)
    first = take(project, campaign, 0.5)
    held = set(heldout_prompts(first))
    marked = Prompt.objects.exclude(digest__in=held).order_by("id")[0]
    Prompt.objects.filter(pk=marked.pk).update(tags=["evaluation"])
    second = take(project, campaign, 0)
    assert second.manifest["ledger"]["excluded"] == {
        "evaluation_leak": 1,
        "heldout_leak": len(held),
    }
    assert not {row["prompt_id"] for row in rows(second)} & (held | {marked.digest})
    assert take(project, campaign, 0, leaks=False).manifest["ledger"]["excluded"] == {}


def test_twins_of_prompts_outside_the_snapshot_are_not_learnt_from(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    second_annotator: User,
) -> None:
    """One near what an earlier snapshot held out, one near a prompt that is marked to evaluate."""
    for person, extra in ((annotator, 0), (second_annotator, 1)):
        campaign = make_campaign(name=f"Round {extra}", items=8, judgements_per_item=1)
        for number, prompt in enumerate(
            Prompt.objects.filter(items__campaign=campaign).order_by("id")
        ):
            content = variant(extra, topic=f"topic{number}x")
            messages = [{"role": "user", "content": content}]
            Prompt.objects.filter(pk=prompt.pk).update(
                messages=messages, digest=text_digest(messages)
            )
        judge_all(campaign, person, strict)
        if extra == 0:
            first = take(project, campaign, 0.5)
            held = set(heldout_prompts(first))
            assert 0 < len(held) < 7
            marked = Prompt.objects.exclude(digest__in=held).order_by("id")[0]
            Prompt.objects.filter(pk=marked.pk).update(tags=["evaluation"])
    second = take(project, campaign, 0, near=True)
    assert second.manifest["ledger"]["excluded"] == {
        "evaluation_leak": 1,
        "heldout_leak": len(held),
    }
    assert second.manifest["near_duplicates"] == len(held) + 1
    assert take(project, campaign, 0).manifest["ledger"]["excluded"] == {}


def test_what_versions_were_compared_on_is_not_learnt_from(
    make_campaign: Callable[..., Campaign], project: Project, annotator: User, base_version: Version
) -> None:
    campaign = make_campaign(items=5, judgements_per_item=1)
    judge_all(campaign, annotator, strict)
    asked = Prompt.objects.order_by("id")[0]
    Completion.objects.create(
        project=project, version=base_version, requested_model="base", messages=asked.messages,
        text="Yes.", source=Completion.Source.EVALUATION,
    )  # fmt: skip
    found = take(project, campaign, 0)
    assert found.manifest["ledger"]["excluded"] == {"evaluation_leak": 1}
    assert asked.digest not in {row["prompt_id"] for row in rows(found)}


def test_a_paused_annotator_teaches_nothing(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    second_annotator: User,
) -> None:
    campaign = make_campaign(items=3, judgements_per_item=2)
    judge_all(campaign, annotator, strict)
    judge_all(campaign, second_annotator, strict)
    Pause.objects.create(campaign=campaign, annotator=annotator, why="Look.")
    snapshot = take(project, campaign, 0)
    assert snapshot.manifest["ledger"]["excluded"] == {"paused_annotator": 3}
    theirs = Judgement.objects.filter(annotator=second_annotator)
    assert {row["judgement_id"] for row in rows(snapshot)} == {str(one.client_id) for one in theirs}
