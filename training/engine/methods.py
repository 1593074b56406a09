"""The methods: how each turns a pack's log-probs or scores into rewards and a loss.

A method's loss is a sum over what it learns from; the step divides by the sum of the weights of
the whole batch, so packing and accumulation never change the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.engine import losses
from training.engine.arguments import (
    DpoArguments,
    KtoArguments,
    OrpoArguments,
    RewardArguments,
    SftArguments,
    SimpoArguments,
)
from training.engine.data import Tree
from training.engine.tree import Pack


@dataclass(frozen=True)
class Scores:
    """What the policy says of a pack's R responses."""

    pack: Pack
    logps: Tensor | None = None  # [R] summed log-probs
    reference: Tensor | None = None  # [R] the same under the reference
    values: Tensor | None = None  # [R] a reward model's scores
    baseline: Tensor | None = None  # [] KTO's estimate of the distance from the reference

    @property
    def ratios(self) -> Tensor:
        assert self.logps is not None
        assert self.reference is not None
        return self.logps - self.reference

    @property
    def mean_logps(self) -> Tensor:
        assert self.logps is not None
        return self.logps / self.pack.lengths


def every_response(tree: Tree) -> list[bool]:
    return [True] * len(tree.responses)


@dataclass(frozen=True)
class Method:
    """One way to learn from trees. `arguments` is always of the method's own dataclass."""

    rewards: Callable[[Scores, Any], Tensor]  # [R], the vocabulary of every metric
    loss: Callable[[Scores, Any], Tensor]  # [] sum over the pack
    weight: Callable[[Tree], float]  # what a tree adds to the divisor
    reference: bool = False
    head: str = "lm"
    single: bool = False  # learns from votes, so also from a response that was judged alone
    baseline: bool = False
    taught: Callable[[Tree], list[bool]] = every_response  # which responses votes teach


def pair_weight(tree: Tree) -> float:
    return tree.weight


def dpo_rewards(scores: Scores, arguments: DpoArguments) -> Tensor:
    ratios = scores.ratios
    if arguments.length_normalised or arguments.loss == "ipo":
        ratios = ratios / scores.pack.lengths
    return arguments.beta * ratios


def dpo_loss(scores: Scores, arguments: DpoArguments) -> Tensor:
    pack = scores.pack
    rewards = dpo_rewards(scores, arguments)
    margins = rewards[pack.chosen] - rewards[pack.rejected]
    if arguments.loss == "ipo":
        loss = losses.ipo(margins / arguments.beta, beta=arguments.beta)
    elif arguments.loss == "hinge":
        loss = losses.hinge(margins)
    elif arguments.loss == "robust":
        loss = losses.robust(margins, label_smoothing=arguments.label_smoothing)
    elif arguments.ties == "rao-kupper":
        loss = losses.rao_kupper(margins, pack.ties, threshold=arguments.tie_threshold)
    else:
        loss = losses.sigmoid(margins, label_smoothing=arguments.label_smoothing)
    return (pack.weights * loss).sum()


def orpo_rewards(scores: Scores, arguments: OrpoArguments) -> Tensor:
    return arguments.beta * scores.mean_logps


def orpo_loss(scores: Scores, arguments: OrpoArguments) -> Tensor:
    pack, mean = scores.pack, scores.mean_logps
    loss = losses.orpo(mean[pack.chosen], mean[pack.rejected], weight=arguments.beta)
    return (pack.weights * loss).sum()


def simpo_rewards(scores: Scores, arguments: SimpoArguments) -> Tensor:
    return arguments.beta * scores.mean_logps


def simpo_loss(scores: Scores, arguments: SimpoArguments) -> Tensor:
    pack, mean = scores.pack, scores.mean_logps
    loss = losses.simpo(
        mean[pack.chosen], mean[pack.rejected], beta=arguments.beta, gamma=arguments.gamma
    )
    return (pack.weights * loss).sum()


def reward_rewards(scores: Scores, arguments: RewardArguments) -> Tensor:
    assert scores.values is not None
    return scores.values


def reward_loss(scores: Scores, arguments: RewardArguments) -> Tensor:
    pack, values = scores.pack, reward_rewards(scores, arguments)
    loss = losses.bradley_terry(
        values[pack.chosen],
        values[pack.rejected],
        margins=pack.margins if arguments.use_margin else None,
        centring=arguments.centring,
    )
    return (pack.weights * loss).sum()


