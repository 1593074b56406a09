"""What the charts of every floor share: colours, sizes, and the way to the page.

They are drawn on the server, as SVG that follows the page's theme. No script and no network: Altair
describes, vl-convert renders. Colours are CSS variables with the Okabe–Ito values behind them, the
rest is ``currentColor``, so one picture serves light and dark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import altair
import vl_convert
from django.utils.safestring import SafeString, mark_safe

WIDTH, HEIGHT = 300, 170
OUTER_WIDTH = 480

BLUE = "var(--okabe-blue, #0072b2)"
ORANGE = "var(--okabe-orange, #d55e00)"
GREEN = "var(--okabe-green, #009e73)"
PURPLE = "var(--okabe-purple, #cc79a7)"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A rendered picture with its text alternative."""

    title: str
    latest: str
    summary: str
    meaning: str
    svg: SafeString


def themed(chart: altair.TopLevelMixin) -> dict[str, Any]:
    """Return the chart's description in the house's letters and lines."""
    chart = (
        chart.properties(background="transparent", padding=2)
        .configure(font="inherit")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="currentColor",
            titleColor="currentColor",
            gridColor="currentColor",
            gridOpacity=0.13,
            domain=False,
            ticks=False,
            labelFontSize=13,
            titleFontSize=13,
            titleFontWeight="normal",
            labelPadding=6,
        )
    )
    return chart.to_dict()


def render(spec: dict[str, Any]) -> SafeString:
    """Return the description as SVG fit for the page.

    It scales with its column and stays out of the reading: its caption carries the sentence that a
    screen reader needs. A person's words in it come out escaped.
    """
    svg = vl_convert.vegalite_to_svg(spec)
    # One width for all, so that their letters are of one size; more only where labels want it.
    size = r' width="[^"]*" height="[^"]*" viewBox="0 0 ([^ "]+) ([^"]+)"'
    svg = re.sub(size, _outer, svg, count=1)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    return mark_safe(svg)


def _outer(size: re.Match[str]) -> str:
    return f' viewBox="0 0 {max(OUTER_WIDTH, float(size[1])):g} {size[2]}"'


def short_number(value: float) -> str:
    """Write a figure short enough to stand at the end of its curve."""
    if value and abs(value) < 0.005:
        return f"{value:.1e}".replace("-", "−")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}".replace("-", "−")
