"""The gate: proposed only when the lower bound beats the champion; overruled only with a reason."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback.assignment import Answer, claim, make_slots, submit
from feedback.models import Campaign, Response
from inference import client, services
from inference.models import Alias, AliasMove, Completion, Version
from tests.training.test_pages import snapshot, version  # noqa: F401
from training import gate, labelled, leases
from training.evaluation import (
    evaluate,
    settle_evaluations,
    start_evaluation,
    sweep_evaluations,
)
from training.models import Evaluation, Snapshot
from training.statistics import fragility, length_controlled

Compare = Callable[..., Evaluation]


@pytest.fixture
def compare(
    snapshot: Snapshot,  # noqa: F811
    version: Version,  # noqa: F811
    base_version: Version,
) -> Compare:
    """Return a function that records a finished comparison of v1 with the base."""

    def record(low: float, turned: int | None = 3) -> Evaluation:
        return Evaluation.objects.create(
            project=snapshot.project,
            challenger=version,
            champion=base_version,
            snapshot=snapshot,
            rule="training.rules:concise",
            state=Evaluation.State.DONE,
            result={
                "win_rate": {"value": low + 0.1, "low": low, "high": low + 0.2, "n": 64},
                "fragility": {"prompts": turned, "of": 16},
                "mean_tokens": {"challenger": 10.0, "champion": 20.0},
                "prompts": 16,
            },
        )

    return record


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every adapter count as loaded: no engine answers in these tests."""
    monkeypatch.setattr(client, "load_adapter", lambda **_: None)


def test_only_a_lower_bound_above_one_half_is_proposed(
    compare: Compare,
    version: Version,  # noqa: F811
) -> None:
    assert "has not been compared" in gate.proposal(version).sentence
    compare(0.5)
    assert not gate.proposal(version).proposed
    compare(0.501)
    found = gate.proposal(version)
    assert found.proposed
    assert "v1 beats base" in found.sentence
    assert "3 prompts of 16 judged the other way would undo that." in found.sentence
    compare(0.4)
    assert not gate.proposal(version).proposed, "the newest comparison counts"


def test_what_is_not_proposed_needs_a_reason_that_the_ledger_keeps(
    compare: Compare,
    version: Version,  # noqa: F811
    project: Project,
    owner: User,
    loaded: None,
) -> None:
    with pytest.raises(ProductError, match="has not been compared with base"):
        services.promote(project=project, version=version, by=owner, why="  ")
    assert Alias.objects.get(project=project).version.is_base
    move = services.promote(project=project, version=version, by=owner, why="The lawyers ask.")
    assert (move.overruled, move.why) == (True, "The lawyers ask.")


def test_what_is_proposed_needs_none(
    compare: Compare,
    version: Version,  # noqa: F811
    project: Project,
    owner: User,
    api: Callable[..., APIClient],
    login: Callable[[User], Client],
    loaded: None,
) -> None:
    path = f"/api/versions/{version.pk}/promote"
    refused = api(owner).post(path, {})
    assert refused.status_code == 400
    assert "with a reason why" in refused.json()["message"]
    compare(0.6)
    page = login(owner).get(reverse("version", args=[project.slug, version.pk]))
    assert "Proposed." in page.content.decode()
    assert api(owner).post(path, {}).json()["overruled"] is False
    assert AliasMove.objects.first().overruled is False  # type: ignore[union-attr]


def test_a_comparison_that_can_only_fail_is_refused_at_once(
    snapshot: Snapshot,  # noqa: F811
    version: Version,  # noqa: F811
    base_version: Version,
    lead: User,
    api: Callable[..., APIClient],
) -> None:
    body = {"challenger": version.pk, "champion": base_version.pk, "snapshot": snapshot.pk}
    rows, versions = Snapshot.objects.filter(pk=snapshot.pk), Version.objects.filter(pk=version.pk)

    def refusal() -> str:
        answer = api(lead).post("/api/evaluations/", body)
        assert answer.status_code == 400, answer.content
        return str(answer.json()["message"])

    rows.update(manifest=snapshot.manifest | {"prompts": {"train": 3, "heldout": 0}})
    assert "holds out no prompts" in refusal()
    rows.update(state=Snapshot.State.FAILED)
    assert "is failed. Choose one that is ready." in refusal()
    rows.update(state=Snapshot.State.READY, manifest=snapshot.manifest)
    body["challenger"] = base_version.pk + 10_000
    assert "challenger: There is no version with the id" in refusal()
    body["challenger"] = version.pk
    assert api(lead).post("/api/evaluations/", body).status_code == 201
    (snapshot.folder / "heldout.parquet").unlink()
    made = evaluate(evaluation_id=Evaluation.objects.get().pk)
    assert made.state == Evaluation.State.FAILED, "it says so, and is not tried again and again"
    assert "heldout.parquet" in made.reason
    assert versions.exists()


