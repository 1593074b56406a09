"""The rank tree against TRL 1.16's DPOTrainer: same pairs, same loss, same gradients, in fp32."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.engine.conftest import tiny_model
from training.engine.arguments import DpoArguments, parse_arguments
from training.engine.data import Pair, Tree
from training.engine.methods import METHODS, Scores
from training.engine.policy import Policy
from training.engine.tree import Pack, build_pack, sum_by_response

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": 12},
    "gemma3_text": {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
}


def some_trees(seed: int = 0) -> list[Tree]:
    """Two prompts, longer than the windows above, with three and two responses."""
    draw = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 380) for _ in range(count))

    first = Tree(
        tokens(21), (tokens(9), tokens(14), tokens(5)), (Pair(0, 1), Pair(0, 2), Pair(2, 1))
    )
    second = Tree(tokens(17), (tokens(11), tokens(20)), (Pair(1, 0),))
    return [first, second]


def trl_trainer(kind: str, loss_type: str, tokenizer: Any, folder: Path, **settings: Any) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": "a b", "chosen": "c d", "rejected": "e f"}] * 2
    trainer = DPOTrainer(
        model=tiny_model(kind.partition("-")[0], **ARCHITECTURES[kind]),
        args=DPOConfig(
            output_dir=str(folder),
            loss_type=[loss_type],
            beta=0.3,
            max_length=None,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    )
    torch.manual_seed(3)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:  # away from 0, where the policy is the reference
            parameter.data.normal_(std=0.2)
    trainer.model.eval()
    return trainer


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    found = [value.grad.flatten() for value in model.parameters() if value.requires_grad]
    return torch.cat(found)


def tree_loss(model: Any, trees: list[Tree], arguments: DpoArguments) -> torch.Tensor:
    policy = Policy(model, head="lm")
    pack: Pack = build_pack(trees)
    with torch.no_grad(), model.disable_adapter():
        reference = sum_by_response(pack, policy.token_logps(pack))
    logps = sum_by_response(pack, policy.token_logps(pack))
    divisor = sum(tree.weight for tree in trees)
    return METHODS["dpo"].loss(Scores(pack, logps, reference), arguments) / divisor


def check_against_trl(
    kind: str, loss_type: str, tokenizer: Any, folder: Path, ours: dict[str, Any], **trl: Any
) -> None:
    trainer = trl_trainer(kind, loss_type, tokenizer, folder, **trl)
    trees = some_trees()
    features = [
        {
            "prompt_ids": list(tree.prompt),
            "chosen_ids": list(tree.responses[pair.chosen]),
            "rejected_ids": list(tree.responses[pair.rejected]),
        }
        for tree in trees
        for pair in tree.pairs
    ]
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator(features))
    expected = gradients(trainer.model, theirs)
    arguments = parse_arguments("dpo", {"beta": 0.3, **ours})
    assert isinstance(arguments, DpoArguments)
    loss = tree_loss(trainer.model, trees, arguments)
    found = gradients(trainer.model, loss)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert float((found - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_it_gives_the_loss_and_gradients_of_trl(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    check_against_trl(kind, "sigmoid", tokenizer, tmp_path, {})


@pytest.mark.parametrize(
    ("loss_type", "ours", "theirs"),
    [
        ("ipo", {"loss": "ipo"}, {}),
        ("hinge", {"loss": "hinge"}, {}),
        ("robust", {"loss": "robust", "label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ("sigmoid_norm", {"length_normalised": True}, {}),
    ],
)
def test_it_gives_every_loss_of_trl(
    loss_type: str, ours: dict[str, Any], theirs: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    check_against_trl("llama", loss_type, tokenizer, tmp_path, ours, **theirs)
