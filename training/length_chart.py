"""Draw how long chosen and rejected answers are, from a snapshot's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair
from django.core.cache import cache

from accounts.charts import BLUE, HEIGHT, ORANGE, Chart, render, themed
from training.charts import CACHE_SECONDS

WIDTH = 400
SIDES = ("chosen", "rejected")


def length_chart(digest: str, lengths: Mapping[str, Any]) -> Chart | None:
    """Return the picture of a part's ``training.lengths``, drawn once; None without answers."""
    sides = [side for side in SIDES if lengths.get(side)]
    if not sides:
        return None
    key = f"length-chart-1:{digest}"
    chart: Chart | None = cache.get(key)
    if chart is None:
        chart = _draw(lengths, sides)
        cache.set(key, chart, CACHE_SECONDS)
    return chart


def _draw(lengths: Mapping[str, Any], sides: list[str]) -> Chart:
    begins = lengths["histogram"]["from"]
    places = [*(max(1, begin) for begin in begins), max(2, _end(begins[-1]))]
    values = []
    for side in sides:
        counts = lengths["histogram"][side]
        shares = [count / lengths[side]["count"] for count in counts]
        values += [
            {"side": side, "characters": place, "share": share}
            for place, share in zip(places, [*shares, shares[-1]], strict=True)
        ]
    colours = altair.Scale(domain=list(SIDES), range=[BLUE, ORANGE])
    drawn = altair.Chart(altair.NamedData("drawn")).mark_line(
        interpolate="step-after", strokeWidth=2.25
    )
    drawn = drawn.encode(
        x=altair.X(
            "characters:Q",
            title="characters",
            axis=altair.Axis(grid=False, titleAnchor="end", format="~s", tickCount=5),
            scale=altair.Scale(type="log", nice=False),
        ),
        y=altair.Y("share:Q", title=None, axis=altair.Axis(tickCount=4, format="%")),
        color=altair.Color(
            "side:N",
            scale=colours,
            legend=altair.Legend(
                title=None, orient="top", symbolType="stroke", labelFontSize=13,
                labelColor="currentColor", values=sides,
            ),
        ),
    )  # fmt: skip
    spec = themed(drawn.properties(width=WIDTH, height=HEIGHT))
    spec |= {"datasets": {"drawn": values}}
    return Chart(
        title="Length of answers",
        latest="share of rows by characters",
        summary=" ".join(
            f"Half of the {side} answers have up to {lengths[side]['median']} characters, "
            f"95 % up to {lengths[side]['p95']}."
            for side in sides
        ),
        meaning="Each step is a range of lengths, four to a doubling.",
        svg=render(spec),
    )


def _end(begin: int) -> int:
    """Return where the bin that begins here ends: a quarter of its octave on, at least 1."""
    return begin + max(1, (1 << begin.bit_length()) // 8)
