"""Attention over packed rank trees, piece by piece: what the mask hides is never computed.

A dense mask costs T² however little of it is seen. A prompt looks at itself alone and a response
at its prompt and itself, so each is one small attention of its own; in a pack of three trees, each
of a prompt and four responses of one length, that is an eighth of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PIECEWISE = "laurel_piecewise"  # the name under which transformers knows it


@dataclass(frozen=True)
class Piece:
    """A prompt, or a response that looks at its prompt as well: Q places, P of the prompt."""

    places: slice
    prompt: slice | None
    mask: Tensor | None  # bool [1, 1, Q, P + Q]; None where only what comes later is hidden


def cut_mask(mask: Tensor, owner: Tensor, parent: Tensor, *, windowed: bool) -> Tensor:
    """Give a dense mask [1, 1, T, T] its pieces, for `piecewise_attention` to find.

    owner and parent are a Pack's, [T]. The mask stays what it was for whoever reads it whole.
    """
    owners, lengths = torch.unique_consecutive(owner, return_counts=True)
    ends = lengths.cumsum(0)
    runs = {
        name: slice(end - length, end)
        for name, length, end in zip(owners.tolist(), lengths.tolist(), ends.tolist(), strict=True)
    }
    pieces = []
    for name, places in runs.items():
        above = int(parent[places.start])
        prompt = runs.get(above) if above != name else None
        seen = mask[..., places, places]
        if prompt is not None:
            seen = torch.cat([mask[..., places, prompt], seen], dim=-1)
        causal = prompt is None and not windowed
        pieces.append(Piece(places, prompt, None if causal else seen.contiguous()))
    mask.pieces = tuple(pieces)  # type: ignore[attr-defined]
    return mask


def piecewise_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each piece of a mask from `cut_mask`; any other mask is SDPA's.

    query, key and value are [B, H, T, D], what comes back is [B, T, H, D].
    """
    pieces: tuple[Piece, ...] | None = getattr(attention_mask, "pieces", None)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        found: Tensor = sdpa_attention_forward(module, query, key, value, mask, **options)[0]
        return found

    def seen_by(piece: Piece, states: Tensor) -> Tensor:
        own = states[:, :, piece.places]
        return own if piece.prompt is None else torch.cat([states[:, :, piece.prompt], own], dim=2)

    if pieces is None:
        return attend(query, key, value, attention_mask), None
    found = [
        attend(query[:, :, piece.places], seen_by(piece, key), seen_by(piece, value), piece.mask)
        for piece in pieces
    ]
    return torch.cat(found, dim=1), None


AttentionInterface.register(PIECEWISE, piecewise_attention)
AttentionMaskInterface.register(PIECEWISE, sdpa_mask)
