"""The second engine: TRL's own trainers compute the loss of each batch.

Data, order, learning rate, references, checkpoints, events and proof are those of every run, so a
run of either engine is resumed, followed and proved alike. For architectures that cannot take the
tree's mask, and to compare. TRL 1.16 weighs every pair alike, so pairs go in groups of one weight.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.engine.arguments import ArgumentError, Arguments
from training.engine.data import Tree
from training.engine.methods import best_responses
from training.engine.reference import ReferenceStore

# One row of a batch: what TRL's collator takes, what it weighs, and how many tokens it holds.
Row = tuple[dict[str, Any], float, int]


def trl_refuses(arguments: Arguments) -> str:
    """Say why TRL's trainers cannot do what these arguments ask; "" where they can."""
    try:
        dataclasses.replace(arguments, engine="trl").check()
    except ArgumentError as error:
        return str(error)
    return ""


class TrlLoss:
    """TRL's trainer for a method, wrapped around our model."""

    def __init__(
        self,
        method: str,
        arguments: Any,
        model: Any,
        tokenizer: Any,
        store: ReferenceStore,
        folder: Path,
        *,
        seed: int,
        base_is_reference: bool,
    ) -> None:
        self.method = method
        self.arguments = arguments
        self.store = store
        self.model = model
        self.trainer = _trainer(method, arguments, model, tokenizer, folder, seed)
        if base_is_reference and "ref" in getattr(model, "peft_config", {}):
            # TRL copied the adapter; without the copy it turns the adapter off instead.
            model.delete_adapter("ref")

    def batch(
        self, trees: Sequence[Tree], budget: int
    ) -> Iterator[tuple[Tensor, int, dict[str, float]]]:
        """Yield, for each part of a batch, its summed loss, its tokens and its metrics' sums."""
        rows = [row for tree in trees for row in self._rows(tree)]
        # KTO estimates the distance from the reference within a batch: it must not be cut up.
        parts = _whole(rows) if self.method == "kto" else _cut(rows, budget)
        for part in parts:
            features = [feature for feature, _, _ in part]
            weight = part[0][1]
            if self.method == "kto":
                _add_strangers(features)
            inputs = self.trainer.data_collator(features)
            device = next(self.model.parameters()).device
            inputs = {
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in inputs.items()
            }
            metrics = self.trainer._metrics["train"]
            metrics.clear()
            loss = self.trainer.compute_loss(self.model, inputs)
            # SFT's mean is over the taught tokens, the others' over the rows.
            count = len(part) if self.method != "sft" else sum(f["taught"] for f in features)
            tokens = sum(size for _, _, size in part)
            yield loss * weight * count, tokens, self._metrics(metrics, weight * len(part))

    def _metrics(self, found: Any, weight: float) -> dict[str, float]:
        """Return what TRL measured as sums, under the names that it logs."""
        names = {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}
        kept = {
            names.get(name, name): float(values[-1])
            for name, values in found.items()
            if values and (name in names or name.startswith(("rewards/", "logps/")) or name == "kl")
        }
        return {"weight": weight, **{name: weight * value for name, value in kept.items()}}

    def _rows(self, tree: Tree) -> Iterator[Row]:
        prompt = list(tree.prompt)
        if self.method in ("dpo", "reward"):
            for pair in tree.pairs:
                chosen, rejected = (
                    list(tree.responses[place]) for place in (pair.chosen, pair.rejected)
                )
                size = 2 * len(prompt) + len(chosen) + len(rejected)
                if self.method == "dpo":
                    feature = {
                        "prompt_ids": prompt,
                        "chosen_ids": chosen,
                        "rejected_ids": rejected,
                        "ref_chosen_logps": self._reference(tree, pair.chosen),
                        "ref_rejected_logps": self._reference(tree, pair.rejected),
                    }
                else:
                    feature = {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
                    if self.arguments.use_margin:
                        feature["margin"] = pair.margin
                yield feature, pair.weight, size
            return
        for place, response in enumerate(tree.responses):
            size = len(prompt) + len(response)
            if self.method == "sft":
                if best_responses(tree)[place]:
                    labels = [-100] * len(prompt) + list(response)
                    ids = prompt + list(response)
                    yield {"input_ids": ids, "labels": labels, "taught": len(response)}, 1.0, size
                continue
            vote = tree.votes[place]
            for label, weight in ((True, vote.good), (False, vote.bad)):
                if weight:
                    feature = {
                        "prompt_ids": prompt,
                        "completion_ids": list(response),
                        "label": label,
                    }
                    yield feature, weight, size

    def _reference(self, tree: Tree, place: int) -> float:
        values = self.store.get(tree.prompt, tree.responses[place])
        assert values is not None  # the reference phase came before
        return float(values.sum(dtype="float64"))


def _whole(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield the rows of each weight in one part."""
    for weight in sorted({weight for _, weight, _ in rows}):
        yield [row for row in rows if row[1] == weight]


def _cut(rows: Sequence[Row], budget: int) -> Iterator[list[Row]]:
    """Yield parts of one weight whose padded size stays within the token budget."""
    for same in _whole(rows):
        part: list[Row] = []
        for row in sorted(same, key=lambda row: row[2]):
            if part and (len(part) + 1) * row[2] > budget:
                yield part
                part = []
            part.append(row)
        yield part


def _add_strangers(features: list[dict[str, Any]]) -> None:
    """Give each prompt the completion of the row before it, as TRL's KTO prepares its data."""
    before = [features[-1], *features[:-1]]
    strangers = [list(one["completion_ids"]) for one in before]
    for feature, stranger in zip(features, strangers, strict=True):
        feature["KL_completion_ids"] = stranger


def _trainer(
    method: str, arguments: Any, model: Any, tokenizer: Any, folder: Path, seed: int
) -> Any:
    import trl
    from datasets import Dataset

    rows: list[dict[str, Any]] = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2
    settings: dict[str, Any] = {}
    if method == "dpo":
        kinds = trl.DPOConfig, trl.DPOTrainer
        loss = "sigmoid_norm" if arguments.length_normalised else arguments.loss
        settings = {
            "beta": arguments.beta,
            "loss_type": [loss],
            "label_smoothing": arguments.label_smoothing,
            "precompute_ref_log_probs": False,
        }
    elif method == "kto":
        kinds = trl.KTOConfig, trl.KTOTrainer
        settings = {
            "beta": arguments.beta,
            "desirable_weight": arguments.desirable_weight,
            "undesirable_weight": arguments.undesirable_weight,
            "per_device_train_batch_size": 2,
        }
    elif method == "reward":
        kinds = trl.RewardConfig, trl.RewardTrainer
        settings = {"center_rewards_coefficient": arguments.centring or None}
    else:
        kinds = trl.SFTConfig, trl.SFTTrainer
        rows = [{"prompt": "a", "completion": " b"}] * 2
    tokenizer = copy.deepcopy(tokenizer)  # the run's own is saved as it came
    if method == "reward":  # TRL gives the model this pad, by which it finds the end of the text
        pad = model.config.get_text_config().pad_token_id
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    elif not tokenizer.pad_token:
        tokenizer.pad_token = tokenizer.eos_token
    config = kinds[0](
        output_dir=str(folder),
        max_length=None,  # cut already, and counted
        use_cpu=not torch.cuda.is_available(),
        bf16=False,  # the weights are in the chosen format already
        gradient_checkpointing=False,  # likewise turned on by us
        report_to=[],
        seed=seed,
        **settings,
    )
    trainable = [each for each in model.parameters() if each.requires_grad]
    formats = [each.dtype for each in trainable]
    found = kinds[1](
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    # On a quantised base TRL rounds the adapter to bf16; reloaded in ours, it says other things.
    for each, dtype in zip(trainable, formats, strict=True):
        each.data = each.data.to(dtype)
    if method == "dpo":
        found.precompute_ref_logps = True
    return found
