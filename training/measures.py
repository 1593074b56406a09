"""What a version was measured by, with one line each that says what the figure means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.models import Evaluation

HEATS = 5  # shades of a confusion matrix


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure: its key in a version's metrics, and how it is read and written."""

    key: str
    label: str
    meaning: str
    digits: int = 2
    share: bool = False

    def write(self, value: float | None) -> str:
        """Return a value for people; a dash for none."""
        if value is None:
            return "–"
        if self.share:
            return f"{value * 100:.{self.digits}f} %"
        return f"{value:,.{self.digits}f}"

    def interval(self, of: dict[str, Any]) -> str:
        """Return the 95 % interval in ``of``; a dash where it has none."""
        low, high = of.get(f"{self.key}_low"), of.get(f"{self.key}_high")
        return "–" if low is None or high is None else f"{self.write(low)} to {self.write(high)}"


HELDOUT = (
    Measure(
        key="reward_accuracy",
        label="Preference accuracy",
        meaning="How often it orders two held-out answers as people did. A coin is right in 50 %.",
        digits=1,
        share=True,
    ),
    Measure(
        key="margin",
        label="Preference margin",
        meaning="How much more reward it gives the chosen answer than the rejected one.",
        digits=3,
    ),
    Measure(
        key="kl",
        label="KL from the base",
        meaning="How far its choice of each token moved from the base model’s, in nats. Where it "
        "grows while the win rate does not, preferences cost more than they gave.",
        digits=3,
    ),
    Measure(
        key="perplexity",
        label="Perplexity on general text",
        meaning="How surprised it is by plain prose that has nothing to do with the task. A clear "
        "rise over the value before training means that it lost language.",
        digits=1,
    ),
)
LABELLED = (
    Measure(
        key="accuracy",
        label="Accuracy",
        meaning="Share of answers that are the label people chose.",
        digits=1,
        share=True,
    ),
    Measure(
        key="precision",
        label="Precision",
        meaning="Of the answers that name a label, how many rightly; the mean over labels.",
    ),
    Measure(
        key="recall",
        label="Recall",
        meaning="Of the prompts that have a label, how many are given it; the mean over labels.",
    ),
    Measure(
        key="f1",
        label="F1",
        meaning="Precision and recall in one figure, their harmonic mean; the mean over labels.",
    ),
)
BLEU = Measure(
    key="bleu",
    label="BLEU",
    meaning="How many runs of one to four words it shares with the chosen answer, 0 to 100.",
    digits=1,
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measure with a line of values, each as text."""

    measure: Measure
    values: tuple[str, ...]


def before_and_after(metrics: dict[str, Any]) -> list[Row]:
    """Return what a run measured on its held-out part, before and after, with the interval."""
    before, after = metrics.get("before") or {}, metrics.get("after") or {}
    return [
        Row(
            measure=one,
            values=(
                one.write(before.get(one.key)),
                one.write(after.get(one.key)),
                one.interval(after),
            ),
        )
        for one in HELDOUT
        if after.get(one.key) is not None
    ]


def against(evaluation: Evaluation) -> list[Row]:
    """Return the challenger's held-out figures before and after training, and the champion's."""
    theirs = evaluation.champion.metrics.get("after") or {}
    rows = before_and_after(evaluation.challenger.metrics)
    return [
        Row(
            measure=row.measure,
            values=(*row.values, row.measure.write(theirs.get(row.measure.key))),
        )
        for row in rows
    ]


def on_labels(result: dict[str, Any]) -> list[Row]:
    """Return how close both came to the chosen answers; none where nothing was compared."""
    found = result.get("labelled") or {}
    if "challenger" not in found:
        return []
    sides = (found["challenger"], found["champion"])
    rows = [Row(measure=BLEU, values=tuple(BLEU.write(side["bleu"]) for side in sides))]
    if all("classification" in side for side in sides):
        rows += [
            Row(
                measure=one,
                values=tuple(one.write(side["classification"][one.key]) for side in sides),
            )
            for one in LABELLED
        ]
    return rows


@dataclass(frozen=True, kw_only=True)
class Cell:
    """How often one label was answered where another was right."""

    count: int
    heat: int  # 0 (never) to HEATS, by its share of the row
    right: bool


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """One model's answers to labelled prompts: what was right, and what it said."""

    name: str
    labels: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    by_label: Sequence[dict[str, Any]]


def confusions(evaluation: Evaluation, result: dict[str, Any]) -> list[Confusion]:
    """Return both sides' confusion matrices; none where the references are no labels."""
    found = result.get("labelled") or {}
    sides = (("challenger", evaluation.challenger), ("champion", evaluation.champion))
    scored = [
        (version.name, classified)
        for side, version in sides
        if (classified := (found.get(side) or {}).get("classification"))
    ]
    return [_confusion(name, classified) for name, classified in scored]


def _confusion(name: str, classified: dict[str, Any]) -> Confusion:
    labels = classified["labels"]
    rows = []
    for place, counts in enumerate(classified["confusion"]):
        total = sum(counts)
        if not total:  # what is no known label was never right
            continue
        cells = [
            Cell(count=count, heat=-(-HEATS * count // total), right=column == place)
            for column, count in enumerate(counts)
        ]
        rows.append((labels[place], cells))
    return Confusion(name=name, labels=labels, rows=rows, by_label=classified["by_label"])
