"""Rounds begin when they are due, once, and end in a proposal."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.errors import Conflict, ProductError
from accounts.models import Project, User
from feedback.models import Campaign, Judgement
from inference.models import Alias, Version
from tests.training.test_lineage import trained
from tests.training.test_snapshots import judge_all, strict
from training import schedules
from training.models import Evaluation, Run, Schedule, ScheduledRound
from training.schedules import advance, begin_round, decide, due_now, latest_due, tick
from training.snapshots import build_snapshot

RULE = "training.rules:concise"
BERLIN = "Europe/Berlin"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def weekly(**changes: Any) -> Schedule:
    values = {"cadence": "week", "weekday": 0, "at": time(3), "since": at("2026-01-01T00:00")}
    return Schedule(**values | changes)


@pytest.fixture
def schedule(project: Project, make_campaign: Callable[..., Campaign], annotator: User) -> Schedule:
    campaign = make_campaign(items=8, judgements_per_item=2)
    judge_all(campaign, annotator, strict)
    return schedules.save_schedule(
        schedule=Schedule(project=project, name="Weekly", rule=RULE),
        campaigns=[campaign],
        by=None,
    )


@pytest.mark.parametrize(
    ("changes", "now", "due"),
    [
        ({}, "2026-03-03T12:00", "2026-03-02T03:00"),
        ({}, "2026-03-02T02:59", "2026-02-23T03:00"),
        ({"cadence": "quarter"}, "2026-05-20T00:00", "2026-04-01T03:00"),
        ({"cadence": "month"}, "2026-05-20T00:00", "2026-05-01T03:00"),
        ({"zone": BERLIN}, "2026-07-06T01:00", "2026-07-06T01:00"),
        ({"zone": BERLIN}, "2026-12-07T01:59", "2026-11-30T02:00"),
        ({"since": at("2026-03-02T03:00")}, "2026-03-03T00:00", None),
    ],
)
def test_it_knows_what_was_due_last(changes: dict[str, Any], now: str, due: str | None) -> None:
    assert latest_due(weekly(**changes), at(now)) == (at(due) if due else None)


@pytest.mark.parametrize("day", ["2026-03-28T12:00", "2026-10-24T12:00"])
def test_a_change_of_the_clock_makes_one_round_a_day(day: str) -> None:
    nightly = weekly(cadence="day", at=time(2, 30), zone=BERLIN)
    minutes = [at(day) + timedelta(minutes=15 * step) for step in range(96)]
    found = [latest_due(nightly, minute) for minute in minutes]
    assert len(set(found)) == 2, "the day before's, and one in the night that the clock changed"
    assert found == sorted(found, key=str)


@pytest.mark.django_db(transaction=True)
def test_two_schedulers_begin_one_round(schedule: Schedule) -> None:
    Schedule.objects.update(since=timezone.now() - timedelta(days=40))
    now = timezone.now()

    def scheduler(_: int) -> int:
        try:
            return tick(now)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(scheduler, range(4))) == 1
    assert tick(now - timedelta(minutes=1)) == 0, "a clock set back begins nothing"
    row = ScheduledRound.objects.get()
    assert row.snapshot is not None


def test_it_counts_new_judgements(schedule: Schedule, second_annotator: User) -> None:
    Schedule.objects.update(cadence="judgements", after_judgements=5)
    schedule.refresh_from_db()
    assert due_now(schedule, timezone.now()) is None
    judge_all(schedule.campaigns.get(), second_annotator, strict)
    assert due_now(schedule, timezone.now()) == "judgement 13"
    Judgement.objects.update(retracted_at=timezone.now())
    assert due_now(schedule, timezone.now()) == "judgement 13", "a retraction takes no count back"
    assert [tick(), tick()] == [1, 0]


def test_a_round_goes_from_snapshot_to_proposal_and_promotes_nothing(
    schedule: Schedule, base_version: Version, owner: User
) -> None:
    row = begin_round(schedule=schedule, due="x")
    assert row is not None
    assert row.snapshot is not None
    advance(row.pk)
    build_snapshot(snapshot_id=row.snapshot.pk)
    for _again in range(2):
        advance(row.pk)
    run = Run.objects.get()
    assert (run.start_version, run.method) == (base_version, "dpo")
    _, version = trained(row.snapshot, base_version, 1)
    Run.objects.filter(pk=run.pk).update(state="succeeded", version=version)
    for _again in range(2):
        advance(row.pk)
    comparison = Evaluation.objects.get()
    assert (comparison.challenger, comparison.champion) == (version, base_version)
    share = {"value": 0.9, "low": 0.7, "high": 0.95, "n": 40}
    Evaluation.objects.update(state="done", result={"win_rate": share})
    advance(row.pk)
    row.refresh_from_db()
    assert row.state == "proposed"
    assert "v1 beats base" in row.reason
    assert Alias.objects.get().version == base_version, "it never promotes itself"
    decide(row=row, accept=False, by=owner)
    with pytest.raises(Conflict):
        decide(row=row, accept=True, by=owner)


def test_a_round_that_shows_nothing_keeps_production(
    schedule: Schedule, base_version: Version
) -> None:
    row = begin_round(schedule=schedule, due="x")
    assert row is not None
    assert row.snapshot is not None
    build_snapshot(snapshot_id=row.snapshot.pk)
    run, version = trained(row.snapshot, base_version, 1)
    found = Evaluation.objects.create(
        project=schedule.project,
        challenger=version,
        champion=base_version,
        snapshot=row.snapshot,
        rule=RULE,
        state="done",
        result={"win_rate": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 40}},
    )
    ScheduledRound.objects.update(state="evaluating", run=run, evaluation=found)
    assert begin_round(schedule=schedule, due="y").state == "skipped"  # type: ignore[union-attr]
    advance(row.pk)
    row.refresh_from_db()
    assert row.state == "kept"
    assert "not shown to beat" in row.reason


def test_it_refuses_what_could_not_run(schedule: Schedule) -> None:
    for change in (
        {"zone": "Mars/Base"}, {"method": "reward"}, {"rule": "os:system"}, {"kind": "unpaired"},
        {"options": {"votes": "loudest"}}, {"options": {"attributes": {"tone": 1}}},
    ):  # fmt: skip
        wrong = Schedule(project=schedule.project, name="x", **{"rule": RULE} | change)
        with pytest.raises(ProductError):
            schedules.check_schedule(wrong, [])


def test_its_snapshots_are_of_the_kind_and_options_that_were_asked_for(
    schedule: Schedule, project: Project, api: Callable[..., APIClient], owner: User,
    login: Callable[[User], Client],
) -> None:  # fmt: skip
    campaign = schedule.campaigns.get()
    body = {
        "name": "SFT", "campaigns": [campaign.pk], "rule": RULE, "kind": "sft", "method": "sft",
        "options": {"imitate": ["best"], "leaks": False},
    }  # fmt: skip
    client = api(owner)
    made = client.post("/api/schedules/", body, format="json")
    assert made.status_code == 201, made.content
    assert made.json()["options"]["imitate"] == ["best"]
    wrong = client.post("/api/schedules/", body | {"method": "dpo"}, format="json")
    assert wrong.status_code == 400
    assert "DPO cannot learn" in wrong.content.decode()
    found = Schedule.objects.get(pk=made.json()["id"])
    row = begin_round(schedule=found, due="x")
    assert row is not None
    assert row.snapshot is not None
    assert build_snapshot(snapshot_id=row.snapshot.pk).manifest["options"]["imitate"] == ["best"]
    assert row.snapshot.kind == "sft"
    browser, address = login(owner), f"/p/{project.slug}/schedules/{found.pk}/"
    form = browser.get(address).context["form"]
    sent = {field.html_name: field.value() for field in form}
    sent |= {"votes": "majority", "at": "03:00"}
    sent = {name: value for name, value in sent.items() if value is not False}
    given = {name: value for name, value in sent.items() if value is not None}
    assert browser.post(address, given).status_code == 302
    found.refresh_from_db()
    assert found.options == made.json()["options"] | {"votes": "majority"}


def test_admins_make_pause_and_run_schedules(
    schedule: Schedule,
    project: Project,
    api: Callable[..., APIClient],
    login: Callable[[User], Client],
    annotator: User,
    lead: User,
    owner: User,
) -> None:
    pages = f"/p/{project.slug}/schedules/"
    statuses = [login(user).get(pages).status_code for user in (annotator, lead, owner)]
    assert statuses == [403, 200, 200]
    campaign = schedule.campaigns.get()
    body = {"name": "Quarterly", "cadence": "quarter", "campaigns": [campaign.pk], "rule": RULE}
    assert api(lead).post("/api/schedules/", body).status_code == 403
    made = api(owner).post("/api/schedules/", body)
    assert made.status_code == 201, made.content
    address = f"/api/schedules/{made.json()['id']}/"
    assert made.json()["rhythm"] == "the first of each quarter at 03:00 UTC"
    assert api(owner).post("/api/schedules/", body | {"zone": "x"}).status_code == 400
    assert api(lead).patch(address, {"seed": 5}).status_code == 403
    misspelt = api(owner).patch(address, {"sede": 5})
    assert misspelt.json()["message"] == "sede: There is no such field. Did you mean seed?"
    wrong = api(owner).patch(address, {"arguments": {"betta": 1}})
    assert wrong.json()["message"].startswith("dpo has no argument 'betta'"), "of no one field"
    changed = api(owner).patch(address, {"seed": 5}).json()
    assert changed == made.json() | {"seed": 5}, "the rest stays"
    paused = api(owner).post(f"{address}active", {"active": False}).json()
    assert paused["active"] is False
    assert api(owner).post(f"{address}run").status_code == 201
    assert api(owner).post(f"{address}run").status_code == 409, "a double click begins one"
    assert len(api(lead).get(f"{address}rounds").json()["results"]) == 1
    page = login(lead).get(f"{pages}{made.json()['id']}/").content.decode()
    assert "by hand" in page
    assert login(owner).post(f"{pages}{schedule.pk}/active", {"active": "0"}).status_code == 302
    schedule.refresh_from_db()
    assert not schedule.active
