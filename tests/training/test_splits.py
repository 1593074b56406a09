"""Held out by annotator: nothing of theirs, and no prompt of theirs, is learnt from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback.models import Campaign, CompletionFeedback
from inference.models import Completion, Version
from tests.training.test_snapshot_kinds import take
from tests.training.test_snapshots import judge_all, middle_tied, rows, strict
from training.formats import read_rows
from training.ledger import Exclusion
from training.models import Snapshot
from training.rows import Said
from training.snapshots import heldout_prompts
from training.sources import Group
from training.splits import Side, Split, heldout_annotators


@pytest.fixture
def judges(annotator: User, second_annotator: User, lead: User) -> tuple[dict[bool, User], float]:
    """Return a held-out and another annotator, with the share that parts the two."""
    people = {str(one.pk): one for one in (annotator, second_annotator)}
    for percent in range(1, 90):
        try:
            [found] = heldout_annotators(people, percent / 100)
        except ProductError:
            continue
        heldout = people.pop(found)
        return {True: heldout, False: people.popitem()[1]}, percent / 100
    pytest.skip("both have nearly the same digest")


def test_a_person_stays_on_their_side_as_people_join() -> None:
    people = [str(number) for number in range(2000)]
    few, many = heldout_annotators(people[:500], 0.2), heldout_annotators(people, 0.2)
    assert few == many & set(people[:500])
    assert many < heldout_annotators(people, 0.3)
    assert abs(len(many) / 2000 - 0.2) < 0.03
    for share, said in ((1e-9, "None of the 2000 .* raise"), (0.999999, "All of the .* lower")):
        with pytest.raises(ProductError, match=said):
            heldout_annotators(people, share)
    with pytest.raises(ProductError, match="One person gave all"):
        heldout_annotators(people[:1], 0.5)


def test_a_prompt_that_they_judged_is_learnt_from_through_nobody() -> None:
    theirs, tied = Said("1", annotator="a"), Said("2", "a", Exclusion.RETRACTED)
    other = Said("3", annotator="b")
    split = Split(fraction=0, alike={"p": "k", "q": "k"}, annotators={"a"}, judged={"p", "k"})

    def sides(prompt: str, *said: Said) -> list[Side]:
        return list(split.sides(Group(prompt, [], list(said))))

    assert sides("x", theirs, other) == [
        Side("heldout", [theirs]),
        Side("train", [other], Exclusion.HELDOUT_LEAK),
    ]
    assert sides("x", tied, other) == [Side("heldout", [tied]), Side("train", [other])]
    assert sides("q", other) == [Side("train", [other], Exclusion.HELDOUT_LEAK)], (
        "nor through a near-duplicate"
    )
    assert sides("y", other) == [Side("train", [other])]


def test_votes_are_counted_on_each_side_and_later_snapshots_keep_off(
    make_campaign: Callable[..., Campaign], project: Project, lead: User,
    judges: tuple[dict[bool, User], float], login: Callable[[User], Client],
) -> None:  # fmt: skip
    people, share = judges
    campaign = make_campaign(items=6, responses=3, judgements_per_item=2)
    judge_all(campaign, people[False], strict)
    item = campaign.items.order_by("id").first()
    assert item is not None
    campaign.slots.exclude(item=item).filter(state="open").delete()
    judge_all(campaign, people[True], middle_tied)
    snapshot = take(project, "preference", campaign, votes="majority", heldout_annotators=share)
    assert snapshot.manifest["annotators"] == {"all": 2, "heldout": 1}
    assert heldout_prompts(snapshot) == [item.prompt.digest]
    assert snapshot.manifest["ledger"] == {
        "judgements": 7, "exported": 6, "pairs": 5 * 3 + 3, "excluded": {"heldout_leak": 1},
    }  # fmt: skip
    assert snapshot.manifest["prompts"] == {"train": 5, "heldout": 1}
    later = take(project, "preference", campaign)
    assert later.manifest["ledger"]["excluded"] == {"heldout_leak": 2}
    page = login(lead).get(reverse("snapshot", args=[project.slug, snapshot.pk])).content.decode()
    assert "1 of 2 annotators, with every prompt that they judged" in page
    assert f"{share:.0%} of the annotators held out" in page
    assert "judged by a held-out annotator" in page


def test_what_they_said_of_answers_in_use_is_held_out_with_its_near_duplicates(
    base_version: Version, project: Project, judges: tuple[dict[bool, User], float]
) -> None:
    people, share = judges
    asked = ["Please tell me what a tie in a preference campaign means for the rows that follow"]
    asked += [f"{asked[0]}!", "What is a judgement?"]
    for number, (question, theirs) in enumerate(zip(asked, (True, False, False), strict=True)):
        made = Completion.objects.create(
            project=project, version=base_version, source=Completion.Source.CHAT,
            messages=[{"role": "user", "content": question}], text=f"Answer {number}.",
        )  # fmt: skip
        CompletionFeedback.objects.create(completion=made, user=people[theirs], thumb=1)
    options: dict[str, Any] = {"heldout_annotators": share}
    assert len(train(take(project, "unpaired", **options))) == 2
    Snapshot.objects.all().delete()
    near = take(project, "unpaired", near=True, **options)
    [row] = train(near)
    assert row["prompt"][0]["content"] == "What is a judgement?"
    assert near.manifest["ledger"]["excluded"] == {"heldout_leak": 1}
    assert len(rows(near)) == 2


def train(snapshot: Snapshot) -> list[dict[str, Any]]:
    return list(read_rows(snapshot.folder / "train.parquet"))
