"""How far a policy has moved from its base: exact, by the tree as by plain computation."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.training.engine.conftest import tiny_model
from training.engine.data import Tree
from training.engine.evaluate import divergence
from training.engine.policy import Policy
from training.engine.team import Team
from training.engine.tree import build_pack

TREES = [Tree((5, 6, 7), ((8, 9), (10, 11, 12)), ()), Tree((13, 14), ((15,),), ())]


def policy(*, moved: bool, plain: bool = False) -> Policy:
    """Return a tiny model with an adapter that does something, or nothing yet."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=not moved)
    adapted = get_peft_model(tiny_model("llama"), config).eval()
    return Policy(adapted, head="lm", plain=plain)


def test_it_is_the_sum_over_the_vocabulary_by_hand() -> None:
    ours = policy(moved=True)
    pack = build_pack(TREES)
    found = ours.token_divergences(pack)
    assert torch.allclose(found, policy(moved=True, plain=True).token_divergences(pack), atol=1e-5)
    ids = torch.tensor([[13, 14]])
    with torch.no_grad():
        p = ours.model(input_ids=ids).logits[0, -1].softmax(-1)
        with ours.model.disable_adapter():
            q = ours.model(input_ids=ids).logits[0, -1].softmax(-1)
    by_hand = float((p * (p / q).log()).sum())
    assert by_hand > 0.001
    assert float(found[-1]) == pytest.approx(by_hand, rel=1e-3)
    assert float(policy(moved=False).token_divergences(pack).abs().max()) < 1e-6


def test_it_is_a_mean_over_tokens_with_an_interval_over_prompts() -> None:
    ours = policy(moved=True)
    found = divergence(
        TREES, ours.token_divergences, budget=64, device=torch.device("cpu"), team=Team()
    )
    tokens = ours.token_divergences(build_pack(TREES))[[0, 1, 5]]  # one response of each prompt
    assert found["kl"] == pytest.approx(float(tokens.mean()), rel=1e-5)
    ends = sorted((float(tokens[:2].mean()), float(tokens[2])))
    assert [found["kl_low"], found["kl_high"]] == pytest.approx(ends, rel=1e-5)
