"""The OpenAPI schema and its page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from drf_spectacular.generators import SchemaGenerator
from rest_framework.test import APIClient

from accounts.models import User
from feedback.models import Campaign


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
    return found


def test_the_schema_is_valid_and_without_warnings(tmp_path: Path) -> None:
    file = tmp_path / "schema.yml"
    call_command("spectacular", validate=True, fail_on_warn=True, file=str(file))
    text = file.read_text()
    assert "CampaignsInput:" in text
    assert "SnapshotsInput:" in text, "two views' inputs must not share a name"


@pytest.mark.django_db
def test_the_docs_page_needs_no_inline_script(client: Client) -> None:
    page = client.get("/api/docs/")
    assert page.status_code == 200
    assert "<script>" not in page.content.decode(), "the content security policy would block it"


def test_every_list_answers_as_the_schema_says(
    schema: dict[str, Any], api: Callable[..., APIClient], owner: User, campaign: Campaign
) -> None:
    caller, seen = api(owner), 0
    for path, operations in schema["paths"].items():
        address = path.replace("campaigns/{id}", f"campaigns/{campaign.pk}")
        if "get" not in operations or "{" in address or "200" not in operations["get"]["responses"]:
            continue
        said = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        if "$ref" in said:
            said = schema["components"]["schemas"][said["$ref"].rpartition("/")[2]]
        answer = caller.get(address)
        if answer.status_code != 200:  # it wants to know more
            continue
        body = answer.json()
        assert isinstance(body, {"array": list, "object": dict}[said["type"]]), path
        if "results" in said.get("properties", {}):
            assert set(body) == {"next", "previous", "results"}, path
            names = {one["name"] for one in operations["get"]["parameters"]}
            assert {"cursor", "limit"} <= names, path
            seen += 1
    assert seen >= 15


def test_every_operation_says_what_a_refusal_looks_like(
    schema: dict[str, Any], client: Client
) -> None:
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert "default" in operation["responses"], path
    refusal = client.get("/api/runs/").json()
    assert set(refusal) == set(schema["components"]["schemas"]["ErrorOutput"]["properties"])


def test_a_list_is_filtered_by_what_it_knows_and_nothing_else(
    api: Callable[..., APIClient], owner: User, campaign: Campaign
) -> None:
    caller = api(owner)
    assert len(caller.get("/api/campaigns/", {"state": "open"}).json()["results"]) == 1
    assert caller.get("/api/campaigns/", {"state": "closed"}).json()["results"] == []
    misspelt = caller.get("/api/campaigns/", {"sate": "closed"})
    assert misspelt.status_code == 400
    assert "Did you mean state?" in misspelt.json()["message"]
    assert caller.get("/api/campaigns/", {"state": "opened"}).status_code == 400
    tag = {"tag": "billing"}
    caller.post("/api/prompts/", {"prompts": ["Where is my bill?"], "tags": ["billing"]})
    [found] = caller.get("/api/prompts/", tag | {"limit": 5}).json()["results"]
    assert found["tags"] == ["billing"]


def test_a_forgotten_slash_loses_neither_method_nor_body(
    api: Callable[..., APIClient], owner: User
) -> None:
    caller = api(owner)
    made = caller.post("/api/prompts?x=1", {"prompts": ["Where is my bill?"]}, follow=True)
    assert made.redirect_chain == [("/api/prompts/?x=1", 308)]
    assert made.status_code == 201, made.content
    assert caller.get("/api/me/", follow=True).json()["username"] == owner.username


def test_an_address_that_is_none_is_refused_in_the_shape_of_the_api(client: Client) -> None:
    for address in ("/api/", "/api/run/", "/api/runs/1/stop"):
        refusal = client.post(address, {})
        assert refusal.status_code == 404
        assert address in refusal.json()["message"]


def test_a_misspelt_field_is_refused_and_not_passed_over(
    api: Callable[..., APIClient], owner: User, campaign: Campaign
) -> None:
    wanted = {"campaigns": [campaign.pk], "options": {"piii": "mask"}}
    refusal = api(owner).post("/api/snapshots/", wanted)
    assert refusal.status_code == 400
    assert refusal.json()["message"] == "options.piii: There is no such field. Did you mean pii?"
    wanted = {"campaigns": [campaign.pk], "options": {"pii": "hide"}}
    refusal = api(owner).post("/api/snapshots/", wanted)
    assert "options.pii: “hide” is none of off, report" in refusal.json()["message"]
