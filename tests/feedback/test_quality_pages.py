"""A campaign's quality and leaderboard: what is computed of stored judgements, pages and REST."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from accounts.models import Project, User
from accounts.services import create_project
from accounts.templatetags.laurel import CAMPAIGN_PAGES
from feedback import leaderboards, quality
from feedback.assignment import Answer, claim, submit
from feedback.models import Campaign, Item, Judgement, Response, Slot
from feedback.simulation import Profile, judge_all, questions
from inference.models import Version

Login = Callable[[User], Client]
Connect = Callable[..., APIClient]
PAGES = ["campaign_quality", "campaign_leaderboard"]


def url(name: str, campaign: Campaign) -> str:
    return reverse(name, args=[campaign.project.slug, campaign.pk])


def judge(campaign: Campaign, annotator: User, *, by_position: bool = True) -> None:
    """Rank every item by the responses' numbers, or else as they stand; the lower is better."""
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        shown = task.responses
        best_first = sorted(shown, key=lambda one: one.position) if by_position else shown
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=Answer(ranking=[[one.pk] for one in best_first], seconds=8),
        )


def name_sources(campaign: Campaign) -> None:
    """Let the responses of each position come from one player: alpha, beta, gamma, delta."""
    for position, name in enumerate(("alpha", "beta", "gamma", "delta")):
        Response.objects.filter(item__campaign=campaign, position=position).update(source=name)


@pytest.mark.parametrize("page", PAGES)
def test_it_shows_them_to_leads_only(
    page: str, campaign: Campaign, login: Login, stranger: User, annotator: User, lead: User
) -> None:
    address = url(page, campaign)
    seen = [login(user).get(address).status_code for user in (stranger, annotator, lead)]
    assert seen == [404, 403, 200]
    assert Client().get(address).status_code == 302


@pytest.mark.parametrize("what", ["quality", "leaderboard"])
def test_it_gives_programs_of_leads_only(
    what: str, campaign: Campaign, api: Connect, annotator: User, lead: User
) -> None:
    address = f"/api/campaigns/{campaign.pk}/{what}"
    assert api(annotator).get(address).status_code == 403
    assert api(lead).get(address).status_code == 200
    assert api(lead).get(f"/api/campaigns/0/{what}").status_code == 404


def test_it_says_that_nothing_was_judged(campaign: Campaign, login: Login, lead: User) -> None:
    client = login(lead)
    assert "Nobody has judged here yet" in client.get(url(PAGES[0], campaign)).content.decode()
    assert "Nothing to compare yet" in client.get(url(PAGES[1], campaign)).content.decode()


def test_every_page_of_a_campaign_leads_to_every_other(
    campaign: Campaign, login: Login, lead: User
) -> None:
    client = login(lead)
    addresses = {label: url(name, campaign) for label, name, _ in CAMPAIGN_PAGES}
    for label, address in addresses.items():
        page = client.get(address).content.decode()
        assert f'<a href="{address}" aria-current="page">{label}</a>' in page
        assert all(f'<a href="{other}"' in page for other in addresses.values())


def test_it_reports_how_two_annotators_judged(
    campaign: Campaign,
    login: Login,
    api: Connect,
    annotator: User,
    second_annotator: User,
    lead: User,
) -> None:
    judge(campaign, annotator)
    judge(campaign, second_annotator)
    report = quality.report(campaign)
    assert report.alpha_nominal == pytest.approx(1)
    assert [(pair.one, pair.other, pair.agreement.value) for pair in report.pairs] == [
        ("anna", "ben", 1.0)
    ]
    assert report.disputed == []
    (first, second) = report.rows
    assert (first.username, first.judgements, first.median_seconds) == ("anna", 3, 8)
    assert first.rest is not None
    assert first.rest.n == 3
    page = login(lead).get(url("campaign_quality", campaign)).content.decode()
    assert "Who agrees with whom" in page
    assert "too early to say" in page
    assert url("campaign_quality", campaign) in login(lead).get(url("campaign", campaign)).text
    said = api(lead).get(f"/api/campaigns/{campaign.pk}/quality").json()
    assert said["alpha_nominal"] == pytest.approx(1)
    assert [row["username"] for row in said["rows"]] == ["anna", "ben"]
    assert second.flags == ()


