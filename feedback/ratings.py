"""A leaderboard from comparisons: Bradley–Terry with ties. Pure functions, no Django.

Davidson's model (1970): with d the difference of two strengths on the log scale,

    P(first wins) : P(second wins) : P(tie) = exp(d / 2) : exp(-d / 2) : nu

Two terms may join d: ``side`` times +1 where the first stood to the left of the second and -1 where
to the right, and ``length`` times the log ratio of their lengths. What they explain is then not
credited to the players. The log likelihood is concave, so Newton's method finds its one maximum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# A Gaussian prior of this precision on every strength keeps who always wins finite.
RIDGE = 0.01
NEWTON_STEPS = 50
# Newton ends where a whole step would add less than this to the log likelihood.
TOLERANCE = 1e-6
# Log ratios of lengths are counted in steps of this much, up to this many either way.
LENGTH_STEP, LENGTH_MOST = 0.1, 25
# Elo's scale: 400 points are odds of ten to one.
POINTS = 400 / math.log(10)
MIDDLE = 1000.0
FEWEST_RESAMPLES = 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two players' responses to one prompt, and who won: 1 the first, -1 the second, 0 a tie.

    ``side`` is 1 where the first stood left of the second, -1 where right, 0 where not known;
    ``length`` is the log of the first's length over the second's. Comparisons of one ``cluster``
    (a prompt) hang together and are resampled together.
    """

    first: str
    second: str
    outcome: int
    side: int = 0
    length: float = 0.0
    cluster: int = 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def size(self) -> float:
        """Return the value without its sign."""
        return abs(self.value)


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One player's place: points on Elo's scale with a mean of 1000, and what they rest on."""

    player: str
    points: Estimate
    rank: int
    rank_low: int
    rank_high: int
    wins: int
    ties: int
    losses: int
    # The chance to win against the average player, ties left aside.
    win_chance: float

    @property
    def comparisons(self) -> int:
        return self.wins + self.ties + self.losses


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """All ratings, best first, with what the two terms and ties turned out to be.

    ``side`` is in points for standing left, ``length`` in points for being twice as long; None
    where not asked for. ``apart`` says that some players were never compared, directly or over
    others: their distance is then not known.
    """

    ratings: list[Rating]
    side: Estimate | None
    length: Estimate | None
    tie_share: float
    comparisons: int
    resamples: int
    apart: bool


@dataclass(frozen=True)
class _Table:
    """Distinct comparisons: a row of the design for each, with the outcome and column meanings."""

    design: np.ndarray[Any, Any]  # rows x (players + terms)
    outcome: np.ndarray[Any, Any]  # rows: 1, 0, -1
    row_of: np.ndarray[Any, Any]  # comparisons -> rows
    cluster_of: np.ndarray[Any, Any]  # comparisons -> 0 .. clusters - 1
    players: int


def rate(
    comparisons: Sequence[Comparison],
    *,
    side: bool = False,
    length: bool = False,
    resamples: int = 200,
    seconds: float = 2.0,
    seed: int = 0,
) -> Leaderboard:
    """Return the maximum likelihood leaderboard with percentile bootstrap intervals over clusters.

    Takes at most about ``seconds``: fewer resamples than asked for are made where the time is up,
    never fewer than 20.
    """
    import numpy as np

    names = sorted({name for one in comparisons for name in (one.first, one.second)})
    if not names:
        return Leaderboard(
            ratings=[],
            side=None,
            length=None,
            tie_share=0.0,
            comparisons=0,
            resamples=0,
            apart=False,
        )
    table = _table(comparisons, names, side=side, length=length)
    counts = np.bincount(table.row_of, minlength=len(table.outcome)).astype(float)
    best, tie = _fit(table, counts)
    deadline = time.monotonic() + seconds
    chooser = np.random.default_rng(seed)
    clusters = int(table.cluster_of.max()) + 1
    drawn = []
    for done in range(resamples):
        if done >= FEWEST_RESAMPLES and time.monotonic() > deadline:
            break
        times = np.bincount(chooser.integers(0, clusters, clusters), minlength=clusters)
        weights = np.bincount(
            table.row_of, weights=times[table.cluster_of], minlength=len(table.outcome)
        )
        drawn.append(_fit(table, weights, start=(best, tie))[0])
    return _leaderboard(comparisons, names, best, np.array(drawn), side=side, length=length)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What comparisons tell of strengths: their place, and how far they may be off.

    ``covariance`` (players x players) is Laplace's: the inverse of the penalised likelihood's
    curvature at its maximum, with nu taken as known.
    """

    place: dict[str, int]
    strength: np.ndarray[Any, Any]
    log_nu: float
    covariance: np.ndarray[Any, Any]


