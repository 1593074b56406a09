"""Preflight's formulas: the published figures, and the engine's own counts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inference.engine import tiny
from training import preflight
from training.engine import estimate as formulas
from training.engine.arguments import parse_arguments
from training.engine.data import Pair, Tree, divergence_trees, read_trees
from training.engine.estimate import (
    Hardware,
    Matrix,
    Measured,
    Tokens,
    estimate,
    lora_parameters,
    read_shape,
    too_large_rank,
    trainable_parameters,
)
from training.engine.general import read_general
from training.engine.methods import METHODS
from training.engine.models import add_adapter, load_base, load_tokenizer, pick_device
from training.engine.tokens import SINGLE, PlainTokenizer, count_snapshot
from training.engine.train import TOKEN_BUDGET, total_steps

MACHINE = Hardware(name="a CPU", device="cpu", memory_mb=8000, disk_mb=1000, gflops=100)
TOKENS = Tokens(
    rows=100,
    used=98,
    truncated=3,
    trees=90,
    tokens=9000,
    response_tokens=4500,
    responses=180,
    longest=400,
    spread=60.0,
    chosen_length=25.0,
    rejected_length=25.0,
    heldout_tokens=1000,
    heldout_responses=20,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("estimate") / "tiny")


def test_full_weights_are_foretold_in_the_fp32_that_trains_them(folder: Path) -> None:
    quick = replace(MACHINE, bf16=True)
    found = {
        tuning: estimate(
            shape=read_shape(folder),
            arguments=parse_arguments("sft", {"tuning": tuning}),
            tokens=TOKENS,
            hardware=quick,
            method="sft",
            reference=False,
            head="lm",
        )
        for tuning in ("lora", "full")
    }
    assert {tuning: one.precision for tuning, one in found.items()} == {
        "lora": "bf16",
        "full": "fp32",
    }


def test_it_counts_the_published_loras() -> None:
    assert lora_parameters(4, [Matrix("w", 512, 512)]) == 4096
    assert pytest.approx(0.0156, abs=1e-4) == 4096 / (512 * 512)
    # GPT-3: query and value of 96 layers, 12,288 wide (Hu et al. 2021, table 15)
    gpt3 = [Matrix(name, 12288, 12288) for name in ("q", "v") for _ in range(96)]
    millions = [lora_parameters(r, gpt3) / 1e6 for r in (1, 2, 8, 64)]
    assert millions == pytest.approx([4.7, 9.4, 37.7, 301.9], abs=0.1)


def test_it_names_the_layers_where_a_rank_saves_nothing() -> None:
    layers = [Matrix("q", 512, 512), Matrix("down", 2048, 512)]
    assert too_large_rank(255, layers) == []
    assert too_large_rank(256, layers) == ["q"]
    assert too_large_rank(410, layers) == ["down", "q"]


@pytest.mark.parametrize("method", ["dpo", "reward"])
@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "v_proj"]])
@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_it_counts_what_peft_trains(
    folder: Path, method: str, targets: list[str], tuning: str
) -> None:
    head = METHODS[method].head
    wanted = {"lora_r": 3, "target_modules": targets, "tuning": tuning}
    arguments = parse_arguments(method, wanted)
    base = load_base(folder, head=head, tuning="lora", dtype=torch.float32, device=pick_device())
    model = add_adapter(base, arguments, head=head, seed=0, parent=None)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert trainable_parameters(read_shape(folder), arguments, head=head) == trained


def test_it_knows_what_the_engine_knows() -> None:
    """The same constants stand in modules that need torch; here is where they would drift."""
    assert {name for name, method in METHODS.items() if method.single} == set(SINGLE)
    assert {name for name, method in METHODS.items() if method.reference} == set(
        preflight.NEEDS_REFERENCE
    )
    assert {name for name, one in METHODS.items() if one.head == "score"} == set(
        preflight.SCORE_HEAD
    )
    assert formulas.TOKEN_BUDGET == TOKEN_BUDGET
    for changes in ({}, {"max_steps": 5}, {"epochs": 7, "batch_size": 3}):
        arguments = parse_arguments("dpo", changes)
        assert formulas.steps(100, arguments) == total_steps(100, arguments)


def test_it_writes_prompts_as_transformers_does(folder: Path) -> None:
    ours, theirs = PlainTokenizer(folder), load_tokenizer(folder)
    turns = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Café 🙂?"}]
    text = ours.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    found = ours(text, add_special_tokens=False)["input_ids"]
    assert found == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.eos_token_id == theirs.eos_token_id


def test_it_foretells_less_memory_for_fewer_bits_and_smaller_packs(folder: Path) -> None:
    layers = (Matrix("w", 20_000, 20_000),) * 2
    shape = replace(read_shape(folder), parameters=10**9, matrices=layers)

    def peak(**changes: Any) -> float:
        arguments = parse_arguments("dpo", {"precision": "fp32", "batch_size": 8, **changes})
        return estimate(
            shape, arguments, TOKENS, MACHINE, method="dpo", reference=True, head="lm"
        ).peak_memory_mb

    assert peak(token_budget=400) < peak()
    assert peak(gradient_checkpointing=True) < peak()
    assert peak(tuning="qlora4") < peak(tuning="qlora8") < peak()


def test_measurements_replace_the_guess_and_a_cut_run_takes_its_share(folder: Path) -> None:
    shape = read_shape(folder)
    known = Measured(tokens_per_second=100.0, overhead_seconds=7.0, memory_factor=2.0)

    def foretell(measured: Measured | None, **changes: Any) -> formulas.Estimate:
        arguments = parse_arguments("orpo", {"epochs": 2, "batch_size": 10, **changes})
        return estimate(
            shape,
            arguments,
            TOKENS,
            MACHINE,
            method="orpo",
            reference=False,
            head="lm",
            measured=measured,
        )

    plain, found = foretell(None), foretell(known)
    assert (found.steps, found.tokens) == (18, 18_000)
    assert found.training_seconds == 180.0
    # and twice the held-out part, without a gradient: twice as quick
    assert found.seconds == 180 + 2 * 1000 / 200 + 7
    assert found.peak_memory_mb == pytest.approx(2 * plain.peak_memory_mb, abs=0.2)
    assert foretell(known, max_steps=9).training_seconds == 90.0


@pytest.mark.parametrize(
    ("method", "tuning", "read"),
    # Held-out and general text before and after; with a reference: everything once more, and the
    # held-out part looked up before; the KL twice.
    [
        ("sft", "lora", 2 * 1000 + 2 * 300 + 2 * 150),
        ("dpo", "lora", 9000 + 1000 + 1000 + 2 * 300 + 2 * 150),
        ("dpo", "full", 9000 + 1000 + 1000 + 2 * 300),
        ("reward", "lora", 2 * 1000),
    ],
)
def test_it_counts_what_is_read_without_a_gradient(
    folder: Path, method: str, tuning: str, read: int
) -> None:
    found = estimate(
        read_shape(folder),
        parse_arguments(method, {"tuning": tuning, "learning_rate": 1e-5}),
        replace(TOKENS, general_tokens=300, divergence_tokens=150),
        MACHINE,
        method=method,
        reference=method == "dpo",
        head="score" if method == "reward" else "lm",
        measured=Measured(tokens_per_second=10.0, overhead_seconds=7.0),
    )
    quicker = 3 if tuning == "full" else 2  # than with one
    assert found.passes_seconds == pytest.approx(read / 10 / quicker, abs=0.06)
    total = found.training_seconds + found.passes_seconds + 7
    assert found.seconds == pytest.approx(total, abs=0.2)


def test_it_counts_the_same_texts_as_the_engine_measures(base: Path, snapshot: Path) -> None:
    tokenizer = load_tokenizer(base)
    limits = {"max_length": 256, "max_prompt_length": 128}
    heldout, _ = read_trees(snapshot / "heldout.parquet", tokenizer, **limits)
    found = count_snapshot(snapshot, base, limits)
    assert found.general_tokens == len(read_general(tokenizer))
    assert found.divergence_tokens == sum(one.tokens for one in divergence_trees(heldout))
    assert 0 < found.divergence_tokens < found.heldout_tokens


def test_it_needs_no_torch() -> None:
    code = (
        "import sys, training.engine.estimate, training.engine.tokens; "
        "sys.exit('torch' in sys.modules or 'django' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_counts_what_the_engine_measures_on() -> None:
    tree = Tree((1, 2), ((3,), (4, 5)), (Pair(0, 1),))
    ties = replace(tree, pairs=(Pair(0, 1, tie=True),))
    found = formulas.count_tokens([tree], [tree, ties], rows=1, used=1, truncated=0)
    assert (found.heldout_tokens, found.heldout_responses) == (tree.tokens, 2)
