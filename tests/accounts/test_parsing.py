"""What a request may hold: JSON that can be stored and given back, or a sentence why not."""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.models import Project, User
from accounts.parsing import MOST_NESTED, Unreadable, read_json
from feedback.assignment import claim
from feedback.models import Campaign, Judgement, Prompt

Connect = Callable[..., APIClient]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "larger than a number"),
        (b'{"a": -1e999}', "larger than a number"),
        (b'{"a": 9223372036854775808}', "larger than a number"),
        (b"9" * 100_000, "larger than a number"),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"\\u0000": 1}', "NUL"),
        (b'["\\ud800"]', "half of a character"),
        (b'["\\uD83D\\u0020"]', "half of a character"),
        (b'["\xed\xa0\x80"]', "UTF-8"),
        (b"[" * 65 + b"]" * 65, "nested"),
        (b"[" * 200_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b"", "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
    ],
)
def test_it_refuses_what_nobody_can_store(text: bytes, sentence: str) -> None:
    with pytest.raises(Unreadable, match=sentence):
        read_json(text)


def test_it_takes_everything_else() -> None:
    deep: Any = "\\u0000 as text, and \U0001f600"
    for _ in range(MOST_NESTED - 1):
        deep = [deep]
    kept = {"deep": deep, "least": -(2**63), "most": 2**63 - 1, "small": 5e-324}
    assert read_json(json.dumps(kept).encode()) == kept


def test_the_charset_of_a_header_changes_nothing(
    project: Project, owner: User, api: Connect
) -> None:
    client, body = api(owner), b'{"prompts": ["Hi?"]}'
    for charset in ("zlib_codec", "utf-16", "rot13", "undefined", "no such"):
        kind = f"application/json; charset={charset}"
        sent = client.generic("POST", "/api/prompts/", body, content_type=kind)
        assert sent.status_code == 201, (charset, sent.content)
    bomb = zlib.compress(b'{"prompts": ["%s"]}' % (b"x" * 1_000_000))
    kind = "application/json; charset=zlib_codec"
    refused = client.generic("POST", "/api/prompts/", bomb, content_type=kind)
    assert refused.status_code == 400
    assert Prompt.objects.count() == 1


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e999"])
def test_one_answer_cannot_break_the_list_of_all(
    seconds: str, campaign: Campaign, annotator: User, lead: User, api: Connect
) -> None:
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    body = {
        "slot": task.slot.pk,
        "token": task.slot.token,
        "client_id": str(task.client_id),
        "ranking": [[one.pk] for one in task.responses],
        "seconds": seconds,
    }
    assert api(annotator).post("/api/judgements/", body).status_code == 400
    assert not Judgement.objects.exists()
    assert api(lead).get("/api/judgements/").status_code == 200


def test_a_thumb_has_no_strength(
    make_campaign: Callable[..., Campaign], annotator: User, api: Connect
) -> None:
    campaign = make_campaign(kind="thumbs", responses=1)
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    body = {"slot": task.slot.pk, "token": task.slot.token, "client_id": str(uuid.uuid4())}
    for more in ({"strength": 5}, {"strength": 1}, {"both_bad": True}):
        refused = api(annotator).post("/api/judgements/", body | {"thumb": 1} | more)
        assert refused.status_code == 400, refused.content
        assert "go with a ranking" in refused.json()["message"]


@pytest.mark.parametrize(
    "query",
    [
        "cursor=cD1hYmM=",  # p=abc
        "cursor=cD0=",  # p=
        "cursor=%00",
        "cursor=bz0tMQ==",  # o=-1
        "limit=9999999999999999999999",
        "project=%00",
    ],
)
def test_a_bad_address_is_never_the_servers_fault(
    query: str, campaign: Campaign, lead: User, api: Connect, login: Callable[[User], Client]
) -> None:
    for path in ("/api/prompts/", "/api/judgements/", "/api/me/progress", "/api/leaderboard"):
        for client in (api(lead), login(lead)):
            answer = client.get(f"{path}?{query}")
            assert answer.status_code in (200, 400, 404), (path, answer.content)


@pytest.mark.parametrize("text", ["[" * 5000, '{"beta": [1e999]}', '{"a": "\\u0000"}', "[1]"])
def test_json_in_a_form_is_read_as_strictly(
    text: str, project: Project, owner: User, login: Callable[[User], Client]
) -> None:
    client = login(owner)
    sent = client.post(reverse("round_new", args=[project.slug]), {"grid": text})
    assert sent.status_code == 400
    assert sent.context["form"].errors["grid"]
    prompts = client.post(reverse("prompts", args=[project.slug]), {"prompts": text + "\nHi?"})
    assert (prompts.status_code, Prompt.objects.count()) == (400, 0)


@pytest.mark.parametrize("number", ["²", "٣", "9" * 19, "9" * 5000, "-", "--5", "1 2", "½"])
def test_a_page_reads_only_whole_numbers(
    number: str, campaign: Campaign, project: Project, owner: User, login: Callable[[User], Client]
) -> None:
    client, item = login(owner), campaign.items.first()
    assert item is not None

    def page(name: str, *args: Any) -> str:
        return reverse(name, args=[project.slug, *args])

    for address in ("feedback_list", "evaluations"):
        assert client.get(page(address), {"version": number}).status_code == 200
    assert client.get(page("run_compare"), {"run": number}).status_code == 200
    here = page("campaign_items", campaign.pk)
    form = {"act": "priority", "item": item.pk, "priority": number}
    assert client.post(here, form).status_code == 400
    refused = client.post(page("feedback_send"), {"campaign": number})
    assert refused.status_code == 404
    names = {"act": "assign", "item": item.pk, "annotator": "a\x00b"}
    assert client.post(here, names).status_code == 400
