"""Rank trees as tensors: several `[prompt | r1 | … | rK]` packed into one sequence.

Positions restart after each prompt, and the mask lets a response see its prompt and itself, so each
response is computed as if it stood alone behind its prompt, while the prompt is computed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.engine.attention import PIECEWISE, cut_mask
from training.engine.data import Tree, Votes

LENGTHS = 64  # sequences are as long as a multiple of this


@dataclass(frozen=True)
class Pack:
    """One sequence of T tokens that holds N response tokens of R responses and M pairs."""

    trees: tuple[Tree, ...]
    input_ids: Tensor  # [T]
    position_ids: Tensor  # [T]
    owner: Tensor  # [T] which prompt or response a token belongs to
    parent: Tensor  # [T] the owner of the prompt before it; its own owner in a prompt
    predictors: Tensor  # [N] the place whose hidden state predicts a response token
    targets: Tensor  # [N] the response tokens
    response_of: Tensor  # [N] 0 to R-1
    lengths: Tensor  # [R] response tokens
    ends: Tensor  # [R] the place of a response's last token
    chosen: Tensor  # [M] 0 to R-1
    rejected: Tensor  # [M] 0 to R-1
    weights: Tensor  # [M]
    margins: Tensor  # [M]
    ties: Tensor  # [M] bool
    good: Tensor  # [R] weight of the votes for a response
    bad: Tensor  # [R] weight of the votes against it

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


def build_pack(trees: Sequence[Tree], device: torch.device | str = "cpu") -> Pack:
    """Lay trees one behind the other into one sequence."""
    ids: list[int] = []
    positions: list[int] = []
    owner: list[int] = []
    parent: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    response_of: list[int] = []
    lengths: list[int] = []
    ends: list[int] = []
    votes: list[Votes] = []
    pairs: list[tuple[int, int, float, float, bool]] = []
    owners = 0
    for tree in trees:
        first, prompt_length, prompt_owner = len(lengths), len(tree.prompt), owners
        ids += tree.prompt
        positions += range(prompt_length)
        owner += [prompt_owner] * prompt_length
        parent += [prompt_owner] * prompt_length
        prompt_end = len(ids) - 1
        for number, response in enumerate(tree.responses, 1):
            start, length = len(ids), len(response)
            ids += response
            positions += range(prompt_length, prompt_length + length)
            owner += [prompt_owner + number] * length
            parent += [prompt_owner] * length
            predictors += [prompt_end, *range(start, start + length - 1)]
            targets += response
            response_of += [len(lengths)] * length
            lengths.append(length)
            ends.append(start + length - 1)
        owners += 1 + len(tree.responses)
        votes += tree.votes or [Votes()] * len(tree.responses)
        pairs += [
            (first + pair.chosen, first + pair.rejected, pair.weight, pair.margin, pair.tie)
            for pair in tree.pairs
        ]
    chosen, rejected, weights, margins, ties = zip(*pairs, strict=True) if pairs else [()] * 5

    def whole(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    def real(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return Pack(
        trees=tuple(trees),
        input_ids=whole(ids),
        position_ids=whole(positions),
        owner=whole(owner),
        parent=whole(parent),
        predictors=whole(predictors),
        targets=whole(targets),
        response_of=whole(response_of),
        lengths=whole(lengths),
        ends=whole(ends),
        chosen=whole(chosen),
        rejected=whole(rejected),
        weights=real(weights),
        margins=real(margins),
        ties=torch.tensor(ties, dtype=torch.bool, device=device),
        good=real([vote.good for vote in votes]),
        bad=real([vote.bad for vote in votes]),
    )


def group_trees(trees: Sequence[Tree], budget: int) -> list[list[Tree]]:
    """Put trees into as few packs of at most `budget` tokens as first-fit-decreasing finds.

    A tree over the budget gets a pack of its own.
    """
    packs: list[list[Tree]] = []
    room: list[int] = []
    for tree in sorted(trees, key=lambda tree: -tree.tokens):
        for number, free in enumerate(room):
            if tree.tokens <= free:
                packs[number].append(tree)
                room[number] -= tree.tokens
                break
        else:
            packs.append([tree])
            room.append(budget - tree.tokens)
    return packs


def block_mask(pack: Pack, window: int | None = None) -> Tensor:
    """Return who may look at whom, bool [1, 1, T, T]: own prompt and own response, backwards.

    A sliding window is counted in positions, not in places: a response's neighbour in the sequence
    may be far from it in the text.
    """
    mine = pack.owner[:, None] == pack.owner[None, :]
    prompt = pack.parent[:, None] == pack.owner[None, :]
    distance = pack.position_ids[:, None] - pack.position_ids[None, :]
    seen = (mine | prompt) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    return seen[None, None]


def mask_function(pack: Pack, window: int | None = None) -> Callable[..., Tensor]:
    """Return the same rule as `block_mask`, one place at a time, as FlexAttention takes it."""
    owner, parent, position = pack.owner, pack.parent, pack.position_ids

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine = owner[query] == owner[key]
        prompt = parent[query] == owner[key]
        distance = position[query] - position[key]
        seen = (mine | prompt) & (distance >= 0)
        return seen if window is None else seen & (distance < window)

    return sees


def sparse_mask(pack: Pack, window: int | None = None) -> Any:
    """Return FlexAttention's BlockMask: blocks in which nobody sees anybody are never computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    places = pack.tokens
    return create_block_mask(
        mask_function(pack, window), 1, None, places, places, device=pack.input_ids.device
    )


