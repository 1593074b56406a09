"""Intervals for what is measured on few prompts."""

from __future__ import annotations

from collections.abc import Sequence

from feedback.quality import Share, wilson


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
