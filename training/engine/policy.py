"""A model that scores packs of rank trees, and the check that the tree is right for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from training.engine.attention import PIECEWISE
from training.engine.data import Tree
from training.engine.logprobs import DIVERGENCE_ROWS, divergences, token_log_probs
from training.engine.models import without_adapter
from training.engine.tree import Pack, build_pack, hidden_states

# Largest |tree - plain| over the largest |plain|. A wrong mask gives 0.1 to 1 (research §9).
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 3e-2}
# LLM.int8 (Dettmers et al. 2022) rounds activations to 8 bits and takes out the outlying columns of
# the whole batch, so that one response is rounded a little differently beside others.
TOLERANCE_8BIT = 3e-2


Entrance = Callable[[Callable[[], Tensor]], Tensor]


class Policy:
    """Score packs with a model: by the tree, or one response at a time where `plain`."""

    def __init__(
        self, model: Any, *, head: str, plain: bool = False, enter: Entrance | None = None
    ) -> None:
        """model is a transformers model, bare or inside a PeftModel; head is lm or score.

        `enter` calls what it is given while a sharded model's weights are at hand.
        """
        self.model = model
        self.inner = model.get_base_model() if hasattr(model, "peft_config") else model
        self.head = head
        self.plain = plain
        self.enter: Entrance = enter or (lambda work: work())

    @property
    def device(self) -> torch.device:
        device: torch.device = self.inner.device
        return device

    def token_logps(self, pack: Pack) -> Tensor:
        """Return the log-prob of each response token, fp32 [N]."""
        return self.enter(lambda: self._plain(pack) if self.plain else self._token_logps(pack))

    def _token_logps(self, pack: Pack) -> Tensor:
        hidden = hidden_states(self.inner.base_model, pack)
        head = self.inner.get_output_embeddings()
        return token_log_probs(hidden[pack.predictors], head, pack.targets)

    def values(self, pack: Pack) -> Tensor:
        """Return the score head's value of each response, fp32 [R]."""
        return self.enter(lambda: self._plain(pack) if self.plain else self._values(pack))

    def _values(self, pack: Pack) -> Tensor:
        hidden = hidden_states(self.inner.base_model, pack)
        return self._score(hidden[pack.ends])

    @torch.no_grad()
    def token_divergences(self, pack: Pack) -> Tensor:
        """Return KL(policy || bare base) in nats where each response token comes, fp32 [N]."""
        return self.enter(lambda: self._token_divergences(pack))

    def _token_divergences(self, pack: Pack) -> Tensor:
        if self.plain:
            return torch.cat(
                [
                    divergences(*self._with_and_without(self._logits, tree.prompt, response))
                    for tree in pack.trees
                    for response in tree.responses
                ]
            )

        def states() -> Tensor:
            return hidden_states(self.inner.base_model, pack)[pack.predictors]

        pairs = zip(
            *(torch.split(one, DIVERGENCE_ROWS) for one in self._with_and_without(states)),
            strict=True,
        )
        head = self.inner.get_output_embeddings()
        return torch.cat([divergences(head(ours), head(bare)) for ours, bare in pairs])

    def _with_and_without(self, compute: Callable[..., Tensor], *of: Any) -> tuple[Tensor, Tensor]:
        """Return what is computed with the adapter and by the bare base."""
        ours = compute(*of)
        with without_adapter(self.model, off=True):
            return ours, compute(*of)

    def _score(self, hidden: Tensor) -> Tensor:
        values: Tensor = self.inner.score(hidden)
        return values.squeeze(-1).float()

    def _plain(self, pack: Pack) -> Tensor:
        """Compute each response alone behind its prompt, through the model's own forward."""
        found = [
            self._alone(tree.prompt, response) for tree in pack.trees for response in tree.responses
        ]
        return torch.cat(found)

    def _alone(self, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        if self.head == "score":
            ids = torch.tensor([[*prompt, *response]], device=self.device)
            hidden = self.inner.base_model(input_ids=ids, use_cache=False).last_hidden_state
            return self._score(hidden[:, -1])
        logits = self._logits(prompt, response)
        targets = torch.tensor(response, device=self.device)
        return logits.float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)

    def _logits(self, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        """Return the model's own logits where each response token comes [n, V]."""
        ids = torch.tensor([[*prompt, *response]], device=self.device)
        logits: Tensor = self.inner(input_ids=ids, use_cache=False).logits
        return logits[0, len(prompt) - 1 : -1]

    @torch.no_grad()
    def tree_error(self, trees: Sequence[Tree]) -> float:
        """Return how far the tree is from plain computation, relative to the largest value."""
        pack = build_pack(trees, self.device)
        score = self.values if self.head == "score" else self.token_logps
        tree = score(pack)
        plain = self.enter(lambda: self._plain(pack))
        largest = plain.abs().max().clamp(min=1e-6)
        return float((tree - plain).abs().max() / largest)


def choose_computation(policy: Policy, trees: Sequence[Tree]) -> str | None:
    """Fall back to plain computation where the tree is wrong; return a note if so.

    A mask that an architecture ignores raises no error, hence one real comparison in every run.
    Where FlexAttention or the attention in pieces fails, the dense mask has its turn.
    """
    reason = _wrong(policy, trees)
    if reason and policy.inner.config._attn_implementation in ("flex_attention", PIECEWISE):
        policy.inner.set_attn_implementation("sdpa")
        reason = _wrong(policy, trees)
    if not reason:
        return None
    policy.plain = True
    return (
        f"{type(policy.inner).__name__} cannot be trained by the tree: compared with plain "
        f"log-probs, {reason}."
    )


def _wrong(policy: Policy, trees: Sequence[Tree]) -> str:
    """Say what is wrong with the tree on this model; "" when it is right."""
    tolerance = TOLERANCES[policy.inner.dtype]
    if getattr(policy.inner, "is_loaded_in_8bit", False):
        tolerance = max(tolerance, TOLERANCE_8BIT)
    try:
        error = policy.tree_error(trees)
    except Exception as failure:  # an architecture, or a compiler, may refuse in any way
        return f"it refuses the tree's mask ({str(failure).splitlines()[0]})"
    if error <= tolerance:
        return ""
    return f"the tree differs from it by {error:.1e}, more than {tolerance:.0e}"
