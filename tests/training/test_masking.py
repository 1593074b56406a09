"""Personal data is masked before anything is compared, and the database keeps what was said."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback.models import Campaign, Judgement, Prompt, Response, text_digest
from tests.training.test_cleaning import ask, take
from tests.training.test_snapshots import judge_all, rows, strict
from training import pii
from training.masking import Masking
from training.models import Snapshot
from training.options import Kind, Options, Pii
from training.pii import Found
from training.rows import Composer, Said
from training.settled import Decided
from training.sources import Group

recognisers = pytest.mark.skipif(
    importlib.util.find_spec("presidio_analyzer") is None,
    reason="needs the extra: pip install 'laurel[pii]'",
)
QUESTION = "My card is 4111 1111 1111 1111, what now?"
ADA, BOB = "Ask ada@example.com.", "Ask bob@example.com."


class Addresses:
    """Finds email addresses alone, where Presidio is not at hand."""

    versions: Mapping[str, str] = {"addresses": "1"}

    def __call__(self, text: str) -> Found:
        masked, times = re.subn(r"\w+@[\w.]+\w", "<EMAIL_ADDRESS>", text)
        return Found(masked, ("EMAIL_ADDRESS",) * times)


def group(*said: Said, question: str = "Who knows?", decided: list[Decided] | None = None) -> Group:
    messages = [{"role": "user", "content": question}]
    texts = {text_digest(text): text for text in (ADA, BOB, "Nobody.")}
    return Group(text_digest(messages), messages, list(said), texts, decided=decided or [])


def test_answers_that_differ_in_an_address_alone_are_one() -> None:
    ada, bob, nobody = map(text_digest, (ADA, BOB, "Nobody."))
    one = text_digest("Ask <EMAIL_ADDRESS>.")
    masking = Masking(Pii.MASK, Addresses())
    found = masking.read(
        group(
            Said("1", ranking=[[ada], [bob], [nobody]]),
            Said("2", ranking=[[ada], [bob]]),
            Said("3", answer=ada, correction=bob),
            Said("4", thumb=1, answer=nobody),
            Said("5", ratings={ada: {"tone": 1}, bob: {"tone": 3}, nobody: {"tone": 2}}),
            decided=[Decided(thumb=1, answer=ada), Decided(ranking=[[bob], [nobody]])],
        )
    )
    assert found.texts == {one: "Ask <EMAIL_ADDRESS>.", nobody: "Nobody."}
    assert found.said[4].ratings == {nobody: {"tone": 2}}, "the same words had two scores"
    assert [(item.answer, list(item.ranking)) for item in found.decided] == [
        (one, []), ("", [[one], [nobody]]),
    ]  # fmt: skip
    composed = Composer(Kind.PREFERENCE, Options()).compose(found.said)
    masking.withhold(composed)
    assert [row[:3] for row in composed.rows] == [(("1",), one, nobody)]
    assert {name: str(why) for name, why in composed.reasons.items()} == {
        "2": "equal_texts", "3": "equal_texts", "4": "thumb", "5": "rating",
    }  # fmt: skip
    assert masking.found == {"EMAIL_ADDRESS": 1}
    assert (masking.prompts, masking.answers) == (0, 1)


def test_a_prompt_is_masked_once_for_all_its_rows_and_keeps_its_id() -> None:
    ada, nobody = map(text_digest, (ADA, "Nobody."))
    asked = group(Said("1", ranking=[[ada], [nobody]]), question="Is it eve@example.com?")
    masked = Masking(Pii.MASK, Addresses()).read(asked)
    assert masked.prompt_id == asked.prompt_id
    assert masked.messages == [{"role": "user", "content": "Is it <EMAIL_ADDRESS>?"}]
    assert masked.written == text_digest(masked.messages)
    assert asked.messages[0]["content"] == "Is it eve@example.com?"
    for chosen in (Pii.REPORT, Pii.DROP):
        masking = Masking(chosen, Addresses())
        assert masking.read(asked) is asked
        composed = Composer(Kind.PREFERENCE, Options()).compose(asked.said)
        masking.withhold(composed)
        assert masking.found == {"EMAIL_ADDRESS": 2}
        assert composed.reasons == ({"1": "pii"} if chosen == Pii.DROP else {})


@recognisers
@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jane.doe@example.co.uk!", "Write to <EMAIL_ADDRESS>!"),
        ("Call +49 30 901820 or (212) 555-0187.", "Call <PHONE_NUMBER> or <PHONE_NUMBER>."),
        ("DE89 3704 0044 0532 0130 00 is mine", "<IBAN_CODE> is mine"),
        ("DE89 3704 0044 0532 0130 01 is none", "DE89 3704 0044 0532 0130 01 is none"),
        ("Card 4111-1111-1111-1111.", "Card <CREDIT_CARD>."),
        ("From 192.168.0.1 and 2001:db8::1", "From <IP_ADDRESS> and <IP_ADDRESS>"),
        ("SSN 219-09-9998", "SSN <US_SSN>"),
        ("At 14:05 on 2026-11-23, 3 of 4.", "At 14:05 on 2026-11-23, 3 of 4."),
        ("No address @home.", "No address @home."),
    ],
)
def test_it_masks_what_has_a_form(text: str, masked: str) -> None:
    assert pii.finder()(text).text == masked


@recognisers
def test_the_recognisers_bring_neither_torch_nor_the_network() -> None:
    """In a process of its own, whose every connection would fail the look-up of a domain."""
    code = (
        "import django, os, socket, sys\n"
        "os.environ['DJANGO_SETTINGS_MODULE'] = 'config.settings'\n"
        "django.setup()\n"
        "def refuse(*_, **__): raise SystemExit('asked the network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from training.pii import finder\n"
        "print(finder()('a@example.com').text, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "<EMAIL_ADDRESS> False\n"


@recognisers
def test_a_snapshot_is_masked_and_the_originals_stay(
    make_campaign: Callable[..., Campaign],
    annotator: User,
    lead: User,
    login: Callable[[User], Client],
) -> None:
    campaign = make_campaign(items=3, responses=3, judgements_per_item=1)
    ask(campaign, [QUESTION], [ADA, BOB, "Nobody."])
    judge_all(campaign, annotator, strict)
    masked = take(campaign, pii="mask")
    written = rows(masked)
    assert {row["prompt"][0]["content"][:32] for row in written} == {
        "My card is <CREDIT_CARD>, what n"
    }
    assert {row["chosen"][0]["content"] for row in written} == {"Ask <EMAIL_ADDRESS>."}
    for row in written:
        assert row["chosen_id"] == text_digest(row["chosen"][0]["content"])
    said = dict(Judgement.objects.values_list("client_id", "item__prompt__digest"))
    assert {row["judgement_id"]: row["prompt_id"] for row in written} == {
        str(one): digest for one, digest in said.items()
    }
    assert "example.com" not in (masked.folder / "train.parquet").read_bytes().decode("latin-1")
    found = masked.manifest["pii"]
    assert (found["found"], found["prompts"], found["answers"]) == (
        {"CREDIT_CARD": 3, "EMAIL_ADDRESS": 3}, 3, 3,
    )  # fmt: skip
    assert found["recognisers"].keys() == set(pii.PACKAGES)
    assert take(campaign, pii="mask").digest == masked.digest != take(campaign).digest
    assert Response.objects.filter(text=ADA).count() == 3
    assert "4111" in Prompt.objects.get(pk=campaign.items.all()[0].prompt_id).last_turn
    report = take(campaign, pii="report")
    assert report.digest == take(campaign).digest
    assert report.manifest["pii"]["found"] == {"CREDIT_CARD": 3, "EMAIL_ADDRESS": 6}
    with pytest.raises(ProductError, match="3 pii"):
        take(campaign, pii="drop")
    page = login(lead).get(reverse("snapshot", args=[campaign.project.slug, masked.pk]))
    assert "&lt;CREDIT_CARD&gt;" in page.content.decode()
    assert "Masked in 3 prompts and 3 answers" in page.content.decode()


def test_without_the_recognisers_it_says_what_to_install(
    make_campaign: Callable[..., Campaign],
    project: Project,
    lead: User,
    api: Callable[..., APIClient],
    login: Callable[[User], Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    campaign = make_campaign(items=1)
    monkeypatch.setattr(pii, "PACKAGES", ("a-package-that-nobody-has",))
    wanted = {"campaigns": [campaign.pk], "options": {"pii": "mask"}}
    refused = api(lead).post("/api/snapshots/", json.dumps(wanted), content_type="application/json")
    assert refused.status_code == 400
    assert "pip install 'laurel[pii]'" in refused.json()["message"]
    form = {"campaigns": [campaign.pk], "heldout_fraction": "0", "pii": "drop"}
    page = login(lead).post(reverse("snapshots", args=[project.slug]), form)
    assert page.status_code == 400
    assert "recognisers are not installed" in page.content.decode()
    assert not Snapshot.objects.exists()
