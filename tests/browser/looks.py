"""What every page owes its readers, whatever it shows: asked of a page that is open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

# The options of a window.
Look = Mapping[str, Any]

# What does not fit by itself: a word, code and a table wider than a phone.
TEXT = (
    """# A title

A long_word_{position}_"""
    + "without_any_space_" * 12
    + """

```python
def a_function(with_a_long: str, signature: int) -> "that does not fit on a phone at all":
    return {number}
```

| a | b | c |
|---|---|---|
| one | two | three |
"""
)


def faults(page: Page) -> list[str]:
    """Return what axe-core calls serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def assert_readable(page: Page) -> None:
    """Fail where the page scrolls sideways or has a serious fault."""
    wider, found = overflow(page), faults(page)
    assert wider <= 0, f"{page.url} is {wider} pixels wider than its window"
    assert not found, f"{page.url}: {found}"
