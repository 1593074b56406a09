"""Draw how a campaign and an annotator go on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import altair
from django.utils.safestring import SafeString

from accounts.charts import (
    BLUE,
    GREEN,
    HEIGHT,
    ORANGE,
    PURPLE,
    WIDTH,
    Chart,
    render,
    short_number,
    themed,
)
from feedback import quality
from feedback.dashboard import Agreed, Dashboard, Stretch, Worked
from feedback.models import text_digest
from feedback.own_progress import RECENT, OwnDay

# More annotators than this are one bar at the end.
MOST_NAMED = 11
ROW_HEIGHT, LABEL_WIDTH, LABEL_SPACE = 22, 110, 60
# What bars gain that have no label at their end.
NO_LABEL = 100
SHORT = timedelta(days=7)
UTC_SCALE = altair.Scale(type="utc")
COUNTED: dict[str, Any] = {
    "title": None,
    "axis": altair.Axis(tickCount=5, tickMinStep=1, format="~s"),
    "scale": altair.Scale(zero=True),
}


def dashboard_charts(found: Dashboard) -> list[Chart]:
    """Return the dashboard's charts, drawn anew only when it has changed; no query."""
    if not found.stretches:
        return []
    key = f"dashboard-charts:{text_digest(repr(found))}"
    return quality.kept(key, lambda: _dashboard_charts(found))


def _dashboard_charts(found: Dashboard) -> list[Chart]:
    charts = [
        count_chart(
            [(one.start, one.end, one.judgements) for one in found.stretches],
            title=f"Judgements a {found.unit}",
            meaning="Standing judgements, with gold, repeats and calibration among them.",
        ),
        _share_chart(found.stretches, filled=found.filled, slots=found.slots),
        _annotator_chart(found.annotators),
    ]
    known = [one for one in found.agreement if one.alpha is not None]
    return [*charts, _agreement_chart(known)] if known else charts


def count_chart(bars: Sequence[tuple[date, date, int]], *, title: str, meaning: str) -> Chart:
    """Return a bar for each (first day, first day after, count); at least one."""
    rows = [
        {"start": start.isoformat(), "end": end.isoformat(), "count": n} for start, end, n in bars
    ]
    chart = (
        altair.Chart(altair.InlineData(values=rows))
        .mark_rect(color=BLUE, stroke="var(--surface)", strokeWidth=1)
        .encode(
            x=_time("start", bars[-1][1] - bars[0][0]),
            x2="end:T",
            y=altair.Y("count:Q", **COUNTED),
            y2=altair.datum(0),
        )
    )
    most = max(bars, key=lambda bar: bar[2])
    return Chart(
        title=title,
        latest="",
        summary=(
            f"Most, {most[2]:,}, from {most[0]:%Y-%m-%d}; "
            f"latest, {bars[-1][2]:,}, from {bars[-1][0]:%Y-%m-%d}."
        ),
        meaning=meaning,
        svg=render(themed(chart.properties(width=WIDTH + NO_LABEL, height=HEIGHT))),
    )


def recent_days(days: Sequence[OwnDay], *, today: date) -> Chart | None:
    """Return a bar for each of the last 30 days; None where nothing was judged on any."""
    if not days:
        return None
    judged = {one.day: one.judged for one in days}
    # All of them: one day alone would fill the picture.
    dates = [today - timedelta(days=back) for back in reversed(range(RECENT.days))]
    bars = [(day, day + timedelta(days=1), judged.get(day, 0)) for day in dates]
    meaning = "Your judgements on each of the last 30 days, as they stand now."
    return count_chart(bars, title="Your last 30 days", meaning=meaning)


def _share_chart(stretches: Sequence[Stretch], *, filled: int, slots: int) -> Chart:
    points, before = [], 0.0
    for one in stretches:
        # Level where nobody judged between two stretches.
        points += [(_time_of(one.start), before), (_time_of(one.end), one.share_done)]
        before = one.share_done
    return Chart(
        title="Share done",
        latest=_percent(points[-1][1]),
        summary=f"{filled:,} of {slots:,} judgements are there, {_percent(points[-1][1])}.",
        meaning="Of all judgements that the campaign asks for today.",
        svg=_line(points, colour=GREEN, low=0.0, label=_percent(points[-1][1]), axis_format="%"),
    )


