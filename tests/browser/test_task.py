"""Judging in a real browser: by keyboard, by mouse, over bad connections, without JavaScript."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.utils import timezone
from playwright.sync_api import Page, Route, expect

from accounts.models import User
from feedback.models import Campaign, Judgement, Skip, Slot

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def task_url(campaign: Campaign) -> str:
    return f"/p/{campaign.project.slug}/campaigns/{campaign.pk}/task/"


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def places(judgement: Judgement) -> list[list[int]]:
    """Return the ranking as positions on the page, counted from 1."""
    return [[judgement.shown.index(pk) + 1 for pk in group] for group in judgement.ranking]


@pytest.fixture
def on_task(sign_in: Callable[..., Page], annotator: User) -> Callable[..., Page]:
    """Return a function that opens a campaign's task page as Anna."""
    return lambda campaign, **options: sign_in(annotator, task_url(campaign), **options)


def test_it_ranks_by_keyboard_only_and_shows_the_next(
    sign_in: Callable[..., Page], annotator: User, campaign: Campaign
) -> None:
    page = sign_in(annotator, f"/p/{campaign.project.slug}/queue/")
    start = page.get_by_role("link", name="Start with Tone")
    for _ in range(20):
        page.keyboard.press("Tab")
        if start.evaluate("link => link === document.activeElement"):
            break
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: urlsplit(url).path == task_url(campaign))
    first = page.locator(".turn").inner_text()

    press(page, "2", "1", "t", "4", "3")
    expect(page.locator("#order")).to_have_text("B > A = D > C")
    press(page, "Backspace")
    expect(page.locator("#order")).to_have_text("B > A = D > …")
    press(page, "3", "Control+Enter")

    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    expect(page.locator("#task-title")).to_be_focused()
    expect(page.locator("#task-live")).to_contain_text("Saved. Next task")
    assert page.locator(".turn").inner_text() != first
    assert page.evaluate("history.length") <= 4
    judgement = Judgement.objects.get()
    assert places(judgement) == [[2], [1, 4], [3]]
    assert judgement.seconds is not None

    press(page, "1", "2", "3", "4", "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("2 of 3 today")
    assert places(Judgement.objects.latest("id")) == [[1], [2], [3], [4]]


def test_it_ranks_with_arrows_and_enter(
    on_task: Callable[..., Page], make_campaign: Callable[..., Campaign]
) -> None:
    page = on_task(make_campaign(responses=3))
    press(page, "ArrowLeft", "Enter", "ArrowRight", "Enter", "ArrowRight", "Enter")
    expect(page.locator("#order")).to_have_text("C > A > B")


def test_it_ranks_by_mouse(on_task: Callable[..., Page], campaign: Campaign) -> None:
    page = on_task(campaign)
    cards = page.locator(".response")
    cards.nth(2).click()
    cards.nth(0).get_by_role("button").click()
    page.get_by_role("button", name="Tie").click()
    cards.nth(1).click()
    cards.nth(3).click()
    cards.nth(0).click()  # out again
    expect(page.locator("#order")).to_have_text("C > B > D > …")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#task-notice")).to_have_text("Place A first.")
    cards.nth(0).click()
    page.get_by_role("button", name="Submit").dblclick()
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    assert places(Judgement.objects.get()) == [[3], [2], [4], [1]]


def test_it_ranks_by_dragging(on_task: Callable[..., Page], campaign: Campaign) -> None:
    page = on_task(campaign)
    order = page.locator("#order")

    def drop(letter: str, on: str, part: float, *, head: bool = False) -> None:
        """Drag a letter, or an answer's head, onto this part of another letter's width."""
        grip = f".response[data-letter={letter}] .place" if head else letter_of(letter)
        held, aim = (page.locator(each).bounding_box() for each in (grip, letter_of(on)))
        assert held
        assert aim
        page.mouse.move(held["x"] + held["width"] / 2, held["y"] + held["height"] / 2)
        page.mouse.down()
        page.mouse.move(aim["x"] + part * aim["width"], aim["y"] + aim["height"] / 2, steps=5)
        page.mouse.up()

    press(page, "1", "2", "3")
    expect(order).to_have_text("A > B > C > …")
    drop("C", "A", 0.1)
    expect(order).to_have_text("C > A > B > …")
    drop("D", "B", 0.9, head=True)
    expect(order).to_have_text("C > A > B > D")
    drop("D", "C", 0.5)
    expect(order).to_have_text("C = D > A > B")
    drop("C", "B", 0.9)
    expect(order).to_have_text("D > A > B > C")
    page.mouse.move(*middle(page, "A"))
    page.mouse.down()
    page.mouse.move(640, 200, steps=3)
    page.mouse.up()
    expect(order).to_have_text("D > A > B > C")
    press(page, "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    assert places(Judgement.objects.get()) == [[4], [1], [2], [3]]


def letter_of(letter: str) -> str:
    return f".order-letter[data-letter={letter}]"


def middle(page: Page, letter: str) -> tuple[float, float]:
    box = page.locator(letter_of(letter)).bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_it_ranks_by_dragging_with_a_finger(
    on_task: Callable[..., Page], campaign: Campaign
) -> None:
    page = on_task(campaign, viewport={"width": 360, "height": 740}, has_touch=True)
    for number in (0, 1, 2, 3):
        page.locator(".place").nth(number).tap()
    expect(page.locator("#order")).to_have_text("A > B > C > D")
    x, y = middle(page, "D")
    to, row = middle(page, "A")
    touch = page.context.new_cdp_session(page)
    places_of_finger = [(x, y), (x - 10, y), ((x + to) / 2, row), (to, row)]
    for number, (left, top) in enumerate(places_of_finger):
        kind = "touchMove" if number else "touchStart"
        points = [{"x": left, "y": top}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator("#order")).to_have_text("A = D > B > C")


def test_it_compares_two_by_keyboard(
    on_task: Callable[..., Page], make_campaign: Callable[..., Campaign]
) -> None:
    page = on_task(make_campaign(kind="pairwise", responses=2, items=4))
    tie = page.locator(".segment", has_text="Tie")
    before = tie.bounding_box()
    press(page, "1")
    assert tie.bounding_box() == before
    press(page, "ArrowRight", "2", "2", "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("1 of 4 today")
    press(page, "0", "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("2 of 4 today")
    press(page, "b", "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("3 of 4 today")
    one, two, three = Judgement.objects.order_by("id")
    assert (places(one), one.strength) == ([[2], [1]], 2)
    assert (places(two), two.strength, two.both_bad) == ([[1, 2]], None, False)
    assert three.both_bad


def test_it_takes_thumbs_with_a_comment_by_keyboard(
    on_task: Callable[..., Page], make_campaign: Callable[..., Campaign]
) -> None:
    page = on_task(make_campaign(kind="thumbs", responses=1))
    press(page, "ArrowUp", "2", "c")
    page.keyboard.type("1 u s: just words")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    press(page, "c", "x", "Escape", "ArrowUp", "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("2 of 3 today")
    found = Judgement.objects.order_by("id").values_list("thumb", "comment")
    assert list(found) == [(-1, "1 u s: just words"), (1, "x")]


def test_it_undoes_and_skips_by_keyboard(on_task: Callable[..., Page], campaign: Campaign) -> None:
    page = on_task(campaign)
    press(page, "4", "3", "2", "1", "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    press(page, "u")
    expect(page.locator("#order")).to_have_text("D > C > B > A")
    expect(page.locator("#task-progress")).to_have_text("0 of 3 today")
    assert not Judgement.objects.standing().exists()
    before = page.locator(".turn").inner_text()
    press(page, "s", "ArrowDown", "Enter")
    expect(page.locator("#task-progress")).to_have_text("0 of 2 today")
    assert page.locator(".turn").inner_text() != before
    expect(page.locator("#task-title")).to_be_focused()  # keys count from here on
    press(page, "s", "4", "Enter")
    expect(page.locator("#task-progress")).to_have_text("0 of 1 today")
    assert [skip.reason for skip in Skip.objects.order_by("id")] == ["knowledge", "broken"]


def test_it_lists_the_shortcuts_and_the_code_book(
    on_task: Callable[..., Page], campaign: Campaign
) -> None:
    Campaign.objects.update(instructions="Be **kind**.")
    page = on_task(campaign)
    press(page, "?")
    expect(page.get_by_role("dialog", name="Shortcuts on this page")).to_be_visible()
    press(page, "1")  # keys of the task rest while a list is open
    press(page, "Escape", "i")
    expect(page.get_by_role("dialog", name="Code book").locator("strong")).to_have_text("kind")
    press(page, "Escape", "2")
    expect(page.locator("#order")).to_have_text("B > …")


# Bad connections


def test_it_sends_again_what_was_lost_on_the_way_and_stores_it_once(
    on_task: Callable[..., Page], campaign: Campaign
) -> None:
    page = on_task(campaign)
    fates = ["before", "after", "busy"]

    def trouble(route: Route) -> None:
        if route.request.method != "POST" or not fates:
            route.continue_()
        elif (fate := fates.pop()) == "before":
            route.abort()
        elif fate == "busy":
            route.fulfill(status=503, body="busy")
        else:  # the server stores it, but its answer never arrives
            route.fetch()
            route.abort()

    page.route(f"**{task_url(campaign)}", trouble)
    press(page, "c")
    page.keyboard.type("kept")
    press(page, "Escape", "3", "1", "2", "4", "Control+Enter")
    expect(page.locator("#task-notice")).to_contain_text("Not sent yet, will try again")
    press(page, "1", "Control+Enter")  # ignored: the answer on its way must not change
    for _ in range(3):
        retry = page.get_by_role("button", name="Try now")
        if retry.is_visible():
            retry.click()
        page.wait_for_timeout(150)
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    judgement = Judgement.objects.get()
    assert (places(judgement), judgement.comment) == ([[3], [1], [2], [4]], "kept")
    assert not page.evaluate("Object.keys(localStorage).some(k => k.startsWith('laurel-draft'))")


def test_it_says_that_a_slow_answer_is_on_its_way(
    on_task: Callable[..., Page], campaign: Campaign
) -> None:
    page = on_task(campaign)
    held: list[Route] = []
    page.route(f"**{task_url(campaign)}", lambda route: held.append(route))
    press(page, "1", "2", "3", "4", "Control+Enter")
    expect(page.locator("#task-notice")).to_have_text("Still sending …")
    held.pop().continue_()
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    expect(page.locator("#task-notice")).to_be_hidden()


def test_it_sends_from_the_queue_what_could_not_be_sent_before(
    on_task: Callable[..., Page], campaign: Campaign
) -> None:
    page = on_task(campaign)
    page.route(f"**{task_url(campaign)}", lambda route: route.abort())
    press(page, "2", "1", "4", "3", "Control+Enter")
    expect(page.locator("#task-notice")).to_contain_text("Not sent yet")
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.unroute(f"**{task_url(campaign)}")
    page.get_by_role("link", name="Queue").first.click()
    expect(page.locator("#unsent")).to_contain_text("is stored now")
    assert asked == ["beforeunload"]
    assert places(Judgement.objects.get()) == [[2], [1], [4], [3]]


def test_it_keeps_a_draft_over_a_reload(on_task: Callable[..., Page], campaign: Campaign) -> None:
    page = on_task(campaign)
    press(page, "3", "1", "c")
    page.keyboard.type("half a thought")
    page.wait_for_timeout(300)
    page.reload()
    expect(page.locator("#order")).to_have_text("C > A > …")
    expect(page.locator("#comment")).to_have_value("half a thought")


def test_it_sends_after_a_reload_what_could_not_be_sent_before(
    on_task: Callable[..., Page], campaign: Campaign
) -> None:
    page = on_task(campaign)
    page.route(f"**{task_url(campaign)}", lambda route: route.abort())
    press(page, "4", "1", "2", "3", "Control+Enter")
    expect(page.locator("#task-notice")).to_contain_text("Not sent yet")
    page.unroute(f"**{task_url(campaign)}")
    page.goto(task_url(campaign))
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    assert places(Judgement.objects.get()) == [[4], [1], [2], [3]]


def test_it_goes_on_after_a_log_out_in_between(
    on_task: Callable[..., Page], campaign: Campaign, annotator: User
) -> None:
    page = on_task(campaign)
    press(page, "1", "2", "3", "4")
    page.context.clear_cookies(name="sessionid")
    press(page, "Control+Enter")
    page.wait_for_url("**/login/?next=*")
    page.locator("#id_username").fill(annotator.username)
    page.locator("#id_password").fill("a long password for tests")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: urlsplit(url).path == task_url(campaign))
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    assert places(Judgement.objects.get()) == [[1], [2], [3], [4]]


def test_it_says_so_when_the_lease_was_lost_and_keeps_the_text(
    on_task: Callable[..., Page], make_campaign: Callable[..., Campaign], second_annotator: User
) -> None:
    campaign = make_campaign(items=1, judgements_per_item=1)
    page = on_task(campaign)
    press(page, "1", "2", "3", "4", "c")
    page.keyboard.type("my words")
    Slot.objects.update(
        holder=second_annotator, token=2, lease_expires_at=timezone.now() + timedelta(minutes=5)
    )
    press(page, "Control+Enter")
    expect(page.locator("#task-notice")).to_contain_text("went to somebody else")
    expect(page.locator("#comment")).to_have_value("my words")
    expect(page.get_by_role("link", name="Take the next task")).to_be_visible()
    assert not Judgement.objects.exists()


def test_it_says_what_became_of_an_earlier_judgement_that_never_arrived(
    on_task: Callable[..., Page], campaign: Campaign, second_annotator: User
) -> None:
    page = on_task(campaign)
    page.route(f"**{task_url(campaign)}", lambda route: route.abort())
    press(page, "c")
    page.keyboard.type("long thought")
    press(page, "Escape", "4", "1", "2", "3", "Control+Enter")
    expect(page.locator("#task-notice")).to_contain_text("Not sent yet")
    page.unroute(f"**{task_url(campaign)}")
    Slot.objects.filter(state=Slot.State.LEASED).update(holder=second_annotator, token=2)
    page.goto(task_url(campaign))
    unsent = page.locator("#unsent")
    expect(unsent).to_contain_text("An earlier judgement could not be stored.")
    expect(unsent).to_contain_text("went to somebody else")
    expect(unsent).to_contain_text("long thought")
    assert not Judgement.objects.exists()


def test_it_keeps_the_lease_while_somebody_reads(
    on_task: Callable[..., Page], campaign: Campaign, second_annotator: User, settings: Any
) -> None:
    settings.LEASE_SECONDS = 3
    page = on_task(campaign)
    held = Slot.objects.get(state=Slot.State.LEASED)
    page.wait_for_timeout(2_500)
    later = Slot.objects.get(pk=held.pk)
    assert held.lease_expires_at is not None
    assert later.lease_expires_at is not None
    assert later.lease_expires_at > held.lease_expires_at
    Slot.objects.filter(pk=held.pk).update(holder=second_annotator, token=2)
    expect(page.locator("#task-notice")).to_contain_text("given to somebody else")
    page.get_by_role("link", name="Take the next task").click()
    expect(page.locator("#task-notice")).to_be_hidden()


def test_it_does_not_leave_a_comment_behind_unasked(
    on_task: Callable[..., Page], campaign: Campaign
) -> None:
    page = on_task(campaign)
    press(page, "1", "2", "3", "4", "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    press(page, "c", "x", "Escape", "u")
    expect(page.locator("#task-notice")).to_contain_text("What you wrote on this task")
    press(page, "u")
    expect(page.locator("#task-progress")).to_have_text("0 of 3 today")


def test_it_stores_one_judgement_from_two_tabs(
    on_task: Callable[..., Page], campaign: Campaign
) -> None:
    one = on_task(campaign)
    two = one.context.new_page()
    two.goto(task_url(campaign))
    for page in (one, two):
        press(page, "1", "2", "3", "4", "Control+Enter")
        expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    assert Judgement.objects.count() == 1


# Without JavaScript


def test_it_works_without_javascript(on_task: Callable[..., Page], campaign: Campaign) -> None:
    page = on_task(campaign, java_script_enabled=False)
    for index, rank in enumerate(["2", "1", "3", "3"]):
        page.locator("select").nth(index).select_option(rank)
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    assert places(Judgement.objects.get()) == [[2], [1], [3, 4]]
    page.get_by_role("button", name="Undo last").click()
    expect(page.locator("#task-progress")).to_have_text("0 of 3 today")