def cut_block_mask(pack: Pack, window: int | None = None) -> Tensor:
    """Return the same mask as `block_mask`, with the pieces that piecewise attention looks at."""
    mask = block_mask(pack, window)
    return cut_mask(mask, pack.owner, pack.parent, windowed=window is not None)


MASKS: dict[str, Callable[..., Any]] = {"flex_attention": sparse_mask, PIECEWISE: cut_block_mask}


def attention_masks(pack: Pack, config: Any) -> Any:
    """Return the mask in the form that the architecture takes: one, or one per kind of layer."""
    make = MASKS.get(getattr(config, "_attn_implementation", ""), block_mask)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds == {"sliding_attention"}:
        return make(pack, window)
    if "sliding_attention" in kinds:
        return {"full_attention": make(pack), "sliding_attention": make(pack, window)}
    if not kinds and getattr(config, "use_sliding_window", True):
        return make(pack, window)
    return make(pack)


def rounded(pack: Pack) -> Pack:
    """Return the pack with tokens added that nobody sees, up to a multiple of LENGTHS.

    Every new length costs memory that is not given back: the heap breaks up, and kernels are kept
    for each shape. Without this a reward model's run grew from 2.9 to 5.8 GB in 187 steps.
    """
    added = -pack.tokens % LENGTHS
    if not added:
        return pack
    zeros = pack.owner.new_zeros(added)
    nobody = zeros + pack.owner.max() + 1
    return dataclasses.replace(
        pack,
        input_ids=torch.cat([pack.input_ids, zeros]),
        position_ids=torch.cat([pack.position_ids, torch.arange(added, device=zeros.device)]),
        owner=torch.cat([pack.owner, nobody]),
        parent=torch.cat([pack.parent, nobody]),
    )


def hidden_states(decoder: Any, pack: Pack) -> Tensor:
    """Run the decoder over a pack; return the last hidden states [T', D], T' at least T."""
    pack = rounded(pack)
    output = decoder(
        input_ids=pack.input_ids[None],
        position_ids=pack.position_ids[None],
        attention_mask=attention_masks(pack, decoder.config),
        use_cache=False,
    )
    states: Tensor = output.last_hidden_state[0]
    return states


def sum_by_response(pack: Pack, values: Tensor) -> Tensor:
    """Add up the values of each response's tokens: [N] to [R], in fp64.

    A log-prob of -700 has no digits after the fourth in fp32, and DPO's gradient hangs on the
    differences of such sums: rounding them made half of its error.
    """
    zeros = values.new_zeros(len(pack.lengths), dtype=torch.float64)
    return zeros.index_add(0, pack.response_of, values.double())
