"""Scales, safety, reasons, words and a correction in a real browser, by keyboard only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from accounts.models import User
from feedback.models import Campaign, Judgement
from tests.browser.looks import TEXT, assert_readable, faults
from tests.browser.test_task import press, task_url

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

EVERYTHING = {
    "ratings": [
        {"label": "Tone", "low": "rude", "high": "kind", "levels": 3},
        {"label": "Use", "levels": 7},
    ],
    "safety": ["Safe", "Unsafe", "Unsure"],
    "reasons": ["Wrong facts", "Too long"],
    "rationale": "required",
    "correction": "required",
}
# The keys of the main judgement, and the number of responses.
KINDS: dict[str, tuple[tuple[str, ...], int]] = {
    "ranking": (("2", "1", "3"), 3),
    "pairwise": (("2",), 2),
    "thumbs": (("1",), 1),
    "rating": ((), 2),
}


@pytest.fixture
def on_task(
    sign_in: Callable[..., Page], annotator: User, make_campaign: Callable[..., Campaign]
) -> Callable[..., Page]:
    """Return a function that opens a campaign of a kind with extras as Anna."""

    def go(kind: str, asks: dict[str, Any], width: int = 1280, **options: Any) -> Page:
        campaign = make_campaign(kind=kind, responses=KINDS[kind][1], asks=asks, **options)
        return sign_in(annotator, task_url(campaign), viewport={"width": width, "height": 740})

    return go


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_every_extra_by_keyboard_only(
    on_task: Callable[..., Page], kind: str, width: int
) -> None:
    page = on_task(kind, EVERYTHING, width)
    main, responses = KINDS[kind]
    assert faults(page) == []
    press(page, *main)
    if main:
        press(page, "r")
    for _ in range(responses):
        press(page, "3", "6", "2")  # tone, use, safety: each digit goes on to what is open
    press(page, "w", "2", "1", "1", "c")
    page.keyboard.type("1 r e are words here")
    press(page, "Escape", "e")
    if responses > 1:
        page.keyboard.type("B")
        press(page, "Tab")
    page.keyboard.type("Indeed: ")
    expect(page.locator("#changes ins")).to_have_text("Indeed: ")
    expect(page.locator("#changes-said")).to_have_text("words added: 1, removed: 0")
    assert_readable(page)
    press(page, "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    expect(page.locator("#task-title")).to_be_focused()

    judgement = Judgement.objects.get()
    corrected = judgement.shown[1 if responses > 1 else 0]
    assert judgement.ratings == {str(pk): {"tone": 3, "use": 6} for pk in judgement.shown}
    assert judgement.safety == {str(pk): "unsafe" for pk in judgement.shown}
    assert judgement.reasons == ["too_long"]
    assert judgement.comment == "1 r e are words here"
    assert judgement.corrected_id == corrected
    assert judgement.correction == f"Indeed: {judgement.corrected.text}"  # type: ignore[union-attr]


def test_it_says_what_is_open_and_goes_there(on_task: Callable[..., Page]) -> None:
    page = on_task("pairwise", EVERYTHING)
    notice = page.locator("#task-notice")
    press(page, "Control+Enter")
    expect(notice).to_have_text("Choose the better answer, a tie, or both bad first.")
    press(page, "1", "Control+Enter")
    expect(notice).to_have_text("Choose for Tone of A first.")
    press(page, *"111111", "Control+Enter")
    expect(notice).to_have_text("Say why in a comment first.")
    page.keyboard.type("so")
    press(page, "Control+Enter")
    expect(notice).to_have_text("Write what you would have liked first.")
    page.keyboard.type("A")
    press(page, "Tab", "Control+Enter")  # the answer as it stands is no correction
    expect(notice).to_have_text("Write what you would have liked first.")
    assert not Judgement.objects.exists()


def test_it_keeps_a_draft_of_every_extra_over_a_reload_and_an_undo(
    on_task: Callable[..., Page],
) -> None:
    page = on_task("pairwise", EVERYTHING)
    press(page, "2", "r", "2", "7", "1", "3", "1", "3", "w", "1", "c")
    page.keyboard.type("half")
    press(page, "Escape", "e")
    page.keyboard.type("A")
    press(page, "Tab")
    page.keyboard.type("No. ")

    def is_whole() -> None:
        expect(page.locator("fieldset.ask input[type=radio]:checked")).to_have_count(6)
        expect(page.locator(".reasons input:checked")).to_have_count(1)
        expect(page.locator("#comment")).to_have_value("half")
        expect(page.locator("#changes ins")).to_have_text("No. ")

    page.wait_for_timeout(300)
    page.reload()
    is_whole()
    press(page, "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    first = Judgement.objects.get()
    press(page, "u")
    expect(page.locator("#task-progress")).to_have_text("0 of 3 today")
    is_whole()
    press(page, "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    again = Judgement.objects.standing().get()
    fields = ["ranking", "ratings", "safety", "reasons", "comment", "correction", "corrected_id"]
    assert [getattr(again, name) for name in fields] == [getattr(first, name) for name in fields]


def test_it_sends_no_correction_that_changes_nothing(on_task: Callable[..., Page]) -> None:
    page = on_task("thumbs", {"correction": "optional"})
    press(page, "1", "e", "Escape", "Control+Enter")
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    assert Judgement.objects.get().corrected is None


def test_it_shows_what_changes_in_a_long_text_word_by_word(on_task: Callable[..., Page]) -> None:
    page = on_task(
        "thumbs", {"correction": "optional"}, text="one two. " * 3_000 + "{position} end"
    )
    press(page, "e")
    box = page.locator("#correction")
    value = box.input_value()
    box.fill(value.replace("two", "2", 1).replace(" end", ""))
    expect(page.locator("#changes ins")).to_have_text("2")
    assert page.locator("#changes del").all_inner_texts() == ["two", " end"]
    assert page.evaluate(
        "() => laurel.changes('a b c d', 'a x c e d').map(r => r.kind[0] + r.text).join('|')"
    ) == ("sa |db|ix|s c |ie |sd")
    far = page.evaluate(
        """() => { const words = n => Array.from({length: 9000}, (_, i) => `w${i * n}`).join(" ");
        const runs = laurel.changes(words(2), words(3));
        return [runs.filter(r => r.kind !== "ins").map(r => r.text).join("") === words(2),
                runs.filter(r => r.kind !== "del").map(r => r.text).join("") === words(3)]; }"""
    )
    assert far == [True, True]


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("kind", KINDS)
def test_it_shows_long_answers_with_extras_to_everybody(
    on_task: Callable[..., Page], kind: str, width: int
) -> None:
    page = on_task(kind, EVERYTHING | {"preset": "helpsteer"}, width, text=TEXT)
    assert_readable(page)


def test_it_works_without_javascript(
    sign_in: Callable[..., Page], annotator: User, make_campaign: Callable[..., Campaign]
) -> None:
    campaign = make_campaign(kind="rating", responses=2, asks=EVERYTHING)
    page = sign_in(annotator, task_url(campaign), java_script_enabled=False)
    for group in page.locator("fieldset.ask:not(.reasons)").all():
        group.locator("input").nth(1).check()
    page.get_by_label("Too long").check()
    page.locator("#comment").fill("why")
    page.locator("#corrected").select_option("B")
    page.locator("#correction").fill("Better.")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#task-progress")).to_have_text("1 of 3 today")
    judgement = Judgement.objects.get()
    assert (judgement.reasons, judgement.correction) == (["too_long"], "Better.")
    assert judgement.corrected_id == judgement.shown[1]