def test_it_names_disputed_prompts(
    campaign: Campaign, login: Login, annotator: User, second_annotator: User, lead: User
) -> None:
    judge(campaign, annotator)
    judge(campaign, second_annotator, by_position=False)
    report = quality.report(campaign)
    assert report.disputed
    assert report.disputed[0].agreement <= report.disputed[-1].agreement < 1
    page = login(lead).get(url("campaign_quality", campaign)).content.decode()
    assert "Most disputed prompts" in page
    assert report.disputed[0].prompt in page


def test_it_counts_standing_judgements_and_notices_a_retraction(
    campaign: Campaign, annotator: User, lead: User
) -> None:
    judge(campaign, annotator)
    assert quality.report(campaign).judgements == 3
    Judgement.objects.filter(pk=Judgement.objects.earliest("id").pk).update(
        retracted_at="2026-01-01T00:00Z"
    )
    assert quality.report(campaign).judgements == 2


def test_it_keeps_a_report_until_a_judgement_comes(
    campaign: Campaign,
    annotator: User,
    second_annotator: User,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    judge(campaign, annotator)
    quality.report(campaign)
    with django_assert_num_queries(4):  # what the report depends on, and nothing else
        quality.report(campaign)
    judge(campaign, second_annotator)
    assert len(quality.report(campaign).rows) == 2


def test_it_compares_annotators_with_their_own_repeats(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User
) -> None:
    first = make_campaign(items=2, responses=2)
    again = make_campaign(items=2, responses=2)  # the same prompts and texts
    for campaign in (first, again):
        judge(campaign, annotator)
    judge(first, second_annotator)
    rows = {row.username: row for row in quality.report(again).rows}
    assert rows["anna"].consistency is not None
    assert (rows["anna"].consistency.value, rows["anna"].consistency.n) == (1.0, 2)
    assert {row.username: row.consistency for row in quality.report(first).rows}["ben"] is None


def crowded(campaign: Campaign, profiles: list[Profile]) -> None:
    """Store a simulated crowd's judgements, past the queue: only the report is looked at."""
    items = list(Item.objects.filter(campaign=campaign).prefetch_related("responses"))
    asked, preference, _ = questions(len(items), responses=2, seed=3)
    judged = judge_all(asked, crowd=profiles, preference=preference, seed=3)
    slots = {item.pk: list(Slot.objects.filter(item=item)) for item in items}
    rows = []
    for one in judged:
        item = items[one.item]
        ids = {2 * one.item + r.position: r.pk for r in item.responses.all()}
        slot = slots[item.pk].pop()
        user, _ = User.objects.get_or_create(username=one.annotator)
        Slot.objects.filter(pk=slot.pk).update(state="filled", holder=user)
        assert one.ranking is not None
        rows.append(
            Judgement(
                client_id=uuid.uuid4(),
                slot=slot,
                item=item,
                campaign=campaign,
                annotator=user,
                ranking=[[ids[response] for response in group] for group in one.ranking],
                shown=[ids[response] for response in one.shown],
                seconds=one.seconds,
            )
        )
    Judgement.objects.bulk_create(rows)


def test_it_says_in_words_who_does_not_judge(
    make_campaign: Callable[..., Campaign], login: Login, lead: User
) -> None:
    profiles = [*[Profile.HONEST] * 5, Profile.LAZY, Profile.SPAMMING, *[Profile.COLLUDING] * 2]
    campaign = make_campaign(items=150, responses=2, judgements_per_item=3, kind="pairwise")
    crowded(campaign, profiles)
    rows = {row.username.partition(" ")[2]: row for row in quality.report(campaign).rows}
    assert rows["honest"].flags == ()
    assert rows["honest"].trust == "trusted"
    assert "never reorders" in rows["lazy"].flags
    assert "far quicker than the others" in rows["spamming"].flags
    assert any(flag.startswith("answers like") for flag in rows["colluding"].flags)
    assert rows["honest"].weight > 0.8 > 0.3 > rows["spamming"].weight
    page = login(lead).get(url("campaign_quality", campaign)).content.decode()
    assert "never reorders" in page
    assert "Who agrees least" in page


# Leaderboard


def test_it_orders_players_by_what_people_preferred(
    campaign: Campaign, login: Login, api: Connect, annotator: User, lead: User
) -> None:
    name_sources(campaign)
    judge(campaign, annotator)
    board = leaderboards.of_campaign(campaign)
    assert [one.player for one in board.ratings] == ["alpha", "beta", "gamma", "delta"]
    assert board.comparisons == 3 * 6
    page = login(lead).get(url("campaign_leaderboard", campaign)).content.decode()
    assert re.search("alpha.*beta.*gamma.*delta", page, re.DOTALL)
    said = api(lead).get(f"/api/campaigns/{campaign.pk}/leaderboard?control=both").json()
    assert said["ratings"][0]["player"] == "alpha"
    assert said["side"]["low"] <= said["side"]["value"] <= said["side"]["high"]
    refusal = api(lead).get(f"/api/campaigns/{campaign.pk}/leaderboard?control=x")
    assert refusal.status_code == 400


def test_it_joins_the_campaigns_of_a_project(
    make_campaign: Callable[..., Campaign], login: Login, api: Connect, annotator: User, lead: User
) -> None:
    one, other = make_campaign(responses=2), make_campaign(responses=2, name="Other")
    elsewhere = create_project(name="Elsewhere", by=annotator)
    strange = make_campaign(responses=2, of=elsewhere, name="Strange")
    for campaign, names in ((one, "ab"), (other, "bc"), (strange, "ca")):
        for position, name in enumerate(names):
            rows = Response.objects.filter(item__campaign=campaign, position=position)
            rows.update(source=name)
        judge(campaign, annotator)
    board = leaderboards.of_project(one.project)
    # Nobody compared a with c: what lies between them is b, met in either campaign.
    assert [rating.player for rating in board.ratings] == ["a", "b", "c"]
    assert (board.comparisons, board.apart) == (6, False)
    address = reverse("project_leaderboard", args=[one.project.slug])
    page = login(lead).get(address, {"control": "side"}).text
    assert "Standing on the left" in page
    assert address in login(lead).get(reverse("campaigns", args=[one.project.slug])).text
    said = api(lead).get("/api/leaderboard?control=both").json()
    assert [rating["player"] for rating in said["ratings"]] == ["a", "b", "c"]
    assert said["length"] is not None
    assert api(lead).get("/api/leaderboard?control=x").status_code == 400
    assert api(annotator).get("/api/leaderboard").status_code == 403
    assert login(annotator).get(address).status_code == 403


def test_it_reads_no_more_pairs_than_it_may(
    make_campaign: Callable[..., Campaign], annotator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = make_campaign(items=3)
    make_campaign(items=1, responses=2, name="Small")
    name_sources(campaign)
    judge(campaign, annotator)
    monkeypatch.setattr(leaderboards, "MOST_COMPARISONS", 14)
    assert leaderboards.of_project(campaign.project).comparisons == 2 * 6


@pytest.mark.parametrize("control", ["side", "length", "both", "nonsense"])
def test_it_takes_out_what_the_address_asks(
    control: str, campaign: Campaign, login: Login, annotator: User, lead: User
) -> None:
    name_sources(campaign)
    judge(campaign, annotator)
    answer = login(lead).get(url("campaign_leaderboard", campaign), {"control": control})
    page = answer.content.decode()
    assert ("Standing on the left" in page) == (control in ("side", "both"))
    assert ("Being twice as long" in page) == (control in ("length", "both"))


def test_it_links_a_version(
    campaign: Campaign,
    base_version: Version,
    project: Project,
    login: Login,
    annotator: User,
    lead: User,
) -> None:
    from inference.models import Completion

    name_sources(campaign)
    for response in Response.objects.filter(item__campaign=campaign, position=0):
        response.completion = Completion.objects.create(
            project=project,
            version=base_version,
            requested_model="base",
            source=Completion.Source.CANDIDATE,
            messages=[],
            text=response.text,
        )
        response.save()
    judge(campaign, annotator)
    page: Any = login(lead).get(url("campaign_leaderboard", campaign)).content.decode()
    assert reverse("version", args=[project.slug, base_version.pk]) in page
    assert leaderboards.of_campaign(campaign).ratings[0].player == "base"


def test_it_has_no_leaderboard_of_thumbs(
    make_campaign: Callable[..., Campaign], login: Login, lead: User, annotator: User
) -> None:
    campaign = make_campaign(kind="thumbs", responses=1)
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=Answer(thumb=1),
        )
    client = login(lead)
    assert "Thumbs compare nothing" in client.get(url(PAGES[1], campaign)).content.decode()
    page = client.get(url(PAGES[0], campaign)).content.decode()
    assert "anna" in page
    assert "leftmost" not in page
