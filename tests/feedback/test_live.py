"""Answers from live use sent into a campaign, the others written by a real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import Conflict, ProductError
from accounts.models import Project, User
from feedback.live import Sent, send_to_campaign
from feedback.models import Campaign, CompletionFeedback, Response, Slot
from feedback.services import generate_responses
from inference.models import BaseModel, Completion, Version
from tests.inference.engine import tiny
from tests.inference.engine.conftest import KEY, Engine, start_engine, stop_engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("live") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    running = start_engine(folder)
    yield running
    stop_engine(running)


@pytest.fixture
def base(folder: Path, db: None) -> BaseModel:
    """Return the base that the engine serves."""
    return BaseModel.objects.create(
        name="tiny",
        source="made for this test",
        path=str(folder),
        digest="c" * 64,
        licence="Apache-2.0",
        size_bytes=1,
        parameters=1,
    )


@pytest.fixture
def said(project: Project, base_version: Version, annotator: User) -> Callable[..., Completion]:
    """Return a maker of answers in the chat."""

    def make(question: str, text: str, **changes: Any) -> Completion:
        values: dict[str, Any] = {
            "project": project,
            "version": base_version,
            "requested_model": "production",
            "source": Completion.Source.CHAT,
            "messages": [{"role": "user", "content": question}],
            "text": text,
            "created_by": annotator,
        }
        return Completion.objects.create(**values | changes)

    return make


def test_it_has_the_others_written_and_opens_again(
    said: Callable[..., Completion],
    make_campaign: Callable[..., Campaign],
    base_version: Version,
    lead: User,
    engine: Engine,
    settings: Any,
) -> None:
    settings.ENGINE_URLS, settings.ENGINE_API_KEY = [engine.url], KEY
    campaign = make_campaign(items=1, responses=3)
    source = {"version": base_version.pk, "temperature": 1.0, "top_p": 1.0, "max_tokens": 8}
    Campaign.objects.update(sources=[source])
    live = said("Where is it?", "In the post.")
    assert send_to_campaign(campaign=campaign, completions=[live], by=lead) == Sent(
        items=1, already=0
    )
    campaign.refresh_from_db()
    assert (campaign.state, campaign.generated, campaign.to_generate) == ("generating", 1, 2)

    generate_responses(campaign_id=campaign.pk)
    campaign.refresh_from_db()
    assert (campaign.state, campaign.generated) == ("open", 2)
    item = campaign.items.latest("id")
    first, *others = item.responses.order_by("position")
    assert (first.text, first.completion) == ("In the post.", live)
    assert [each.position for each in others] == [1, 2]
    assert all(each.completion.version == base_version for each in others)
    assert sorted(Slot.objects.filter(item=item)[0].order) == [0, 1, 2]


def test_it_puts_answers_to_one_prompt_side_by_side_once(
    said: Callable[..., Completion], make_campaign: Callable[..., Campaign], lead: User
) -> None:
    campaign = make_campaign(items=1, kind="pairwise", responses=2)
    pair = [said("Where is it?", "In the post."), said("Where is it?", "On its way.")]
    assert send_to_campaign(campaign=campaign, completions=pair, by=lead).items == 1
    assert send_to_campaign(campaign=campaign, completions=pair, by=lead) == Sent(
        items=0, already=1
    )
    item = campaign.items.latest("id")
    assert {each.text for each in item.responses.all()} == {"In the post.", "On its way."}
    assert item.slots.count() == campaign.judgements_per_item
    # A second campaign takes the same answers; they belong to the first one's responses.
    other = make_campaign(items=1, kind="pairwise", responses=2, name="Other")
    assert send_to_campaign(campaign=other, completions=pair, by=lead).items == 1
    again = other.items.latest("id").responses.all()
    assert {each.source for each in again} == {f"completion {each.pk}" for each in pair}


def test_it_stores_nothing_when_it_refuses(
    said: Callable[..., Completion], make_campaign: Callable[..., Campaign], lead: User
) -> None:
    campaign = make_campaign(items=1, kind="pairwise", responses=2)
    before = Response.objects.count()
    with pytest.raises(ProductError, match="no version to write the others"):
        send_to_campaign(campaign=campaign, completions=[said("A?", "a")], by=lead)
    with pytest.raises(ProductError, match="empty answer"):
        send_to_campaign(campaign=campaign, completions=[said("A?", " ")], by=lead)
    Campaign.objects.update(state="closed")
    with pytest.raises(Conflict, match="Open it first"):
        send_to_campaign(campaign=campaign, completions=[said("A?", "a")], by=lead)
    assert (campaign.items.count(), Response.objects.count()) == (1, before)


def test_a_lead_sends_by_page_and_by_rest_and_nobody_else(
    said: Callable[..., Completion],
    make_campaign: Callable[..., Campaign],
    lead: User,
    annotator: User,
    stranger: User,
    login: Callable[[User], Client],
    api: Callable[..., APIClient],
    project: Project,
) -> None:
    campaign = make_campaign(items=1, kind="thumbs", responses=1)
    one, two = said("One?", "1"), said("Two?", "2")
    CompletionFeedback.objects.create(completion=one, thumb=-1)
    client, send = login(lead), reverse("feedback_send", args=[project.slug])
    page = client.get(reverse("feedback_list", args=[project.slug])).content.decode()
    assert f'value="{one.pk}"' in page
    form = {"campaign": campaign.pk, "completion": [str(one.pk)]}
    assert login(annotator).post(send, form).status_code == 403
    assert login(stranger).post(send, form).status_code == 404
    assert client.post(send, form)["Location"] == reverse(
        "campaign", args=[project.slug, campaign.pk]
    )
    path = f"/api/campaigns/{campaign.pk}/completions"
    body = {"completions": [str(one.pk), str(two.pk)]}
    assert api(annotator).post(path, body, format="json").status_code == 403
    answer = api(lead).post(path, body, format="json")
    assert (answer.status_code, answer.json()) == (201, {"items": 1, "already": 1})
    assert campaign.items.count() == 3
