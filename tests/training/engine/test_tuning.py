"""Full weights; several processes; pause; trackers; perplexity; the sparse mask."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.engine.conftest import events
from tests.training.engine.test_against_trl import some_trees
from training.engine.__main__ import main

ROOT = Path(__file__).parents[3]
MakeRun = Callable[..., Path]


def losses(directory: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events(directory, "step")}


def report(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return found


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_full_weights_are_trained_saved_and_proved(make_run: MakeRun, method: str) -> None:
    from inference.artifacts import weights_digest

    directory = make_run(method=method, arguments={"tuning": "full", "learning_rate": 1e-3})
    assert main([str(directory)]) == 0
    found = report(directory)
    assert (found["weights"], found["trainable_share"]) == ("full", 1.0)
    assert found["proof"]["passed"]
    assert found["evaluation"]["after"]["margin"] > found["evaluation"]["before"]["margin"]
    assert found["model_digest"] == weights_digest(directory / "model")
    assert not (directory / "adapter").exists()


def test_a_dora_is_trained_proved_and_merged(make_run: MakeRun) -> None:
    directory = make_run(arguments={"tuning": "dora"})
    assert main([str(directory)]) == 0
    config = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert config["use_dora"]
    proof = report(directory)["proof"]
    assert (proof["passed"], proof["weights"]) == (True, "dora")
    assert proof["merged"]["max_difference"] <= proof["merged"]["tolerance"]
    (first, *_, last) = losses(directory).values()
    assert first == pytest.approx(0.6931, abs=1e-3), "it begins as its base"
    assert last < first


def test_full_weights_go_on_from_an_adapter(make_run: MakeRun) -> None:
    first = make_run("first")
    assert main([str(first)]) == 0
    parent = {"path": str(first / "adapter"), "digest": "first"}
    arguments = {"tuning": "full", "learning_rate": 1e-4, "epochs": 1}
    second = make_run("second", parent=parent, arguments=arguments)
    assert main([str(second)]) == 0
    (step, *_) = events(second, "step")
    assert step["loss"] == pytest.approx(0.6931, abs=1e-3), "the adapter, folded in, is the start"
    assert report(second)["proof"]["passed"]


def train_together(directory: Path, sharding: str) -> None:
    """Train in two processes, which talk over gloo."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    # So called, it starts several processes without a GPU as well.
    options = ["--multi_gpu", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, *options, "-m", "training.engine", str(directory)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RUN_SHARDING": sharding},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    throughput = report(directory)["throughput"]
    assert (throughput["processes"], throughput["sharding"]) == (2, sharding)


FULL = {"tuning": "full", "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("sharding", "method", "tuning"),
    [
        ("ddp", "dpo", {}),
        pytest.param("ddp", "reward", {}, marks=pytest.mark.slow),
        ("fsdp", "dpo", FULL),
        ("fsdp", "dpo", {"gradient_checkpointing": True}),
        pytest.param("fsdp", "kto", {"epochs": 2}, marks=pytest.mark.slow),
        pytest.param("fsdp", "reward", FULL, marks=pytest.mark.slow),
        pytest.param("fsdp", "reward", {}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_losses_of_one(
    make_run: MakeRun, sharding: str, method: str, tuning: dict[str, Any]
) -> None:
    # Three prompts a step leave a process without a pack, now and then.
    arguments = {"checkpoint_every": 2, "batch_size": 3, "token_budget": 64, **tuning}
    alone = make_run("alone", method=method, arguments=arguments)
    together = make_run("together", method=method, arguments=arguments)
    assert main([str(alone)]) == 0
    train_together(together, sharding)
    assert losses(together) == pytest.approx(losses(alone), abs=1e-5)
    assert report(together)["evaluation"]["after"] == pytest.approx(
        report(alone)["evaluation"]["after"], abs=1e-4, rel=1e-6
    )
    assert report(together)["proof"]["passed"]


@pytest.mark.slow
def test_shards_go_on_where_one_process_stopped_and_the_other_way_round(make_run: MakeRun) -> None:
    first = make_run("first")
    assert main([str(first)]) == 0
    settings = {
        "parent": {"path": str(first / "adapter"), "digest": "first"},
        "arguments": FULL | {"batch_size": 3, "checkpoint_every": 5},
    }
    alone = make_run("alone", **settings)
    together, back = make_run("together", **settings), make_run("back", **settings)
    assert main([str(alone)]) == 0
    shutil.copytree(alone / "checkpoints" / "step-5", together / "checkpoints" / "step-5")
    train_together(together, "fsdp")
    expected = {step: loss for step, loss in losses(alone).items() if step > 5}
    assert losses(together) == pytest.approx(expected, abs=1e-5)
    shutil.copytree(together / "checkpoints" / "step-9", back / "checkpoints" / "step-9")
    assert main([str(back)]) == 0
    assert report(back)["model_digest"] == report(together)["model_digest"]


def test_it_says_what_cannot_be_sharded(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_SHARDING", "zero")
    directory = make_run()
    assert main([str(directory)]) == 2
    assert "set it to ddp or fsdp" in events(directory, "error")[0]["reason"]


def test_it_pauses_within_a_step_and_goes_on(make_run: MakeRun) -> None:
    settings = {"arguments": {"epochs": 8, "lora_dropout": 0.1}}
    whole, paused = make_run("whole", **settings), make_run("paused", **settings)
    assert main([str(whole)]) == 0

    def ask() -> None:
        path = paused / "events.jsonl"
        while not path.exists() or '"step": 3,' not in path.read_text():
            time.sleep(0.005)
        (paused / "stop").write_text("pause")

    asking = threading.Thread(target=ask)
    asking.start()
    assert main([str(paused)]) == 5
    asking.join()
    done = len(losses(paused))
    assert 3 <= done < 16
    assert (paused / "checkpoints" / f"step-{done}").is_dir()
    assert [event["state"] for event in events(paused, "state")][-1] == "paused"
    assert main([str(paused)]) == 0
    assert losses(paused) == pytest.approx(losses(whole), abs=1e-5)


def test_a_signal_pauses_too(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.engine import train

    directory, real = make_run(), train.one_step

    def step(*given: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGUSR1)
        return real(*given)

    monkeypatch.setattr(train, "one_step", step)
    assert main([str(directory)]) == 5


def test_a_full_disk_ends_a_run_that_goes_on_later(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.engine import checkpoints

    settings = {"arguments": {"checkpoint_every": 1}}
    whole, full = make_run("whole", **settings), make_run("full", **settings)
    assert main([str(whole)]) == 0
    real, written = checkpoints.save_file, []

    def save(tensors: Any, path: Path) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", save)
    assert main([str(full)]) == 1
    assert "disk is full: free some space" in events(full, "error")[0]["reason"]
    monkeypatch.setattr(checkpoints, "save_file", real)
    assert main([str(full)]) == 0
    assert losses(full) == pytest.approx(losses(whole), abs=1e-5)


def test_it_writes_tensorboard_files_and_what_preflight_learns_from(make_run: MakeRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = make_run()
    assert main([str(directory)]) == 0
    board = EventAccumulator(str(directory / "tensorboard"))
    board.Reload()
    expected = losses(directory)
    assert {one.step: one.value for one in board.Scalars("loss")} == pytest.approx(expected)
    assert {"kl", "rewards/margins", "memory_mb", "tokens_per_second"} <= set(
        board.Tags()["scalars"]
    )
    found = report(directory)["throughput"]
    assert {"loading", "reference", "training", "evaluating", "saving", "proving"} <= set(
        found["seconds"]
    )
    assert found["tokens"] > 0
    assert found["tokens_per_second"] == pytest.approx(
        found["tokens"] / found["training_seconds"], rel=0.01
    )


def test_it_says_which_tracker_is_missing(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_run()
    for name, words in (("sheets", "not known"), ("wandb", "pip install wandb")):
        monkeypatch.setenv("RUN_TRACKERS", name)
        monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
        assert main([str(directory)]) == 2
        assert words in events(directory, "error")[-1]["reason"]


def test_perplexity_of_base_and_adapter(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_run(method="sft", arguments={"epochs": 1})
    assert main(["perplexity", str(directory)]) == 2
    assert "train the run first" in capsys.readouterr().err
    assert main([str(directory)]) == 0
    capsys.readouterr()
    text = tmp_path / "text.txt"
    text.write_text("river sea light house road field green warm " * 20)
    assert main(["perplexity", str(directory), str(text)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trained"] < found["base"], "it learnt these words"
    measured = report(directory)["evaluation"]
    assert measured["before"]["perplexity"] > 1
    after = measured["after"]
    assert 0 < after["kl_low"] <= after["kl"] <= after["kl_high"]


@pytest.mark.parametrize("window", [None, 12])
def test_the_sparse_mask_is_the_dense_one(window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_mask

    from training.engine.tree import block_mask, build_pack, mask_function, sparse_mask

    pack = build_pack(some_trees())
    places = pack.tokens
    found = create_mask(mask_function(pack, window), 1, 1, places, places, device="cpu")
    assert torch.equal(found, block_mask(pack, window))
    assert sparse_mask(pack, window).shape[-2:] == (places, places)


def test_what_is_added_to_a_pack_sees_and_is_seen_by_nobody() -> None:
    from training.engine.tree import LENGTHS, block_mask, build_pack, rounded

    pack = build_pack(some_trees())
    longer = rounded(pack)
    assert longer.tokens % LENGTHS == 0
    mask, size = block_mask(longer)[0, 0], pack.tokens
    assert torch.equal(mask[:size, :size], block_mask(pack)[0, 0])
    assert not mask[:size, size:].any()
    assert not mask[size:, :size].any()
    assert mask[size:].any(-1).all(), "a place that sees nothing would be no number"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral-window", "gemma3_text"])
def test_flex_attention_gives_the_log_probs_of_the_dense_mask(kind: str) -> None:
    from tests.training.engine.conftest import tiny_model
    from tests.training.engine.test_against_trl import ARCHITECTURES
    from training.engine.policy import Policy
    from training.engine.tree import build_pack

    model = tiny_model(kind.partition("-")[0], **ARCHITECTURES[kind]).cuda()
    pack = build_pack(some_trees(), "cuda")
    dense = Policy(model, head="lm").token_logps(pack)
    model.set_attn_implementation("flex_attention")
    assert torch.allclose(Policy(model, head="lm").token_logps(pack), dense, atol=1e-3)


@pytest.mark.gpu
def test_cuda_gives_the_losses_of_the_cpu(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"arguments": {"learning_rate": 1e-3, "gradient_checkpointing": True}}
    there, here = make_run("cuda", **settings), make_run("cpu", **settings)
    assert main([str(there)]) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([str(here)]) == 0
    assert losses(there) == pytest.approx(losses(here), abs=1e-3)
