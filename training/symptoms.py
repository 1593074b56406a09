"""Plain warnings from a run's metrics: what goes wrong in preference training, and what helps.

Pure functions over what the run logged, (step, values) in order, under TRL's metric names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

Metrics = Sequence[tuple[int, dict[str, Any]]]

# Nats by which the chosen log-prob may fall before it is called a collapse, as a share of itself.
COLLAPSE = 0.25
SATURATED_MARGIN = 5.0  # sigma(5) = 0.993: the loss has next to no slope left
SATURATED_ACCURACY = 0.98
OVERFIT_GAP = 0.2
FEW_PROMPTS, FEW_PAIRS = 50, 100
LENGTH_SHARE = 1.5
STEPS_NEEDED = 8


def symptoms(
    metrics: Metrics, *, report: dict[str, Any], lengths: dict[str, float] | None = None
) -> list[str]:
    """Return the warnings that a run gives cause for, gravest first.

    ``lengths`` are the mean tokens of its chosen and its rejected responses.
    """
    found = [collapse(metrics), saturation(metrics), overfit(metrics, report)]
    found += [length(**lengths) if lengths else "", too_little(report)]
    return [sentence for sentence in found if sentence]


def collapse(metrics: Metrics) -> str:
    """Warn where the chosen responses themselves became less likely, not only the rejected."""
    ends = _ends(metrics, "logps/chosen")
    if ends is None:
        return ""
    first, last = ends
    if first >= 0 or last - first > COLLAPSE * first:
        return ""
    return (
        f"The chosen answers became less likely too: their log-prob fell from {first:.0f} to "
        f"{last:.0f}. Some fall is usual in DPO; this much makes answers worse. Raise beta, lower "
        "learning_rate, or use ORPO, which also learns the chosen text."
    )


def saturation(metrics: Metrics) -> str:
    """Warn where the pairs are told apart so clearly that nothing is left to learn."""
    margins, accuracies = _ends(metrics, "rewards/margins"), _ends(metrics, "rewards/accuracies")
    if margins is None or accuracies is None:
        return ""
    if margins[1] < SATURATED_MARGIN or accuracies[1] < SATURATED_ACCURACY:
        return ""
    return (
        f"The margins are saturated: {margins[1]:.1f} at an accuracy of {accuracies[1] * 100:.0f} "
        "%. Further steps teach nothing and only push the weights: fewer epochs are enough."
    )


def overfit(metrics: Metrics, report: dict[str, Any]) -> str:
    """Warn where the training pairs are told apart much better than the held-out ones."""
    ends = _ends(metrics, "rewards/accuracies")
    after = (report.get("evaluation") or {}).get("after") or {}
    heldout = after.get("reward_accuracy")
    if ends is None or heldout is None or ends[1] - heldout < OVERFIT_GAP:
        return ""
    # A held-out part too small to tell is no evidence.
    if after.get("reward_accuracy_high", heldout) >= ends[1]:
        return ""
    return (
        f"It knows its training pairs by heart: {ends[1] * 100:.0f} % right there, "
        f"{heldout * 100:.0f} % on the held-out ones. Train fewer epochs, a lower rank, or collect "
        "more judgements."
    )


def length(chosen: float, rejected: float) -> str:
    """Warn where the chosen answers are much longer: length is the easiest thing to learn."""
    if not rejected or chosen < LENGTH_SHARE * rejected:
        return ""
    return (
        f"Chosen answers are {chosen / rejected:.1f} times as long as rejected ones ({chosen:.0f} "
        f"against {rejected:.0f} tokens), so the run may learn length alone. Look at the win rate "
        "at equal length, or set length_normalised."
    )


def too_little(report: dict[str, Any]) -> str:
    """Warn where there is too little data for what comes out to mean much."""
    prompts = report.get("prompts")
    used = (report.get("rows") or {}).get("used")
    if prompts is not None and prompts < FEW_PROMPTS:
        return f"It learned from {prompts} prompts: too few to tell more than these apart."
    if used is not None and used < FEW_PAIRS:
        return f"It learned from {used} pairs: too few for what comes out to mean much."
    return ""


def _ends(metrics: Metrics, name: str) -> tuple[float, float] | None:
    """Return the metric's mean over the first and the last fifth of its steps."""
    values = list(_values(metrics, name))
    if len(values) < STEPS_NEEDED:
        return None
    part = max(1, len(values) // 5)
    return sum(values[:part]) / part, sum(values[-part:]) / part


def _values(metrics: Metrics, name: str) -> Iterator[float]:
    for _, values in metrics:
        value = values.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            yield float(value)
