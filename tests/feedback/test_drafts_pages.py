"""The pages on which leads order drafts and decide them, with a real engine that writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import Project, User
from feedback.drafts import reject, write_drafts
from feedback.models import Campaign, Prompt
from feedback.models_drafts import Draft, DraftRequest
from feedback.services import add_prompts, generate_responses
from inference.models import BaseModel, Version
from tests.inference.engine import tiny
from tests.inference.engine.conftest import KEY, Engine, start_engine, stop_engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("drafts") / "tiny")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Engine]:
    engine = start_engine(folder)
    yield engine
    stop_engine(engine)


@pytest.fixture
def engine(running: Engine, settings: Any) -> Engine:
    settings.ENGINE_URLS, settings.ENGINE_API_KEY = [running.url], KEY
    return running


@pytest.fixture
def base(folder: Path, db: None) -> BaseModel:
    """Return the base that the engine serves."""
    return BaseModel.objects.create(
        name="tiny",
        source="made for this test",
        path=str(folder),
        digest="e" * 64,
        licence="Apache-2.0",
        size_bytes=1,
        parameters=1,
    )


def page(client: Client, name: str, *args: Any, query: str = "") -> str:
    answer = client.get(reverse(name, args=args) + query)
    assert answer.status_code == 200
    return answer.content.decode()


def order_form(version: Version, kind: str, wanted: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "version": version.pk,
        "prompts": "",
        "wanted": wanted,
        "shots": 2,
        "guidance": "",
        "tags": "drafted, new",
        "temperature": "1.0",
        "top_p": "1.0",
        "max_tokens": 12,
        "seed": 0,
        "client_id": "6c4f6f0e-5a55-4a5c-8e2f-0b8a3f0d7c11",
    }


def test_a_lead_orders_reviews_and_sees_where_it_came_from(
    project: Project,
    base_version: Version,
    engine: Engine,
    lead: User,
    owner: User,
    annotator: User,
    stranger: User,
    login: Callable[[User], Client],
) -> None:
    add_prompts(project=project, prompts=["One?", "Two?", "Three?"])
    client, slug = login(lead), project.slug
    new = reverse("drafts_new", args=[slug])
    assert login(annotator).get(new).status_code == 403
    assert login(stranger).get(new).status_code == 404
    assert "No drafts yet" in page(client, "drafts", slug)
    form = order_form(base_version, "response", 3)
    assert client.post(new, form | {"wanted": 0}).status_code == 400
    for _ in range(2):  # a double click
        assert client.post(new, form)["Location"] == reverse("drafts", args=[slug])
    order = DraftRequest.objects.get()
    assert "hx-get" in page(client, "drafts_progress", slug)
    write_drafts(request_id=order.pk)
    assert "hx-get" not in page(client, "drafts_progress", slug)
    assert order.drafts.pending().count() == 3

    first, second, third = order.drafts.pending()
    go = client.get(reverse("drafts_review", args=[slug]))
    assert go["Location"] == reverse("draft", args=[slug, first.pk])
    text = page(client, "draft", slug, first.pk)
    assert "3 left to review" in text
    here = reverse("draft", args=[slug, first.pk])
    gone = client.post(here + "?kind=response", {"act": "edit", "turn-0": "By hand.\r\nTwo lines."})
    assert gone["Location"] == reverse("draft", args=[slug, second.pk]) + "?kind=response"
    first.refresh_from_db()
    assert (first.approved_as, first.edited) == ("By hand.\nTwo lines.", True)

    undo = reverse("draft_undo", args=[slug, first.pk])
    following = page(client, "draft", slug, second.pk, query="?kind=response")
    assert f'action="{undo}?kind=response"' in following
    assert "Undo last decision" in page(client, "drafts", slug)
    assert client.post(undo + "?kind=response")["Location"] == here + "?kind=response"
    assert client.post(here, {"act": "edit", "turn-0": "By hand.\r\nTwo lines."}).status_code == 302
    assert login(annotator).post(undo).status_code == 403

    reject(draft=second, by=owner, why="Dull.")
    late = client.post(reverse("draft", args=[slug, second.pk]), {"act": "approve"})
    assert late.status_code == 409
    assert "olga rejected this draft already" in late.content.decode()
    empty = client.post(reverse("draft", args=[slug, third.pk]), {"act": "edit", "turn-0": " "})
    assert (empty.status_code, "says something" in empty.content.decode()) == (400, True)
    assert client.post(reverse("draft", args=[slug, third.pk]), {"act": "approve"})[
        "Location"
    ] == reverse("drafts", args=[slug])

    body = {
        "name": "Judged",
        "kind": "ranking",
        "prompts": "",
        "approved_drafts": "on",
        "responses_per_item": 2,
        "judgements_per_item": 1,
        "seed": 0,
        "queue_order": "least_judged",
        "rationale": "optional",
        "correction": "off",
        f"v{base_version.pk}-use": "on",
        f"v{base_version.pk}-temperature": "1.0",
        f"v{base_version.pk}-top_p": "1.0",
        f"v{base_version.pk}-max_tokens": "8",
    }
    made = client.post(reverse("campaign_new", args=[slug]), body)
    assert made.status_code == 302, made.content.decode()
    campaign = Campaign.objects.get()
    generate_responses(campaign_id=campaign.pk)
    campaign.refresh_from_db()
    assert (campaign.state, campaign.generated) == ("open", 3)
    item = campaign.items.get(prompt=first.prompt)
    drafted, written = item.responses.order_by("position")
    assert (drafted.text, drafted.source) == ("By hand.\nTwo lines.", "draft of base, edited")
    assert written.completion is not None
    shown = page(client, "campaign_item", slug, campaign.pk, item.pk)
    assert "drafted by base" in shown
    assert "approved by lena, edited" in " ".join(shown.split())
    judge = page(login(annotator), "task", slug, campaign.pk)
    assert "draft of" not in judge, "who wrote what stays hidden from annotators"
    assert "drafted by" not in judge


def test_a_random_model_writes_no_prompts_and_its_lead_sees_why(
    project: Project,
    base_version: Version,
    engine: Engine,
    lead: User,
    login: Callable[..., Client],
) -> None:
    add_prompts(project=project, prompts=["One?", "Two?"])
    client, slug = login(lead), project.slug
    client.post(reverse("drafts_new", args=[slug]), order_form(base_version, "prompt", 2))
    order = DraftRequest.objects.get()
    write_drafts(request_id=order.pk)
    draft = order.drafts.filter(state=Draft.State.UNFIT)[0]
    assert order.drafts.count() == 2
    listed = page(client, "drafts", slug, query="?state=unfit")
    assert "Not the JSON of a conversation" in listed
    text = page(client, "draft", slug, draft.pk)
    assert "by the machine" in text
    assert 'name="act"' not in text
    assert (
        client.post(reverse("draft", args=[slug, draft.pk]), {"act": "approve"}).status_code == 409
    )
    assert Prompt.objects.count() == 2
