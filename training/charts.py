"""Draw a run's curves on the server, as SVG that follows the page's theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import altair
from django.core.cache import cache
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
from training.models import Run

# More points than this are averaged in equal stretches: a curve has no more pixels to show.
MAX_POINTS = 240
# From here on the points are noisy enough for a moving mean to say more than they do.
SMOOTH_FROM = 24
CACHE_SECONDS = 24 * 3600
LABEL_HEIGHT = 17


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a panel: which metric, what it is called there, in which colour."""

    metric: str
    label: str
    colour: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture: a title and the curves in it; ``top`` fixes the upper end of the axis."""

    title: str
    curves: tuple[Curve, ...]
    top: float | None = None
    meaning: str = ""


PANELS = (
    Panel(
        title="Loss",
        curves=(Curve(metric="loss", label="loss", colour=BLUE),),
        meaning="What training lowers. Its height means nothing across methods; its way down does.",
    ),
    Panel(
        title="Reward accuracy",
        curves=(Curve(metric="rewards/accuracies", label="accuracy", colour=GREEN),),
        top=1.0,
        meaning="Share of the step's pairs in the order that people chose; one half is chance.",
    ),
    Panel(
        title="Reward margin",
        curves=(Curve(metric="rewards/margins", label="margin", colour=PURPLE),),
        meaning="By how much the chosen reward exceeds the rejected one, on average.",
    ),
    Panel(
        title="Rewards",
        curves=(
            Curve(metric="rewards/chosen", label="chosen", colour=BLUE),
            Curve(metric="rewards/rejected", label="rejected", colour=ORANGE),
        ),
        meaning="Rejected should fall; chosen falling as well is usual, but it should fall less.",
    ),
    Panel(
        title="KL to the reference",
        curves=(Curve(metric="kl", label="KL", colour=ORANGE),),
        meaning="How far the policy has moved from where it began, in nats an answer.",
    ),
    Panel(
        title="Learning rate",
        curves=(Curve(metric="learning_rate", label="rate", colour=GREEN),),
        meaning="How far a step may move the weights: it rises in the warm-up, then falls.",
    ),
    Panel(
        title="Tokens a second",
        curves=(Curve(metric="tokens_per_second", label="tokens/s", colour=BLUE),),
        meaning="The speed of the steps; it falls when other work takes the machine.",
    ),
    Panel(
        title="Memory in MB",
        curves=(Curve(metric="memory_mb", label="memory", colour=PURPLE),),
        meaning="What the training process, or on CUDA the GPU, holds after each step.",
    ),
)
COMPARED = ("loss", "rewards/accuracies", "rewards/margins", "kl")
COLOURS = (
    BLUE,
    ORANGE,
    GREEN,
    PURPLE,
    "var(--okabe-sky, #56b4e9)",
    "var(--okabe-amber, #e69f00)",
)
MAX_COMPARED = len(COLOURS)

Point = tuple[float, float]


def run_charts(run: Run) -> list[Chart]:
    """Return the run's charts, drawn anew only when its last step has changed; two queries."""
    last = run.metrics.order_by("-step").values_list("step", flat=True).first()
    if last is None:
        return []
    key = f"run-charts-2:{run.pk}:{last}"
    charts: list[Chart] | None = cache.get(key)
    if charts is None:
        charts = draw(list(run.metrics.order_by("step").values_list("step", "values")))
        cache.set(key, charts, CACHE_SECONDS)
    return charts


def draw(metrics: Sequence[tuple[int, dict[str, Any]]]) -> list[Chart]:
    """Return a chart for each panel that has points; ``metrics`` are (step, values) in order."""
    charts = []
    for panel in PANELS:
        curves = [
            (curve, points) for curve in panel.curves if (points := _points(metrics, curve.metric))
        ]
        if curves:
            charts.append(
                Chart(
                    title=panel.title,
                    latest=", ".join(_latest(curve, points, curves) for curve, points in curves),
                    summary=" ".join(_sentence(curve, points) for curve, points in curves),
                    meaning=panel.meaning,
                    svg=_svg(panel, curves),
                )
            )
    return charts


def compare_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return a chart for each compared metric with one curve for each run; a query a run."""
    logged = {run: list(run.metrics.order_by("step").values_list("step", "values")) for run in runs}
    charts = []
    for panel in PANELS:
        metric = panel.curves[0].metric
        if metric not in COMPARED:
            continue
        curves = [
            (Curve(metric=metric, label=f"run {run.pk}", colour=colour), points)
            for (run, metrics), colour in zip(logged.items(), COLOURS, strict=False)
            if (points := _points(metrics, metric))
        ]
        if curves:
            drawn = replace(panel, curves=tuple(curve for curve, _ in curves))
            charts.append(
                Chart(
                    title=panel.title,
                    latest="",
                    summary=" ".join(_sentence(curve, points) for curve, points in curves),
                    meaning=panel.meaning,
                    svg=_svg(drawn, curves),
                )
            )
    return charts


def _points(metrics: Sequence[tuple[int, dict[str, Any]]], name: str) -> list[Point]:
    """Return the metric's (step, value), thinned to MAX_POINTS by means of equal stretches."""
    points = [
        (float(step), float(values[name]))
        for step, values in metrics
        if isinstance(values.get(name), int | float) and math.isfinite(values[name])
    ]
    if len(points) <= MAX_POINTS:
        return points
    size = -(-len(points) // MAX_POINTS)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches
    ]


