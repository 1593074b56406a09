"""Large files are added by a worker, all of it or nothing, and once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.models import Project, User
from feedback import imports
from feedback.importing import import_file
from feedback.models import FileImport, Judgement
from feedback.tasks import import_file as import_task
from tests.feedback.test_importing import as_file, comparisons, jsonl


@pytest.fixture(autouse=True)
def _all_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "LARGE_BYTES", 500)
    monkeypatch.setattr(imports, "LOOKED_AT", 10)


def upload(data: bytes) -> SimpleUploadedFile:
    return SimpleUploadedFile("many.jsonl", data)


def test_rest_answers_202_and_tells_what_became_of_it(
    project: Project, lead: User, annotator: User, api: Callable[..., APIClient]
) -> None:
    client = api(lead)
    data = jsonl(comparisons(30)).getvalue()
    sent = client.post("/api/imports/", {"file": upload(data), "name": "All"}, format="multipart")
    assert sent.status_code == 202, sent.content
    address = sent.headers["Location"]
    assert (sent.json()["state"], sent.json()["url"]) == ("queued", address)
    assert not Judgement.objects.exists()
    import_task(sent.json()["id"])
    done = client.get(address).json()
    assert (done["state"], done["report"]["added"]) == ("done", 30)
    assert Judgement.objects.filter(campaign=done["campaign"], campaign__name="All").count() == 30
    assert api(annotator).get(address).status_code == 403
    import_task(sent.json()["id"])  # rung twice
    assert Judgement.objects.count() == 30
    found = FileImport.objects.get()
    assert not (imports._folder(project) / found.upload).exists()


def test_a_bad_line_beyond_the_preview_refuses_all_of_it(
    project: Project, lead: User, login: Callable[[User], Client]
) -> None:
    client = login(lead)
    data = jsonl(comparisons(30)).getvalue() + b"{broken\n"
    address = reverse("import", args=[project.slug])
    seen = client.post(address, {"file": upload(data)})
    assert seen.context["report"].rows == 10
    assert "Add all rows" in seen.content.decode()
    form = {"kept": seen.context["kept"], "filename": "many.jsonl", "confirm": "1"}
    queued = client.post(address, form)
    assert queued.status_code == 302
    assert "waits for a worker" in client.get(queued.url).content.decode()
    found = FileImport.objects.get()
    imports._teller(found.pk)("stored", 20, 30)
    assert "20 of 30" in client.get(queued.url, headers={"HX-Request": "true"}).content.decode()
    imports.run_import(import_id=found.pk)
    page = client.get(queued.url).content.decode()
    assert "Line 31: This is not JSON" in page
    assert "Nothing was added" in page
    assert not Judgement.objects.exists()
    assert "many.jsonl" in client.get(address).content.decode()


@pytest.mark.django_db(transaction=True)
def test_a_file_that_two_requests_import_at_once_is_added_once(project: Project) -> None:
    data = json.dumps(comparisons(200)).encode()
    reports: list[Any] = []
    both = threading.Barrier(2)

    def send() -> None:
        both.wait()
        try:
            report, _ = import_file(project=project, by=None, file=as_file(data), filename="a.json")
            reports.append((report.added, report.known))
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reports) == [(0, 200), (200, 0)]
    assert Judgement.objects.count() == 200


@pytest.mark.django_db(transaction=True)
def test_a_killed_worker_leaves_nothing_and_the_next_one_adds_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = imports.keep_upload(project, upload(jsonl(comparisons(30)).getvalue()))
    found = imports.queue_import(project=project, by=None, upload=kept, filename="many.jsonl")

    def die(import_id: int) -> Any:
        def tell(doing: str, done: int, total: int | None) -> None:
            if doing == "stored":
                raise KeyboardInterrupt  # as a kill: nothing catches it

        return tell

    with monkeypatch.context() as patch:
        patch.setattr(imports, "_teller", die)
        with pytest.raises(KeyboardInterrupt):
            imports.run_import(import_id=found.pk)
    assert not Judgement.objects.exists()
    found.refresh_from_db()
    assert (found.state, found.attempts) == ("running", 1)
    rung: list[int] = []
    monkeypatch.setattr(import_task, "delay_on_commit", rung.append)
    imports.resume_imports()
    assert rung == [], "a worker may still be at it"
    FileImport.objects.update(rung_at=found.rung_at - 2 * imports.LOST_AFTER)
    imports.resume_imports()
    imports.resume_imports()
    assert rung == [found.pk]
    imports.run_import(import_id=found.pk)
    found.refresh_from_db()
    assert (found.state, found.report["added"]) == ("done", 30)
