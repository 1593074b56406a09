"""Perplexity on general text: whether learning preferences cost the model its language."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from training.engine.adapters import load_adapter
from training.engine.data import Tree
from training.engine.errors import RunError
from training.engine.general import read_general
from training.engine.models import load_base, load_tokenizer, pick_device, without_adapter
from training.engine.policy import Policy
from training.engine.rundir import Run
from training.engine.tree import build_pack

WINDOW = 512  # tokens read at once, the first of which is only given


@torch.no_grad()
def perplexity(policy: Policy, tokens: list[int]) -> float:
    """Return exp of the mean negative log-prob of a text's tokens, window by window."""
    total = 0.0
    windows = [tokens[start : start + WINDOW] for start in range(0, len(tokens), WINDOW)]
    windows = [window for window in windows if len(window) > 1]
    for window in windows:
        tree = Tree(tuple(window[:1]), (tuple(window[1:]),), ())
        total -= float(policy.token_logps(build_pack([tree], policy.device)).sum())
    return math.exp(min(700.0, total / sum(len(window) - 1 for window in windows)))


def measure_perplexity(run: Run, path: Path | None = None) -> dict[str, float]:
    """Return the perplexity of a run's base and of what it trained, both in fp32."""
    tokenizer, device = load_tokenizer(run.base.path), pick_device()
    tokens = read_general(tokenizer, path)

    def load(source: Path) -> Any:
        return load_base(
            source, head="lm", tuning="lora", dtype=torch.float32, device=device
        ).eval()

    base = load(run.base.path)
    if run.full:
        before, trained = perplexity(Policy(base, head="lm"), tokens), load(run.model)
    else:
        if not run.adapter.is_dir():
            raise RunError(f"{run.adapter} does not exist: train the run first.")
        trained = load_adapter(base, run.adapter, head="lm").eval()
        with without_adapter(trained, off=True):
            before = perplexity(Policy(trained, head="lm"), tokens)
    after = perplexity(Policy(trained, head="lm"), tokens)
    return {"base": before, "trained": after, "tokens": float(len(tokens))}
