"""Saved adapters as they come: pickled, damaged, of another kind, for another base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.engine.conftest import events
from training.engine.__main__ import main
from training.engine.adapters import load_adapter
from training.engine.arguments import parse_arguments
from training.engine.errors import RunError
from training.engine.models import add_adapter, load_base, save_adapter
from training.engine.rundir import Artifact

MakeRun = Callable[..., Path]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CPU = torch.device("cpu")


def bare(base: Path, head: str = "lm") -> Any:
    return load_base(base, head=head, tuning="lora", dtype=torch.float32, device=CPU)


@pytest.fixture
def adapter(tmp_path: Path, base: Path, tokenizer: Any) -> Path:
    folder = tmp_path / "adapter"
    arguments = parse_arguments("dpo", {"lora_r": 4})
    model = add_adapter(bare(base), arguments, head="lm", seed=0, parent=None)
    save_adapter(model, tokenizer, folder, base=Artifact(base, ""))
    return folder


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def torn(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def one_tensor_less(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(min(tensors))
    save_file(tensors, folder / WEIGHTS)


def of_a_deeper_base(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    deeper = {name.replace("layers.", "layers.7"): one.clone() for name, one in tensors.items()}
    save_file(tensors | deeper, folder / WEIGHTS)


def of_a_wider_base(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name: one.repeat(2, 2) for name, one in tensors.items()}, folder / WEIGHTS)


def without_configuration(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


def unknown_to_peft(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"peft_type": "MAGIC"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (pickled, "only safetensors are read"),
        (torn, "or is damaged"),
        (empty, "or is damaged"),
        (one_tensor_less, "tensors are missing or fit nowhere"),
        (of_a_deeper_base, "tensors are missing or fit nowhere"),
        (of_a_wider_base, "does not fit this base"),
        (without_configuration, "no readable adapter_config.json"),
        (unknown_to_peft, "does not fit this base"),
    ],
)
def test_it_refuses_what_peft_would_pass_over(
    adapter: Path, base: Path, damage: Callable[[Path], None], words: str
) -> None:
    load_adapter(bare(base), adapter, head="lm")
    damage(adapter)
    with pytest.raises(RunError, match=words):
        load_adapter(bare(base), adapter, head="lm")


def test_a_reward_model_and_a_policy_are_not_taken_for_one_another(
    make_run: MakeRun, adapter: Path, base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    arguments = parse_arguments("reward", {"lora_r": 4})
    judge = add_adapter(bare(base, "score"), arguments, head="score", seed=0, parent=None)
    save_adapter(judge, tokenizer, tmp_path / "judge", base=Artifact(base, ""))
    for method, parent, words in (
        ("reward", adapter, "has no score head"),
        ("dpo", tmp_path / "judge", "is a reward model, which writes no text"),
    ):
        directory = make_run(method, method=method, parent={"path": str(parent), "digest": "p"})
        assert main([str(directory)]) == 2
        assert words in events(directory, "error")[0]["reason"]
