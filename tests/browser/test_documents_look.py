"""Documents of a prompt as people see them: no fault, no sideways scroll, both themes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from accounts.models import User
from feedback.documents import attach
from feedback.models import Campaign, Prompt
from tests.browser.looks import Look, assert_readable

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_it_shows_documents_to_everybody(
    sign_in: Callable[..., Page],
    lead: User,
    make_campaign: Callable[..., Campaign],
    look: Look,
) -> None:
    campaign = make_campaign(items=2, responses=2, kind="pairwise")
    documents = [
        {"title": "returns.md", "text": "# Returns\n\n- Within **30** days\n- a_long_" * 40},
        {"title": "A title with_a_very_long_name_that_has_no_space_in_it", "text": "Never."},
    ]
    for prompt in Prompt.objects.all():
        messages = attach(prompt.messages, documents)
        Prompt.objects.filter(pk=prompt.pk).update(messages=messages, documents=documents)
    page = sign_in(lead, "/p/support/prompts/", **look)
    page.get_by_text("Add prompts", exact=True).first.click()
    page.get_by_text("Attach documents").click()
    item = campaign.items.order_by("id")[0]
    for what in ("prompts", f"campaigns/{campaign.pk}/items/{item.pk}", "task"):
        if what != "prompts":
            page.goto(f"/p/support/{what if what != 'task' else f'campaigns/{campaign.pk}/task/'}")
            page.get_by_text("2 documents").click()
            expect(page.get_by_text("Never.")).to_be_visible()
        assert_readable(page)