def fit(comparisons: Sequence[Comparison], *, players: Iterable[str] = ()) -> Fit:
    """Return the fit of at least one comparison; ``players`` may name some who were in none."""
    import numpy as np

    names = sorted({name for one in comparisons for name in (one.first, one.second)} | {*players})
    table = _table(comparisons, names)
    counts = np.bincount(table.row_of, minlength=len(table.outcome)).astype(float)
    strength, log_nu = _fit(table, counts)
    curvature = _told(table.design, counts, strength, log_nu) + RIDGE * np.eye(len(names))
    return Fit(
        place={name: number for number, name in enumerate(names)},
        strength=strength,
        log_nu=log_nu,
        covariance=np.linalg.inv(curvature),
    )


def expected_gains(known: Fit, lineup: Sequence[str], *, times: int) -> list[float]:
    """Return what the first, second, … of ``times`` judgements of one line-up would tell, in nats.

    Lindley's expected information (1956) about the strengths S: n judgements, each comparing every
    pair of the line-up, give log det(1 + n C F) / 2 with C the covariance of S and F what one
    judgement tells. A pair of known outcome or of well-known strengths gives little, and so does
    what was asked often already. Versions compared with themselves give 0.
    """
    import numpy as np

    pairs = [(one, other) for one, other in combinations(lineup, 2) if one != other]
    design = np.zeros((len(pairs), len(known.place)))
    for row, (one, other) in enumerate(pairs):
        design[row, known.place[one]], design[row, known.place[other]] = 1, -1
    told = _told(design, np.ones(len(pairs)), known.strength, known.log_nu)
    root = np.linalg.cholesky(known.covariance)
    directions = np.clip(np.linalg.eigvalsh(root.T @ told @ root), 0, None)
    whole = np.log1p(np.arange(times + 1)[:, None] * directions).sum(axis=1) / 2
    return [float(gain) for gain in np.diff(whole)]


def neighbour_variance(known: Fit, comparisons: Sequence[Comparison]) -> float | None:
    """Return how unsure these comparisons alone leave the distance from one rank to the next.

    It is the mean variance of those distances, by Fisher's information at the strengths known; half
    of it is worth twice as many comparisons. None where they leave some distance open.
    """
    import numpy as np

    if not comparisons:
        return None
    table = _table(comparisons, sorted(known.place, key=known.place.__getitem__))
    counts = np.bincount(table.row_of, minlength=len(table.outcome)).astype(float)
    told = _told(table.design, counts, known.strength, known.log_nu)
    # Distances alone: the last player may stand at 0.
    free = len(known.place) - 1
    if np.linalg.matrix_rank(told[:free, :free]) < free:
        return None
    covariance = np.zeros_like(told)
    covariance[:free, :free] = np.linalg.inv(told[:free, :free])
    steps = np.diff(np.eye(free + 1)[np.argsort(known.strength)], axis=0)
    return float(np.trace(steps @ covariance @ steps.T)) / free


def _told(
    design: np.ndarray[Any, Any],
    weights: np.ndarray[Any, Any],
    strength: np.ndarray[Any, Any],
    log_nu: float,
) -> np.ndarray[Any, Any]:
    """Return Fisher's information (players x players) of comparisons whose outcome is not known."""
    import numpy as np

    d = design @ strength
    log_sum = np.logaddexp(np.logaddexp(d / 2, -d / 2), log_nu)
    win, lose = np.exp(d / 2 - log_sum), np.exp(-d / 2 - log_sum)
    each = weights * (win + lose - (win - lose) ** 2) / 4
    told: np.ndarray[Any, Any] = (design.T * each) @ design
    return told


def _table(
    comparisons: Sequence[Comparison],
    names: Sequence[str],
    *,
    side: bool = False,
    length: bool = False,
) -> _Table:
    import numpy as np

    index = {name: number for number, name in enumerate(names)}
    clusters: dict[int, int] = {}
    rows: dict[tuple[int, int, int, int, int], int] = {}
    row_of, cluster_of = [], []
    for one in comparisons:
        steps = round(one.length / LENGTH_STEP) if length else 0
        key = (
            index[one.first],
            index[one.second],
            one.outcome,
            one.side if side else 0,
            max(-LENGTH_MOST, min(LENGTH_MOST, steps)),
        )
        row_of.append(rows.setdefault(key, len(rows)))
        cluster_of.append(clusters.setdefault(one.cluster, len(clusters)))
    design = np.zeros((len(rows), len(names) + side + length))
    for (first, second, _, left, steps), row in rows.items():
        design[row, first] += 1
        design[row, second] -= 1
        if side:
            design[row, len(names)] = left
        if length:
            design[row, -1] = steps * LENGTH_STEP
    return _Table(
        design=design,
        outcome=np.array([outcome for _, _, outcome, _, _ in rows]),
        row_of=np.array(row_of),
        cluster_of=np.array(cluster_of),
        players=len(names),
    )


