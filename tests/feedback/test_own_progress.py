"""What annotators see of their own work: the numbers, the page, REST."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import Project, Role, User
from accounts.services import create_project, set_member
from feedback.assignment import claim, skip, undo
from feedback.models import Campaign, SkipReason
from feedback.own_progress import days_in_a_row, own_progress
from tests.feedback.test_dashboard import store

Login = Callable[[User], Client]
Connect = Callable[..., APIClient]
# 2026-03-02 is a Monday.
MARCH = {day: date(2026, 3, day) for day in range(1, 32)}


@pytest.mark.parametrize(
    ("worked", "today", "count"),
    [
        ([], 4, 0),
        ([4], 4, 1),
        ([2, 3], 4, 2),  # today may still come
        ([2, 3], 5, 0),
        ([5, 6, 9], 9, 3),  # the weekend off breaks nothing
        ([5, 6, 7, 9], 9, 4),  # a Saturday worked on counts
        ([6], 8, 1),  # on a Sunday
        ([5, 9], 9, 1),  # a Friday off ends it
    ],
)
def test_it_counts_days_in_a_row(worked: list[int], today: int, count: int) -> None:
    assert days_in_a_row({MARCH[day] for day in worked}, today=MARCH[today]) == count


def test_it_tells_today_from_before_and_campaigns_apart(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    second_annotator: User,
) -> None:
    campaign, other = make_campaign(items=4, responses=2), make_campaign(name="Other")
    make_campaign(name="Untouched")
    items, now = list(campaign.items.all()), timezone.now()
    store(annotator, items[:1], at=now - timedelta(days=40), seconds=1000)
    store(annotator, items[1:3], at=now, seconds=20)
    store(second_annotator, items, at=now)
    store(annotator, other.items.all()[:1], at=now, seconds=8)
    undo(campaign=other, annotator=annotator)
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    skip(
        slot_id=task.slot.pk,
        token=task.slot.token,
        annotator=annotator,
        reason=SkipReason.KNOWLEDGE,
    )
    found = own_progress(annotator=annotator, projects=Project.objects.filter(pk=project.pk))
    assert (found.today, found.judged, found.undone, found.skipped) == (2, 3, 1, 1)
    assert found.median_seconds == 20
    assert [day.judged for day in found.recent] == [2]
    rows = {row.name: row for row in found.campaigns}
    assert set(rows) == {"Tone", "Other"}
    assert (rows["Tone"].this_week, rows["Tone"].judged, rows["Tone"].skipped) == (2, 3, 1)
    assert (rows["Other"].judged, rows["Other"].undone) == (0, 1)


def test_it_shows_people_their_own_work_only(
    make_campaign: Callable[..., Campaign],
    login: Login,
    api: Connect,
    annotator: User,
    second_annotator: User,
    stranger: User,
) -> None:
    campaign = make_campaign(items=3, responses=2)
    store(annotator, campaign.items.all(), at=timezone.now())
    address = reverse("my_progress", args=["support"])
    page = login(annotator).get(address).text
    assert "Your last 30 days" in page
    assert "in a row" not in page  # one day is no row
    assert "You have not judged anything yet" in login(second_annotator).get(address).text
    assert login(stranger).get(address).status_code == 404
    assert address in login(annotator).get(reverse("queue", args=["support"])).text
    assert api(annotator).get("/api/me/progress").json()["today"] == 3
    assert api(second_annotator).get("/api/me/progress").json()["campaigns"] == []


def test_a_token_sees_the_work_in_its_project_only(
    make_campaign: Callable[..., Campaign], api: Connect, annotator: User, stranger: User
) -> None:
    elsewhere = create_project(name="Another", by=stranger)
    set_member(project=elsewhere, user=annotator, role=Role.ANNOTATOR)
    campaign = make_campaign(items=1, responses=2, of=elsewhere)
    store(annotator, campaign.items.all(), at=timezone.now())
    assert api(annotator).get("/api/me/progress").json()["judged"] == 0
    everywhere = own_progress(annotator=annotator, projects=Project.objects.all())
    assert everywhere.judged == 1
