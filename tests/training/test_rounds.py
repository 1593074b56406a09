"""Rounds: all queued or none, ranked, halved, cancelled; and who goes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import Conflict, ProductError
from accounts.models import User
from inference.models import Version
from tests.training.test_runs import (  # noqa: F401
    ARGUMENTS,
    base_version,
    folder,
    snapshot,
    start,
)
from training import rounds, runs
from training.models import Machine, Round, Run, Snapshot


def finish(run: Run, accuracy: float, version: Version) -> None:
    """End a run as if it had trained."""
    after = {
        "reward_accuracy": accuracy,
        "reward_accuracy_low": accuracy - 0.1,
        "reward_accuracy_high": accuracy + 0.1,
    }
    report = {"evaluation": {"after": after, "pairs": 9}, "seconds": 2.0, "trainable_share": 0.01}
    Run.objects.filter(pk=run.pk).update(state=Run.State.SUCCEEDED, report=report, version=version)


def test_it_tries_every_combination_that_a_method_knows() -> None:
    grid = {"beta": [0.1, 0.3], "lora_r": [4, 8]}
    entries = rounds.expand(["dpo", "sft"], arguments={"epochs": 1}, grid=grid)
    assert len(entries) == 4 + 2, "SFT has no beta"
    assert entries[0].arguments == {"epochs": 1, "beta": 0.1, "lora_r": 4}
    with pytest.raises(ProductError, match="no method ppo"):
        rounds.expand(["ppo"])
    with pytest.raises(ProductError, match="Did you mean beta"):
        rounds.expand(["dpo", "sft"], grid={"betta": [0.1]})
    with pytest.raises(ProductError, match="no value for beta"):
        rounds.expand(["dpo"], grid={"beta": []})


def test_the_suite_tries_every_way_of_tuning() -> None:
    entries = rounds.suite()
    assert {"lora", "dora", "qlora4", "qlora8", "full"} == {
        one.arguments["tuning"] for one in entries if one.method == "sft"
    }
    assert {"dpo", "orpo"} <= {one.method for one in entries}
    small = rounds.suite({"max_steps": 2, "learning_rate": 1e-3, "beta": 0.2})
    assert all(one.arguments["max_steps"] == 2 for one in small)
    assert {one.method for one in small if "beta" in one.arguments} == {"dpo", "orpo"}
    [full] = [one for one in small if one.arguments.get("tuning") == "full"]
    assert full.arguments["learning_rate"] == 2e-5


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_suite_trains_every_way_and_fills_its_table(
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    owner: User,
    api: Callable[..., APIClient],
    login: Callable[[User], Client],
) -> None:
    body = {"snapshot": snapshot.pk, "suite": True, "arguments": ARGUMENTS}
    made = api(owner).post("/api/rounds/", body).json()
    for run in Run.objects.order_by("pk"):
        runs.execute_run(run_id=run.pk)
    reasons = [run.reason for run in Run.objects.all() if run.reason]
    found = api(owner).get(f"/api/rounds/{made['id']}/").json()
    assert (found["state"], reasons) == ("done", [])
    rows = {
        row["differs"]["tuning"] if row["method"] == "sft" else row["method"]: row
        for row in found["outcomes"]
    }
    assert set(rows) == {"lora", "dora", "qlora4", "qlora8", "full", "dpo", "orpo"}
    assert sorted(row["rank"] for row in rows.values()) == list(range(1, 8))
    for row in rows.values():
        assert 0 <= row["accuracy"]["value"] <= 1
        assert min(row["seconds"], row["peak_memory_mb"], row["saved_bytes"]) > 0
        assert row["hardware"] == Machine.objects.get().hardware
    shares = [rows[way]["trainable_share"] for way in ("lora", "dora", "full")]
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    assert rows["full"]["saved_bytes"] > rows["dora"]["saved_bytes"] > rows["lora"]["saved_bytes"]
    assert all(version.proof["passed"] for version in Version.objects.adapters())
    page = login(owner).get(reverse("round", args=[snapshot.project.slug, made["id"]]))
    assert f"Trained on {Machine.objects.get().hardware}." in page.content.decode()
    # What a DoRA gave is gone on from, as a DoRA.
    dora = Run.objects.get(pk=rows["dora"]["run"]).version
    assert dora is not None
    assert dora.is_dora
    after = runs.start_run(
        snapshot=snapshot, start_version=dora, method="dpo", arguments=ARGUMENTS, by=owner
    )
    runs.execute_run(run_id=after.pk)
    after.refresh_from_db()
    assert after.state == Run.State.SUCCEEDED, after.reason
    assert after.version is not None
    assert after.version.is_dora


def test_all_are_queued_or_none(
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    owner: User,
    api: Callable[..., APIClient],
) -> None:
    body = {"snapshot": snapshot.pk, "arguments": ARGUMENTS}
    refused = api(owner).post("/api/rounds/", body | {"grid": {"learning_rate": [1e-4, 9.0]}})
    assert refused.status_code == 400
    assert "learning_rate" in refused.json()["message"]
    assert not Run.objects.exists()
    assert not Round.objects.exists()
    made = api(owner).post("/api/rounds/", body).json()
    assert [row["method"] for row in made["outcomes"]] == ["reward", "dpo", "orpo"]
    assert made["state"] == "running"
    path = f"/api/rounds/{made['id']}/"
    assert api(owner).post(f"{path}cancel").json()["state"] == "cancelled"
    assert set(Run.objects.values_list("state", flat=True)) == {"cancelled"}
    assert api(owner).post(f"{path}cancel").status_code == 409


@pytest.fixture
def halving(
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    owner: User,
) -> Round:
    """Return a round of four that halves, starting with two steps."""
    entries = rounds.expand(["dpo"], arguments=ARGUMENTS, grid={"beta": [0.1, 0.2, 0.3, 0.4]})
    return rounds.start_round(
        snapshot=snapshot,
        start_version=base_version,
        entries=entries,
        by=owner,
        first_steps=2,
    )


def test_the_better_half_goes_on_until_one_is_left(
    halving: Round,
    base_version: Version,  # noqa: F811
) -> None:
    first = list(halving.runs.order_by("pk"))
    assert {run.arguments["max_steps"] for run in first} == {2}
    for run, accuracy in zip(first, (0.5, 0.9, 0.6, 0.8), strict=True):
        assert rounds.advance_rounds() == 0, "the rung has not ended"
        finish(run, accuracy, base_version)
    assert rounds.advance_rounds() == 1
    assert rounds.advance_rounds() == 0, "once a rung"
    second = list(halving.runs.filter(rung=1).order_by("pk"))
    assert [run.continues for run in second] == [first[1], first[3]]
    assert {run.arguments["max_steps"] for run in second} == {4}
    finish(second[0], 0.7, base_version)
    Run.objects.filter(pk=second[1].pk).update(state=Run.State.FAILED)
    assert rounds.advance_rounds() == 1
    last = halving.runs.get(rung=2)
    assert (last.continues, last.arguments["max_steps"]) == (second[0], 8)
    finish(last, 0.7, base_version)
    assert rounds.advance_rounds() == 0
    halving.refresh_from_db()
    assert (halving.complete, halving.state) == (True, "done")
    ranked = rounds.outcomes(halving)
    assert ranked[0].run == last
    assert [row.run for row in ranked if row.run.rung == 0] == [first[k] for k in (1, 3, 2, 0)]
    assert ranked[0].differs == {"beta": 0.2, "max_steps": 8}


def test_a_cancelled_halving_begins_no_further_rung(
    halving: Round,
    base_version: Version,  # noqa: F811
    owner: User,
) -> None:
    for run in halving.runs.all():
        finish(run, 0.5, base_version)
    rounds.cancel_round(round=halving, by=owner)
    assert rounds.advance_rounds() == 0
    with pytest.raises(Conflict):
        rounds.cancel_round(round=halving, by=owner)


@pytest.mark.django_db(transaction=True)
def test_a_run_of_the_next_rung_goes_on_from_the_checkpoint(
    start: Callable[..., Run],  # noqa: F811
) -> None:
    first = start(max_steps=2)
    runs.execute_run(run_id=first.pk)
    second = start(max_steps=4)
    Run.objects.filter(pk=second.pk).update(continues=first)
    runs.execute_run(run_id=second.pk)
    second.refresh_from_db()
    assert second.state == Run.State.SUCCEEDED, second.reason
    steps = list(second.metrics.values_list("step", flat=True))
    assert steps == [3, 4], "the first two were taken before"


@pytest.mark.django_db(transaction=True)
def test_the_highest_priority_goes_first(
    start: Callable[..., Run],  # noqa: F811
    owner: User,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow, urgent = start(max_steps=1), start(max_steps=1)
    runs.set_priority(run=urgent, priority=5, by=owner)
    runs.execute_run(run_id=slow.pk)
    slow.refresh_from_db()
    urgent.refresh_from_db()
    assert (urgent.state, slow.state) == (Run.State.SUCCEEDED, Run.State.QUEUED)
    with pytest.raises(Conflict, match="Only a run that waits"):
        runs.set_priority(run=urgent, priority=1, by=owner)


def test_pages_start_show_and_cancel_a_round(
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    owner: User,
    login: Callable[[User], Client],
) -> None:
    client, slug = login(owner), snapshot.project.slug
    form: dict[str, Any] = {
        "snapshot": snapshot.pk,
        "start_version": base_version.pk,
        "methods": ["dpo", "orpo"],
        "arguments": '{"epochs": 1}',
        "grid": '{"lora_r": 4}',
        "seed": 0,
    }
    page = client.post(reverse("round_new", args=[slug]), form)
    assert page.status_code == 400
    assert "a list of values" in page.content.decode()
    page = client.post(reverse("round_new", args=[slug]), form | {"grid": '{"lora_r": [2, 4]}'})
    made = Round.objects.get()
    assert page["Location"] == reverse("round", args=[slug, made.pk])
    assert made.runs.count() == 4
    finish(made.runs.first(), 0.8, base_version)  # type: ignore[arg-type]
    text = client.get(page["Location"]).content.decode()
    assert "80.0 %" in text
    assert "lora_r 2" in text
    assert (
        reverse("round", args=[slug, made.pk])
        in client.get(reverse("rounds", args=[slug])).content.decode()
    )
    client.post(reverse("round_cancel", args=[slug, made.pk]))
    assert made.runs.filter(state=Run.State.CANCELLED).count() == 3


def test_a_page_draws_several_runs_in_one_chart(
    start: Callable[..., Run],  # noqa: F811
    owner: User,
    login: Callable[[User], Client],
) -> None:
    one, two = start(), start()
    for run in (one, two):
        for step in (1, 2, 3):
            run.metrics.create(step=step, values={"loss": 0.7 - 0.1 * step})
    address = reverse("run_compare", args=[one.project.slug])
    text = login(owner).get(address, {"run": [one.pk, two.pk, 999_999]}).content.decode()
    assert f"run {one.pk}" in text
    assert text.count("<figure") == 1
    assert f"Run {two.pk} fell from 0.6 at step 1 to 0.4 at step 3." in text


def test_a_page_pauses_resumes_and_sets_a_priority(
    start: Callable[..., Run],  # noqa: F811
    owner: User,
    login: Callable[[User], Client],
) -> None:
    run, client = start(), login(owner)

    def post(name: str, **data: Any) -> int:
        return client.post(reverse(name, args=[run.project.slug, run.pk]), data).status_code

    assert post("run_pause") == 302
    run.refresh_from_db()
    assert run.state == Run.State.PAUSED
    page = client.get(reverse("run", args=[run.project.slug, run.pk])).content.decode()
    assert "Resume" in page
    assert post("run_priority", priority="7") == 302
    assert post("run_priority", priority="soon") == 400
    assert post("run_resume") == 302
    assert post("run_resume") == 409
    run.refresh_from_db()
    assert (run.state, run.priority) == (Run.State.QUEUED, 7)
