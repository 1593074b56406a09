"""LoRA adapters: read from safetensors, kept beside the base, applied to mixed batches.

All adapters of a batch are applied in two products, whatever their number: their A matrices lie
side by side, and a mask keeps for every row only the columns of its own adapter.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from inference.artifacts import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from inference.engine.errors import Refusal

WEIGHT_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight$")


@dataclass(frozen=True)
class LoraPair:
    """One module's adapter: down [in, rank], up [rank, out]."""

    down: Tensor
    up: Tensor
    scale: float


@dataclass(eq=False)
class Adapter:
    """A loaded adapter. `users` counts the requests in flight; the bank's lock guards it."""

    name: str
    path: str
    pairs: dict[str, LoraPair]
    users: int = 0
    closing: bool = False
    idle: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Joined:
    """Several adapters of one module side by side.

    down [in, ranks], up [ranks, out]; columns [adapters + 1, ranks] holds each adapter's scale in
    its own columns and zero elsewhere, and only zeros in its last line, the plain base.
    """

    down: Tensor
    up: Tensor
    columns: Tensor
    layout: tuple[tuple[int, int, float], ...]


class LoraLinear(nn.Linear):
    """A base linear layer that adds what the bank holds for it in the current batch."""

    def __init__(self, base: nn.Linear, bank: AdapterBank, name: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self._bank, self._name = bank, name

    def forward(self, x: Tensor) -> Tensor:
        """Return base(x) + up(mask * down(x)); x [n, tokens, in]."""
        out = super().forward(x)
        active = self._bank.active.get(self._name)
        if active is not None:
            down, up, mask = active
            out += ((x @ down) * mask) @ up
        return out


class AdapterBank:
    """Hold the loaded adapters and set up the ones a batch needs."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        self.limit = limit
        self.active: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._adapters: dict[str, Adapter] = {}
        self._lock = threading.Lock()
        self._rows: tuple[Adapter | None, ...] | None = None
        self._joined: tuple[list[Adapter], dict[str, Joined]] = ([], {})
        self._linears = {
            name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
        }
        for name, linear in self._linears.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoraLinear(linear, self, name))

    # Loading: called from the server's threads while the engine steps.

    def load(self, name: str, path: str) -> Adapter:
        """Load an adapter under a name; the same name and path again changes nothing.

        Reading happens outside the lock, so requests in flight do not notice.
        """
        if known := self._known(name, path):
            return known
        pairs = read_adapter(Path(path), self._linears)
        with self._lock:
            if name in self._adapters:
                return self._adapters[name]
            if len(self._adapters) >= self.limit:
                raise Refusal(
                    f"{self.limit} adapters are loaded, the limit: unload one first.",
                    code="too_many_adapters",
                )
            adapter = Adapter(name, path, pairs)
            self._adapters[name] = adapter
            return adapter

    def _known(self, name: str, path: str) -> Adapter | None:
        with self._lock:
            known = self._adapters.get(name)
        if known is None:
            return None
        if known.closing:
            raise Refusal(
                f"The adapter {name} is being unloaded: try again in a moment.",
                status=409,
                code="adapter_closing",
            )
        if known.path != path:
            raise Refusal(
                f"The name {name} belongs to {known.path}: names are never reused, choose another.",
                code="name_taken",
            )
        return known

    def close(self, name: str) -> Adapter:
        """Refuse new requests for an adapter; `idle` is set when the last one in flight ends."""
        with self._lock:
            adapter = self._adapters.get(name)
            if adapter is None:
                raise Refusal(f"No adapter {name} is loaded.", status=404, code="model_not_found")
            adapter.closing = True
            if adapter.users == 0:
                adapter.idle.set()
            return adapter

    def drop(self, adapter: Adapter) -> None:
        """Forget a closed, idle adapter."""
        with self._lock:
            if self._adapters.get(adapter.name) is adapter:
                del self._adapters[adapter.name]

    def acquire(self, name: str) -> Adapter:
        """Take an adapter for one request; Refusal 404 if it is not loaded."""
        with self._lock:
            adapter = self._adapters.get(name)
            if adapter is None or adapter.closing:
                raise Refusal(
                    f"The model {name} is not loaded.", status=404, code="model_not_found"
                )
            adapter.users += 1
            return adapter

    def release(self, adapter: Adapter) -> None:
        """Give an adapter back."""
        with self._lock:
            adapter.users -= 1
            if adapter.closing and adapter.users == 0:
                adapter.idle.set()

    def loaded(self) -> list[Adapter]:
        """List the adapters that take requests, in loading order."""
        with self._lock:
            return [adapter for adapter in self._adapters.values() if not adapter.closing]

    # Stepping: called from the engine's thread only.

    def activate(self, rows: Sequence[Adapter | None]) -> None:
        """Set up the next forward, whose batch rows belong to these adapters."""
        order = tuple(rows)
        if order == self._rows:
            return
        self._rows = order
        adapters = sorted({a for a in order if a is not None}, key=lambda a: a.name)
        if not adapters:
            self.active = {}
            return
        if adapters != self._joined[0]:
            self._joined = (adapters, join(adapters))
        index = {id(adapter): i for i, adapter in enumerate(adapters)}
        rows_of = torch.tensor([index[id(a)] if a else len(adapters) for a in order])
        # Modules adapted alike share one mask: usually there is just one.
        masks: dict[tuple[tuple[int, int, float], ...], Tensor] = {}
        active = {}
        for name, joined in self._joined[1].items():
            mask = masks.get(joined.layout)
            if mask is None:
                mask = joined.columns[rows_of.to(joined.columns.device)].unsqueeze(1)
                masks[joined.layout] = mask
            active[name] = (joined.down, joined.up, mask)
        self.active = active


def join(adapters: list[Adapter]) -> dict[str, Joined]:
    """Lay the matrices of several adapters side by side, module by module."""
    modules: dict[str, list[tuple[int, LoraPair]]] = {}
    for number, adapter in enumerate(adapters):
        for name, pair in adapter.pairs.items():
            modules.setdefault(name, []).append((number, pair))
    joined = {}
    for name, parts in modules.items():
        layout = tuple((number, pair.up.shape[0], pair.scale) for number, pair in parts)
        first = parts[0][1].down
        columns = first.new_zeros(len(adapters) + 1, sum(rank for _, rank, _ in layout))
        start = 0
        for number, rank, scale in layout:
            columns[number, start : start + rank] = scale
            start += rank
        if len(parts) == 1:
            down, up = parts[0][1].down, parts[0][1].up
        else:
            down = torch.cat([pair.down for _, pair in parts], dim=1)
            up = torch.cat([pair.up for _, pair in parts], dim=0)
        joined[name] = Joined(down, up, columns, layout)
    return joined


def read_adapter(folder: Path, linears: dict[str, nn.Linear]) -> dict[str, LoraPair]:
    """Read a peft LoRA folder for a base; Refusal says what does not fit."""
    config = _read_config(folder)
    weights_file = folder / ADAPTER_WEIGHTS
    if not weights_file.is_file():
        raise Refusal(f"{folder} holds no {ADAPTER_WEIGHTS}; pickled adapters are never read.")
    try:
        tensors = load_file(weights_file)
    except (SafetensorError, OSError) as error:
        raise Refusal(f"{weights_file} is not a readable safetensors file: {error}.") from error

    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = WEIGHT_KEY.match(key)
        if match is None:
            raise Refusal(
                f"{folder} also holds {key}: only LoRA matrices can be served, "
                "not heads, whole modules or embeddings."
            )
        halves.setdefault(match["module"], {})[match["half"]] = tensor
    if not halves:
        raise Refusal(f"{folder} holds no LoRA matrices.")
    return {
        name: _pair(name, pair, config, linears.get(name), folder) for name, pair in halves.items()
    }


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise Refusal(f"There is no adapter folder {folder}.", status=404, code="adapter_not_found")
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise Refusal(f"{folder} holds no readable {ADAPTER_CONFIG}: {error}.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise Refusal(f"{folder} is not a LoRA adapter.")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise Refusal(
            f"{folder} is a {config['task_type']} adapter, such as a reward model: "
            "only CAUSAL_LM adapters write text and can be served."
        )
    for option, name in (
        ("use_dora", "DoRA"),
        ("modules_to_save", "whole trained modules"),
        ("fan_in_fan_out", "transposed weights"),
        ("lora_bias", "LoRA biases"),
    ):
        if config.get(option):
            raise Refusal(f"{folder} uses {name} ({option}), which this engine does not serve.")
    if config.get("bias", "none") != "none":
        raise Refusal(f"{folder} trained biases, which this engine does not serve.")
    return config


def _pair(
    name: str,
    halves: dict[str, Tensor],
    config: dict[str, Any],
    linear: nn.Linear | None,
    folder: Path,
) -> LoraPair:
    if linear is None:
        raise Refusal(f"{folder} adapts {name}, which this base does not have as a linear layer.")
    if halves.keys() != {"A", "B"}:
        raise Refusal(f"{folder} holds only one half of the LoRA matrices of {name}.")
    down, up = halves["A"], halves["B"]
    rank = down.shape[0]
    if down.shape != (rank, linear.in_features) or up.shape != (linear.out_features, rank):
        raise Refusal(
            f"{folder} was trained on another base: {name} takes {linear.in_features} in and "
            f"{linear.out_features} out, the adapter has {down.shape[1]} and {up.shape[0]}."
        )
    if not (down.isfinite().all() and up.isfinite().all()):
        # One such value would reach every row of a mixed batch through the mask (0 * nan = nan).
        raise Refusal(f"{folder} holds values that are not finite in {name}: it cannot be served.")
    alpha = _of_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    weight = linear.weight
    return LoraPair(
        down.T.to(device=weight.device, dtype=weight.dtype).contiguous(),
        up.T.to(device=weight.device, dtype=weight.dtype).contiguous(),
        float(scale),
    )


def _of_pattern(pattern: dict[str, float] | None, name: str, default: float) -> float:
    """Look a module up as peft does: the first key that is the whole name or its dotted end."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(?:.*\.)?({key})$", name):
            return value
    return default
