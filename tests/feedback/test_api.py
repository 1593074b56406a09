"""REST of collection, as programs use it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import ApiToken, Project, Role, Scope, User
from accounts.services import create_project
from feedback.api import JudgementsView
from feedback.models import Campaign, CompletionFeedback, Judgement, Slot
from inference.models import Completion, Version

Connect = Callable[..., APIClient]


def take(client: APIClient, campaign: Campaign) -> dict[str, Any]:
    response = client.post(f"/api/campaigns/{campaign.pk}/next")
    assert response.status_code == 200, response.content
    task: dict[str, Any] = response.json()
    return task


def answer(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "slot": task["slot"],
        "token": task["token"],
        "client_id": task["client_id"],
        "ranking": [[response["id"]] for response in task["responses"]],
    } | changes


def test_it_hides_who_wrote_what(campaign: Campaign, annotator: User, api: Connect) -> None:
    task = take(api(annotator), campaign)
    assert set(task["responses"][0]) == {"id", "text"}


def test_it_submits_and_brings_the_next_task(
    campaign: Campaign, annotator: User, api: Connect
) -> None:
    client = api(annotator)
    task = take(client, campaign)
    response = client.post("/api/judgements/", answer(task, next=True))
    assert response.status_code == 201
    assert response.json()["next"]["slot"] != task["slot"]
    stored = Judgement.objects.get()
    assert stored.annotator == annotator
    assert stored.client_id == uuid.UUID(task["client_id"])


def test_it_says_204_when_nothing_is_left(
    make_campaign: Callable[..., Campaign], annotator: User, api: Connect
) -> None:
    campaign, client = make_campaign(items=1), api(annotator)
    task = take(client, campaign)
    response = client.post("/api/judgements/", answer(task, next=True))
    assert response.json()["next"] is None
    assert client.post(f"/api/campaigns/{campaign.pk}/next").status_code == 204


def test_it_is_idempotent_by_client_id(campaign: Campaign, annotator: User, api: Connect) -> None:
    client = api(annotator)
    body = answer(take(client, campaign))
    first, second = (client.post("/api/judgements/", body) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] == second.json()["id"]
    assert Judgement.objects.count() == 1


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"ranking": [[1], [999_999]]}, 400, "does not have"),
        ({"ranking": []}, 400, "leaves out"),
        ({"ranking": None, "thumb": 1}, 400, "ranking"),
        ({"ranking": "abc"}, 400, "ranking"),
        ({"ranking": None, "thumb": 7}, 400, "thumb"),
        ({"token": 99}, 409, "next one"),
        ({"client_id": "not-a-uuid"}, 400, "UUID"),
        ({"comment": "x" * 20_000}, 413, "Shorten"),
        ({"slot": 999_999_999}, 404, "no such thing"),
    ],
)
def test_bad_input_gets_a_sentence_and_changes_nothing(
    campaign: Campaign,
    annotator: User,
    api: Connect,
    change: dict[str, Any],
    status: int,
    sentence: str,
) -> None:
    client = api(annotator)
    response = client.post("/api/judgements/", answer(take(client, campaign), **change))
    assert response.status_code == status, response.content
    assert sentence in response.json()["message"]
    assert not Judgement.objects.exists()
    assert Slot.objects.filter(state=Slot.State.LEASED).count() == 1


def test_malformed_json_gets_a_sentence(campaign: Campaign, annotator: User, api: Connect) -> None:
    response = api(annotator).post(
        "/api/judgements/", data="{not json", content_type="application/json"
    )
    assert response.status_code == 400
    assert "not JSON" in response.json()["message"]


def test_a_comment_of_10_mb_is_refused(campaign: Campaign, annotator: User, api: Connect) -> None:
    client = api(annotator)
    body = answer(take(client, campaign), comment="x" * 10_000_000)
    response = client.post("/api/judgements/", body)
    assert response.status_code == 413
    assert "Send less text" in response.json()["message"]
    assert not Judgement.objects.exists()


def test_a_stranger_sees_nothing(campaign: Campaign, stranger: User, api: Connect) -> None:
    elsewhere = Project.objects.get(name="Elsewhere")
    client = api(stranger, of=elsewhere)
    assert client.get(f"/api/campaigns/{campaign.pk}/").status_code == 404
    assert client.post(f"/api/campaigns/{campaign.pk}/next").status_code == 404
    assert client.get("/api/campaigns/").json()["results"] == []
    assert client.get("/api/judgements/").json()["results"] == []


def test_a_token_reaches_only_its_own_project(
    campaign: Campaign, owner: User, api: Connect
) -> None:
    other = create_project(name="Other", by=owner)
    client = api(owner, of=other)
    assert client.get(f"/api/campaigns/{campaign.pk}/").status_code == 404
    assert api(owner).get(f"/api/campaigns/{campaign.pk}/").status_code == 200


def test_a_token_does_only_what_its_scopes_allow(
    campaign: Campaign, annotator: User, api: Connect
) -> None:
    reader = api(annotator, Scope.READ)
    response = reader.post(f"/api/campaigns/{campaign.pk}/next")
    assert response.status_code == 403
    assert "scope “judge”" in response.json()["message"]
    judge = api(annotator, Scope.JUDGE)
    task = take(judge, campaign)
    assert judge.post("/api/judgements/", answer(task)).status_code == 201
    assert judge.get("/api/judgements/").status_code == 403


def test_an_expired_token_is_refused_with_its_day(
    campaign: Campaign, annotator: User, api: Connect
) -> None:
    client = api(annotator)
    day = timezone.now() - timedelta(days=1)
    ApiToken.objects.update(expiry=day)
    response = client.post(f"/api/campaigns/{campaign.pk}/next")
    assert response.status_code == 401
    assert f"expired on {day:%Y-%m-%d}" in response.json()["message"]
    assert Slot.objects.filter(state=Slot.State.LEASED).count() == 0


def test_no_token_is_refused(campaign: Campaign) -> None:
    assert APIClient().get("/api/campaigns/").status_code == 401


def test_a_former_member_is_refused(
    campaign: Campaign, annotator: User, project: Project, api: Connect
) -> None:
    client = api(annotator)
    project.memberships.filter(user=annotator).delete()
    assert client.post(f"/api/campaigns/{campaign.pk}/next").status_code == 404


def test_annotators_cannot_create_campaigns(
    base_version: Version, annotator: User, lead: User, api: Connect
) -> None:
    prompts = api(lead).post("/api/prompts/", {"prompts": ["Why?"]}).json()
    body = {
        "name": "New",
        "kind": "ranking",
        "prompts": [prompts[0]["id"]],
        "sources": [{"version": base_version.pk}],
    }
    assert api(annotator).post("/api/campaigns/", body).status_code == 403
    response = api(lead).post("/api/campaigns/", body)
    assert response.status_code == 201, response.content
    assert response.json()["state"] == "generating"


def test_annotators_list_their_own_judgements_and_leads_all(
    campaign: Campaign, annotator: User, second_annotator: User, lead: User, api: Connect
) -> None:
    for who in (annotator, second_annotator):
        client = api(who)
        client.post("/api/judgements/", answer(take(client, campaign)))
    assert len(api(annotator).get("/api/judgements/").json()["results"]) == 1
    assert len(api(lead).get("/api/judgements/").json()["results"]) == 2
    assert Role.LEAD.rank > Role.ANNOTATOR.rank


def test_skip_undo_and_renew_work(campaign: Campaign, annotator: User, api: Connect) -> None:
    client = api(annotator)
    first = take(client, campaign)
    renewed = client.post(f"/api/slots/{first['slot']}/renew", {"token": first["token"]})
    assert renewed.status_code == 204
    body = {"token": first["token"], "reason": "unclear"}
    assert client.post(f"/api/slots/{first['slot']}/skip", body).status_code == 204
    assert client.post(f"/api/slots/{first['slot']}/skip", body).status_code == 409
    second = take(client, campaign)
    client.post("/api/judgements/", answer(second))
    again = client.post(f"/api/campaigns/{campaign.pk}/undo")
    assert again.status_code == 200
    assert again.json()["slot"] == second["slot"]
    assert Judgement.objects.standing().count() == 0


@pytest.fixture
def completion(project: Project, base_version: Version) -> Completion:
    return Completion.objects.create(
        project=project,
        version=base_version,
        requested_model="production",
        source=Completion.Source.GATEWAY,
        messages=[{"role": "user", "content": "Hello"}],
        text="Good day.",
    )


def test_feedback_is_kept_once_per_client_id(
    completion: Completion, annotator: User, api: Connect
) -> None:
    body = {"thumb": -1, "correction": "Hello!", "client_id": str(uuid.uuid4())}
    client, path = api(annotator), f"/api/completions/{completion.pk}/feedback"
    assert client.post(path, body).status_code == 201
    assert client.post(path, body).status_code == 201
    stored = CompletionFeedback.objects.get()
    assert (stored.thumb, stored.correction) == (-1, "Hello!")


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 400), ({"thumb": 5}, 400), ({"thumb": 1, "comment": "x" * 10_001}, 413)],
)
def test_bad_feedback_is_refused(
    completion: Completion, annotator: User, api: Connect, body: dict[str, Any], status: int
) -> None:
    response = api(annotator).post(f"/api/completions/{completion.pk}/feedback", body)
    assert response.status_code == status
    assert not CompletionFeedback.objects.exists()


def test_feedback_on_a_foreign_completion_is_a_404(
    completion: Completion, stranger: User, api: Connect
) -> None:
    client = api(stranger, of=Project.objects.get(name="Elsewhere"))
    response = client.post(f"/api/completions/{completion.pk}/feedback", {"thumb": 1})
    assert response.status_code == 404


def test_it_keeps_the_answers_of_two_requests_apart() -> None:
    sent = {"slot": 1, "token": 2, "client_id": "d7b1a1a4-0000-4000-8000-000000000001"}
    bad = JudgementsView.Input(data={**sent, "thumb": 3, "comment": "mine"})
    good = JudgementsView.Input(data={**sent, "thumb": 1})
    assert not bad.is_valid()
    assert good.is_valid()
    assert list(bad.errors) == ["thumb"]
    assert good.answer().comment == ""
