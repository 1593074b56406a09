"""How far annotators agree: pure functions over verdicts, no Django and no database.

A *verdict* is what one annotator said of one unit: 1, 0 (a tie) or -1. A thumb gives one verdict; a
ranking of K responses gives one for each of its K (K - 1) / 2 pairs, 1 meaning that the response
with the lower id is better.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

Z_95 = 1.959963984540054
# Modified z-scores beyond this are outliers (Iglewicz and Hoaglin 1993).
OUTLIER_Z = 3.5
MAD_TO_SIGMA = 1.4826
FEWEST_FOR_SPEED = 5


@dataclass(frozen=True, slots=True)
class Judged:
    """One judgement as statistics need it; exactly one of ranking and thumb.

    ``shown`` holds the response ids from left to right, ``ranking`` groups of them, best first.
    """

    item: int
    annotator: str
    shown: tuple[int, ...]
    ranking: tuple[tuple[int, ...], ...] | None = None
    thumb: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one annotator said of one unit of an item: 1, 0 or -1 (on a scale, between these)."""

    item: int
    unit: Hashable
    annotator: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of ``n`` cases with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def wilson(p: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval for a share of ``n`` cases; n may be an effective size."""
    z2 = Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share(hits: float, n: int) -> Share | None:
    """Return hits / n with Wilson's score interval (Wilson 1927); None when n is 0."""
    if n == 0:
        return None
    low, high = wilson(hits / n, n)
    return Share(value=hits / n, low=low, high=high, n=n)


def verdicts(judged: Iterable[Judged]) -> list[Verdict]:
    """Return every judgement's verdicts, in the order of the judgements."""
    found = []
    for one in judged:
        if one.ranking is None:
            if one.thumb is None:
                continue  # ratings alone say nothing of which is better
            found.append(Verdict(one.item, one.item, one.annotator, one.thumb))
            continue
        place = {response: index for index, group in enumerate(one.ranking) for response in group}
        for first, second in combinations(sorted(place), 2):
            lead = place[second] - place[first]
            value = (lead > 0) - (lead < 0)
            found.append(Verdict(one.item, (first, second), one.annotator, value))
    return found


def alpha(
    found: Sequence[Verdict],
    *,
    level: Literal["nominal", "ordinal"] = "nominal",
    mirrored: bool = True,
) -> float | None:
    """Return Krippendorff's alpha: 1 is full agreement, 0 what chance gives; None without overlap.

    Which response of a pair counts as the first is our choice, not the annotators'. ``mirrored``
    counts every unit both ways round, so that the choice cannot move the result; thumbs have a
    true direction and are not mirrored.
    """
    import numpy as np

    rows: dict[Hashable, int] = {}
    cells = [(rows.setdefault(one.unit, len(rows)), int(one.value) + 1) for one in found]
    counts = np.zeros((len(rows), 3))
    for row, column in cells:
        counts[row, column] += 1
    if mirrored:
        counts = np.vstack([counts, counts[:, ::-1]])
    return alpha_of_counts(counts, values=(-1, 0, 1), level=level)


def alpha_of_counts(
    counts: np.ndarray[Any, Any],
    *,
    values: Sequence[int],
    level: Literal["nominal", "ordinal"],
) -> float | None:
    """Return Krippendorff's alpha; ``counts`` is units x values, in the order of the values.

    None where no unit has two votes, or where all votes are the same.
    """
    import krippendorff

    counts = counts[counts.sum(axis=1) >= 2]
    used = counts.sum(axis=0) > 0
    if used.sum() < 2:
        # Nothing to pair, or everybody said the same everywhere: chance cannot be told from
        # agreement.
        return None
    return float(
        krippendorff.alpha(
            value_counts=counts[:, used],
            value_domain=[value for value, seen in zip(values, used, strict=True) if seen],
            level_of_measurement=level,
        )
    )


def likeness(one: float, other: float) -> float:
    """Return 1 for the same verdict, 0 for opposite ones, a half where one of them is a tie."""
    return 1.0 - abs(one - other) / 2


def _shares(by_item: Mapping[int, Sequence[float]]) -> Share | None:
    """Return the mean over items; pairs within an item hang together, so items are the cases."""
    return share(sum(statistics.fmean(values) for values in by_item.values()), len(by_item))


def agreement_with_truth(
    found: Iterable[Verdict], known: Mapping[Hashable, int]
) -> dict[str, Share]:
    """Return each annotator's likeness to the truth over the gold items that they judged."""
    by_item: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        if one.unit in known:
            by_item[one.annotator][one.item].append(likeness(one.value, known[one.unit]))
    shares = {name: _shares(items) for name, items in by_item.items()}
    return {name: shared for name, shared in shares.items() if shared is not None}


def _by_unit(found: Iterable[Verdict]) -> dict[Hashable, list[Verdict]]:
    units: dict[Hashable, list[Verdict]] = defaultdict(list)
    for one in found:
        units[one.unit].append(one)
    return units


def agreement_with_rest(found: Sequence[Verdict]) -> dict[str, Share]:
    """Return each annotator's mean likeness with everybody else on the same units."""
    seen: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for group in _by_unit(found).values():
        for one in group:
            others = [likeness(one.value, o.value) for o in group if o.annotator != one.annotator]
            if others:
                seen[one.annotator][one.item].append(statistics.fmean(others))
    return {name: result for name in seen if (result := _shares(seen[name])) is not None}


def agreement_between(found: Sequence[Verdict]) -> dict[tuple[str, str], Share]:
    """Return the mean likeness of every two annotators who judged the same units."""
    seen: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for group in _by_unit(found).values():
        for one, other in combinations(sorted(group, key=lambda each: each.annotator), 2):
            if one.annotator != other.annotator:
                names = (one.annotator, other.annotator)
                seen[names][one.item].append(likeness(one.value, other.value))
    return {names: result for names in seen if (result := _shares(seen[names])) is not None}


def agreement_by_item(found: Sequence[Verdict]) -> dict[int, float]:
    """Return each item's mean likeness over all its pairs of verdicts, most disputed first."""
    seen: dict[int, list[float]] = defaultdict(list)
    for group in _by_unit(found).values():
        for one, other in combinations(group, 2):
            seen[one.item].append(likeness(one.value, other.value))
    means = {item: statistics.fmean(values) for item, values in seen.items()}
    return dict(sorted(means.items(), key=lambda pair: (pair[1], pair[0])))


def repeats(found: Iterable[Verdict]) -> dict[tuple[str, int], float]:
    """Return each annotator's mean likeness with themselves on every item that came back to them.

    The caller gives a repeat the unit of its first showing; the sides do not matter, for a verdict
    is about responses and not about places.
    """
    mine: dict[tuple[str, Hashable], list[Verdict]] = defaultdict(list)
    for one in found:
        mine[one.annotator, one.unit].append(one)
    seen: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (name, _), (first, *again) in mine.items():
        for one in again:
            if one.item != first.item:  # which may show the same text twice
                seen[name, one.item].append(likeness(first.value, one.value))
    return {repeat: statistics.fmean(values) for repeat, values in seen.items()}


def self_consistency(again: Mapping[tuple[str, int], float]) -> dict[str, Share]:
    """Return each annotator's likeness with themselves over their repeats."""
    seen: dict[str, list[float]] = defaultdict(list)
    for (name, _), alike in again.items():
        seen[name].append(alike)
    shares = {name: share(sum(values), len(values)) for name, values in seen.items()}
    return {name: result for name, result in shares.items() if result is not None}


def left_lean(judged: Iterable[Judged]) -> dict[str, Share]:
    """Return how often each annotator's one best response stood leftmost; 1 / K without a lean.

    A tie at the top has no best that could stand leftmost.
    """
    hits: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    for one in judged:
        if one.ranking is not None and len(one.ranking[0]) == 1:
            cases[one.annotator] += 1
            hits[one.annotator] += one.ranking[0][0] == one.shown[0]
    return {name: found for name, n in cases.items() if (found := share(hits[name], n))}


def kept_order(judged: Iterable[Judged]) -> dict[str, Share]:
    """Return how often each annotator ranked exactly in the order shown; 1 / K! by chance."""
    hits: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    for one in judged:
        if one.ranking is not None:
            cases[one.annotator] += 1
            hits[one.annotator] += one.ranking == tuple((response,) for response in one.shown)
    return {name: found for name, n in cases.items() if (found := share(hits[name], n))}


def median_seconds(judged: Iterable[Judged]) -> dict[str, float]:
    """Return each annotator's median time for a judgement, where times are known."""
    seen: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        if one.seconds is not None:
            seen[one.annotator].append(one.seconds)
    return {name: statistics.median(times) for name, times in seen.items()}


def speed_outliers(medians: Mapping[str, float]) -> dict[str, Literal["fast", "slow"]]:
    """Return who is far quicker or slower than the crowd, by modified z-scores of log seconds.

    z = (log t - median) / (1.4826 MAD); below -3.5 is fast, above 3.5 slow. The MAD counts as at
    least log 1.25 / 1.4826, so that a crowd of one pace does not make an outlier of 30 %. Fewer
    than five annotators have no typical pace.
    """
    if len(medians) < FEWEST_FOR_SPEED:
        return {}
    logs = {name: math.log(max(seconds, 0.05)) for name, seconds in medians.items()}
    middle = statistics.median(logs.values())
    spread = MAD_TO_SIGMA * statistics.median(abs(value - middle) for value in logs.values())
    spread = max(spread, math.log(1.25))
    found: dict[str, Literal["fast", "slow"]] = {}
    for name, value in logs.items():
        z = (value - middle) / spread
        if abs(z) > OUTLIER_Z:
            found[name] = "fast" if z < 0 else "slow"
    return found
