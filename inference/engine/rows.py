"""Key/value memory in rows: every running text owns one row, whatever the others do.

Rows 0..n-1 are the running texts, packed so that one decoding step reads a view and copies
nothing. Behind them come a spare row, which keeps a lone text company (see Runtime.step), and the
scratch row: prompts are read there, then copied to the row of each sample.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache

ATTENTION = "laurel_rows"


class RowCache(Cache):
    """Serve transformers' cache protocol (`update`) from preallocated rows."""

    def __init__(self, rows: int, context: int) -> None:
        super().__init__(layers=[])
        self.rows = rows
        self.context = context
        self.scratch = rows + 1
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._running: Tensor | None = None
        self._positions: Tensor | None = None
        self._start = self._stop = 0

    def aim_at_running(self, positions: Tensor, span: int) -> None:
        """Make the next forward write one token per running row, at `positions` [n]."""
        self._running = torch.arange(len(positions), device=positions.device)
        self._positions = positions
        self._stop = span

    def aim_at_scratch(self, start: int, stop: int) -> None:
        """Make the next forward write the prompt tokens start..stop to the scratch row."""
        self._positions = None
        self._start, self._stop = start, stop

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values [n, heads, tokens, size]; return all that the rows hold."""
        while len(self._keys) <= layer_idx:
            # Zeros, not empty: a masked position still multiplies its value by zero.
            for store, states in ((self._keys, key_states), (self._values, value_states)):
                shape = (self.rows + 2, states.shape[1], self.context, states.shape[3])
                store.append(torch.zeros(shape, dtype=states.dtype, device=states.device))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._positions is None:
            row, stop = self.scratch, self._stop
            keys[row, :, self._start : stop] = key_states[0]
            values[row, :, self._start : stop] = value_states[0]
            return keys[row : row + 1, :, :stop], values[row : row + 1, :, :stop]
        count = len(self._positions)
        keys[self._running, :, self._positions] = key_states[:, :, 0]
        values[self._running, :, self._positions] = value_states[:, :, 0]
        return keys[:count, :, : self._stop], values[:count, :, : self._stop]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are always given explicitly."""
        return 0

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another."""
        for store in (*self._keys, *self._values):
            store[target, :, :length] = store[source, :, :length]

    @torch.inference_mode()
    def clear(self, row: int | None = None) -> None:
        """Zero one row, or all, so that nothing of a failed step can spread."""
        for store in (*self._keys, *self._values):
            store[slice(None) if row is None else row] = 0


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend with grouped heads; query [n, heads, tokens, size] -> [n, tokens, heads, size].

    One token a row takes two batched products: PyTorch's fused CPU kernel is 6 to 13 times slower
    there, since it repeats the grouped keys first.
    """
    if query.shape[2] > 1:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    rows, heads, _, size = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    scores = (grouped @ key.transpose(-1, -2)).float() * (scaling or size**-0.5) + attention_mask
    out = scores.softmax(dim=-1).to(value.dtype) @ value
    return out.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(ATTENTION, attend)
