"""Every method trains, and how a batch is cut into passes changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.engine.conftest import answer, events, tiny_model, user, write_snapshot
from training.engine.__main__ import main

MakeRun = Callable[..., Path]


def report(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return found


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("dpo", {"loss": "ipo"}),
        ("orpo", {"beta": 1.0}),
        ("simpo", {}),
        ("kto", {}),
        ("reward", {"use_margin": True, "centring": 0.01}),
        ("sft", {}),
    ],
)
def test_it_trains_and_proves(make_run: MakeRun, method: str, arguments: dict[str, Any]) -> None:
    directory = make_run(method=method, arguments={"epochs": 4, **arguments})
    assert main([str(directory)]) == 0
    found = report(directory)
    before, after = found["evaluation"]["before"], found["evaluation"]["after"]
    assert found["proof"]["passed"]
    assert after["margin"] > before["margin"]
    steps = events(directory, "step")
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_the_score_head_is_trained_saved_and_reloaded(make_run: MakeRun, base: Path) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    directory = make_run(method="reward")
    assert main([str(directory)]) == 0
    path = directory / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    (head,) = [name for name in tensors if "score" in name]
    # As anybody loads it, whatever the fresh head is.
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model = PeftModel.from_pretrained(model, directory / "adapter").eval()
        scores.append(model(input_ids=torch.tensor([[1, 20, 30, 2]])).logits.item())
    assert scores[0] == scores[1]
    # An adapter that lost its head is refused.
    save_file({name: value for name, value in tensors.items() if name != head}, path)
    assert main(["prove", str(directory)]) == 4


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "reward", "sft"])
def test_one_pass_of_eight_equals_eight_of_one(make_run: MakeRun, method: str) -> None:
    settings = {"batch_size": 8, "epochs": 3}
    whole = make_run("whole", method=method, arguments={**settings, "token_budget": 100_000})
    single = make_run("single", method=method, arguments={**settings, "token_budget": 1})
    for directory in (whole, single):
        assert main([str(directory)]) == 0
    for one, other in zip(events(whole, "step"), events(single, "step"), strict=True):
        for name in {"loss", "grad_norm", "rewards/margins", "kl"} & set(one):
            assert one[name] == pytest.approx(other[name], abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("reference", ["parent", "base"])
def test_it_continues_from_an_adapter(make_run: MakeRun, reference: str) -> None:
    first = make_run("first")
    assert main([str(first)]) == 0
    parent = {"path": str(first / "adapter"), "digest": report(first)["adapter_digest"]}
    second = make_run("second", parent=parent, arguments={"reference": reference})
    assert main([str(second)]) == 0
    start, before = events(second, "step")[0], report(second)["evaluation"]["before"]
    learnt = report(first)["evaluation"]["after"]
    if reference == "parent":
        assert start["rewards/margins"] == pytest.approx(0, abs=1e-4)
        assert before["reward_accuracy"] == 0.5
    else:
        assert before["margin"] == pytest.approx(learnt["margin"], rel=1e-3)


@pytest.mark.parametrize(
    ("tuning", "engine"), [("qlora4", "tree"), ("qlora8", "tree"), ("qlora8", "trl")]
)
def test_it_trains_on_a_quantised_base(
    make_run: MakeRun, tmp_path: Path, tokenizer: Any, tuning: str, engine: str
) -> None:
    # bitsandbytes quantises in blocks of 64.
    folder = tmp_path / "wider"
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base = {"path": str(folder), "digest": "wider"}
    directory = make_run(base=base, arguments={"tuning": tuning, "engine": engine, "epochs": 4})
    assert main([str(directory)]) == 0
    assert report(directory)["proof"]["passed"]
    assert report(directory)["evaluation"]["after"]["margin"] > 0


def test_gradient_checkpointing_changes_nothing(make_run: MakeRun) -> None:
    plain, sparing = make_run("plain"), make_run("less", arguments={"gradient_checkpointing": True})
    for directory in (plain, sparing):
        assert main([str(directory)]) == 0
    pairs = zip(events(plain, "step"), events(sparing, "step"), strict=True)
    assert all(one["loss"] == pytest.approx(other["loss"], abs=1e-5) for one, other in pairs)


def test_sft_learns_from_answers_without_a_rival(make_run: MakeRun, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": user(f"{number}?"),
            "chosen": answer(f"river {number}"),
            "rejected": None,
            "prompt_id": str(number),
            "margin": 1.0,
            "weight": 1.0,
        }
        for number in range(6)
    ]
    folder = write_snapshot(tmp_path / "answers", train=rows, heldout=[])
    directory = make_run(method="sft", snapshot={"path": str(folder), "digest": "answers"})
    assert main([str(directory)]) == 0
    assert report(directory)["rows"]["used"] == 6
    assert report(directory)["evaluation"]["after"] is None
