"""Other languages are left out of a snapshot by name, and every text is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from django.test import Client
from django.urls import reverse
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from rest_framework.test import APIClient

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback.models import Campaign, Item, Prompt, Response, text_digest
from tests.training.test_snapshots import judge_all, rows, strict
from training.languages import CODES, detector
from training.models import Snapshot
from training.options import Options
from training.snapshots import build_snapshot

ENGLISH = "The answer depends on what you want to know."
GERMAN = "Die Antwort hängt davon ab, was man wissen will."
FRENCH = "La réponse dépend de ce que vous voulez savoir."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        (GERMAN, "de"),
        (GERMAN.upper(), "de"),
        (FRENCH, "fr"),
        ("我不知道今天该说什么，所以我什么都不会说，你觉得怎么样？", "zh"),
        ("La", "und"),
        ("", "und"),
        ("12345 67890 12345 67890", "und"),
        ("\N{GRINNING FACE}" * 30, "und"),
        ("\ud800 " + ENGLISH, "en"),
    ],
)
def test_it_tells_a_language_or_says_that_it_cannot(text: str, language: str) -> None:
    assert detector()(text) == language


def test_its_sums_are_exact_so_that_every_machine_agrees() -> None:
    """float16 numbers in steps of 2**-9 are whole when multiplied by 512."""
    model = LanguageIdentifier.from_model_file(MODEL_FILE)
    table = model.nb_ptc[::7].astype(np.float64) * 512
    assert (table == np.rint(table)).all()
    assert table.min() >= np.iinfo(np.int16).min
    assert set(model.labels) == CODES | {"zxx"}


def ask(campaign: Campaign, questions: list[str], answers: list[str]) -> None:
    """Give each item of a campaign a question, and its responses the answers in turn."""
    for number, item in enumerate(Item.objects.filter(campaign=campaign).order_by("pk")):
        messages = [{"role": "user", "content": f"{questions[number % len(questions)]} {number}"}]
        Prompt.objects.filter(pk=item.prompt_id).update(
            messages=messages, digest=text_digest(messages)
        )
        for place, response in enumerate(Response.objects.filter(item=item).order_by("pk")):
            Response.objects.filter(pk=response.pk).update(text=answers[place])


def take(campaign: Campaign, **options: Any) -> Snapshot:
    snapshot = Snapshot.objects.create(
        project=campaign.project, heldout_fraction=0, options=Options.read(options).as_dict()
    )
    snapshot.campaigns.set([campaign])
    return build_snapshot(snapshot_id=snapshot.pk)


def test_it_leaves_out_other_languages_and_counts_all(
    make_campaign: Callable[..., Campaign],
    annotator: User,
    lead: User,
    login: Callable[[User], Client],
) -> None:
    campaign = make_campaign(items=4, responses=3, judgements_per_item=1)
    ask(campaign, [ENGLISH, ENGLISH, ENGLISH, FRENCH], [ENGLISH, GERMAN, "Yes."])
    judge_all(campaign, annotator, strict)
    snapshot = take(campaign, languages=["en"])
    assert snapshot.manifest["ledger"]["excluded"] == {"language": 1}
    said = {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows(snapshot)}
    assert said == {(ENGLISH, "Yes.")}
    assert snapshot.manifest["languages"] == {
        "detector": "py3langid 0.4.0",
        "taken": ["en"],
        "prompts": {"en": 3, "fr": 1},
        "answers": {"de": 4, "en": 4, "und": 4},
    }
    page = login(lead).get(reverse("snapshot", args=[campaign.project.slug, snapshot.pk]))
    for said in ("in a language that was not asked for", "German (de)", "languages: en"):
        assert said in page.content.decode()
    assert "languages" not in take(campaign).manifest
    with pytest.raises(ProductError, match=r"give no pair: 4 language"):
        take(campaign, languages=["it"])


def test_rest_and_page_take_languages_and_refuse_what_is_none(
    make_campaign: Callable[..., Campaign],
    project: Project,
    lead: User,
    api: Callable[..., APIClient],
    login: Callable[[User], Client],
) -> None:
    campaign = make_campaign(items=1)
    wanted = {"campaigns": [campaign.pk], "options": {"languages": ["en", "de"]}}
    made = api(lead).post("/api/snapshots/", wanted, format="json")
    assert made.status_code == 201, made.content
    assert made.json()["options"]["languages"] == ["de", "en"]
    wanted["options"] = {"languages": ["xx"]}
    refused = api(lead).post("/api/snapshots/", wanted, format="json")
    assert refused.status_code == 400
    assert "has the code xx" in refused.json()["message"]
    form = {"campaigns": [campaign.pk], "heldout_fraction": "0", "languages": "EN, fr"}
    login(lead).post(reverse("snapshots", args=[project.slug]), form)
    assert Snapshot.objects.latest("pk").options["languages"] == ["en", "fr"]