def test_people_judge_blind_and_their_judgements_are_the_result(
    snapshot: Snapshot,  # noqa: F811
    version: Version,  # noqa: F811
    base_version: Version,
    lead: User,
    annotator: User,
    api: Callable[..., APIClient],
    login: Callable[[User], Client],
) -> None:
    body = {
        "challenger": version.pk,
        "champion": base_version.pk,
        "snapshot": snapshot.pk,
        "judge": "people",
        "judgements_per_item": 1,
    }
    made = Evaluation.objects.get(pk=api(lead).post("/api/evaluations/", body).json()["id"])
    campaign = made.campaign
    assert campaign is not None
    assert campaign.kind == Campaign.Kind.PAIRWISE
    assert campaign.items.count() == snapshot.manifest["prompts"]["heldout"]
    assert "v1" not in campaign.name + campaign.instructions
    answered(campaign, version, base_version)
    campaign.refresh_from_db()
    assert settle_evaluations() == 0
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        ours, theirs = (
            next(one for one in task.responses if one.position == place) for place in (0, 1)
        )
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=Answer(ranking=[[ours.pk], [theirs.pk]]),
        )
        page = login(lead).get(reverse("evaluation", args=[made.project.slug, made.pk]))
        assert "v1 wins 100 % of comparisons" in page.content.decode(), "the result so far"
    assert settle_evaluations() == 1
    made.refresh_from_db()
    assert made.state == Evaluation.State.DONE
    assert made.result["win_rate"]["value"] == 1.0
    assert made.result["win_rate"]["n"] == campaign.items.count()


def test_a_comparison_whose_worker_was_lost_is_taken_up_again(compare: Compare) -> None:
    lost, people, done = compare(0.6), compare(0.6), compare(0.6)
    Evaluation.objects.filter(pk=lost.pk).update(state=Evaluation.State.QUEUED, result={})
    Evaluation.objects.filter(pk=people.pk).update(
        state=Evaluation.State.RUNNING, judge=Evaluation.Judge.PEOPLE
    )
    held = Evaluation.objects.filter(pk=lost.pk)
    assert leases.claim(held, held=Evaluation.State.RUNNING)
    assert sweep_evaluations() == 0
    assert evaluate(evaluation_id=lost.pk).state == Evaluation.State.RUNNING, "by its holder"
    held.update(heartbeat_at=Now() - timedelta(minutes=1))
    assert sweep_evaluations() == 1
    assert evaluate(evaluation_id=lost.pk).state == Evaluation.State.FAILED, "no engine answers"
    assert held.get().attempts == 2
    assert evaluate(evaluation_id=done.pk).result == done.result
    people.refresh_from_db()
    assert people.state == Evaluation.State.RUNNING


def answered(campaign: Campaign, *versions: Version) -> None:
    """Write both versions' answers, as the worker would."""
    for item in campaign.items.select_related("prompt"):
        for position, each in enumerate(versions):
            completion = Completion.objects.create(
                project=campaign.project,
                version=each,
                requested_model=each.name,
                source=Completion.Source.CANDIDATE,
                messages=item.prompt.messages,
                text=f"Answer {position}",
                completion_tokens=5 + position,
            )
            Response.objects.create(
                item=item, position=position, text=completion.text, completion=completion
            )
        for slot in make_slots(item, campaign=campaign, responses=2):
            slot.save()
    Campaign.objects.filter(pk=campaign.pk).update(state=Campaign.State.OPEN)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"judge": "rule", "rule": "os:system"}, "not among the rules"),
        ({"judge": "reward"}, "Choose a reward model"),
    ],
)
def test_a_judge_that_cannot_judge_is_refused(
    changes: dict[str, Any],
    sentence: str,
    snapshot: Snapshot,  # noqa: F811
    version: Version,  # noqa: F811
    base_version: Version,
) -> None:
    with pytest.raises(ProductError, match=sentence):
        start_evaluation(
            challenger=version, champion=base_version, snapshot=snapshot, by=None, **changes
        )
    assert not Evaluation.objects.exists()


def test_it_counts_how_few_prompts_would_change_the_decision() -> None:
    # Wilson's lower bound of 9 of 10 is 0.60, of 8 it is 0.49: one prompt turned undoes it.
    assert fragility([[1.0]] * 9 + [[0.0]]).prompts == 1
    # Of 5 of 10 to 9 of 10: four more would show it.
    assert fragility([[1.0]] * 5 + [[0.0]] * 5).prompts == 4
    assert fragility([[0.5]] * 10).prompts is None


def test_a_win_by_length_alone_is_none_at_equal_length() -> None:
    longer = [[30.0, -30.0], [30.0, -30.0]] * 20
    wins_when_longer = [[1.0, 0.0], [1.0, 0.0]] * 20
    assert length_controlled(wins_when_longer, longer).value == pytest.approx(0.5, abs=0.01)
    # Mostly longer and mostly winning: the plain rate is 0.75, at equal length about one half.
    mostly = [[30.0, 30.0, 30.0, -30.0]] * 20
    found = length_controlled([[1.0, 1.0, 1.0, 0.0]] * 20, mostly)
    assert found.low <= found.value < 0.65
    # A win whatever the length stays one.
    assert length_controlled([[1.0, 1.0]] * 40, longer).low > 0.8


def test_labels_are_scored_as_by_hand() -> None:
    expected = ["yes", "yes", "no", "no"]
    assert labelled.are_labels(expected)
    assert not labelled.are_labels(["a long sentence of many words", "another one of many words"])
    found = labelled.classification(expected, ["Yes.", "no", "no", "maybe"])
    assert found.accuracy == 0.5
    # yes: precision 1, recall 1/2, F1 2/3; no: precision 1/2, recall 1/2, F1 1/2
    assert (found.precision, found.recall) == (0.75, 0.5)
    assert found.f1 == pytest.approx((2 / 3 + 1 / 2) / 2)
    by_label = [(one.label, one.precision, one.recall, one.expected) for one in found.by_label]
    assert by_label == [("no", 0.5, 0.5, 2), ("yes", 1.0, 0.5, 2)]
    assert found.labels == ("no", "yes", labelled.NO_LABEL)
    assert found.confusion == ((1, 0, 1), (1, 1, 0), (0, 0, 0))
    assert labelled.bleu(["the cat sat down"], ["the cat sat down"]) == pytest.approx(100)