def _annotator_chart(annotators: Sequence[Worked]) -> Chart:
    rows = [{"name": one.username, "count": one.judgements} for one in annotators]
    if len(rows) > MOST_NAMED + 1:
        rest = rows[MOST_NAMED:]
        total = sum(one.judgements for one in annotators[MOST_NAMED:])
        rows = [*rows[:MOST_NAMED], {"name": f"{len(rest)} others", "count": total}]
    bars = altair.Chart(altair.InlineData(values=rows)).encode(
        x=altair.X("count:Q", **COUNTED),
        y=altair.Y(
            "name:N",
            title=None,
            sort=None,
            axis=altair.Axis(grid=False, labelLimit=LABEL_WIDTH),
        ),
    )
    labels = bars.mark_text(align="left", dx=6, fontSize=13, fontWeight=600, fill="currentColor")
    chart = altair.layer(
        bars.mark_bar(color=PURPLE), labels.encode(text=altair.Text("count:Q", format=","))
    )
    height = max(HEIGHT // 2, ROW_HEIGHT * len(rows))
    first = annotators[0]
    return Chart(
        title="Judgements by annotator",
        latest=f"{len(annotators):,} annotator{'' if len(annotators) == 1 else 's'}",
        summary=f"{first.username} gave most, {first.judgements:,}.",
        meaning="Who judged how much; the quality page says how well.",
        svg=render(themed(chart.properties(width=WIDTH - LABEL_SPACE, height=height))),
    )


def _agreement_chart(found: Sequence[Agreed]) -> Chart:
    points = [(one.until, one.alpha or 0.0) for one in found]
    first, last = points[0][1], points[-1][1]
    verb = "rose" if last > first else "fell" if last < first else "stayed"
    items = sum(one.items for one in found)
    return Chart(
        title="Agreement",
        latest=short_number(last),
        summary=(
            f"Krippendorff’s alpha is {last:.2f}."
            if len(found) == 1
            else f"Krippendorff’s alpha {verb} from {first:.2f} to {last:.2f}."
        ),
        meaning=(
            f"Krippendorff’s alpha of {items:,} prompts in the order they were finished: "
            "1 is full agreement, 0 what coins would give."
        ),
        svg=_line(points, colour=ORANGE, low=min(0.0, *(y for _, y in points)), dots=True),
    )


def _line(
    points: Sequence[tuple[datetime, float]],
    *,
    colour: str,
    low: float,
    label: str = "",
    axis_format: str = ".2f",
    dots: bool = False,
) -> SafeString:
    """Return a line over time that ends, at the latest, at 1, with its last value beside it."""
    label = label or short_number(points[-1][1])
    rows = [{"at": at.isoformat(), "value": value} for at, value in points]
    x = _time("at", points[-1][0] - points[0][0])
    y = altair.Y(
        "value:Q",
        title=None,
        axis=altair.Axis(tickCount=5, format=axis_format),
        scale=altair.Scale(domain=[low, 1]),
    )
    line = altair.Chart(altair.InlineData(values=rows)).encode(x=x, y=y)
    end = altair.Chart(altair.InlineData(values=[rows[-1] | {"label": label}])).encode(x=x, y=y)
    marked = line if dots else end
    text = end.mark_text(align="left", dx=8, fontSize=13, fontWeight=600, fill="currentColor")
    chart = altair.layer(
        line.mark_line(color=colour, strokeWidth=2.25, strokeCap="round"),
        marked.mark_point(color=colour, filled=True, size=36, opacity=1),
        text.encode(text="label:N"),
    )
    return render(themed(chart.properties(width=WIDTH, height=HEIGHT)))


def _time(name: str, span: timedelta) -> altair.X:
    """Return an axis of dates; a short one has a mark a day, so that no date comes twice."""
    ticks: Any = "day" if span <= SHORT else 5
    axis = altair.Axis(grid=False, tickCount=ticks, labelOverlap=True, format="%-d %b")
    return altair.X(f"{name}:T", title=None, axis=axis, scale=UTC_SCALE)


def _time_of(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _percent(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")
