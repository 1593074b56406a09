"""Packing, masks, and the tree against one response at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.engine.conftest import tiny_model
from tests.training.engine.test_against_trl import ARCHITECTURES, some_trees
from training.engine.attention import PIECEWISE, cut_mask
from training.engine.data import Pair, Tree
from training.engine.models import load_base
from training.engine.policy import Policy, choose_computation
from training.engine.tree import (
    Pack,
    block_mask,
    build_pack,
    cut_block_mask,
    group_trees,
    rounded,
    sum_by_response,
)


def test_it_lays_out_positions_and_predictors() -> None:
    tree = Tree((10, 11), ((20, 21), (30,)), (Pair(0, 1, weight=2.0),))
    pack = build_pack([tree, Tree((12,), ((40,), (50,)), (Pair(1, 0),))])
    assert pack.input_ids.tolist() == [10, 11, 20, 21, 30, 12, 40, 50]
    assert pack.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1, 1]
    assert pack.targets.tolist() == [20, 21, 30, 40, 50]
    assert pack.predictors.tolist() == [1, 2, 1, 5, 5]
    assert pack.response_of.tolist() == [0, 0, 1, 2, 3]
    assert pack.ends.tolist() == [3, 4, 6, 7]
    assert pack.chosen.tolist() == [0, 3]
    assert pack.rejected.tolist() == [1, 2]
    assert pack.weights.tolist() == [2.0, 1.0]
    assert sum_by_response(pack, torch.ones(5)).tolist() == [2, 1, 1, 1]


def test_it_lets_a_response_see_its_prompt_and_itself_only() -> None:
    pack = build_pack([Tree((1, 2), ((3, 4), (5,)), ()), Tree((6,), ((7,),), ())])
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],  # the second response does not see the first
        [0, 0, 0, 0, 0, 1, 0],  # the second tree does not see the first
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert block_mask(pack)[0, 0].int().tolist() == expected


def test_it_counts_a_window_in_positions() -> None:
    pack = build_pack([Tree((1, 2), ((3, 4), (5, 6)), ())])
    last = block_mask(pack, window=2)[0, 0, 4].int().tolist()
    assert last == [0, 1, 0, 0, 1, 0]  # the end of the prompt is its neighbour in the text


def test_it_packs_up_to_the_budget() -> None:
    trees = [Tree((1,) * size, ((2,),), ()) for size in (9, 3, 5, 20, 1)]
    packs = group_trees(trees, 12)
    assert [[tree.tokens for tree in pack] for pack in packs] == [[21], [10, 2], [6, 4]]


@pytest.mark.parametrize("attention", [PIECEWISE, "sdpa"])
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "gpt2", "gpt_neox", "phi3", "olmo2"])
def test_the_tree_equals_plain_log_probs(kind: str, attention: str) -> None:
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4} if kind == "gpt2" else {}
    model = tiny_model(kind.partition("-")[0], attention, **ARCHITECTURES.get(kind, sizes))
    assert model.config._attn_implementation == attention
    assert Policy(model, head="lm").tree_error(some_trees()) < 1e-5


@pytest.mark.parametrize("window", [None, 3])
def test_pieces_see_what_the_dense_mask_shows(window: int | None) -> None:
    alone = Tree((), ((8, 9),), ())  # a response without a prompt
    empty = Tree((1, 2, 3, 4), ((), (5, 6)), ())
    pack = rounded(build_pack([Tree((1, 2), ((3, 4), (5,)), ()), alone, empty]))
    shown = torch.zeros(pack.tokens, pack.tokens, dtype=torch.bool)
    mask = cut_block_mask(pack, window)
    for piece in mask.pieces:  # type: ignore[attr-defined]
        places = torch.arange(pack.tokens)
        keys = places[piece.places]
        if piece.prompt is not None:
            keys = torch.cat([places[piece.prompt], keys])
        queries = places[piece.places]
        seen = piece.mask
        if seen is None:  # SDPA's own causal mask
            seen = torch.ones(len(queries), len(keys), dtype=torch.bool).tril()
        shown[queries[:, None], keys[None, :]] = seen.reshape(len(queries), len(keys))
    assert torch.equal(shown, block_mask(pack, window)[0, 0])


def test_pieces_give_the_gradients_of_the_dense_mask() -> None:
    found = {}
    for attention in (PIECEWISE, "sdpa"):
        model = tiny_model("gemma3_text", attention, **ARCHITECTURES["gemma3_text"])
        Policy(model, head="lm").token_logps(build_pack(some_trees())).sum().backward()
        found[attention] = torch.cat([one.grad.flatten() for one in model.parameters()])
    difference = (found[PIECEWISE] - found["sdpa"]).norm() / found["sdpa"].norm()
    assert 0 < difference < 1e-5, "two ways to the same sum differ in the last digits only"


def test_a_base_attends_in_pieces(base: Path) -> None:
    model = load_base(
        base, head="lm", tuning="lora", dtype=torch.float32, device=torch.device("cpu")
    )
    assert model.config._attn_implementation == PIECEWISE


def test_it_takes_the_dense_mask_where_pieces_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.engine import tree

    monkeypatch.setitem(tree.MASKS, PIECEWISE, lambda pack, window=None: _cut_wrongly(pack))
    policy = Policy(tiny_model("llama"), head="lm")
    assert choose_computation(policy, some_trees()) is None
    assert policy.inner.config._attn_implementation == "sdpa"
    assert not policy.plain


def _cut_wrongly(pack: Pack) -> torch.Tensor:
    """As if no response had a prompt."""
    return cut_mask(block_mask(pack), pack.owner, pack.owner, windowed=False)


def test_it_falls_back_where_the_mask_is_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.engine import tree

    policy = Policy(tiny_model("mistral", sliding_window=12), head="lm")
    # As an architecture would behave whose window nobody put into the mask.
    monkeypatch.setattr(tree, "attention_masks", lambda pack, config: block_mask(pack))
    note = choose_computation(policy, some_trees())
    assert note is not None
    assert "cannot be trained by the tree" in note
    assert policy.plain
    pack = build_pack(some_trees())
    assert policy.token_logps(pack).shape == pack.targets.shape


@pytest.mark.parametrize("trained_head", [False, True])
def test_token_log_probs_are_those_of_log_softmax(trained_head: bool) -> None:
    from training.engine.logprobs import token_log_probs

    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50).double().requires_grad_(trained_head)
    hidden = torch.randn(700, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (700,))
    upstream = torch.randn(700)
    expected = head(hidden).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    (slope,) = torch.autograd.grad((expected * upstream).sum(), hidden)
    found = token_log_probs(hidden, head, targets)
    (found_slope,) = torch.autograd.grad((found * upstream).sum(), hidden)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found_slope, slope, atol=1e-6, rtol=1e-6)
