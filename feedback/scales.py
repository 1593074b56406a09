"""How far annotators agree on Likert scales: pure functions, no Django and no database."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from feedback.agreement import Verdict, alpha_of_counts


@dataclass(frozen=True, slots=True)
class Rated:
    """What one annotator gave the responses of one item: levels from 1, by response and scale."""

    item: int
    annotator: str
    levels: Mapping[Hashable, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class ScaleAgreement:
    """Krippendorff's ordinal alpha of one scale, over responses that two or more people rated."""

    key: str
    label: str
    alpha: float | None
    responses: int


def on_scale(rated: Iterable[Rated], *, key: str, label: str, levels: int) -> ScaleAgreement:
    """Return how far annotators agree on one scale of so many levels."""
    import numpy as np

    rows: dict[Hashable, int] = {}
    cells = [
        (rows.setdefault(response, len(rows)), given[key] - 1)
        for one in rated
        for response, given in one.levels.items()
        if 1 <= given.get(key, 0) <= levels
    ]
    counts = np.zeros((len(rows), levels))
    for row, column in cells:
        counts[row, column] += 1
    return ScaleAgreement(
        key=key,
        label=label,
        alpha=alpha_of_counts(counts, values=range(1, levels + 1), level="ordinal"),
        responses=int((counts.sum(axis=1) >= 2).sum()),
    )


def as_verdicts(rated: Iterable[Rated], levels: Mapping[str, int]) -> list[Verdict]:
    """Return every level as a verdict on its response and scale, its ends at -1 and 1.

    So two people are alike by 1 where they give the same level, and by 0 where they give opposite
    ends. ``levels`` says how many levels each scale has.
    """
    return [
        Verdict(one.item, (response, key), one.annotator, 2 * (level - 1) / (levels[key] - 1) - 1)
        for one in rated
        for response, given in one.levels.items()
        for key, level in given.items()
        if key in levels
    ]
