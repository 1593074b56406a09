"""How far annotators agree on Likert scales: pure functions, no Django and no database."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from feedback.agreement import Share, Verdict, alpha_of_counts, share

# Who gives the same levels to this share of responses does not look at them, where most people give
# their commonest levels less often than that.
HARDLY_VARIES, VARIES = 0.9, 0.6
FEWEST_TO_VARY = 20


@dataclass(frozen=True, slots=True)
class Rated:
    """What one annotator gave the responses of one item: levels from 1, by response and scale."""

    item: int
    annotator: str
    levels: Mapping[Hashable, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Known:
    """The right level of one response on a scale of ``levels``; ``within`` levels off is right."""

    level: int
    within: int
    levels: int

    @property
    def chance(self) -> float:
        """Return the share of the scale's levels that are right: how often a guess is."""
        low, high = max(1, self.level - self.within), min(self.levels, self.level + self.within)
        return (high - low + 1) / self.levels


@dataclass(frozen=True, slots=True)
class Graded:
    """One annotator's answer to a gold item.

    ``hits`` says of each known level whether it was met, and how often a guess meets it.
    """

    item: int
    annotator: str
    hits: tuple[tuple[bool, float], ...]


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


def mean_alpha(rated: Iterable[Rated], levels: Mapping[str, int]) -> float | None:
    """Return the mean of the scales' ordinal alphas; None where no scale has one."""
    rated = list(rated)
    found = [on_scale(rated, key=key, label=key, levels=n).alpha for key, n in levels.items()]
    known = [alpha for alpha in found if alpha is not None]
    return statistics.fmean(known) if known else None


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


def unvaried(rated: Iterable[Rated]) -> set[str]:
    """Return who gives nearly every response the same levels, where the others do not.

    Fewer than twenty responses tell nothing, nor does anybody who is alone.
    """
    given: dict[str, Counter[tuple[tuple[str, int], ...]]] = defaultdict(Counter)
    for one in rated:
        given[one.annotator].update(tuple(sorted(of.items())) for of in one.levels.values())
    same = {name: max(seen.values()) / seen.total() for name, seen in given.items() if seen}
    found = set()
    for name, often in same.items():
        others = [value for other, value in same.items() if other != name]
        enough = given[name].total() >= FEWEST_TO_VARY and others
        if enough and often >= HARDLY_VARIES and statistics.median(others) < VARIES:
            found.add(name)
    return found


def grade(rated: Iterable[Rated], known: Mapping[tuple[Hashable, str], Known]) -> list[Graded]:
    """Return how everybody's levels meet the known ones, in the same order.

    ``known`` goes by response and scale; whoever rated none of them is left out.
    """
    found = []
    for one in rated:
        hits = tuple(
            (abs(level - right.level) <= right.within, right.chance)
            for response, given in one.levels.items()
            for key, level in given.items()
            if (right := known.get((response, key))) is not None
        )
        if hits:
            found.append(Graded(one.item, one.annotator, hits))
    return found


def right_on_gold(graded: Iterable[Graded]) -> dict[str, Share]:
    """Return the share of known levels that each annotator met; items are the cases."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for one in graded:
        by_name[one.annotator].append(sum(hit for hit, _ in one.hits) / len(one.hits))
    shares = {name: share(sum(values), len(values)) for name, values in by_name.items()}
    return {name: found for name, found in shares.items() if found is not None}
