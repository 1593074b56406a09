"""The OpenAPI schema and its page."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.management import call_command
from django.test import Client


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
