"""Runs at their edges: the smallest data, the largest trees, bad moments to stop, odd numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.training.engine.conftest import (
    answer,
    events,
    preference_rows,
    tiny_model,
    user,
    write_snapshot,
)
from training.engine import train
from training.engine.__main__ import main
from training.engine.data import Pair, Tree, Votes, read_trees
from training.engine.errors import RunError
from training.engine.methods import METHODS
from training.engine.rundir import read_run

MakeRun = Callable[..., Path]
LIMITS = {"max_length": 256, "max_prompt_length": 128}


@pytest.fixture
def proved_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove in this process: a fresh one is another test's matter, and takes seconds to start."""
    from training.engine.prove import prove, read_proof

    def here(run: Any, _: Any) -> dict[str, Any]:
        prove(run)
        return read_proof(run.directory)

    monkeypatch.setattr(train, "prove_in_a_fresh_process", here)


pytestmark = pytest.mark.usefixtures("proved_here")


def report(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return found


def losses(directory: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events(directory, "step")}


def snapshot_of(folder: Path, **parts: list[dict[str, Any]]) -> dict[str, str]:
    """Write rows with whatever columns they have."""
    folder.mkdir()
    for part, rows in parts.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
    return {"path": str(folder), "digest": folder.name}


# Stopping and going on


def test_a_pause_between_two_packs_of_a_step_changes_nothing(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each prompt is a pack of its own here, and dropout is drawn for each.
    settings = {"arguments": {"epochs": 2, "lora_dropout": 0.3, "token_budget": 1}}
    whole, paused = make_run("whole", **settings), make_run("paused", **settings)
    assert main([str(whole)]) == 0
    real, packs = train.pair_metrics, []

    def metrics(*given: Any) -> dict[str, float]:
        packs.append(given)
        if len(packs) == 6:  # the second step's second of four
            (paused / "stop").write_text("pause")
        return real(*given)

    monkeypatch.setattr(train, "pair_metrics", metrics)
    assert main([str(paused)]) == 5
    assert list(losses(paused)) == [1]
    assert main([str(paused)]) == 0
    assert losses(paused) == pytest.approx(losses(whole), abs=1e-6)


def test_steps_taken_twice_are_shown_once(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = make_run(arguments={"epochs": 4, "checkpoint_every": 3})
    real, taken = train.one_step, []

    def step(*given: Any) -> dict[str, float]:
        taken.append(given)
        if len(taken) == 6:
            raise RuntimeError("the machine stumbles")
        return real(*given)

    monkeypatch.setattr(train, "one_step", step)
    assert main([str(directory)]) == 1
    assert main([str(directory)]) == 0
    assert [event["step"] for event in events(directory, "step")].count(4) == 2
    board = EventAccumulator(str(directory / "tensorboard"))
    board.Reload()
    assert [one.step for one in board.Scalars("loss")] == list(range(1, 9))


def test_a_run_that_was_changed_is_not_gone_on_with(make_run: MakeRun) -> None:
    directory = make_run(arguments={"checkpoint_every": 1})
    assert main([str(directory)]) == 0
    (directory / "report.json").unlink()
    path = directory / "run.json"
    run = json.loads(path.read_text())
    run["arguments"]["batch_size"] = 2
    path.write_text(json.dumps(run))
    assert main([str(directory)]) == 2
    assert "run.json was changed after step 6" in events(directory, "error")[0]["reason"]


def test_a_run_goes_on_from_the_one_it_names_and_from_no_other(make_run: MakeRun) -> None:
    directory = make_run(arguments={"checkpoint_every": 1, "max_steps": 2})

    def again(steps: int, continues: str) -> int:
        path = directory / "run.json"
        run = json.loads(path.read_text()) | {"continues": continues}
        run["arguments"]["max_steps"] = steps
        path.write_text(json.dumps(run))
        (directory / "report.json").unlink()
        return main([str(directory)])

    assert main([str(directory)]) == 0
    first = read_run(directory).asked
    assert again(4, first) == 0
    assert [one["step"] for one in events(directory, "step")] == [1, 2, 3, 4]
    assert again(6, first) == 2, "its checkpoints are its own by now"
    assert "run.json was changed after step 4" in events(directory, "error")[0]["reason"]


# Little data


@pytest.mark.parametrize("method", ["dpo", "kto", "reward", "sft"])
def test_one_row_is_enough_to_run(make_run: MakeRun, tmp_path: Path, method: str) -> None:
    rows = preference_rows("train", 1, responses=2)
    folder = write_snapshot(tmp_path / "one", train=rows)  # and no held-out file at all
    directory = make_run(method=method, snapshot={"path": str(folder), "digest": "one"})
    assert main([str(directory)]) == 0
    assert report(directory)["rows"]["used"] == 1
    assert report(directory)["evaluation"]["after"] is None
    assert all(math.isfinite(loss) for loss in losses(directory).values())


def test_ties_alone_are_learnt_and_no_accuracy_is_made_up(
    make_run: MakeRun, tmp_path: Path
) -> None:
    rows = [{**row, "tie": True} for row in preference_rows("train", 4, responses=2)]
    arguments = {"ties": "rao-kupper", "tie_threshold": 3.0}
    snapshot = snapshot_of(tmp_path / "ties", train=rows, heldout=rows[:2])
    directory = make_run(snapshot=snapshot, arguments=arguments)
    assert main([str(directory)]) == 0
    first = events(directory, "step")[0]
    # At d = 0 a tie has (9 - 1) s(-log 3)^2 = 8 / 16.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/accuracies"] is None
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert report(directory)["evaluation"]["after"] is None


def test_votes_alone_make_no_pairs_up(make_run: MakeRun, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": user(f"{number}?"),
            "chosen": answer(f"river {number}") if number % 2 else None,
            "rejected": None if number % 2 else answer(f"old stone {number}"),
            "prompt_id": str(number),
        }
        for number in range(6)
    ]
    directory = make_run(method="kto", snapshot=snapshot_of(tmp_path / "votes", train=rows))
    assert main([str(directory)]) == 0
    last = events(directory, "step")[-1]
    assert last["rewards/accuracies"] is None
    assert math.isfinite(last["kl"])
    assert last["loss"] < losses(directory)[1]


# Large trees


def ranking() -> Tree:
    lengths = (4, 6, 5, 3)
    return Tree(
        (9,) * 5,
        tuple((10 + place,) * length for place, length in enumerate(lengths)),
        (Pair(0, 1), Pair(0, 2), Pair(2, 3)),
        (Votes(2.0, 0.0), Votes(0.0, 1.0), Votes(1.0, 1.0), Votes(3.0, 1.0)),
    )


@pytest.mark.parametrize("name", ["dpo", "kto", "sft"])
def test_a_tree_that_is_cut_teaches_what_the_whole_one_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, tree = METHODS[name], ranking()
    monkeypatch.setattr(train, "LARGEST_TREE", 10)
    parts = list(train.split_training_tree(tree, method))
    assert len(parts) > 1
    assert sum(map(method.weight, parts)) == pytest.approx(method.weight(tree))
    if method.single:
        kept = [pair for part in parts for pair in zip(part.responses, part.votes, strict=True)]
        every = zip(tree.responses, tree.votes, method.taught(tree), strict=True)
        assert kept == [(one, vote) for one, vote, taught in every if taught]
    assert all(part.tokens <= 10 or len(part.responses) <= 2 for part in parts)


def test_a_large_ranking_trains_by_votes(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the largest tree: its votes were once left behind, and SFT broke off."""
    monkeypatch.setattr(train, "LARGEST_TREE", 60)
    directory = make_run(method="kto", arguments={"epochs": 1})
    assert main([str(directory)]) == 0
    assert len(losses(directory)) > 2, "the rankings are cut, so there are more steps"
    assert all(loss > 0 for loss in losses(directory).values())


def test_ktos_baseline_comes_from_answers_to_other_prompts() -> None:
    def tree(prompt: int, response: int) -> Tree:
        return Tree((prompt,), ((response,),), ())

    trees = [tree(1, 10), tree(1, 11), tree(2, 20), tree(3, 30), tree(3, 31)]
    found = train.strangers_of(trees)
    assert [one.prompt for one in found] == [one.prompt for one in trees]
    assert [one.responses[0][0] for one in found] == [20, 20, 30, 10, 10]
    assert len(train.strangers_of([tree(1, 10)])) == 1


# Numbers


def test_a_reward_model_is_probed_at_several_places() -> None:
    """One score may be near 0 by chance, and a harmless rounding then refuses a good model."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from tests.training.engine.conftest import SIZES
    from training.engine.prove import ROWS, probe

    config = AutoConfig.for_model("llama", **SIZES, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.arange(10, 30)
    found = probe(model, ids, "score")
    assert found.shape == (ROWS, 1)
    assert probe(model, ids, "score", rows=1).item() == pytest.approx(found[-1].item(), abs=1e-6)
    assert probe(model, ids[:3], "score").shape == (3, 1)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_ends_the_run(name: str, value: float) -> None:
    with pytest.raises(RunError, match="Lower learning_rate"):
        train.check_finite(3, {"loss": 1.0, "grad_norm": 1.0, name: value})


def test_weight_decay_spares_norms_and_biases() -> None:
    """As TRL's trainers do: a norm's weight belongs near 1, not near 0."""
    named = dict(tiny_model("qwen2").named_parameters())
    decayed, spared = train.parameter_groups(named, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(one): name for name, one in named.items()}
    free = {names[id(one)] for one in spared["params"]}
    assert free == {name for name in named if "norm" in name or name.endswith("bias")}
    assert len(free) + len(decayed["params"]) == len(named)
    assert len(train.parameter_groups({"lora_A": torch.nn.Parameter(torch.ones(2, 2))}, 0.1)) == 1


# Bases that do not fit


def test_it_refuses_tokens_without_an_embedding(
    make_run: MakeRun, tmp_path: Path, tokenizer: Any
) -> None:
    import copy

    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["seagull"])
    folder = tmp_path / "grown"
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    grown.save_pretrained(folder)
    rows = preference_rows("train", 2)
    rows[0]["prompt"] = user("a seagull")
    snapshot = write_snapshot(tmp_path / "rows", train=rows)
    directory = make_run(
        base={"path": str(folder), "digest": "grown"},
        snapshot={"path": str(snapshot), "digest": "rows"},
    )
    assert main([str(directory)]) == 2
    reason = events(directory, "error")[0]["reason"]
    known = len(tokenizer)
    assert reason.startswith(f"The tokenizer writes token {known}, but the base has {known} emb")


def test_it_refuses_texts_longer_than_the_base_reads(make_run: MakeRun, tmp_path: Path) -> None:
    rows = preference_rows("train", 2)
    rows[0]["chosen"] = answer("sea " * 600)
    snapshot = write_snapshot(tmp_path / "rows", train=rows)
    arguments = {"max_length": 800, "max_prompt_length": 128}
    directory = make_run(snapshot={"path": str(snapshot), "digest": "long"}, arguments=arguments)
    assert main([str(directory)]) == 2
    assert "lower max_length to 512" in events(directory, "error")[0]["reason"]


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_a_shared_head_takes_no_lora(
    make_run: MakeRun, tmp_path: Path, tokenizer: Any, name: str
) -> None:
    """Merged, it would change the embeddings too: the proof refused it, after all the training."""
    arguments = {"target_modules": [name, "q_proj"], "epochs": 1}
    directory = make_run("shared", arguments=arguments)
    assert main([str(directory)]) == 2
    assert "one matrix in this base" in events(directory, "error")[0]["reason"]
    tiny_model("llama").save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    own = {"path": str(tmp_path / "own"), "digest": "own"}
    directory = make_run("apart", base=own, arguments=arguments)
    assert main([str(directory)]) == 0
    assert report(directory)["proof"]["passed"]


@pytest.mark.parametrize("engine", ["tree", "trl"])
def test_a_tokenizer_without_a_pad_will_do(
    make_run: MakeRun, tmp_path: Path, tokenizer: Any, engine: str
) -> None:
    """And with pad = eos a reward model reads its score at the end of the turn all the same."""
    import copy

    from transformers import AutoTokenizer

    found = []
    for pad in (None, tokenizer.eos_token):
        bare = copy.deepcopy(tokenizer)
        bare.pad_token = pad
        folder = tmp_path / f"base-{pad and 'eos'}"
        model = tiny_model("llama")
        model.config.pad_token_id = model.generation_config.pad_token_id = bare.pad_token_id
        model.save_pretrained(folder)
        bare.save_pretrained(folder)
        directory = make_run(
            f"{engine}-{pad and 'eos'}",
            method="reward",
            base={"path": str(folder), "digest": folder.name},
            arguments={"engine": engine, "epochs": 1, "learning_rate": 1e-3},
        )
        assert main([str(directory)]) == 0
        found.append(losses(directory))
        saved = AutoTokenizer.from_pretrained(directory / "adapter")
        assert saved.pad_token == pad, "it is saved as it came"
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0] == pytest.approx({1: found[0][1], 2: found[0][2]})


def test_both_directions_of_a_soft_label_and_their_sum(tmp_path: Path, tokenizer: Any) -> None:
    """A label of 0.5 pulls neither way, and weighs what its row weighs."""
    rows = [
        {
            "prompt": user("?"),
            "chosen": answer("a"),
            "rejected": answer("b"),
            "weight": 2.0,
            "probability": 0.5,
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    ((tree,), _) = read_trees(tmp_path / "train.parquet", tokenizer, **LIMITS)
    assert [(pair.chosen, pair.rejected, pair.weight) for pair in tree.pairs] == [
        (0, 1, 1.0),
        (1, 0, 1.0),
    ]
    assert tree.votes == (Votes(1.0, 1.0), Votes(1.0, 1.0))
