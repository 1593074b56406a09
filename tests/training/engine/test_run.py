"""A whole run: as a process, interrupted, cancelled, with bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.engine.conftest import (
    answer,
    events,
    preference_rows,
    user,
    write_snapshot,
)
from training.engine.__main__ import main

ROOT = Path(__file__).parents[3]
MakeRun = Callable[..., Path]


def start(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "training.engine", str(directory)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def wait_for_step(directory: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = directory / "events.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        assert process.poll() is None, path.read_text()
        time.sleep(0.02)
    pytest.fail("the run did not get so far")


def losses(directory: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events(directory, "step")}


def test_it_trains_proves_and_reports(make_run: MakeRun) -> None:
    directory = make_run()
    assert main([str(directory)]) == 0
    report = json.loads((directory / "report.json").read_text())
    assert report["steps"] == 6
    assert report["rows"] == {"in": 48, "used": 48, "truncated": 0, "dropped": 0}
    assert report["proof"]["passed"]
    assert report["evaluation"]["before"]["reward_accuracy"] == 0.5
    assert report["evaluation"]["after"]["reward_accuracy"] > 0.8
    assert report["evaluation"]["after"]["margin"] > 0
    assert report["evaluation"]["pairs"] == 24
    assert 0 < report["trainable_share"] < 1
    steps = events(directory, "step")
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # log 2: policy = reference
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"] + 0.1
    assert {"adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"} <= {
        path.name for path in (directory / "adapter").iterdir()
    }
    states = [event["state"] for event in events(directory, "state")]
    assert states[-3:] == ["saving", "proving", "done"]
    # Once done, it stays done.
    before = (directory / "report.json").read_text()
    assert main([str(directory)]) == 0
    assert (directory / "report.json").read_text() == before


def test_it_goes_on_after_a_kill_as_if_nothing_had_happened(make_run: MakeRun) -> None:
    settings = {"arguments": {"epochs": 10, "checkpoint_every": 2, "lora_dropout": 0.1}}
    whole, killed = make_run("whole", **settings), make_run("killed", **settings)
    assert main([str(whole)]) == 0
    process = start(killed)
    wait_for_step(killed, 5, process)
    process.kill()
    process.wait()
    assert not (killed / "report.json").exists()
    assert main([str(killed)]) == 0
    assert any("Resumed after step" in event["message"] for event in events(killed, "note"))
    assert losses(killed) == pytest.approx(losses(whole), abs=1e-5)
    ends = [json.loads((one / "report.json").read_text()) for one in (whole, killed)]
    assert ends[0]["evaluation"]["after"]["margin"] == pytest.approx(
        ends[1]["evaluation"]["after"]["margin"], rel=1e-4
    )


def test_it_stops_within_a_step_when_asked(make_run: MakeRun) -> None:
    directory = make_run(arguments={"epochs": 1000})
    process = start(directory)
    wait_for_step(directory, 3, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 3
    done = len(losses(directory))
    assert done < 1000
    assert (directory / "checkpoints" / f"step-{done}").is_dir()
    assert not (directory / "report.json").exists()


def test_it_starts_from_the_checkpoint_before_a_damaged_one(make_run: MakeRun) -> None:
    from training.engine.checkpoints import load_checkpoint

    directory = make_run(arguments={"checkpoint_every": 1})
    assert main([str(directory)]) == 0
    newest = directory / "checkpoints" / "step-6" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    found = load_checkpoint(directory / "checkpoints")
    assert found is not None
    assert found[0].step == 5


def test_it_computes_only_new_references(make_run: MakeRun, tmp_path: Path) -> None:
    assert main([str(make_run("first"))]) == 0
    grown = write_snapshot(
        tmp_path / "grown",
        train=preference_rows("train", 9),
        heldout=preference_rows("heldout", 4),
    )
    second = make_run("second", snapshot={"path": str(grown), "digest": "grown"})
    assert main([str(second)]) == 0
    notes = [event["message"] for event in events(second, "note")]
    assert "Reference log-probs: 48 of 52 were stored already." in notes


def test_it_lets_one_process_work_in_a_directory(make_run: MakeRun) -> None:
    from training.engine.rundir import only_one

    directory = make_run()
    with only_one(directory):
        assert main([str(directory)]) == 2
    assert "Another process" in events(directory, "error")[0]["reason"]


def bad_rows(change: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    rows = preference_rows("train", 2)
    for row in rows:
        change(row)
    return rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "None of the snapshot's 0 training rows"),
        (bad_rows(lambda row: row.update(rejected=row["chosen"])), "two different responses"),
        (bad_rows(lambda row: row.update(weight=-1.0)), "weight above 0"),
        (bad_rows(lambda row: row.update(margin=float("nan"))), "margin is not a finite number"),
        (bad_rows(lambda row: row.update(chosen=[])), "chosen must be a list of messages"),
        (bad_rows(lambda row: row.update(prompt=user("long " * 600))), "room for them"),
    ],
)
def test_it_says_what_is_wrong_with_the_rows(
    make_run: MakeRun, tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    folder = write_snapshot(tmp_path / "bad", train=rows, heldout=[])
    limits = {"arguments": {"max_length": 129, "max_prompt_length": 128}}
    directory = make_run(snapshot={"path": str(folder), "digest": "bad"}, **limits)
    if "room" in words:
        # One token is left for each response, and all begin alike.
        for row in rows:
            row["chosen"] = row["rejected"] = answer("a")
        write_snapshot(folder, train=rows, heldout=[])
        words = "two different responses"
    assert main([str(directory)]) == 2
    assert words in events(directory, "error")[0]["reason"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arguments": {"betta": 0.1}}, "did you mean beta"),
        ({"arguments": {"beta": "strong"}}, "beta must be a number"),
        ({"method": "ppo"}, "There is no method 'ppo'"),
        ({"base": {"path": "/nowhere", "digest": ""}}, "does not exist"),
        ({"snapshot": {"path": "/nowhere", "digest": ""}}, "does not exist"),
        ({"arguments": {"engine": "magic"}}, "engine must be one of auto, tree, trl"),
    ],
)
def test_it_says_what_is_wrong_with_run_json(
    make_run: MakeRun, changes: dict[str, Any], words: str
) -> None:
    directory = make_run(**changes)
    assert main([str(directory)]) == 2
    assert words in events(directory, "error")[0]["reason"]


def test_it_says_when_parquet_is_damaged(make_run: MakeRun, tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path / "bad", heldout=[])
    (folder / "train.parquet").write_bytes(b"PAR1 not really")
    directory = make_run(snapshot={"path": str(folder), "digest": "bad"})
    assert main([str(directory)]) == 2
    assert "damaged" in events(directory, "error")[0]["reason"]


def test_it_stops_at_a_loss_that_is_no_number(make_run: MakeRun) -> None:
    directory = make_run(arguments={"learning_rate": 1.0, "max_grad_norm": 0.0, "lora_alpha": 1e30})
    assert main([str(directory)]) == 1
    assert "Lower learning_rate" in events(directory, "error")[0]["reason"]


def test_prove_refuses_a_changed_adapter(make_run: MakeRun) -> None:
    from safetensors.torch import load_file, save_file

    directory = make_run()
    assert main([str(directory)]) == 0
    path = directory / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: value + 0.1 for name, value in tensors.items()}, path)
    assert main(["prove", str(directory)]) == 4
    assert not json.loads((directory / "proof.json").read_text())["passed"]


def test_the_engine_imports_no_django_and_its_arguments_no_torch() -> None:
    code = (
        "import sys, training.engine.arguments; assert 'torch' not in sys.modules; "
        "import training.engine.train, training.engine.prove; "
        "assert not [name for name in sys.modules if name.split('.')[0] == 'django']"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_it_halves_its_packs_once_when_memory_runs_out(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from training.engine import policy

    plenty, little = make_run("plenty"), make_run("little", arguments={"token_budget": 400})
    assert main([str(plenty)]) == 0
    real = policy.hidden_states

    def with_little_memory(decoder: Any, pack: Any) -> Any:
        if torch.is_grad_enabled() and pack.tokens > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(decoder, pack)

    monkeypatch.setattr(policy, "hidden_states", with_little_memory)
    assert main([str(little)]) == 0
    assert losses(little) == pytest.approx(losses(plenty), abs=1e-4)
    (note,) = [one["message"] for one in events(little, "note") if "halved" in one["message"]]
    assert "200 tokens" in note
    # Where that is not enough, the reason says what to change.
    (little / "report.json").unlink()
    tight = make_run("tight", arguments={"token_budget": 4000})
    assert main([str(tight)]) == 1
    assert "lower token_budget" in events(tight, "error")[0]["reason"]


def test_a_full_disk_has_a_plain_reason() -> None:
    from training.engine.__main__ import plain_reason

    full = OSError(28, "No space left on device")
    assert "disk is full" in plain_reason(full)
    assert "disk is full" in plain_reason(RuntimeError("I/O error: No space left on device"))
