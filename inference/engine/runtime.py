"""The resident base: tokenizer, weights, adapters and the two forward passes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from inference.engine.errors import Refusal
from inference.engine.lora import Adapter, AdapterBank
from inference.engine.rows import ATTENTION, RowCache


class Runtime:
    """A base model on its device, ready to step rows of text.

    Made and stepped in one thread, and nothing else in the process computes for long: OpenMP keeps
    a pool for every thread that does, and once the pools outnumber the cores, each parallel region
    goes through the kernel (seen: 50 % more time a step). By default one core is left to
    the rest of the host: threads that wait for each other by spinning are hit hard by a busy
    neighbour (seen on 2 cores beside a training run: 45 ms a step with one thread, 600 with two;
    38 and 32 on an idle host).
    """

    def __init__(
        self,
        folder: Path,
        *,
        rows: int,
        context: int | None = None,
        dtype: str = "auto",
        max_adapters: int = 32,
        threads: int | None = None,
    ) -> None:
        if not (folder / "config.json").is_file():
            raise Refusal(f"{folder} holds no model: run `python -m inference.engine prepare`.")
        logging.disable_progress_bar()
        torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) - 1))
        self.folder = folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if not self.tokenizer.chat_template:
            raise Refusal(f"The model in {folder} has no chat template: it cannot be chatted with.")
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=best_dtype(self.device) if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=ATTENTION,
            trust_remote_code=False,
            use_safetensors=True,
        )
        self.model.to(self.device).eval()
        self.dtype: torch.dtype = self.model.dtype
        self.context = _context(self.model.config, context)
        self.end_tokens = _end_tokens(self.model, self.tokenizer)
        self.bank = AdapterBank(self.model, max_adapters)
        self.cache = RowCache(rows, self.context)
        self.read(self.encode_chat([{"role": "user", "content": "warm up"}]), 0, None)

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the prompt tokens of a conversation, by the base's own chat template."""
        try:
            encoded = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise Refusal(f"The chat template refuses these messages: {error}") from error
        return [int(token) for token in encoded["input_ids"]]

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], start: int, adapter: Adapter | None) -> Tensor:
        """Read prompt tokens that begin at `start` into the scratch row.

        Returns the float32 logits [vocabulary] after the last of them.
        """
        stop = start + len(tokens)
        positions = torch.arange(start, stop, device=self.device)
        seen = torch.arange(stop, device=self.device) <= positions.unsqueeze(1)
        self.cache.aim_at_scratch(start, stop)
        return self._forward([list(tokens)], positions.unsqueeze(0), seen, [adapter])[0]

    @torch.inference_mode()
    def step(
        self, tokens: Sequence[int], positions: Sequence[int], adapters: Sequence[Adapter | None]
    ) -> Tensor:
        """Feed one token to each running row; return the float32 logits [n, vocabulary].

        A lone row is stepped twice, the second time into the spare row. Products of one row take
        another kernel, whose last bit differs; from two rows on a row's result is the same in any
        company (seen in bfloat16 on AVX-512), and so is the text of a seed.
        """
        count = len(tokens)
        if count == 1:
            tokens, positions, adapters = [*tokens] * 2, [*positions] * 2, [*adapters] * 2
        span = max(positions) + 1
        where = torch.tensor(list(positions), device=self.device)
        unseen = torch.arange(span, device=self.device) > where.unsqueeze(1)
        mask = torch.zeros(unseen.shape, device=self.device).masked_fill_(unseen, -torch.inf)
        self.cache.aim_at_running(where, span)
        return self._forward(
            [[token] for token in tokens], where.unsqueeze(1), mask.unsqueeze(1), adapters
        )[:count]

    def _forward(
        self,
        tokens: list[list[int]],
        positions: Tensor,
        mask: Tensor,
        adapters: Sequence[Adapter | None],
    ) -> Tensor:
        self.bank.activate(adapters)
        out = self.model(
            input_ids=torch.tensor(tokens, device=self.device),
            position_ids=positions,
            attention_mask=mask.view(-1, 1, *mask.shape[-2:]),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1].float()
        return logits


def best_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return torch.float32
    fast = any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    return torch.bfloat16 if fast else torch.float32


def _context(config: Any, asked: int | None) -> int:
    """Return the longest text served, in tokens.

    Never beyond a sliding window: within it, sliding and full attention are the same.
    """
    limits = [config.max_position_embeddings, asked or 4096]
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        limits.append(config.sliding_window)
    return int(min(limits))


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    named = model.generation_config.eos_token_id
    ends = set(named if isinstance(named, list) else [named]) | {tokenizer.eos_token_id}
    return frozenset(end for end in ends if end is not None)
