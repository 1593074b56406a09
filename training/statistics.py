"""Intervals for what is measured on few prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feedback.quality import Share, wilson

Array = npt.NDArray[np.float64]


def win_rate(scores_by_prompt: Sequence[Sequence[float]]) -> Share:
    """Return the mean score (win 1, tie 1/2, loss 0) with an interval that respects prompts.

    Comparisons on one prompt resemble each other, so n is divided by the design effect
    1 + (m - 1)·ICC (Kish 1965), with the intraclass correlation from the one-way analysis of
    variance; then Wilson's score interval (Wilson 1927) is taken at that effective size.
    """
    groups = [list(group) for group in scores_by_prompt if group]
    scores = [score for group in groups for score in group]
    n = len(scores)
    if n == 0:
        raise ValueError("A win rate needs at least one comparison.")
    mean = sum(scores) / n
    effective = n / _design_effect(groups, mean)
    low, high = wilson(mean, effective)
    return Share(value=mean, low=low, high=high, n=n)


def _design_effect(groups: Sequence[Sequence[float]], mean: float) -> float:
    n, k = sum(len(group) for group in groups), len(groups)
    size = n / k
    if k < 2 or n == k:
        return 1.0
    means = [sum(group) / len(group) for group in groups]
    between = sum(len(group) * (m - mean) ** 2 for group, m in zip(groups, means, strict=True)) / (
        k - 1
    )
    within = sum(
        (score - m) ** 2 for group, m in zip(groups, means, strict=True) for score in group
    ) / (n - k)
    spread = between + (size - 1) * within
    if spread == 0:  # every comparison went the same way: count each prompt once, to be careful
        return size
    correlation = max(0.0, (between - within) / spread)
    return 1 + (size - 1) * correlation


@dataclass(frozen=True, kw_only=True)
class Fragility:
    """How little would change a decision: so many of the prompts, judged the other way round."""

    prompts: int | None  # None: not even all of them
    of: int


def fragility(scores_by_prompt: Sequence[Sequence[float]]) -> Fragility:
    """Return the fewest prompts whose comparisons, turned round, move the lower bound across 1/2.

    The most one-sided prompts are turned first, as these move it furthest (Walsh et al. 2014, the
    fragility index).
    """
    groups = [list(group) for group in scores_by_prompt if group]
    proposed = win_rate(groups).low > 0.5
    order = sorted(groups, key=lambda group: sum(group) / len(group), reverse=proposed)
    for turned in range(1, len(order) + 1):
        flipped = [[1 - score for score in group] for group in order[:turned]]
        if (win_rate([*flipped, *order[turned:]]).low > 0.5) != proposed:
            return Fragility(prompts=turned, of=len(groups))
    return Fragility(prompts=None, of=len(groups))


RESAMPLES = 200
PULL = 0.1  # of the regression's weights towards 0


def length_controlled(
    scores_by_prompt: Sequence[Sequence[float]], lengths_by_prompt: Sequence[Sequence[float]]
) -> Share:
    """Return the win rate that is left when both answers are equally long.

    As in AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475): a logistic regression of the win on
    tanh(length difference / its spread), read at a difference of 0. The interval comes from drawing
    whole prompts anew. ``lengths_by_prompt`` are challenger minus champion, in tokens.
    """
    scores = [np.asarray(group, dtype=float) for group in scores_by_prompt]
    differences = [np.asarray(group, dtype=float) for group in lengths_by_prompt]
    spread = float(np.concatenate(differences).std()) or 1.0
    features = [np.tanh(group / spread) for group in differences]
    generator = np.random.default_rng(0)
    value = _at_equal_length(np.concatenate(features), np.concatenate(scores))
    draws = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(len(scores), size=len(scores))
        draws.append(
            _at_equal_length(
                np.concatenate([features[one] for one in chosen]),
                np.concatenate([scores[one] for one in chosen]),
            )
        )
    low, high = np.percentile(draws, [2.5, 97.5])
    n = sum(map(len, scores))
    return Share(value=value, low=min(value, float(low)), high=max(value, float(high)), n=n)


def _at_equal_length(feature: Array, score: Array) -> float:
    """Fit score ~ sigmoid(a + b·feature) by Newton's method; return sigmoid(a).

    A light pull of both towards 0 (a prior of variance 10) keeps one-sided data finite.
    """
    design = np.column_stack([np.ones_like(feature), feature])
    weights = np.zeros(2)
    for _ in range(25):
        expected = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (score - expected) - PULL * weights
        curvature = (design.T * (expected * (1 - expected))) @ design + PULL * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights += step
        if np.abs(step).max() < 1e-8:
            break
    return float(1 / (1 + np.exp(-weights[0])))
