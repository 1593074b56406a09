"""What a campaign asks beside its kind: defined once, answered whole, frozen when stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from rest_framework.test import APIClient

from accounts.errors import ProductError
from accounts.models import Scope, User
from feedback.extras import HELPSTEER, MAX_SCALES, Given, Wanted, check, define, stored
from feedback.models import Campaign, Judgement

EVERYTHING = {
    "ratings": [{"label": "Tone of voice", "low": "rude", "high": "kind", "levels": 3}],
    "safety": ["Safe", "Unsafe", "Unsure"],
    "reasons": ["Wrong facts", "Too long"],
    "rationale": "required",
    "correction": "required",
}


def given(**changes: Any) -> Given:
    """Return whole answers to ``EVERYTHING`` for the responses 7 and 8, but for the changes."""
    values: dict[str, Any] = {
        "ratings": {7: {"tone_of_voice": 3}, 8: {"tone_of_voice": 1}},
        "safety": {7: "safe", 8: "unsure"},
        "reasons": ["too_long"],
        "comment": "Eight rambles.",
        "correction": "Shorter.",
        "corrected": 8,
    }
    return Given(**values | changes)


def test_it_keeps_a_definition_as_it_was_read() -> None:
    asked = define(EVERYTHING | {"preset": "helpsteer"})
    assert asked.ratings[:5] == HELPSTEER
    assert (asked.ratings[5].key, asked.ratings[5].levels) == ("tone_of_voice", 3)
    assert asked.correction is Wanted.REQUIRED
    assert stored(asked.as_dict()) == asked
    assert stored({}) == define({})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"preset": "other"}, "no preset"),
        ({"ratings": [{"label": "a", "levels": 8}]}, "2 to 7 levels"),
        ({"ratings": [{"label": f"s{n}"} for n in range(MAX_SCALES + 1)]}, "at most 10 scales"),
        ({"safety": ["Safe"]}, "leaves no choice"),
        ({"reasons": ["Too long", "too  long"]}, "there twice"),
        ({"reasons": ["安全"]}, "needs a “key”"),
        ({"correction": "perhaps"}, "off, optional or required"),
    ],
)
def test_it_refuses_what_cannot_be_asked(value: dict[str, Any], said: str) -> None:
    with pytest.raises(ProductError, match=said):
        define(value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ratings": {7: {"tone_of_voice": 3}}}, "Rate every response"),
        ({"ratings": {7: {"tone_of_voice": 4}, 8: {"tone_of_voice": 1}}}, "from 1 to 3"),
        ({"ratings": {7: {}, 8: {"tone_of_voice": 1}}}, "for Tone of voice first"),
        ({"safety": {7: "safe"}}, "safety label first"),
        ({"safety": {7: "safe", 8: "fine"}}, "no safety label here"),
        ({"reasons": ["rude"]}, "no reason “rude”"),
        ({"comment": " "}, "Say why"),
        ({"correction": "", "corrected": None}, "what you would have liked"),
        ({"corrected": None}, "Send both or neither"),
        ({"corrected": 9}, "does not have"),
    ],
)
def test_it_refuses_an_answer_that_is_not_whole(changes: dict[str, Any], said: str) -> None:
    asked = define(EVERYTHING)
    check(given(), asked=asked, response_ids=[7, 8])
    with pytest.raises(ProductError, match=said):
        check(given(**changes), asked=asked, response_ids=[7, 8])


def test_it_refuses_what_was_not_asked() -> None:
    nothing = define({"rationale": "off"})
    empty = {"ratings": {}, "safety": {}, "reasons": [], "comment": "", "correction": ""}
    check(given(**empty, corrected=None), asked=nothing, response_ids=[7, 8])
    for key in ("ratings", "safety", "reasons", "comment"):
        one = {**empty, key: getattr(given(), key)}
        with pytest.raises(ProductError):
            check(given(**one, corrected=None), asked=nothing, response_ids=[7, 8])


def answered(task: dict[str, Any]) -> dict[str, Any]:
    """Return a whole judgement of a rating task that asks for everything."""
    first, second = (response["id"] for response in task["responses"])
    return {
        **{key: task[key] for key in ("slot", "token", "client_id")},
        "ratings": {first: {"tone_of_voice": 3}, second: {"tone_of_voice": 1}},
        "safety": {first: "safe", second: "unsafe"},
        "reasons": ["wrong_facts"],
        "comment": "The second is wrong.",
        "correction": "Right.\n",
        "corrected": second,
    }


def test_it_takes_every_extra_over_rest_and_gives_it_back(
    make_campaign: Callable[..., Campaign], annotator: User, api: Callable[..., APIClient]
) -> None:
    campaign = make_campaign(kind="rating", responses=2, asks=EVERYTHING)
    client = api(annotator, Scope.JUDGE, Scope.READ)
    task = client.post(f"/api/campaigns/{campaign.pk}/next").json()
    assert task["extras"]["safety"][1] == {"key": "unsafe", "label": "Unsafe"}

    unread = next(each["text"] for each in task["responses"][1:])
    refused = client.post(
        "/api/judgements/", answered(task) | {"correction": unread}, format="json"
    )
    assert refused.status_code == 400
    assert "says what the response says" in str(refused.json())
    stored_one = client.post("/api/judgements/", answered(task) | {"next": True}, format="json")
    assert stored_one.status_code == 201
    assert stored_one.json()["next"]["extras"] == task["extras"]

    [row] = client.get("/api/judgements/").json()["results"]
    sent = answered(task)
    assert row["ratings"] == {str(pk): levels for pk, levels in sent["ratings"].items()}
    assert row["safety"] == {str(pk): label for pk, label in sent["safety"].items()}
    assert [row[key] for key in ("reasons", "correction", "corrected")] == [
        sent[key] for key in ("reasons", "correction", "corrected")
    ]
    assert (row["ranking"], row["thumb"]) == (None, None)


def test_it_never_edits_what_was_stored(
    make_campaign: Callable[..., Campaign], annotator: User, api: Callable[..., APIClient]
) -> None:
    campaign = make_campaign(kind="rating", responses=2, asks=EVERYTHING)
    client = api(annotator, Scope.JUDGE)
    task = client.post(f"/api/campaigns/{campaign.pk}/next").json()
    client.post("/api/judgements/", answered(task), format="json")
    for changed in (
        {"ratings": {"1": {"tone_of_voice": 2}}},
        {"safety": {}},
        {"reasons": []},
        {"correction": "Other."},
    ):
        with pytest.raises(IntegrityError, match="never edited"), transaction.atomic():
            Judgement.objects.update(**changed)
