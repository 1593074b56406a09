"""Code books that annotators confirm, and calibration sessions that everybody judges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import Conflict, ProductError
from accounts.models import User
from feedback import calibration, code_books
from feedback.assignment import Answer, claim, submit
from feedback.models import Campaign, CodeBook, ItemRole, Slot

Login = Callable[[User], Client]
Connect = Callable[..., APIClient]


def test_nobody_gets_another_task_before_confirming_a_new_version(
    campaign: Campaign, login: Login, annotator: User, lead: User
) -> None:
    Campaign.objects.filter(pk=campaign.pk).update(instructions="Prefer short answers.")
    held = claim(campaign=campaign, annotator=annotator)
    assert held is not None
    book = code_books.publish(
        campaign=campaign, text="Prefer short, **true** answers.", changed="Truth counts.", by=lead
    )
    assert book.number == 2, "what the campaign was made with is version 1"
    again = claim(campaign=campaign, annotator=annotator)
    assert again is not None, "the task in hand stays"
    submit(
        slot_id=held.slot.pk,
        token=held.slot.token,
        client_id=held.client_id,
        annotator=annotator,
        answer=Answer(ranking=[[one.pk] for one in held.responses]),
    )
    assert claim(campaign=campaign, annotator=annotator) is None
    client, page = login(annotator), reverse("task", args=[campaign.project.slug, campaign.pk])
    shown = client.get(page).content.decode()
    assert "<strong>true</strong>" in shown
    assert "Truth counts." in shown
    confirm = reverse("task_confirm", args=[campaign.project.slug, campaign.pk])
    assert client.post(confirm, {"code_book": 1}).status_code == 302
    assert claim(campaign=campaign, annotator=annotator) is None, "that was not the newest"
    assert client.post(confirm, {"code_book": 2}).status_code == 302
    assert claim(campaign=campaign, annotator=annotator) is not None


def test_programs_read_and_confirm_it_too(
    campaign: Campaign, api: Connect, annotator: User, lead: User
) -> None:
    address = f"/api/campaigns/{campaign.pk}/code-books"
    assert api(annotator).post(address, {"text": "Mine."}, format="json").status_code == 403
    assert api(lead).post(address, {"text": "Be kind."}, format="json").status_code == 201
    refused = api(annotator).post(f"/api/campaigns/{campaign.pk}/next")
    assert refused.status_code == 409
    book = refused.json()["extra"]["code_book"]
    assert api(annotator).post(f"/api/code-books/{book}/confirm").status_code == 200
    assert api(annotator).post(f"/api/campaigns/{campaign.pk}/next").status_code == 200


def test_a_version_is_never_edited(campaign: Campaign, login: Login, lead: User) -> None:
    code_books.publish(campaign=campaign, text="One.\nTwo.", by=lead)
    with pytest.raises(Conflict):
        code_books.publish(campaign=campaign, text="One.\nTwo. ", by=lead)
    code_books.publish(campaign=campaign, text="One.\nThree.", by=lead)
    with pytest.raises(IntegrityError), transaction.atomic():
        CodeBook.objects.update(text="rewritten")
    lines = [(one.kind, one.text) for one in code_books.difference("One.\nTwo.", "One.\nThree.")]
    assert ("removed", "Two.") in lines
    assert ("added", "Three.") in lines
    page = login(lead).get(reverse("code_book", args=[campaign.project.slug, campaign.pk]))
    assert "<del>- Two.</del>" in page.content.decode()


def test_everybody_judges_a_session_first_and_sees_where_they_differ(
    make_campaign: Callable[..., Campaign],
    login: Login,
    annotator: User,
    second_annotator: User,
    lead: User,
) -> None:
    campaign = make_campaign(items=6, responses=2, judgements_per_item=1, kind="pairwise")
    people = [annotator, second_annotator, lead]
    items = list(campaign.items.order_by("id")[:2])
    given: dict[str, Any] = {"campaign": campaign, "name": "First reading", "by": lead}
    with pytest.raises(ProductError):
        calibration.start(**given, items=items, members=[annotator])
    session = calibration.start(**given, items=items, members=people)
    with pytest.raises(Conflict):
        calibration.start(**given, items=items, members=people)
    for person in people:
        for _ in items:
            task = claim(campaign=campaign, annotator=person)
            assert task is not None
            assert task.slot.role == ItemRole.CALIBRATION
            best = sorted(task.responses, key=lambda one: one.position, reverse=person == lead)
            submit(
                slot_id=task.slot.pk,
                token=task.slot.token,
                client_id=task.client_id,
                annotator=person,
                answer=Answer(ranking=[[one.pk] for one in best]),
            )
    following = claim(campaign=campaign, annotator=annotator)
    assert following is not None
    assert following.slot.role == ItemRole.NORMAL
    assert Slot.objects.filter(role="normal").count() == 6, "the originals keep their slots"
    found = calibration.result(session)
    assert (found.judged, found.asked) == (6, 6)
    assert [one.agreement for one in found.items] == [pytest.approx(1 / 3)] * 2
    pairs = {(one, other): shared.value for one, other, shared in found.pairs}
    assert pairs == {("anna", "ben"): 1, ("anna", "lena"): 0, ("ben", "lena"): 0}
    page = reverse("calibration", args=[campaign.project.slug, campaign.pk, session.pk])
    assert login(annotator).get(page).status_code == 403
    note = {"text": "Lena reads the question the other way round."}
    assert login(lead).post(page, note).status_code == 302
    assert note["text"] in login(lead).get(page).content.decode()


def test_a_lead_starts_a_session_on_its_page(
    campaign: Campaign, login: Login, annotator: User, lead: User
) -> None:
    page = reverse("calibrations", args=[campaign.project.slug, campaign.pk])
    assert login(annotator).get(page).status_code == 403
    form = {"name": "Second", "items": 2, "members": [annotator.pk, lead.pk]}
    made = login(lead).post(page, form, follow=True)
    assert "0 of 4 judgements" in made.content.decode()


def test_who_joins_later_gets_the_session_too(
    make_campaign: Callable[..., Campaign],
    login: Login,
    api: Connect,
    annotator: User,
    second_annotator: User,
    stranger: User,
    owner: User,
    lead: User,
) -> None:
    campaign = make_campaign(items=3, responses=2, kind="pairwise")
    session = calibration.start(
        campaign=campaign,
        name="Running",
        items=list(campaign.items.all()[:2]),
        members=[annotator, lead],
        by=lead,
    )
    page = reverse("calibration", args=["support", campaign.pk, session.pk])
    join = reverse("calibration_join", args=["support", campaign.pk, session.pk])
    assert login(annotator).post(join, {"members": ["ben"]}).status_code == 403
    assert "ben" in login(lead).get(page).content.decode()
    said = login(lead).post(join, {"members": ["ben"]}, follow=True).content.decode()
    assert "ben will judge the items" in said
    task = claim(campaign=campaign, annotator=second_annotator)
    assert task is not None
    assert task.slot.role == ItemRole.CALIBRATION
    with pytest.raises(Conflict):
        calibration.add_members(session=session, members=[second_annotator], by=lead)
    address = f"/api/calibrations/{session.pk}/members"
    refused = api(lead).post(address, {"members": ["sven"]}, format="json")
    assert (refused.status_code, "members of the project" in refused.json()["message"]) == (
        400,
        True,
    )
    both = {"members": ["olga", "ben"]}
    assert api(lead).post(address, both, format="json").json() == {"members": ["olga"]}
    for item in session.items.all():
        orders = list(item.slots.order_by("index").values_list("order", flat=True))
        assert len(orders) == 4
        assert orders[2:] == [orders[3][::-1], orders[2][::-1]], "both sides equally often"
