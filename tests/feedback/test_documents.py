"""Documents given with a prompt: what models read, what people see, what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.errors import ProductError, TooLarge
from accounts.models import Project, User
from feedback.assignment import claim
from feedback.documents import attach, check_documents, detach, read_documents
from feedback.importing import import_file, understand
from feedback.models import Campaign, Prompt
from feedback.services import add_prompts
from training.retraction import retract

RETURNS = {"title": "Returns", "text": "Within **30** days.\n\n# Not ours\n\nNever."}
TERMS = {"title": "Terms", "text": "See <script>alert(1)</script>."}
USER = {"role": "user", "content": "May I return it?"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER]])
@pytest.mark.parametrize("documents", [[], [RETURNS], [RETURNS, TERMS], [TERMS, TERMS]])
def test_it_takes_off_what_it_put_on(
    messages: list[dict[str, str]], documents: list[dict[str, str]]
) -> None:
    given = attach(messages, documents)
    assert detach(given, documents) == messages
    assert given[-1] == USER
    assert [turn["role"] for turn in given].count("system") == (
        SYSTEM in messages or bool(documents)
    )
    assert all(one["text"] in given[0]["content"] for one in documents)


def test_it_gives_models_the_documents_and_keeps_them_for_people(project: Project) -> None:
    [prompt, brief] = add_prompts(
        project=project, prompts=["May I return it?", [SYSTEM, USER]], documents=[RETURNS]
    )
    written = "Documents:\n\n# Returns\n\nWithin **30** days.\n\n# Not ours\n\nNever."
    assert prompt.messages == [{"role": "system", "content": written}, USER]
    assert brief.messages[0]["content"] == f"Be brief.\n\n{written}"
    assert (prompt.documents, prompt.turns, brief.turns) == ([RETURNS], [USER], [SYSTEM, USER])
    [plain] = add_prompts(project=project, prompts=["May I return it?"])
    assert plain.pk != prompt.pk, "with and without documents are two prompts"
    [again] = add_prompts(project=project, prompts=["May I return it?"], documents=[RETURNS])
    assert again.pk == prompt.pk


@pytest.mark.parametrize(
    ("documents", "sentence"),
    [
        ("Returns", "are a list"),
        ([RETURNS] * 11, "takes 10 documents"),
        ([{"title": "a"}], "Document 1 needs"),
        ([RETURNS, {"title": "a", "text": " \n"}], "Document 2 needs"),
        ([{"title": " ", "text": "b"}], "needs 1 to 200"),
        ([{"title": "a" * 201, "text": "b"}], "needs 1 to 200"),
        ([{"title": "a", "text": "b" * 100_001}], "100,000 are the most"),
        ([{"title": "a", "text": "b\x00"}], "NUL"),
        ([{"title": "a", "text": "\ud800"}], "half of a character"),
    ],
)
def test_it_refuses_documents_that_do_not_fit(documents: Any, sentence: str) -> None:
    with pytest.raises(ProductError, match=sentence):
        check_documents(documents)


def test_it_does_not_copy_much_text_into_many_prompts(project: Project) -> None:
    prompts = [f"Question {number}?" for number in range(501)]
    with pytest.raises(TooLarge, match="fewer prompts"):
        add_prompts(
            project=project, prompts=prompts, documents=[{"title": "a", "text": "b" * 100_000}]
        )
    assert not Prompt.objects.exists()


@pytest.mark.parametrize(
    ("value", "documents"),
    [
        (None, []),
        ("", []),
        ("Text.", [{"title": "Document 1", "text": "Text."}]),
        (["a", "b"], [{"title": f"Document {n}", "text": t} for n, t in ((1, "a"), (2, "b"))]),
        ([RETURNS | {"url": "x"}], [RETURNS]),
        (json.dumps([RETURNS, {"text": "b"}]), [RETURNS, {"title": "Document 2", "text": "b"}]),
    ],
)
def test_it_reads_a_column_of_documents(value: Any, documents: list[dict[str, str]]) -> None:
    assert read_documents(value) == documents


def test_it_imports_documents_with_judged_rows(project: Project, lead: User) -> None:
    rows = [
        {"prompt": USER["content"], "chosen": f"{n}", "rejected": "No.", "documents": [RETURNS]}
        for n in range(10)
    ]
    file = io.BytesIO("\n".join(map(json.dumps, rows)).encode())
    report, campaign = import_file(project=project, by=lead, file=file, filename="a.jsonl")
    assert campaign is not None
    assert report.mapping["documents"] == "documents"
    prompt = Prompt.objects.get()
    assert (prompt.documents, prompt.turns) == ([RETURNS], [USER])
    assert [entry.turns for entry in report.sample] == [[USER]] * 5
    # What judges the same prompt without its documents is about another prompt.
    file = io.BytesIO(b'{"prompt": "Why?", "context": "a"}\n{"prompt": "Why?", "context": ["", 1]}')
    found = understand(file, "a.jsonl", {"prompt": "prompt", "documents": "context"}).report
    assert found.sample[0].documents == [{"title": "Document 1", "text": "a"}]
    assert [(one.line, "Document 1 needs" in one.message) for one in found.errors] == [(2, True)]


def test_rest_takes_documents_and_gives_them_back(
    project: Project, lead: User, api: Callable[..., APIClient]
) -> None:
    client = api(lead)
    body: dict[str, Any] = {"prompts": [USER["content"]], "documents": [RETURNS]}
    answer = client.post("/api/prompts/", body)
    assert answer.status_code == 201
    assert answer.json()[0]["documents"] == [RETURNS]
    assert client.get("/api/prompts/").json()["results"][0]["documents"] == [RETURNS]
    refused = client.post("/api/prompts/", body | {"documents": [{"title": "a", "text": " "}]})
    assert (refused.status_code, Prompt.objects.count()) == (400, 1)
    assert "Document 1 needs" in refused.json()["message"]


def test_the_page_attaches_files_and_a_pasted_text(
    project: Project, lead: User, login: Callable[[User], Client]
) -> None:
    form = {
        "prompts": "May I return it?\nWhen?",
        "document_files": [
            SimpleUploadedFile("returns.md", b"\xef\xbb\xbfWithin\r\n30 days."),
            SimpleUploadedFile("terms.txt", "Größe".encode()),
        ],
        "document_text": "Closed\r\non Sunday.",
    }
    client, address = login(lead), f"/p/{project.slug}/prompts/"
    page = client.post(address, form, follow=True).content.decode()
    assert "2 prompts added with 3 documents." in page
    assert "returns.md" in page
    assert "Within" not in page, "a list names documents and does not write them out"
    for prompt in Prompt.objects.all():
        assert prompt.documents == [
            {"title": "returns.md", "text": "Within\n30 days."},
            {"title": "terms.txt", "text": "Größe"},
            {"title": "Pasted text", "text": "Closed\non Sunday."},
        ]


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"document_files": [SimpleUploadedFile("a.txt", b"\xff\xfe\xfa")]}, "is not UTF-8 text"),
        ({"document_files": [SimpleUploadedFile("a.txt", b"")]}, "file is empty"),
        ({"document_title": "Terms"}, "Paste the text of the document."),
        ({"document_title": "T" * 201, "document_text": "a"}, "at most 200"),
        ({"document_text": "a" * 100_001}, "100,000 are the most"),
    ],
)
def test_the_page_refuses_documents_and_keeps_the_prompts(
    form: dict[str, Any],
    sentence: str,
    project: Project,
    lead: User,
    login: Callable[[User], Client],
) -> None:
    answer = login(lead).post(f"/p/{project.slug}/prompts/", {"prompts": "Why?"} | form)
    assert answer.status_code == 400
    assert sentence in answer.content.decode()
    assert "Why?" in answer.content.decode()
    assert not Prompt.objects.exists()


def test_the_task_shows_documents_once_and_safely(
    make_campaign: Callable[..., Campaign],
    annotator: User,
    login: Callable[[User], Client],
    api: Callable[..., APIClient],
) -> None:
    campaign = make_campaign(items=1)
    given = attach([USER], [RETURNS, TERMS])
    Prompt.objects.update(messages=given, documents=[RETURNS, TERMS])
    page = login(annotator).get(f"/p/{campaign.project.slug}/campaigns/{campaign.pk}/task/")
    text = page.content.decode()
    assert text.count("Within <strong>30</strong> days.") == 1
    assert "earlier turn" not in text
    assert "<script>alert(1)" not in text
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    assert (task.messages, task.turns) == (given, [USER])
    taken = api(annotator).post(f"/api/campaigns/{campaign.pk}/next").json()
    assert (taken["messages"], taken["documents"]) == (given, [RETURNS, TERMS])


def test_erasing_a_prompt_erases_its_documents(project: Project, owner: User) -> None:
    [prompt] = add_prompts(project=project, prompts=["Why?"], documents=[RETURNS])
    with pytest.raises(IntegrityError, match="no_documents"), transaction.atomic():
        Prompt.objects.filter(pk=prompt.pk).update(erased_at=timezone.now())
    retract(project=project, subject=prompt, why="a person", by=owner, erase=True)
    prompt.refresh_from_db()
    assert (prompt.messages, prompt.documents, prompt.turns) == ([], [], [])
