"""The queue and the task page, as posts and answers without a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from accounts.models import User
from feedback.assignment import claim
from feedback.models import Campaign, Judgement, Skip, Slot

HTMX = {"HX-Request": "true"}


def url(campaign: Campaign, action: str = "") -> str:
    return f"/p/{campaign.project.slug}/campaigns/{campaign.pk}/task/{action}"


def ticket(campaign: Campaign, user: User) -> dict[str, Any]:
    """Return the fields that name the user's task in hand."""
    task = claim(campaign=campaign, annotator=user)
    assert task is not None
    return {
        "slot": task.slot.pk,
        "token": task.slot.token,
        "client_id": str(task.client_id),
        "ids": [response.pk for response in task.responses],
    }


def ranked(campaign: Campaign, user: User, ranks: list[object]) -> dict[str, Any]:
    """Return a whole form that gives the responses, left to right, these ranks."""
    form = ticket(campaign, user)
    ids = form.pop("ids")
    return form | {f"rank-{pk}": rank for pk, rank in zip(ids, ranks, strict=True)}


def text(response: HttpResponse) -> str:
    """Return what a reader sees, on one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


# Who may


def test_it_sends_a_visitor_to_the_log_in(campaign: Campaign, client: Client) -> None:
    answer = client.get(url(campaign))
    assert answer.status_code == 302
    assert answer["Location"].startswith("/login/?next=")


@pytest.mark.parametrize("action", ["", "skip/", "undo/", "renew/"])
def test_it_hides_everything_from_a_stranger(
    campaign: Campaign, stranger: User, login: Callable[[User], Client], action: str
) -> None:
    visitor = login(stranger)
    assert visitor.post(url(campaign, action)).status_code == 404
    assert visitor.get(f"/p/{campaign.project.slug}/queue/").status_code == 404
    assert not Slot.objects.exclude(state=Slot.State.OPEN).exists()


def test_it_hides_a_campaign_of_another_project(
    campaign: Campaign, stranger: User, login: Callable[[User], Client]
) -> None:
    own = stranger.memberships.get().project
    assert login(stranger).get(f"/p/{own.slug}/campaigns/{campaign.pk}/task/").status_code == 404


# The queue


def test_it_counts_what_is_left_for_this_person(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    visitor = login(annotator)
    page = f"/p/{campaign.project.slug}/queue/"
    assert "3 left for you · 0 done" in text(visitor.get(page))
    visitor.post(url(campaign), ranked(campaign, annotator, [1, 2, 3, 4]))
    assert "2 left for you · 1 done" in text(visitor.get(page))
    visitor.get(url(campaign))  # the task in hand still counts as left
    assert "2 left for you · 1 done" in text(visitor.get(page))


def test_it_counts_with_few_queries(
    make_campaign: Callable[..., Campaign],
    annotator: User,
    login: Callable[[User], Client],
    django_assert_max_num_queries: Any,
) -> None:
    for number in range(5):
        make_campaign(name=f"Campaign {number}")
    visitor = login(annotator)
    with django_assert_max_num_queries(7):
        visitor.get("/p/support/queue/")


def test_it_hands_out_and_stores_with_few_queries(
    campaign: Campaign,
    annotator: User,
    login: Callable[[User], Client],
    django_assert_max_num_queries: Any,
) -> None:
    visitor, form = login(annotator), ranked(campaign, annotator, [1, 2, 3, 4])
    with django_assert_max_num_queries(25):
        visitor.post(url(campaign), form, headers=HTMX)


# The page


def test_it_shows_the_task_without_naming_its_sources(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    answer = login(annotator).get(url(campaign))
    assert "of Tone?" in text(answer)
    assert "0 of 3 today" in text(answer)
    assert answer["Cache-Control"].startswith("max-age=0, no-cache, no-store")
    again = login(annotator).get(url(campaign))
    assert Slot.objects.filter(state=Slot.State.LEASED).count() == 1
    assert again.context["task"].slot == answer.context["task"].slot


def test_it_renders_what_models_write_as_text_and_markdown(
    make_campaign: Callable[..., Campaign], annotator: User, login: Callable[[User], Client]
) -> None:
    campaign = make_campaign(text="**bold** <script>alert({position})</script> ![x](//evil/x.png)")
    page = login(annotator).get(url(campaign)).content.decode()
    assert "<strong>bold</strong>" in page
    assert "<script>alert" not in page
    assert "<img" not in page


def test_it_takes_a_ranking_with_a_tie_without_javascript(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    form = ranked(campaign, annotator, [2, 1, 3, 1])
    answer = login(annotator).post(
        url(campaign), form | {"comment": "Fine.\r\nThanks.", "seconds": "12.5"}
    )
    assert (answer.status_code, answer["Location"]) == (302, url(campaign))
    judgement = Judgement.objects.get()
    a, b, c, d = judgement.shown
    assert judgement.ranking == [[b, d], [a], [c]]
    assert judgement.comment == "Fine.\nThanks."
    assert judgement.seconds == 12.5


def test_it_answers_htmx_with_the_next_task_alone(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    form = ranked(campaign, annotator, [1, 2, 3, 4])
    answer = login(annotator).post(url(campaign), form, headers=HTMX)
    assert answer.status_code == 200
    assert answer["X-Laurel-Done"] == form["client_id"]
    assert answer.content.decode().lstrip().startswith("<section")
    assert answer.context["task"].slot.pk != form["slot"]
    assert "1 of 3 today" in text(answer)


def test_it_stores_a_double_click_once(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    visitor, form = login(annotator), ranked(campaign, annotator, [1, 2, 3, 4])
    for _ in range(2):
        assert visitor.post(url(campaign), form, headers=HTMX).status_code == 200
    assert Judgement.objects.count() == 1


def test_it_takes_a_late_resend_without_handing_out_a_task(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    form = ranked(campaign, annotator, [1, 2, 3, 4])
    assert login(annotator).post(url(campaign), form | {"resend": "1"}).status_code == 204
    assert not Slot.objects.filter(state=Slot.State.LEASED).exists()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"choice": "first", "strength": "2"}, ([[0], [1]], 2, False)),
        ({"choice": "second", "strength": ""}, ([[1], [0]], None, False)),
        ({"choice": "tie", "strength": "3"}, ([[0, 1]], None, False)),
        ({"choice": "both_bad"}, ([[0, 1]], None, True)),
    ],
)
def test_it_takes_a_comparison(
    make_campaign: Callable[..., Campaign],
    annotator: User,
    login: Callable[[User], Client],
    fields: dict[str, str],
    expected: tuple[list[list[int]], int | None, bool],
) -> None:
    campaign = make_campaign(kind="pairwise", responses=2)
    form = ticket(campaign, annotator)
    ids = form.pop("ids")
    words = {"first": str(ids[0]), "second": str(ids[1])}
    choice = words.get(fields["choice"], fields["choice"])
    answer = login(annotator).post(
        url(campaign), form | fields | {"choice": choice, "response": ids}
    )
    assert answer.status_code == 302
    judgement = Judgement.objects.get()
    ranking = [[ids.index(pk) for pk in group] for group in judgement.ranking]
    assert (ranking, judgement.strength, judgement.both_bad) == expected


def test_it_takes_a_thumb(
    make_campaign: Callable[..., Campaign], annotator: User, login: Callable[[User], Client]
) -> None:
    campaign = make_campaign(kind="thumbs", responses=1)
    form = ticket(campaign, annotator)
    form.pop("ids")
    login(annotator).post(url(campaign), form | {"thumb": "-1", "comment": "Too long."})
    judgement = Judgement.objects.get()
    assert (judgement.thumb, judgement.comment, judgement.ranking) == (-1, "Too long.", None)


# Refusals


@pytest.mark.parametrize(
    "change",
    [
        {"slot": ""},
        {"slot": "99999999"},
        {"slot": "9" * 40},
        {"token": "x"},
        {"client_id": "no uuid"},
        {"first_rank": ""},
        {"first_rank": "best"},
        {"rank-99999999": "1"},
        {"rank-x": "1"},
        {"comment": "x" * 10_001},
    ],
)
def test_it_refuses_a_bad_form_with_one_sentence(
    campaign: Campaign, annotator: User, login: Callable[[User], Client], change: dict[str, str]
) -> None:
    form = ranked(campaign, annotator, [1, 2, 3, 4])
    if "first_rank" in change:
        name = next(name for name in form if name.startswith("rank-"))
        change = {name: change["first_rank"]}
    answer = login(annotator).post(url(campaign), form | change, headers=HTMX)
    assert answer.status_code in (400, 413)
    assert answer["HX-Retarget"] == "#task-notice"
    assert 10 < len(text(answer).strip()) < 200
    assert not Judgement.objects.exists()


def test_it_refuses_ten_megabytes(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    form = ranked(campaign, annotator, [1, 2, 3, 4]) | {"comment": "x" * 10_000_000}
    body = "&".join(f"{name}={value}" for name, value in form.items())
    answer = login(annotator).post(
        url(campaign), body, content_type="application/x-www-form-urlencoded"
    )
    assert answer.status_code in (400, 413)
    assert not Judgement.objects.exists()


def test_it_keeps_what_was_typed_when_it_refuses_without_javascript(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    form = ranked(campaign, annotator, [1, "", 3, 4]) | {"comment": "Half <done>"}
    answer = login(annotator).post(url(campaign), form)
    page = answer.content.decode()
    assert answer.status_code == 400
    assert "Give every answer its place first." in page
    assert "Half &lt;done&gt;</textarea>" in page
    assert page.count("selected") == 3


def test_it_says_so_when_the_task_went_to_somebody_else(
    campaign: Campaign,
    annotator: User,
    second_annotator: User,
    login: Callable[[User], Client],
) -> None:
    form = ranked(campaign, annotator, [1, 2, 3, 4]) | {"comment": "My words"}
    Slot.objects.exclude(pk=form["slot"]).delete()
    Slot.objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    assert ticket(campaign, second_annotator)["slot"] == form["slot"]
    visitor = login(annotator)
    answer = visitor.post(url(campaign), form, headers=HTMX)
    assert answer.status_code == 409
    assert "went to somebody else" in text(answer)
    renewed = visitor.post(url(campaign, "renew/"), form)
    assert (renewed.status_code, renewed["Content-Type"]) == (409, "text/plain")
    plain = visitor.post(url(campaign), form)
    assert plain.status_code == 409
    assert "You wrote: My words" in text(plain)
    assert not Judgement.objects.exists()


# Skip, undo, heartbeat, nothing left


def test_it_skips_with_a_reason_and_brings_another(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    visitor, form = login(annotator), ticket(campaign, annotator)
    refused = visitor.post(url(campaign, "skip/"), form | {"reason": "bored"}, headers=HTMX)
    assert refused.status_code == 400
    answer = visitor.post(url(campaign, "skip/"), form | {"reason": "unclear"}, headers=HTMX)
    assert answer.context["task"].slot.pk != form["slot"]
    assert Skip.objects.get().annotator == annotator


def test_it_takes_the_last_judgement_back_with_its_answer(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    visitor, form = login(annotator), ranked(campaign, annotator, [3, 1, 2, 1])
    visitor.post(url(campaign), form | {"comment": "Hm."}, headers=HTMX)
    answer = visitor.post(url(campaign, "undo/"), headers=HTMX)
    assert answer.context["task"].slot.pk == form["slot"]
    assert [card.rank for card in answer.context["cards"]] == ["3", "1", "2", "1"]
    assert "Hm.</textarea>" in answer.content.decode()
    assert not Judgement.objects.standing().exists()
    again = visitor.post(url(campaign, "undo/"), headers=HTMX)
    assert again.status_code == 409
    assert "no judgement of yours" in text(again)
    assert "Take the next task" not in text(again)  # the one in hand is still held


def test_it_renews_the_lease(
    campaign: Campaign, annotator: User, login: Callable[[User], Client]
) -> None:
    form = ticket(campaign, annotator)
    before = Slot.objects.get(pk=form["slot"]).lease_expires_at
    assert login(annotator).post(url(campaign, "renew/"), form).status_code == 204
    after = Slot.objects.get(pk=form["slot"]).lease_expires_at
    assert before is not None
    assert after is not None
    assert after > before


def test_it_ends_with_a_kind_word(
    make_campaign: Callable[..., Campaign], annotator: User, login: Callable[[User], Client]
) -> None:
    campaign = make_campaign(items=1)
    answer = login(annotator).post(
        url(campaign), ranked(campaign, annotator, [1, 2, 3, 4]), headers=HTMX
    )
    assert "All done here" in text(answer)
    assert "Undo the last one" in text(answer)
    assert "Go on with" not in text(answer)


def test_it_ends_with_the_campaign_that_has_more(
    make_campaign: Callable[..., Campaign], annotator: User, login: Callable[[User], Client]
) -> None:
    campaign = make_campaign(items=1)
    make_campaign(name="Brevity")
    Campaign.objects.filter(pk=make_campaign(name="Closed").pk).update(state="closed")
    form = ticket(campaign, annotator) | {"reason": "unclear"}
    answer = login(annotator).post(url(campaign, "skip/"), form, headers=HTMX)
    assert "All done here" in text(answer)
    assert "Go on with Brevity" in text(answer)


@pytest.mark.parametrize("state", ["paused", "closed", "generating"])
def test_it_hands_out_nothing_of_a_campaign_that_is_not_open(
    campaign: Campaign, annotator: User, login: Callable[[User], Client], state: str
) -> None:
    Campaign.objects.update(state=state)
    assert "This campaign is" in text(login(annotator).get(url(campaign)))
    assert not Slot.objects.filter(state=Slot.State.LEASED).exists()
