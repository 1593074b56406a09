"""Log-probabilities of given tokens from hidden states, without keeping any logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

ROWS = 512  # logits of this many tokens exist at a time
DIVERGENCE_ROWS = 64  # and of so many where two whole distributions are compared


def token_log_probs(hidden: Tensor, head: torch.nn.Module, targets: Tensor) -> Tensor:
    """Return log p(target) for hidden states [N, D] and targets [N], as fp32 [N].

    With a frozen head the gradient is had in the forward pass; a head that is trained or wrapped
    is computed anew in the backward pass.
    """
    if len(targets) == 0:
        return hidden.new_zeros(0, dtype=torch.float32)
    if type(head) is torch.nn.Linear and not head.weight.requires_grad:
        return _FrozenHead.apply(hidden, head.weight, head.bias, targets)  # type: ignore[no-any-return, no-untyped-call]

    def block(part: Tensor, wanted: Tensor) -> Tensor:
        logits = head(part).float()
        return -functional.cross_entropy(logits, wanted, reduction="none")

    return torch.cat(
        [
            checkpoint(block, part, wanted, use_reentrant=False)
            for part, wanted in zip(
                torch.split(hidden, ROWS), torch.split(targets, ROWS), strict=True
            )
        ]
    )


def divergences(logits: Tensor, reference: Tensor) -> Tensor:
    """Return KL(p || q) in nats for two distributions' logits [N, V] each, as fp32 [N]."""
    ours, theirs = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


class _FrozenHead(torch.autograd.Function):
    """log softmax(W h + b)[t] per row.

    Its slope W[t] - softmax(W h + b) W does not depend on the loss, so it is worked out while the
    logits are at hand; backward only scales it. That spares the second computation of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        log_probs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden) if hidden.requires_grad else None
        for start in range(0, len(targets), ROWS):
            rows = slice(start, start + ROWS)
            wanted = targets[rows]
            logits = functional.linear(hidden[rows].to(weight.dtype), weight, bias).float()
            total = logits.logsumexp(-1, keepdim=True)
            log_probs[rows] = (logits.gather(1, wanted[:, None]) - total).squeeze(1)
            if slopes is not None:
                shares = logits.sub_(total).exp_().to(weight.dtype)
                slopes[rows] = (weight[wanted] - shares @ weight).to(slopes.dtype)
        ctx.slopes = slopes
        return log_probs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        slopes = ctx.slopes
        if slopes is None:
            return None, None, None, None
        return (gradients[0][:, None] * slopes).to(slopes.dtype), None, None, None
