"""Single judgements: found by what they say, shown whole, with the correction word by word."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.test import APIClient

from accounts.models import User
from feedback import gold
from feedback.assignment import Answer, claim, skip, submit, undo
from feedback.changes import Change, changes, words
from feedback.models import Campaign, Judgement, SkipReason, Slot
from feedback.probes import plant_gold

Login = Callable[[User], Client]
Connect = Callable[..., APIClient]
WORDS = st.lists(st.sampled_from(["a", "b", "Straße", " ", "\n", ",", "l’eau"]), max_size=30)
ASKS = {"safety": ["Safe", "Unsafe"], "reasons": ["Too long"], "correction": "optional"}


def test_it_says_word_by_word_what_a_correction_changes() -> None:
    found = changes("It comes on Monday, we hope.", "It will arrive on Monday, we hope!")
    assert found == [
        Change("same", "It "),
        Change("del", "comes"),
        Change("ins", "will arrive"),
        Change("same", " on Monday, we hope"),
        Change("del", "."),
        Change("ins", "!"),
    ]
    assert (words(found, "ins"), words(found, "del")) == (2, 1)
    assert changes("one\r\ntwo", "one\ntwo") == [Change("same", "one\ntwo")]


@given(before=WORDS.map("".join), after=WORDS.map("".join))
def test_the_changes_spell_both_texts(before: str, after: str) -> None:
    found = changes(before, after)
    assert "".join(one.text for one in found if one.kind != "ins") == before
    assert "".join(one.text for one in found if one.kind != "del") == after
    assert all(one.text for one in found)


def test_it_compares_long_texts_without_delay() -> None:
    found = changes("a b " * 12_000, "b c a " * 8_000)
    assert len(found) == 2


@pytest.fixture
def judged(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User, lead: User
) -> Campaign:
    """Return pairs: Anna took the left one twice and then undid one; Ben tied, then skipped."""
    campaign = make_campaign(kind="pairwise", responses=2, asks=ASKS)
    item = campaign.items.order_by("id")[2]
    gold.make_gold(item=item, answer={"ranking": [[1], [0]]}, by=lead)

    def judge(user: User, **answer: Any) -> None:
        task = claim(campaign=campaign, annotator=user)
        assert task is not None
        one, two = (response.pk for response in task.responses)
        safety = {one: "unsafe" if user == annotator else "safe", two: "safe"}
        values = {"ranking": [[one], [two]], "safety": safety} | answer
        if "correction" in answer:
            values["corrected"] = two
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=user,
            answer=Answer(**values),
        )

    assert plant_gold(campaign=campaign, annotator=annotator)
    judge(annotator, strength=3, seconds=12.0)
    judge(annotator, comment="<b>Rude.</b>", correction="Response of mine.", reasons=["too_long"])
    judge(annotator)
    undo(campaign=campaign, annotator=annotator)
    task = claim(campaign=campaign, annotator=second_annotator)
    assert task is not None
    tied = [[response.pk for response in task.responses]]
    judge(second_annotator, ranking=tied)
    task = claim(campaign=campaign, annotator=second_annotator)
    assert task is not None
    skip(
        slot_id=task.slot.pk,
        token=task.slot.token,
        annotator=second_annotator,
        reason=SkipReason.KNOWLEDGE,
        note="Law.",
    )
    return campaign


def test_a_lead_finds_judgements(judged: Campaign, lead: User, login: Login, api: Connect) -> None:
    cases: list[tuple[dict[str, str], int]] = [
        ({}, 4),
        ({"kind": "correction"}, 1),
        ({"kind": "probe"}, 1),
        ({"kind": "retracted"}, 1),
        ({"kind": "no such kind"}, 0),
        ({"annotator": "ben"}, 1),
        ({"says": "left"}, 3),
        ({"says": "right"}, 0),
        ({"says": "tie"}, 1),
        ({"says": "strength-3"}, 1),
        ({"says": "safety-unsafe"}, 3),
        ({"says": "reason-too_long"}, 1),
        ({"says": "left", "kind": "comment", "annotator": "anna"}, 1),
        ({"prompt": "of tone?", "says": "left"}, 3),
        ({"prompt": "parcel"}, 0),
    ]
    client, browser = api(lead), login(lead)
    page = reverse("judgement_list", args=["support", judged.pk])
    for asked, found in cases:
        rows = client.get("/api/judgements/", asked | {"campaign": judged.pk}).json()["results"]
        assert len(rows) == found, asked
        typed = {"q" if name == "prompt" else name: value for name, value in asked.items()}
        html = browser.get(page, typed).content.decode()
        assert len(re.findall(r"/judgements/[0-9a-f-]{36}\"", html)) == found, asked


def test_it_shows_one_judgement_whole(
    judged: Campaign, lead: User, annotator: User, stranger: User, login: Login, api: Connect
) -> None:
    golden = Judgement.objects.get(slot__role="gold")
    Slot.objects.exclude(role="gold").update(arm="control")
    corrected = Judgement.objects.exclude(correction="").get()
    retracted = Judgement.objects.get(retracted_at__isnull=False)
    pages = {
        one: reverse("judgement", args=["support", judged.pk, one.client_id])
        for one in (golden, corrected, retracted)
    }
    seen = [login(user).get(pages[golden]).status_code for user in (stranger, annotator)]
    assert seen == [404, 403]
    html = {one: login(lead).get(page).content.decode() for one, page in pages.items()}
    assert "A &gt; B</strong>, significantly better" in html[golden]
    order = [golden.slot.order[0], golden.slot.order[1]]
    known = "A &gt; B" if order == [1, 0] else "B &gt; A"
    assert f"the known answer is <strong>{known}" in html[golden]
    assert "in 12 s" in html[golden]
    assert "&lt;b&gt;Rude.&lt;/b&gt;" in html[corrected]
    assert "<ins>of mine</ins>" in html[corrected]
    assert "Too long" in html[corrected]
    assert "a normal task, handed out by lot" in html[corrected]
    assert "undone by its annotator" in html[retracted]
    assert "/retract/" not in html[corrected], "only admins retract"

    address = f"/api/judgements/{corrected.client_id}/"
    assert api(annotator).get(address).status_code == 403
    whole = api(lead).get(address).json()
    assert [one["kind"] for one in whole["changes"]] == ["same", "del", "ins", "same"]
    assert [one["id"] for one in whole["responses"]] == corrected.shown
    assert (whole["role"], whole["says"], whole["known"]) == ("normal", "A > B", "")


def test_an_annotator_cannot_find_out_what_was_gold(
    judged: Campaign, annotator: User, api: Connect
) -> None:
    client = api(annotator)
    assert len(client.get("/api/judgements/").json()["results"]) == 3
    assert client.get("/api/judgements/", {"kind": "probe"}).json()["results"] == []
    assert client.get(f"/api/campaigns/{judged.pk}/skips").status_code == 403


def test_it_lists_what_was_skipped_and_why(
    judged: Campaign, lead: User, login: Login, api: Connect
) -> None:
    page = login(lead).get(reverse("skip_list", args=["support", judged.pk])).content.decode()
    assert "I do not know the subject" in page
    assert "Law." in page
    rows = api(lead).get(f"/api/campaigns/{judged.pk}/skips").json()["results"]
    assert [(row["annotator"], row["reason"]) for row in rows] == [("ben", "knowledge")]