def _drawn(points: Sequence[Point]) -> Sequence[Point]:
    """Return the points of the strong line: the points themselves, or their mean where noisy."""
    return points if len(points) < SMOOTH_FROM else _smooth(points)


def _smooth(points: Sequence[Point]) -> list[Point]:
    """Return the mean over the last tenth of the points at each of them."""
    window = max(3, len(points) // 10)
    smooth = []
    for index, (step, _) in enumerate(points):
        recent = [value for _, value in points[max(0, index - window + 1) : index + 1]]
        smooth.append((step, sum(recent) / len(recent)))
    return smooth


def _latest(curve: Curve, points: Sequence[Point], curves: Sequence[object]) -> str:
    """Return the curve's last value, as drawn; with its name where the panel has several."""
    number = short_number(_drawn(points)[-1][1])
    return number if len(curves) == 1 else f"{curve.label} {number}"


def _sentence(curve: Curve, points: Sequence[Point]) -> str:
    (first_step, first), (last_step, last) = points[0], points[-1]
    if len(points) == 1:
        return f"{curve.label.capitalize()} is {last:.3g} at step {last_step:.0f}."
    verb = "rose" if last > first else "fell" if last < first else "stayed"
    return (
        f"{curve.label.capitalize()} {verb} from {first:.3g} at step {first_step:.0f} "
        f"to {last:.3g} at step {last_step:.0f}."
    )


def _svg(panel: Panel, curves: Sequence[tuple[Curve, list[Point]]]) -> SafeString:
    raw: list[dict[str, Any]] = []
    drawn: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    for curve, points in curves:
        strong = _drawn(points)
        if strong is not points:
            raw += _rows(curve, points)
        drawn += _rows(curve, strong)
        ends += _rows(curve, strong[-1:])
    values = [row["value"] for row in [*raw, *drawn]]
    _place_labels(ends, span=max(0.0, *values) - min(0.0, *values))
    spec = _spec(panel) | {"datasets": {"raw": raw, "drawn": drawn, "ends": ends}}
    return render(spec)


def _rows(curve: Curve, points: Sequence[Point]) -> list[dict[str, Any]]:
    return [{"curve": curve.label, "step": step, "value": value} for step, value in points]


def _place_labels(ends: list[dict[str, Any]], *, span: float) -> None:
    """Add each curve's label and its height, moved apart where two curves end close together."""
    line = span * LABEL_HEIGHT / HEIGHT
    lowest = None
    for end in sorted(ends, key=lambda end: end["value"]):
        height = end["value"] if lowest is None else max(end["value"], lowest + line)
        lowest = height
        end |= {"height": height, "label": f"{end['curve']} {short_number(end['value'])}"}


@lru_cache
def _spec(panel: Panel) -> dict[str, Any]:
    """Return the panel's description without its data; Altair checks it once, not at every draw."""
    names = [curve.label for curve in panel.curves]
    colours = altair.Scale(domain=names, range=[curve.colour for curve in panel.curves])
    colour = altair.Color("curve:N", scale=colours, legend=None)
    top = altair.Undefined if panel.top is None else panel.top
    x = altair.X(
        "step:Q",
        title="step",
        # Between two steps there is none, however few there are.
        axis=altair.Axis(
            grid=False,
            tickCount=6,
            titleAnchor="end",
            labelExpr="datum.value == floor(datum.value) ? format(datum.value, 'd') : ''",
        ),
        scale=altair.Scale(nice=False),
    )
    y = altair.Y(
        "value:Q",
        title=None,
        axis=altair.Axis(tickCount=5),
        scale=altair.Scale(zero=True, domainMax=top),
    )
    raw = altair.Chart(altair.NamedData("raw")).mark_line(strokeWidth=1, strokeOpacity=0.45)
    drawn = altair.Chart(altair.NamedData("drawn")).mark_line(strokeWidth=2.25, strokeCap="round")
    ends = altair.Chart(altair.NamedData("ends"))
    dots = ends.mark_point(filled=True, size=36, opacity=1)
    labels = ends.mark_text(align="left", dx=8, fontSize=13, fontWeight=600, fill="currentColor")
    chart = altair.layer(
        raw.encode(x=x, y=y, color=colour),
        drawn.encode(x=x, y=y, color=colour),
        dots.encode(x=x, y=y, color=colour),
        labels.encode(x=x, y=altair.Y("height:Q"), text="label:N"),
    )
    return themed(chart.properties(width=WIDTH, height=HEIGHT))
