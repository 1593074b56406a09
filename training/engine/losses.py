"""The losses: pure functions of log-probabilities, one value per pair or response.

Shapes: M pairs, R responses. Nothing here is averaged; callers weigh and add.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def sigmoid(margins: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """DPO on reward margins [M] (arXiv 2305.18290, eq. 7), smoothed as conservative DPO."""
    kept = -(1 - label_smoothing) * logsigmoid(margins)
    return kept - label_smoothing * logsigmoid(-margins) if label_smoothing else kept


def robust(margins: Tensor, *, label_smoothing: float) -> Tensor:
    """Robust DPO on reward margins [M] (arXiv 2403.00409, eq. 12): unbiased under flips."""
    right = (1 - label_smoothing) * -logsigmoid(margins)
    flipped = label_smoothing * -logsigmoid(-margins)
    return (right - flipped) / (1 - 2 * label_smoothing)


def hinge(margins: Tensor) -> Tensor:
    """SLiC's hinge on reward margins [M] (arXiv 2305.10425, eq. 2)."""
    return torch.relu(1 - margins)


def ipo(mean_ratio_differences: Tensor, *, beta: float) -> Tensor:
    """IPO (arXiv 2310.12036, eq. 17) on differences [M] of log-ratios per token."""
    return (mean_ratio_differences - 1 / (2 * beta)) ** 2


def rao_kupper(margins: Tensor, ties: Tensor, *, threshold: float) -> Tensor:
    """DPO with ties on reward margins [M] and ties [M] (arXiv 2409.17431, eq. 7 and 8).

    threshold is nu > 1: p(win) = s(d - log nu), p(tie) = (nu^2 - 1) s(d - log nu) s(-d - log nu).
    """
    shift = math.log(threshold)
    win = -logsigmoid(margins - shift)
    tie = win - logsigmoid(-margins - shift) - math.log(threshold**2 - 1)
    return torch.where(ties, tie, win)


def orpo(chosen: Tensor, rejected: Tensor, *, weight: float) -> Tensor:
    """ORPO (arXiv 2403.07691, eq. 6 and 7) on mean log-probs per token [M] of both responses."""
    difference = _log_odds(chosen) - _log_odds(rejected)
    return -chosen - weight * logsigmoid(difference)


def _log_odds(mean_log_probs: Tensor) -> Tensor:
    """log p / (1 - p); p so near 1 that 1 - p vanishes is held off, or the loss becomes NaN."""
    held = mean_log_probs.clamp(max=-1e-6)
    return mean_log_probs - torch.log(-torch.expm1(held))


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """SimPO (arXiv 2405.14734, eq. 6) on mean log-probs per token [M] of both responses."""
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def bradley_terry(
    chosen: Tensor, rejected: Tensor, *, margins: Tensor | None = None, centring: float = 0.0
) -> Tensor:
    """Reward-model loss on scores [M] (arXiv 2307.09288, eq. 2; centring: 2312.09244)."""
    difference = chosen - rejected
    loss = -logsigmoid(difference if margins is None else difference - margins)
    return loss + centring * (chosen + rejected) ** 2 if centring else loss


def kto(ratios: Tensor, desirable: Tensor, *, beta: float, baseline: Tensor) -> Tensor:
    """KTO's 1 - value [R] from log-ratios [R] (arXiv 2402.01306, eq. 8), before its weights.

    desirable [R] is bool; baseline [] is the KL estimate z0, without gradient.
    """
    gain = torch.where(desirable, ratios - baseline, baseline - ratios)
    return 1 - torch.sigmoid(beta * gain)
