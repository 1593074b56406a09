"""Choose the next token of every row from its own settings and its own random stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LIKELIEST = 256  # tokens sorted at first for top_p; a flatter row is sorted whole


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are drawn. Temperature 0 takes the likeliest token."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    ignore_eos: bool = False
    top_logprobs: int | None = None

    def generator(self, sample: int) -> np.random.Generator:
        """Return the random stream of one of the n samples.

        One number is drawn a token, on the host, so that a seed means the same on every device
        and in every company.
        """
        return np.random.default_rng(None if self.seed is None else [self.seed, sample])


def choose(
    logits: Tensor, settings: Sequence[Sampling], generators: Sequence[np.random.Generator]
) -> list[int]:
    """Return one token for every row of logits [n, vocabulary] (float32).

    A row's token depends on that row alone: every operation works along the vocabulary.
    """
    tokens = logits.argmax(dim=-1)
    drawn = [row for row, sampling in enumerate(settings) if sampling.temperature > 0]
    if not drawn:
        return [int(token) for token in tokens.tolist()]
    where = torch.tensor(drawn, device=logits.device)
    heat = logits.new_tensor([settings[row].temperature for row in drawn]).unsqueeze(1)
    shares = torch.softmax(logits[where] / heat, dim=-1)
    points = torch.tensor([generators[row].random() for row in drawn], dtype=torch.float64)
    points = points.to(logits.device)

    nucleus = [i for i, row in enumerate(drawn) if settings[row].top_p < 1]
    whole = [i for i, row in enumerate(drawn) if settings[row].top_p >= 1]
    if whole:
        tokens[where[whole]] = _pick(shares[whole], points[whole])
    if nucleus:
        top_p = torch.tensor([settings[drawn[i]].top_p for i in nucleus], device=logits.device)
        tokens[where[nucleus]] = _pick_nucleus(shares[nucleus], points[nucleus], top_p)
    return [int(token) for token in tokens.tolist()]


def _pick(shares: Tensor, points: Tensor) -> Tensor:
    """Invert the cumulative distribution of each row [n, vocabulary] at points [n] in [0, 1)."""
    cumulative = shares.double().cumsum(dim=-1)
    reached = points * cumulative[:, -1]
    # right=True steps over tokens of share zero; rounding may not step past the last token.
    found = torch.searchsorted(cumulative, reached.unsqueeze(1), right=True).squeeze(1)
    return found.clamp(max=shares.shape[-1] - 1)


def _pick_nucleus(shares: Tensor, points: Tensor, top_p: Tensor) -> Tensor:
    """Draw from the smallest set of likeliest tokens whose shares reach top_p [n]."""
    values, order = shares.topk(min(LIKELIEST, shares.shape[-1]), dim=-1)
    chosen = _pick_sorted(values, order, points, top_p)
    flat = (values.sum(dim=-1) < top_p).nonzero().squeeze(1)
    if len(flat):
        values, order = shares[flat].sort(dim=-1, descending=True, stable=True)
        chosen[flat] = _pick_sorted(values, order, points[flat], top_p[flat])
    return chosen


def _pick_sorted(values: Tensor, order: Tensor, points: Tensor, top_p: Tensor) -> Tensor:
    before = values.double().cumsum(dim=-1) - values.double()
    kept = torch.where(before < top_p.double().unsqueeze(1), values, 0)
    return order.gather(1, _pick(kept, points).unsqueeze(1)).squeeze(1)