def kto_rewards(scores: Scores, arguments: KtoArguments) -> Tensor:
    return arguments.beta * scores.ratios


def kto_loss(scores: Scores, arguments: KtoArguments) -> Tensor:
    """Every vote counts: a response that won and lost is learnt as both."""
    assert scores.baseline is not None
    pack, total = scores.pack, torch.zeros((), device=scores.pack.good.device)
    for good, votes, factor in (
        (True, pack.good, arguments.desirable_weight),
        (False, pack.bad, arguments.undesirable_weight),
    ):
        loss = losses.kto(
            scores.ratios,
            torch.full_like(votes, good, dtype=torch.bool),
            beta=arguments.beta,
            baseline=scores.baseline,
        )
        total = total + factor * (votes * loss).sum()
    return total


def vote_weight(tree: Tree) -> float:
    return sum(vote.good + vote.bad for vote in tree.votes)


def sft_rewards(scores: Scores, arguments: SftArguments) -> Tensor:
    return scores.mean_logps


def sft_loss(scores: Scores, arguments: SftArguments) -> Tensor:
    """Return the summed negative log-likelihood of each prompt's best responses."""
    assert scores.logps is not None
    best = [one for tree in scores.pack.trees for one in best_responses(tree)]
    return -scores.logps[torch.tensor(best, device=scores.logps.device)].sum()


def best_responses(tree: Tree) -> list[bool]:
    """Mark the responses with the most votes for them after those against, if any are left."""
    balance = [vote.good - vote.bad for vote in tree.votes]
    return [value > 0 and value == max(balance) for value in balance]


def sft_weight(tree: Tree) -> float:
    """Count the tokens that a tree teaches: the mean is over tokens, as everywhere in SFT."""
    pairs = zip(tree.responses, best_responses(tree), strict=True)
    return float(sum(len(response) for response, best in pairs if best))


METHODS: dict[str, Method] = {
    "dpo": Method(dpo_rewards, dpo_loss, pair_weight, reference=True),
    "orpo": Method(orpo_rewards, orpo_loss, pair_weight),
    "simpo": Method(simpo_rewards, simpo_loss, pair_weight),
    "kto": Method(kto_rewards, kto_loss, vote_weight, reference=True, single=True, baseline=True),
    "sft": Method(sft_rewards, sft_loss, sft_weight, single=True, taught=best_responses),
    "reward": Method(reward_rewards, reward_loss, pair_weight, head="score"),
}


def pair_metrics(scores: Scores, rewards: Tensor) -> dict[str, float]:
    """Return the weighted sums that a step's or an evaluation's means are made of."""
    pack = scores.pack
    keep = ~pack.ties
    weights, chosen, rejected = pack.weights[keep], pack.chosen[keep], pack.rejected[keep]
    margins = rewards[chosen] - rewards[rejected]
    right = (margins > 0).float() + 0.5 * (margins == 0).float()  # a tie is half right
    sums = {
        "weight": weights.sum(),
        "rewards/chosen": (weights * rewards[chosen]).sum(),
        "rewards/rejected": (weights * rewards[rejected]).sum(),
        "rewards/accuracies": (weights * right).sum(),
        "rewards/margins": (weights * margins).sum(),
    }
    if scores.logps is not None:
        sums["logps/chosen"] = (weights * scores.logps[chosen]).sum()
        sums["logps/rejected"] = (weights * scores.logps[rejected]).sum()
    if scores.reference is not None:
        # The responses were sampled near the reference, so this estimates KL(reference | policy).
        sums["responses"] = weights.new_tensor(float(len(pack.lengths)))
        sums["kl"] = -scores.ratios.sum()
    values = torch.stack(list(sums.values())).tolist()  # one wait for the device, not nine
    return dict(zip(sums, values, strict=True))


def means(sums: dict[str, float]) -> dict[str, float]:
    """Divide summed metrics by the weight of the pairs, kl by the number of responses.

    Without pairs in an order (votes alone, ties) what is said of pairs is NaN, not 0.
    """
    weight = sums["weight"] or math.nan
    counts = {"kl": sums.get("responses", weight)}
    return {
        name: value / counts.get(name, weight)
        for name, value in sums.items()
        if name not in ("weight", "responses")
    }
