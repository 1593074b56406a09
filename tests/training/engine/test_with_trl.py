"""The TRL engine: TRL's trainers behind the same run directory, and the fall-back to them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.engine.conftest import (
    SIZES,
    events,
    preference_rows,
    tiny_model,
    write_snapshot,
)
from training.engine.__main__ import main
from training.engine.arguments import ArgumentError, parse_arguments
from training.engine.data import Pair, Tree, Votes
from training.engine.methods import METHODS, Scores
from training.engine.policy import Policy
from training.engine.train import strangers_of
from training.engine.tree import Pack, build_pack, sum_by_response

MakeRun = Callable[..., Path]


def losses(directory: Path) -> list[float]:
    return [event["loss"] for event in events(directory, "step")]


def report(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return found


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("dpo", {"loss": "robust", "label_smoothing": 0.1}),
        ("reward", {"use_margin": True, "centring": 0.01}),
        ("sft", {}),
    ],
)
def test_both_engines_train_the_same(
    make_run: MakeRun, tmp_path: Path, method: str, arguments: dict[str, Any]
) -> None:
    # Rows of different weights, which TRL alone would take for equal ones.
    rows = preference_rows("train", 4, responses=3)
    for number, row in enumerate(rows):
        row["weight"] = 1.0 + number % 2
    folder = write_snapshot(tmp_path / "weighted", train=rows)
    snapshot = {"path": str(folder), "digest": "weighted"}
    found = []
    for engine in ("tree", "trl"):
        given = {"epochs": 2, "learning_rate": 1e-3, "engine": engine, **arguments}
        directory = make_run(engine, method=method, arguments=given, snapshot=snapshot)
        assert main([str(directory)]) == 0
        assert report(directory)["engine"] == engine
        assert report(directory)["proof"]["passed"]
        found.append(losses(directory))
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_kto_trains_with_trl(make_run: MakeRun) -> None:
    directory = make_run(method="kto", arguments={"engine": "trl", "epochs": 4})
    assert main([str(directory)]) == 0
    found = report(directory)
    assert found["engine"] == "trl"
    assert found["evaluation"]["after"]["margin"] > found["evaluation"]["before"]["margin"]


def test_an_architecture_that_refuses_the_tree_goes_to_trl(
    make_run: MakeRun, tmp_path: Path, tokenizer: Any
) -> None:
    # Gemma 2 caps its attention scores, which none of the quick kernels does.
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    config = AutoConfig.for_model("gemma2", **{**SIZES, "sliding_window": 12})
    folder = tmp_path / "gemma2"
    AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    directory = make_run(arguments={"epochs": 1}, base={"path": str(folder), "digest": "gemma2"})
    assert main([str(directory)]) == 0
    assert report(directory)["engine"] == "trl"
    (note,) = [one["message"] for one in events(directory, "note") if "TRL" in one["message"]]
    assert note.startswith("Gemma2ForCausalLM cannot be trained by the tree")


def test_a_wrong_tree_is_noticed_and_trl_takes_over(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.engine import policy

    real = policy.hidden_states

    def blind(decoder: Any, pack: Any) -> torch.Tensor:
        return real(decoder, pack).flip(-1)

    monkeypatch.setattr(policy, "hidden_states", blind)
    directory = make_run("dpo")
    assert main([str(directory)]) == 0
    assert report(directory)["engine"] == "trl"
    # ORPO is not TRL's to keep: each response is computed alone instead.
    directory = make_run("orpo", method="orpo", arguments={"epochs": 1})
    assert main([str(directory)]) == 0
    assert report(directory)["engine"] == "plain"
    (note,) = [one["message"] for one in events(directory, "note") if "alone" in one["message"]]
    assert "TRL's ORPO is experimental" in note


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("orpo", {}, "experimental"),
        ("simpo", {}, "experimental"),
        ("dpo", {"ties": "rao-kupper"}, "knows no ties"),
        ("dpo", {"label_smoothing": 0.1}, "drops label_smoothing"),
    ],
)
def test_it_says_what_trl_cannot_do(method: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        parse_arguments(method, {"engine": "trl", **arguments})


def trees() -> list[Tree]:
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 380) for _ in range(count))

    votes = (Votes(1.0, 0.0), Votes(0.0, 1.0))
    return [
        Tree(tokens(12), (tokens(9), tokens(14)), (Pair(0, 1),), votes),
        Tree(tokens(17), (tokens(11), tokens(6)), (Pair(0, 1),), votes),
    ]


@pytest.mark.parametrize("method", ["reward", "orpo", "simpo"])
def test_the_gradient_is_that_of_trl(method: str, tokenizer: Any, tmp_path: Path) -> None:
    """ORPO's likelihood term is over the response alone here: the rest of TRL's is compared."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from benchmarks.training import orpo_on_responses

    torch.manual_seed(7)
    if method == "reward":
        from trl import RewardConfig, RewardTrainer

        kinds: tuple[Any, Any] = RewardConfig, RewardTrainer
        config = AutoConfig.for_model("llama", **SIZES)
        config.num_labels = 1
        base = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        extra: dict[str, Any] = {"centring": 0.02}
        settings: dict[str, Any] = {"center_rewards_coefficient": 0.02}
    elif method == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        kinds = ORPOConfig, ORPOTrainer
        base = tiny_model("llama")
        settings = extra = {"beta": 0.3}
    else:
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        kinds = CPOConfig, CPOTrainer
        base = tiny_model("llama")
        extra = {"beta": 1.5, "gamma": 0.7}
        settings = {"beta": 1.5, "simpo_gamma": 0.7, "loss_type": "simpo", "cpo_alpha": 0.0}
    trainer = kinds[1](
        model=base,
        args=kinds[0](
            output_dir=str(tmp_path),
            max_length=512,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            **settings,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=4,
            target_modules="all-linear",
            task_type="SEQ_CLS" if method == "reward" else "CAUSAL_LM",
            modules_to_save=["score"] if method == "reward" else None,
        ),
    )
    model = trainer.model
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    model.eval()
    features = []
    for tree in trees():
        prompt, (chosen, rejected) = list(tree.prompt), map(list, tree.responses)
        if method == "reward":
            features.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
            continue
        feature: dict[str, Any] = {}
        for name, one in (("chosen", chosen), ("rejected", rejected)):
            ids = prompt + one
            feature |= {
                f"{name}_input_ids": ids,
                f"{name}_attention_mask": [1] * len(ids),
                f"{name}_labels": [-100] * len(prompt) + one,
            }
        features.append(
            feature | {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        )
    batch = trainer.data_collator(features)
    theirs = (
        orpo_on_responses(trainer, batch)
        if method == "orpo"
        else trainer.compute_loss(model, batch)
    )
    expected = gradient(model, theirs)
    pack, ours = build_pack(trees()), METHODS[method]
    policy = Policy(model, head=ours.head)
    if ours.head == "score":
        scores = Scores(pack, values=policy.values(pack))
    else:
        scores = Scores(pack, sum_by_response(pack, policy.token_logps(pack)))
    loss = ours.loss(scores, parse_arguments(method, extra)) / 2
    found = gradient(model, loss)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert float((found - expected).norm() / expected.norm()) <= 1e-5


def test_kto_is_that_of_trl(tokenizer: Any, tmp_path: Path) -> None:
    """Its distance from the reference, its two weights, and the mean over all votes."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import KTOConfig, KTOTrainer

    given = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    trainer = KTOTrainer(
        model=tiny_model("llama"),
        args=KTOConfig(
            output_dir=str(tmp_path),
            max_length=None,
            per_device_train_batch_size=2,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            **given,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": "a", "completion": " b", "label": label} for label in (True, False)]
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    model = trainer.model
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    model.eval()
    every, others = trees(), strangers_of(trees())
    features = [
        {
            "prompt_ids": list(tree.prompt),
            "completion_ids": list(response),
            "KL_completion_ids": list(other.responses[0]),
            "label": bool(vote.good),
        }
        for tree, other in zip(every, others, strict=True)
        for response, vote in zip(tree.responses, tree.votes, strict=True)
    ]
    theirs = trainer.compute_loss(model, trainer.data_collator(features))
    expected = gradient(model, theirs)
    policy, method = Policy(model, head="lm"), METHODS["kto"]

    def both(pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), model.disable_adapter():
            reference = sum_by_response(pack, policy.token_logps(pack))
        return sum_by_response(pack, policy.token_logps(pack)), reference

    with torch.no_grad():
        logps, reference = both(build_pack(others))
        baseline = (logps - reference).mean().clamp(min=0)
    assert baseline > 0, "or the test shows nothing of it"
    pack = build_pack(every)
    logps, reference = both(pack)
    scores = Scores(pack, logps, reference, baseline=baseline)
    loss = method.loss(scores, parse_arguments("kto", given)) / sum(map(method.weight, every))
    found = gradient(model, loss)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert float((found - expected).norm() / expected.norm()) <= 1e-5


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
