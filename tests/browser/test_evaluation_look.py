"""A comparison as people see it: no fault, no sideways scroll, both themes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from accounts.models import Project, User
from inference.models import BaseModel, Version
from tests.browser.looks import Look, assert_readable
from tests.training.test_measures import labelled_comparison
from tests.training.test_pages import snapshot  # noqa: F401
from training.models import Snapshot

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_it_shows_a_comparison_to_everybody(
    sign_in: Callable[..., Page],
    lead: User,
    project: Project,
    snapshot: Snapshot,  # noqa: F811
    base: BaseModel,
    base_version: Version,
    look: Look,
) -> None:
    made = labelled_comparison(snapshot, base, base_version)
    page = sign_in(
        lead,
        f"/p/{project.slug}/",
        **look,
    )
    for what in (f"evaluations/{made.pk}", f"versions/{made.challenger_id}"):
        page.goto(f"/p/{project.slug}/{what}/")
        assert page.locator("h1").count() == 1, what
        assert_readable(page)