def _fit(
    table: _Table,
    weights: np.ndarray[Any, Any],
    start: tuple[np.ndarray[Any, Any], float] | None = None,
) -> tuple[np.ndarray[Any, Any], float]:
    """Return the strengths and terms, and log nu, at the maximum of the penalised likelihood."""
    import numpy as np

    design, y = table.design, table.outcome
    used = weights > 0
    design, y, weights = design[used], y[used], weights[used]
    size = design.shape[1]
    ties = bool((y == 0).any())
    beta = np.zeros(size + 1)  # the last one is log nu
    if start is not None:
        beta[:size], beta[size] = start
    if not ties:
        beta[size] = -np.inf
    elif not np.isfinite(beta[size]):
        beta[size] = 0.0
    ridge = np.full(size, RIDGE)
    value = -np.inf
    for _ in range(NEWTON_STEPS):
        d = design @ beta[:size]
        log_sum = np.logaddexp(np.logaddexp(d / 2, -d / 2), beta[size])
        win, lose = np.exp(d / 2 - log_sum), np.exp(-d / 2 - log_sum)
        tie = np.exp(beta[size] - log_sum)
        # l = sum w (y d / 2 + [tie] log nu - log_sum); its first and second derivatives.
        by_d = weights * (y - (win - lose)) / 2
        by_dd = weights * (win + lose - (win - lose) ** 2) / 4
        gradient = np.append(design.T @ by_d - ridge * beta[:size], 0.0)
        hessian = np.zeros((size + 1, size + 1))
        hessian[:size, :size] = (design.T * by_dd) @ design + np.diag(ridge)
        hessian[size, size] = 1.0
        if ties:
            gradient[size] = weights @ ((y == 0) - tie)
            cross = -design.T @ (weights * (win - lose) * tie / 2)
            hessian[:size, size] = hessian[size, :size] = cross
            # A hair of ridge here too: a resample in which all are ties has no finite nu.
            hessian[size, size] = weights @ (tie * (1 - tie)) + 1e-6
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step < TOLERANCE:
            beta = beta + step
            break
        # Halve the step until it climbs; concave, so this always ends.
        for _ in range(30):
            new = beta + step
            climbed = _likelihood(design, y, weights, new, ridge)
            if climbed >= value:
                break
            step = step / 2
        beta, value = new, climbed
    return beta[:size], float(beta[size])


def _likelihood(
    design: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    weights: np.ndarray[Any, Any],
    beta: np.ndarray[Any, Any],
    ridge: np.ndarray[Any, Any],
) -> float:
    import numpy as np

    size = len(ridge)
    d = design @ beta[:size]
    log_sum = np.logaddexp(np.logaddexp(d / 2, -d / 2), beta[size])
    said = np.where(y == 0, beta[size], y * d / 2) - log_sum
    return float(weights @ said - ridge @ beta[:size] ** 2 / 2)


def _leaderboard(
    comparisons: Sequence[Comparison],
    names: Sequence[str],
    best: np.ndarray[Any, Any],
    drawn: np.ndarray[Any, Any],
    *,
    side: bool,
    length: bool,
) -> Leaderboard:
    import numpy as np

    players = len(names)
    strength = best[:players] - best[:players].mean()
    samples = drawn[:, :players] - drawn[:, :players].mean(axis=1, keepdims=True)
    low, high = np.quantile(samples, (0.025, 0.975), axis=0)
    ranks = (-samples).argsort(axis=1).argsort(axis=1) + 1
    rank_low, rank_high = np.quantile(ranks, (0.025, 0.975), axis=0, method="nearest")
    tally = {name: [0, 0, 0] for name in names}
    for one in comparisons:
        tally[one.first][1 - one.outcome] += 1
        tally[one.second][1 + one.outcome] += 1
    ratings = []
    for rank, k in enumerate(np.argsort(-strength, kind="stable"), start=1):
        wins, ties, losses = tally[names[k]]
        ratings.append(
            Rating(
                player=names[k],
                points=_points(strength[k], low[k], high[k], middle=MIDDLE),
                rank=rank,
                rank_low=min(rank, int(rank_low[k])),
                rank_high=max(rank, int(rank_high[k])),
                wins=wins,
                ties=ties,
                losses=losses,
                win_chance=float(1 / (1 + np.exp(-strength[k]))),
            )
        )

    def term(column: int, scale: float) -> Estimate:
        bounds = np.quantile(drawn[:, column], (0.025, 0.975))
        return _points(best[column] * scale, bounds[0] * scale, bounds[1] * scale)

    return Leaderboard(
        ratings=ratings,
        side=term(players, 1.0) if side else None,
        length=term(players + side, math.log(2)) if length else None,
        tie_share=sum(one.outcome == 0 for one in comparisons) / len(comparisons),
        comparisons=len(comparisons),
        resamples=len(drawn),
        apart=_apart(comparisons, names),
    )


def _points(value: Any, low: Any, high: Any, *, middle: float = 0.0) -> Estimate:
    """Return an estimate in points; the interval always holds the value."""
    return Estimate(
        value=middle + POINTS * float(value),
        low=middle + POINTS * min(float(value), float(low)),
        high=middle + POINTS * max(float(value), float(high)),
    )


def _apart(comparisons: Sequence[Comparison], names: Sequence[str]) -> bool:
    """Say whether the players fall into groups that no comparison joins."""
    leader = {name: name for name in names}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for first, second in {(one.first, one.second) for one in comparisons}:
        leader[find(first)] = find(second)
    return len({find(name) for name in names}) > 1
