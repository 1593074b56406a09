"""A campaign's dashboard: what is counted of stored judgements, pictures, page and REST."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from accounts.models import User
from feedback import charts, dashboard
from feedback.models import Campaign, Item, Judgement, Slot

Login = Callable[[User], Client]
Connect = Callable[..., APIClient]
MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)


def store(
    annotator: User, items: Sequence[Item], *, at: datetime, best: int = 0, seconds: float = 10
) -> None:
    """Store a judgement of each item, as given at some time, past the queue."""
    rows = []
    for item in items:
        slot = Slot.objects.filter(item=item, state="open").earliest("index")
        Slot.objects.filter(pk=slot.pk).update(state="filled", holder=annotator)
        shown = list(item.responses.values_list("pk", flat=True))
        rows.append(
            Judgement(
                client_id=uuid.uuid4(),
                slot=slot,
                item=item,
                campaign_id=item.campaign_id,
                annotator=annotator,
                ranking=[[shown[best]], [one for one in shown if one != shown[best]]],
                shown=shown,
                seconds=seconds,
                created_at=at,
            )
        )
    Judgement.objects.bulk_create(rows)


def two_weeks(campaign: Campaign, one: User, other: User) -> None:
    """Let two people agree on the first half of the items on a Monday, on nothing a week later."""
    items = list(campaign.items.order_by("pk"))
    early, late = items[: len(items) // 2], items[len(items) // 2 :]
    store(one, early, at=MONDAY)
    store(other, early, at=MONDAY + timedelta(hours=1))
    store(one, late, at=MONDAY + timedelta(days=7))
    store(other, late, at=MONDAY + timedelta(days=8), best=1)


def test_it_counts_days_annotators_and_the_share_done(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User
) -> None:
    campaign = make_campaign(items=20, responses=2, judgements_per_item=4)
    two_weeks(campaign, annotator, second_annotator)
    found = dashboard.dashboard(campaign)
    assert [(str(one.start), one.judgements, one.share_done) for one in found.stretches] == [
        ("2026-03-02", 20, 0.25),
        ("2026-03-09", 10, 0.375),
        ("2026-03-10", 10, 0.5),
    ]
    assert (found.unit, found.filled, found.slots) == ("day", 40, 80)
    assert [(one.username, one.judgements) for one in found.annotators] == [
        ("anna", 20),
        ("ben", 20),
    ]


def test_it_tells_agreement_of_before_from_that_of_now(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User
) -> None:
    campaign = make_campaign(items=20, responses=2)
    two_weeks(campaign, annotator, second_annotator)
    before, now = dashboard.dashboard(campaign).agreement
    assert (before.until, before.items) == (MONDAY + timedelta(hours=1), 10)
    assert before.alpha == pytest.approx(1)
    assert now.until == MONDAY + timedelta(days=8)
    assert now.alpha is not None
    assert now.alpha < -0.9


def test_it_reads_whole_items_evenly_drawn_where_there_are_many(
    make_campaign: Callable[..., Campaign],
    annotator: User,
    second_annotator: User,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    campaign = make_campaign(items=80, responses=2)
    two_weeks(campaign, annotator, second_annotator)
    monkeypatch.setattr(dashboard, "MOST_PAIRS", 40)  # of 160: one item in four
    found = dashboard.dashboard(campaign).agreement
    assert [one.items for one in found] == [10, 10]
    assert found[0].alpha == pytest.approx(1)


@pytest.mark.parametrize(
    ("days", "unit"), [(61, "day"), (62, "week"), (400, "week"), (500, "month")]
)
def test_it_draws_longer_campaigns_by_longer_stretches(
    make_campaign: Callable[..., Campaign], annotator: User, days: int, unit: str
) -> None:
    campaign = make_campaign(items=2, responses=2)
    first, second = campaign.items.all()
    store(annotator, [first], at=MONDAY)
    store(annotator, [second], at=MONDAY + timedelta(days=days))
    found = dashboard.dashboard(campaign)
    assert found.unit == unit
    assert found.stretches[0].judgements == 1
    last = found.stretches[-1]
    assert last.start <= (MONDAY + timedelta(days=days)).date() < last.end


def test_it_keeps_a_dashboard_until_a_judgement_comes(
    make_campaign: Callable[..., Campaign],
    annotator: User,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    campaign = make_campaign(items=2, responses=2)
    first, second = campaign.items.all()
    store(annotator, [first], at=MONDAY)
    charts.dashboard_charts(dashboard.dashboard(campaign))
    with django_assert_num_queries(2):  # what it depends on, and nothing else
        charts.dashboard_charts(dashboard.dashboard(campaign))
    store(annotator, [second], at=MONDAY)
    assert dashboard.dashboard(campaign).judgements == 2


def test_it_draws_what_it_found_and_no_markup_of_names(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User
) -> None:
    campaign = make_campaign(items=20, responses=2)
    User.objects.filter(pk=annotator.pk).update(username="<b>anna</b>")
    two_weeks(campaign, annotator, second_annotator)
    drawn = {one.title: one for one in charts.dashboard_charts(dashboard.dashboard(campaign))}
    assert list(drawn) == [
        "Judgements a day",
        "Share done",
        "Judgements by annotator",
        "Agreement",
    ]
    assert drawn["Share done"].latest == "100 %"
    assert "fell from 1.00" in drawn["Agreement"].summary
    names = drawn["Judgements by annotator"].svg
    assert "&lt;b&gt;anna" in names
    assert "<b>" not in names


def test_it_shows_leads_and_their_programs_the_dashboard(
    make_campaign: Callable[..., Campaign],
    login: Login,
    api: Connect,
    lead: User,
    annotator: User,
    stranger: User,
) -> None:
    campaign = make_campaign(items=2, responses=2)
    address = reverse("campaign_dashboard", args=[campaign.project.slug, campaign.pk])
    assert "Nobody has judged here yet" in login(lead).get(address).text
    store(annotator, campaign.items.all(), at=MONDAY)
    page = login(lead).get(address).text
    assert page.count('<figure class="chart"') == 3  # one person agrees with nobody
    assert address in login(lead).get(reverse("campaign", args=["support", campaign.pk])).text
    assert [login(who).get(address).status_code for who in (stranger, annotator)] == [404, 403]
    said = api(lead).get(f"/api/campaigns/{campaign.pk}/dashboard").json()
    assert said["stretches"] == [
        {"start": "2026-03-02", "end": "2026-03-03", "judgements": 2, "share_done": 0.5}
    ]
    assert api(annotator).get(f"/api/campaigns/{campaign.pk}/dashboard").status_code == 403
