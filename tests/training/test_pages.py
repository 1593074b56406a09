"""Pages of snapshots, runs and evaluations, and the curves that are drawn for them."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from xml.etree import ElementTree

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from accounts.models import Project, User
from feedback.models import Campaign
from inference.models import BaseModel, Version
from tests.training.test_snapshots import all_tied, judge_all, strict, take_snapshot
from training import charts
from training.engine.arguments import argument_schema
from training.forms import METHODS, ArgumentsForm
from training.models import Evaluation, Run, RunMetric, RunNote, Snapshot

Login = Callable[[User], Client]


def url(name: str, project: Project, *args: Any) -> str:
    return reverse(name, args=[project.slug, *args])


@pytest.fixture
def snapshot(make_campaign: Callable[..., Campaign], project: Project, annotator: User) -> Snapshot:
    campaign = make_campaign(items=8, responses=3, judgements_per_item=1)
    judge_all(campaign, annotator, strict)
    return take_snapshot(project, campaign)


@pytest.fixture
def version(project: Project, base: BaseModel, base_version: Version) -> Version:
    """Return a version whose row is there and whose files are not."""
    return Version.objects.create(
        project=project,
        number=1,
        base=base,
        parent=base_version,
        method="dpo",
        digest="d" * 64,
        path="adapters/none",
        proof={"passed": True},
    )


@pytest.fixture
def make_run(snapshot: Snapshot, base_version: Version, owner: User) -> Callable[..., Run]:
    """Return a maker of runs; a running one holds a lease as if a worker had it."""

    def make(state: Run.State = Run.State.RUNNING, steps: int = 3, **changes: Any) -> Run:
        values = {"lease": uuid.uuid4()} if state == Run.State.RUNNING else {}
        run = Run.objects.create(
            project=snapshot.project,
            snapshot=snapshot,
            start_version=base_version,
            method="dpo",
            arguments={"beta": 0.1},
            state=state,
            step=steps,
            total_steps=10,
            created_by=owner,
            **values | changes,
        )
        add_metrics(run, steps)
        return run

    return make


def add_metrics(run: Run, last: int, first: int = 1) -> None:
    RunMetric.objects.bulk_create(
        RunMetric(
            run=run,
            step=step,
            values={
                "step": step,
                "time": 100.0 + 2 * step,
                "loss": 0.7 - 0.01 * step,
                "rewards/accuracies": 0.5,
                "rewards/margins": 0.1 * step,
                "rewards/chosen": 0.05 * step,
                "rewards/rejected": -0.05 * step,
            },
        )
        for step in range(first, last + 1)
    )


@pytest.mark.parametrize("name", ["snapshots", "runs", "evaluations", "evaluation_new"])
def test_it_is_open_to_leads_only(
    name: str,
    project: Project,
    login: Login,
    stranger: User,
    annotator: User,
    lead: User,
    owner: User,
) -> None:
    address = url(name, project)
    users = (stranger, annotator, lead, owner)
    assert [login(user).get(address).status_code for user in users] == [404, 403, 200, 200]
    assert Client().get(address).status_code == 302


def test_it_shows_runs_to_leads_and_starts_them_for_admins(
    make_run: Callable[..., Run],
    project: Project,
    login: Login,
    stranger: User,
    annotator: User,
    lead: User,
    owner: User,
) -> None:
    run, users = make_run(), (stranger, annotator, lead, owner)
    for name in ("run", "run_status", "run_charts"):
        address = url(name, project, run.pk)
        assert [login(user).get(address).status_code for user in users] == [404, 403, 200, 200]
    new = [login(user).get(url("run_new", project)).status_code for user in users]
    assert new == [404, 403, 403, 200]
    for name in ("run_cancel", "run_again"):
        address = url(name, project, run.pk)
        assert [login(user).post(address).status_code for user in users[:3]] == [404, 403, 403]


def test_it_prefills_numbers_that_browsers_accept(
    snapshot: Snapshot, version: Version, owner: User, login: Login
) -> None:
    client, checked = login(owner), 0
    for name in ("campaign_new", "snapshots", "run_new", "evaluation_new"):
        page = client.get(url(name, snapshot.project)).content.decode()
        for tag in re.findall(r'<input type="number"[^>]*>', page):
            field = dict(re.findall(r'(\w+)="([^"]*)"', tag))
            if field.get("step") == "any":
                continue
            value, low = float(field["value"]), float(field.get("min", 0))
            steps = (value - low) / float(field.get("step", 1))
            assert steps == pytest.approx(round(steps)), tag
            checked += 1
    assert checked > 5


# Snapshots


def test_it_takes_a_snapshot(
    campaign: Campaign, project: Project, lead: User, login: Login
) -> None:
    form = {"campaigns": [campaign.pk], "heldout_fraction": "0.3"}
    answer = login(lead).post(url("snapshots", project), form)
    snapshot = Snapshot.objects.get()
    assert answer["Location"] == url("snapshot", project, snapshot.pk)
    assert (snapshot.heldout_fraction, snapshot.created_by) == (0.3, lead)
    assert list(snapshot.campaigns.all()) == [campaign]


@pytest.mark.parametrize(
    "form", [{}, {"campaigns": [999_999]}, {"heldout_fraction": "2"}, {"heldout_fraction": "x"}]
)
def test_it_refuses_a_snapshot(
    form: dict[str, Any], campaign: Campaign, project: Project, lead: User, login: Login
) -> None:
    valid = {"campaigns": [campaign.pk], "heldout_fraction": "0.2"} if form else {}
    answer = login(lead).post(url("snapshots", project), valid | form)
    assert answer.status_code == 400
    assert not Snapshot.objects.exists()


def test_it_takes_no_snapshot_of_a_foreign_campaign(
    make_campaign: Callable[..., Campaign],
    project: Project,
    stranger: User,
    lead: User,
    login: Login,
) -> None:
    foreign = make_campaign(of=Project.objects.visible_to(stranger).get(), items=1)
    form = {"campaigns": [foreign.pk], "heldout_fraction": "0.2"}
    assert login(lead).post(url("snapshots", project), form).status_code == 400
    assert not Snapshot.objects.exists()


def test_it_shows_that_the_ledger_balances(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    second_annotator: User,
    lead: User,
    login: Login,
) -> None:
    campaign = make_campaign(items=6, responses=3, judgements_per_item=2)
    judge_all(campaign, annotator, strict)
    judge_all(campaign, second_annotator, all_tied)
    snapshot = take_snapshot(project, campaign)
    page = login(lead).get(url("snapshot", project, snapshot.pk)).content.decode()
    assert "Became 18 rows" in page
    assert "Left out: a tie of all responses" in page
    assert "balances: nothing lost, nothing counted twice" in page
    assert snapshot.digest in page
    for name in ("train.parquet", "heldout.parquet", "manifest.json"):
        href = f"/api/snapshots/{snapshot.pk}/files/{name}"
        assert href in page
        assert login(lead).get(href).status_code == 200
    assert "Response 0 to question" in page


def test_it_says_when_a_ledger_does_not_balance(
    snapshot: Snapshot, lead: User, login: Login
) -> None:
    ledger = snapshot.manifest["ledger"] | {"exported": 7}
    Snapshot.objects.filter(pk=snapshot.pk).update(manifest=snapshot.manifest | {"ledger": ledger})
    page = login(lead).get(url("snapshot", snapshot.project, snapshot.pk)).content.decode()
    assert "does not balance" in page


def test_it_shows_a_snapshot_whose_files_are_gone(
    snapshot: Snapshot, lead: User, login: Login
) -> None:
    (snapshot.folder / "train.parquet").unlink()
    answer = login(lead).get(url("snapshot", snapshot.project, snapshot.pk))
    assert answer.status_code == 200
    assert "its file is gone from the store" in answer.content.decode()


def test_it_follows_a_snapshot_until_it_is_ready(
    snapshot: Snapshot, lead: User, login: Login
) -> None:
    client = login(lead)
    Snapshot.objects.filter(pk=snapshot.pk).update(state=Snapshot.State.BUILDING)
    page = client.get(url("snapshot", snapshot.project, snapshot.pk)).content.decode()
    fragment = client.get(url("snapshot_body", snapshot.project, snapshot.pk))
    assert fragment.content.decode().strip() in page
    assert "hx-trigger" in page
    assert "HX-Refresh" not in fragment
    Snapshot.objects.filter(pk=snapshot.pk).update(state=Snapshot.State.FAILED, reason="Disk full.")
    fragment = client.get(url("snapshot_body", snapshot.project, snapshot.pk))
    assert fragment["HX-Refresh"] == "true"
    assert "Disk full." in fragment.content.decode()


def test_it_lists_snapshots_in_few_queries(
    snapshot: Snapshot,
    lead: User,
    login: Login,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    for _ in range(4):
        another = Snapshot.objects.create(project=snapshot.project)
        another.campaigns.set(snapshot.campaigns.all())
    client = login(lead)
    # session, user, membership, choices, count, page, campaigns, projects
    with django_assert_num_queries(8):
        client.get(url("snapshots", snapshot.project))


# Runs


def test_it_starts_a_run(
    snapshot: Snapshot, base_version: Version, owner: User, login: Login
) -> None:
    client, address = login(owner), url("run_new", snapshot.project)
    page = client.get(address, {"snapshot": snapshot.pk}).content.decode()
    assert 'name="a-learning_rate" value="0.0002"' in page
    form = {
        "snapshot": snapshot.pk,
        "start_version": base_version.pk,
        "method": "dpo",
        "seed": 5,
        "a-learning_rate": "1e-4",
        "a-target_modules": "q_proj, v_proj",
        "a-gradient_checkpointing": "on",
        "a-as_json": '{"beta": 0.25}',
    }
    answer = client.post(address, form)
    run = Run.objects.get()
    assert answer["Location"] == url("run", snapshot.project, run.pk)
    assert (run.state, run.seed, run.created_by) == (Run.State.QUEUED, 5, owner)
    assert run.arguments["learning_rate"] == 1e-4
    assert run.arguments["beta"] == 0.25
    assert run.arguments["target_modules"] == ["q_proj", "v_proj"]
    assert run.arguments["gradient_checkpointing"] is True
    assert run.arguments["epochs"] == 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"a-learning_rate": "fast"}, "Enter a number."),
        ({"a-learning_rate": "7"}, "learning_rate must be between"),
        ({"a-as_json": "{"}, "This is not JSON"),
        ({"a-as_json": "[1]"}, "This must be an object"),
        ({"a-as_json": '{"betta": 1}'}, "did you mean beta?"),
        ({"snapshot": 999_999}, "Select a valid choice."),
        ({"method": "ppo"}, "Select a valid choice."),
    ],
)
def test_it_refuses_a_run_and_keeps_the_form(
    changes: dict[str, Any],
    sentence: str,
    snapshot: Snapshot,
    base_version: Version,
    owner: User,
    login: Login,
) -> None:
    form = {
        "snapshot": snapshot.pk,
        "start_version": base_version.pk,
        "method": "dpo",
        "seed": 41,
    }
    answer = login(owner).post(url("run_new", snapshot.project), form | changes)
    page = answer.content.decode()
    assert answer.status_code == 400
    assert sentence in page
    assert 'name="seed" value="41"' in page
    assert not Run.objects.exists()


def test_it_starts_no_run_on_a_foreign_snapshot(
    snapshot: Snapshot, base_version: Version, stranger: User, login: Login
) -> None:
    elsewhere = Project.objects.visible_to(stranger).get()
    form = {"snapshot": snapshot.pk, "start_version": base_version.pk, "method": "dpo", "seed": 0}
    assert login(stranger).post(url("run_new", elsewhere), form).status_code == 400
    assert not Run.objects.exists()


def test_it_builds_a_field_for_every_argument() -> None:
    form = ArgumentsForm(method="dpo")
    names = {row["name"] for row in form.schema}
    assert {field.name for field in [*form.basic, *form.further]} == names
    assert {"beta", "learning_rate", "lora_r"} <= {field.name for field in form.basic}
    assert all(field.help_text for field in form.basic)


def test_it_follows_a_live_run(make_run: Callable[..., Run], lead: User, login: Login) -> None:
    run = make_run(phase="training")
    client = login(lead)
    page = client.get(url("run", run.project, run.pk)).content.decode()
    status = client.get(url("run_status", run.project, run.pk))
    curves = client.get(url("run_charts", run.project, run.pk))
    assert status.content.decode().strip() in page
    assert curves.content.decode().strip() in page
    assert "about 14 s left" in page  # two seconds a step, seven steps to go
    assert "3 of 10" in page
    assert "HX-Refresh" not in status


def test_it_draws_only_new_steps(make_run: Callable[..., Run], lead: User, login: Login) -> None:
    run, client = make_run(), login(lead)
    address = url("run_charts", run.project, run.pk)
    assert client.get(address, {"after": 3}).status_code == 204
    add_metrics(run, 4, first=4)
    Run.objects.filter(pk=run.pk).update(step=4)
    fresh = client.get(address, {"after": 3})
    assert fresh.status_code == 200
    assert "?after=4" in fresh.content.decode()


def test_it_loads_the_page_anew_when_a_run_ends(
    make_run: Callable[..., Run], lead: User, login: Login
) -> None:
    run, client = make_run(), login(lead)
    Run.objects.filter(pk=run.pk).update(state=Run.State.CANCELLED, lease=None)
    assert client.get(url("run_status", run.project, run.pk))["HX-Refresh"] == "true"
    curves = client.get(url("run_charts", run.project, run.pk), {"after": 3})
    assert curves.status_code == 200
    assert "hx-trigger" not in curves.content.decode()


def test_it_says_plainly_why_a_run_failed(
    make_run: Callable[..., Run], lead: User, login: Login
) -> None:
    run = make_run(state=Run.State.FAILED, reason="The loss is not a number. Lower learning_rate.")
    RunNote.objects.create(run=run, message="The worker was lost at step 2; the run resumes.")
    page = login(lead).get(url("run", run.project, run.pk)).content.decode()
    assert "The loss is not a number. Lower learning_rate." in page
    assert "The worker was lost at step 2" in page
    assert "hx-trigger" not in page


def test_it_shows_what_a_run_gave(
    make_run: Callable[..., Run], version: Version, lead: User, login: Login
) -> None:
    report = {
        "rows": {"in": 20, "used": 19, "truncated": 1, "dropped": 1},
        "evaluation": {
            "before": {"reward_accuracy": 0.5, "margin": 0.0},
            "after": {"reward_accuracy": 0.8125, "margin": 1.5},
            "pairs": 16,
        },
        "trainable_share": 0.035,
    }
    run = make_run(state=Run.State.SUCCEEDED, version=version, report=report)
    page = login(lead).get(url("run", run.project, run.pk)).content.decode()
    assert url("version", run.project, version.pk) in page
    assert "0.812" in page
    assert "19 of 20 used, 1 cut, 1 dropped" in page
    assert "&quot;trainable_share&quot;: 0.035" in page


def test_it_cancels_a_run(make_run: Callable[..., Run], owner: User, login: Login) -> None:
    run = make_run(state=Run.State.QUEUED, steps=0)
    client = login(owner)
    assert client.post(url("run_cancel", run.project, run.pk)).status_code == 302
    run.refresh_from_db()
    assert run.state == Run.State.CANCELLED
    answer = client.post(url("run_cancel", run.project, run.pk))
    assert answer.status_code == 409
    assert "This run has already ended." in answer.content.decode()


def test_it_runs_again_what_has_ended(
    make_run: Callable[..., Run], owner: User, login: Login
) -> None:
    live, client = make_run(), login(owner)
    assert client.post(url("run_again", live.project, live.pk)).status_code == 409
    failed = make_run(state=Run.State.FAILED, reason="No.")
    answer = client.post(url("run_again", failed.project, failed.pk))
    again = Run.objects.latest("pk")
    assert again.pk not in (live.pk, failed.pk)
    assert answer["Location"] == url("run", failed.project, again.pk)


def test_it_lists_runs_in_few_queries(
    make_run: Callable[..., Run],
    lead: User,
    login: Login,
    project: Project,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    for _ in range(5):
        make_run(steps=1)
    client = login(lead)
    # session, user, membership, count, page, projects
    with django_assert_num_queries(6):
        client.get(url("runs", project), {"sort": "-version"})


def test_it_filters_runs_by_the_address(
    make_run: Callable[..., Run], lead: User, login: Login, project: Project
) -> None:
    failed, live = make_run(state=Run.State.FAILED), make_run()
    page = login(lead).get(url("runs", project), {"state": "failed"}).content.decode()
    assert url("run", project, failed.pk) in page
    assert url("run", project, live.pk) not in page


# Curves


def test_it_draws_curves_that_need_no_script_and_no_network(make_run: Callable[..., Run]) -> None:
    drawn = charts.run_charts(make_run())
    assert [chart.title for chart in drawn] == [panel.title for panel in charts.PANELS[:4]]
    for chart in drawn:
        root = ElementTree.fromstring(chart.svg)
        assert root.get("viewBox") is not None
        assert root.get("width") is None
        assert "<script" not in chart.svg
        assert "url(" not in chart.svg
        assert "href" not in chart.svg
        assert "currentColor" in chart.svg
    assert drawn[0].summary == "Loss fell from 0.69 at step 1 to 0.67 at step 3."
    assert drawn[3].latest == "chosen 0.15, rejected −0.15"


def test_it_draws_once_for_each_last_step(
    make_run: Callable[..., Run], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    run = make_run()
    first = charts.run_charts(run)
    with django_assert_num_queries(1):  # the last step; the points stay where they are
        assert charts.run_charts(run) == first
    add_metrics(run, 4, first=4)
    assert charts.run_charts(run) != first


def test_it_draws_what_is_there() -> None:
    assert charts.draw([]) == []
    (only,) = charts.draw([(1, {"loss": 0.5, "rewards/margins": None})])
    assert only.summary == "Loss is 0.5 at step 1."
    assert charts.draw([(1, {"loss": float("nan")})]) == []


def test_it_thins_long_runs_by_means() -> None:
    metrics = [(step, {"loss": float(step % 2)}) for step in range(1, 1001)]
    points = charts._points(metrics, "loss")
    assert len(points) <= charts.MAX_POINTS
    assert points[-1][0] == 1000
    assert sum(value for _, value in points) / len(points) == pytest.approx(0.5, abs=0.01)


# Evaluations


def test_it_starts_an_evaluation_against_production(
    snapshot: Snapshot, version: Version, base_version: Version, lead: User, login: Login
) -> None:
    client, address = login(lead), url("evaluation_new", snapshot.project)
    page = client.get(address, {"challenger": version.pk}).content.decode()
    assert f'<option value="{version.pk}" selected>v1' in page
    assert f'<option value="{base_version.pk}" selected>base' in page
    form = {
        "challenger": version.pk,
        "champion": base_version.pk,
        "snapshot": snapshot.pk,
        "rule": "training.rules:concise",
        "samples": 2,
        "seed": 3,
    }
    answer = client.post(address, form)
    made = Evaluation.objects.get()
    assert answer["Location"] == url("evaluation", snapshot.project, made.pk)
    assert (made.challenger, made.samples, made.created_by) == (version, 2, lead)
    for changes in ({"champion": version.pk}, {"rule": "os:system"}, {"samples": 0}):
        assert client.post(address, form | changes).status_code == 400
    assert Evaluation.objects.count() == 1


def test_it_shows_a_win_rate_with_its_interval(
    snapshot: Snapshot, version: Version, base_version: Version, lead: User, login: Login
) -> None:
    made = Evaluation.objects.create(
        project=snapshot.project,
        challenger=version,
        champion=base_version,
        snapshot=snapshot,
        rule="training.rules:concise",
        state=Evaluation.State.RUNNING,
        compared=5,
    )
    client = login(lead)
    page = client.get(url("evaluation", made.project, made.pk)).content.decode()
    fragment = client.get(url("evaluation_body", made.project, made.pk))
    assert fragment.content.decode().strip() in page
    result = {
        "win_rate": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 64},
        "prompts": 16,
        "mean_tokens": {"challenger": 20.0, "champion": 50.0},
    }
    Evaluation.objects.filter(pk=made.pk).update(state=Evaluation.State.DONE, result=result)
    page = client.get(url("evaluation", made.project, made.pk)).content.decode()
    assert "v1 wins 90 % of comparisons" in page
    assert "95 % interval: 80 % to 95 %, from 64 comparisons on 16 prompts" in page
    assert "better than base" in page
    assert client.get(url("evaluation_body", made.project, made.pk))["HX-Refresh"] == "true"
    listed = client.get(url("evaluations", made.project), {"version": 1}).content.decode()
    assert url("evaluation", made.project, made.pk) in listed
    other = client.get(url("evaluations", made.project), {"version": 0}).content.decode()
    assert url("evaluation", made.project, made.pk) not in other


def test_it_lists_evaluations_in_few_queries(
    snapshot: Snapshot,
    version: Version,
    base_version: Version,
    lead: User,
    login: Login,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    for _ in range(5):
        Evaluation.objects.create(
            project=snapshot.project,
            challenger=version,
            champion=base_version,
            snapshot=snapshot,
            rule="training.rules:concise",
        )
    client = login(lead)
    # session, user, membership, count, page, versions, projects
    with django_assert_num_queries(7):
        client.get(url("evaluations", snapshot.project))


def test_it_gives_times_that_a_person_can_read(
    make_run: Callable[..., Run], lead: User, login: Login
) -> None:
    ended = timezone.now()
    run = make_run(state=Run.State.CANCELLED, ended_at=ended, started_at=ended)
    page = login(lead).get(url("run", run.project, run.pk)).content.decode()
    assert json.dumps(run.arguments) not in page  # folded, indented, at the end
    assert "&quot;beta&quot;: 0.1" in page


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_form_with_its_own_arguments(
    login: Login, owner: User, project: Project, snapshot: Snapshot, method: str
) -> None:
    page = login(owner).get(url("run_new", project), {"method": method})
    assert page.status_code == 200
    assert f'name="method" value="{method}"' in page.content.decode()
    for row in argument_schema(method):
        assert f'name="a-{row["name"]}"' in page.content.decode()


def test_pages_offer_nothing_that_would_be_refused(
    version: Version,
    base_version: Version,
    make_run: Callable[..., Run],
    owner: User,
    login: Login,
) -> None:
    client, project = login(owner), version.project
    page = client.get(url("version", project, version.pk)).content.decode()
    offered = {word: word in page for word in ("Talk to it", "Put v1 into", "Train further")}
    assert all(offered.values()), offered
    reward = Version.objects.create(
        project=project,
        number=2,
        base=version.base,
        parent=base_version,
        method="reward",
        digest="e" * 64,
        path="adapters/reward",
        proof={"passed": True},
    )
    page = client.get(url("version", project, reward.pk)).content.decode()
    assert "A reward model on" in page
    assert "method=reward" in page
    assert not any(word in page for word in ("Talk to it", "Put v2 into"))
    ended = timezone.now()
    run = make_run(
        state=Run.State.CANCELLED, started_at=ended - timedelta(seconds=28), ended_at=ended
    )
    assert "took 28 s" in client.get(url("run", project, run.pk)).content.decode()
    assert "null" not in client.get(url("round_new", project)).content.decode()
