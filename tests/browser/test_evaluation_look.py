"""A comparison as people see it: no fault, no sideways scroll, both themes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from accounts.models import Project, User
from inference.models import BaseModel, Version
from tests.browser.test_look import faults, overflow
from tests.training.test_measures import labelled_comparison
from tests.training.test_pages import snapshot  # noqa: F401
from training.models import Snapshot

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_it_shows_a_comparison_to_everybody(
    sign_in: Callable[..., Page],
    lead: User,
    project: Project,
    snapshot: Snapshot,  # noqa: F811
    base: BaseModel,
    base_version: Version,
    width: int,
    scheme: str,
) -> None:
    made = labelled_comparison(snapshot, base, base_version)
    page = sign_in(
        lead,
        f"/p/{project.slug}/",
        viewport={"width": width, "height": 740},
        color_scheme=scheme,
    )
    for what in (f"evaluations/{made.pk}", f"versions/{made.challenger_id}"):
        page.goto(f"/p/{project.slug}/{what}/")
        assert page.locator("h1").count() == 1, what
        assert overflow(page) <= 0, what
        assert faults(page) == [], what
