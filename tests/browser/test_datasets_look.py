"""Imports of large files and rows as tokens, seen by everybody."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from accounts.models import Project, User
from feedback.models import FileImport
from inference.models import Version
from tests.browser.looks import Look, assert_readable
from tests.training.test_runs import base_version, folder, snapshot  # noqa: F401
from training.models import Snapshot

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_it_shows_imports_and_tokens(
    sign_in: Callable[..., Page],
    project: Project,
    lead: User,
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    look: Look,
) -> None:
    report = {"rows": 9000, "added": 0, "known": 0, "left_out": {"an answer is empty": 3}}
    report |= {"error_count": 1, "errors": [{"line": 31, "message": "This is not JSON."}]}
    common = {"project": project, "upload": "0" * 64, "filename": "many-comparisons.jsonl.gz"}
    waiting = FileImport.objects.create(**common)
    failed = FileImport.objects.create(
        **common, state="failed", reason="Line 31: This is not JSON.", report=report
    )
    page = sign_in(
        lead,
        f"/p/{project.slug}/import/",
        **look,
    )
    tokens = f"/p/{project.slug}/snapshots/{snapshot.pk}/rendered"
    for address in (
        f"/p/{project.slug}/import/",
        f"/p/{project.slug}/import/{waiting.pk}/",
        f"/p/{project.slug}/import/{failed.pk}/",
        tokens,
        f"{tokens}?row=3&max_length=28&max_prompt_length=12",
    ):
        page.goto(address)
        assert_readable(page)
