"""Evaluation on held-out trees: how often, and by how much, the judged order is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from training.engine.data import Tree, divergence_trees
from training.engine.methods import Method, Scores, means, pair_metrics
from training.engine.team import Team
from training.engine.tree import Pack, build_pack, group_trees, sum_by_response

RESAMPLES = 1000


@torch.no_grad()
def evaluate(
    trees: Sequence[Tree],
    score: Callable[[Any], Scores],
    method: Method,
    arguments: Any,
    *,
    budget: int,
    device: torch.device,
    team: Team,
) -> dict[str, float]:
    """Return weighted means over all pairs; reward_accuracy counts a tie as one half.

    The 95 % intervals come from drawing whole prompts anew: pairs of one prompt are not
    independent.
    """
    parts = []
    for group, counts in team.deal(group_trees(trees, budget)):
        scores = score(build_pack(group, device))
        if not counts:
            continue
        rewards = method.rewards(scores, arguments)
        parts.append(_by_tree(group, rewards))
    per_prompt = [one for part in team.gather(parts) for one in part]
    totals = {name: sum(one[name] for one in per_prompt) for name in per_prompt[0]}
    found = means(totals)
    result = {
        "reward_accuracy": found["rewards/accuracies"],
        "margin": found["rewards/margins"],
    }
    for name, key in (("reward_accuracy", "rewards/accuracies"), ("margin", "rewards/margins")):
        low, high = _interval(per_prompt, key)
        result |= {f"{name}_low": low, f"{name}_high": high}
    return result


@torch.no_grad()
def divergence(
    trees: Sequence[Tree],
    of_tokens: Callable[[Pack], torch.Tensor],
    *,
    budget: int,
    device: torch.device,
    team: Team,
) -> dict[str, float]:
    """Return KL(policy || base) per response token, in nats, with its interval over prompts.

    ``of_tokens`` gives the exact divergence of the two distributions where each response token
    comes [N], so no sampling noise is in it, and one response of a few prompts is enough.
    """
    parts = []
    for group, counts in team.deal(group_trees(divergence_trees(trees), budget)):
        pack = build_pack(group, device)
        sums = sum_by_response(pack, of_tokens(pack)).tolist()
        if not counts:
            continue
        weights = pack.lengths.tolist()
        parts.append([{"weight": w, "kl": kl} for w, kl in zip(weights, sums, strict=True)])
    per_prompt = [one for part in team.gather(parts) for one in part]
    tokens = sum(one["weight"] for one in per_prompt)
    low, high = _interval(per_prompt, "kl")
    return {"kl": sum(one["kl"] for one in per_prompt) / tokens, "kl_low": low, "kl_high": high}


def _by_tree(group: Sequence[Tree], rewards: torch.Tensor) -> list[dict[str, float]]:
    """Return the pair metrics of each tree of a pack."""
    found, start = [], 0
    for tree in group:
        count = len(tree.responses)
        rows = slice(start, start + count)
        part = Scores(build_pack([tree], rewards.device))
        found.append(pair_metrics(part, rewards[rows]))
        start += count
    return found


def _interval(per_prompt: Sequence[dict[str, float]], key: str) -> tuple[float, float]:
    values = np.array([one[key] for one in per_prompt])
    weights = np.array([one["weight"] for one in per_prompt])
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    means = values[draws].sum(1) / np.maximum(weights[draws].sum(1), 1e-12)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
