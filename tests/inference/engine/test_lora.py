from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from inference.engine.errors import Refusal
from inference.engine.runtime import Runtime
from tests.inference.engine import tiny

PROMPTS = [[5, 9, 300, 41], [7, 8], [100, 200, 300, 17, 30, 31], [64] * 9]


@pytest.fixture(scope="module")
def runtime(base: Path, adapters: dict[str, Path]) -> Runtime:
    runtime = Runtime(base, rows=4, dtype="float32", max_adapters=3)
    for name, path in adapters.items():
        runtime.bank.load(name, str(path))
    return runtime


def served_logits(runtime: Runtime, names: list[str | None]) -> torch.Tensor:
    """Read PROMPTS and step each by one token, all in one batch; [rows, vocabulary]."""
    chosen = [runtime.bank.acquire(name) if name else None for name in names]
    for row, (prompt, adapter) in enumerate(zip(PROMPTS, chosen, strict=True)):
        runtime.read(prompt[:3], 0, adapter)  # in two chunks, where it is long enough
        if prompt[3:]:
            runtime.read(prompt[3:], 3, adapter)
        runtime.cache.copy(runtime.cache.scratch, row, len(prompt))
    return runtime.step([11] * 4, [len(prompt) for prompt in PROMPTS], chosen)


def peft_logits(base: Path, adapter: Path | None, prompt: list[int]) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([[*prompt, 11]])).logits[0, -1]
    return logits


def test_a_mixed_batch_equals_peft_one_by_one(
    runtime: Runtime, base: Path, adapters: dict[str, Path]
) -> None:
    names = ["v-one", None, "v-three", "v-two"]
    mixed = served_logits(runtime, names)
    for row, name in enumerate(names):
        alone = peft_logits(base, adapters[name] if name else None, PROMPTS[row])
        torch.testing.assert_close(mixed[row], alone, rtol=1e-4, atol=1e-4)
    plain = served_logits(runtime, [None] * 4)
    assert (mixed - plain).abs().amax(dim=1)[[0, 2, 3]].min() > 0.1  # the adapters do something


def test_the_same_name_and_path_again_changes_nothing(
    runtime: Runtime, adapters: dict[str, Path]
) -> None:
    first = runtime.bank.load("v-one", str(adapters["v-one"]))
    assert runtime.bank.load("v-one", str(adapters["v-one"])) is first


def test_a_name_is_never_given_to_another_adapter(
    runtime: Runtime, adapters: dict[str, Path]
) -> None:
    with pytest.raises(Refusal, match="names are never reused"):
        runtime.bank.load("v-one", str(adapters["v-two"]))


def test_it_keeps_to_the_limit_of_adapters(runtime: Runtime, adapters: dict[str, Path]) -> None:
    with pytest.raises(Refusal, match="unload one first"):
        runtime.bank.load("v-four", str(adapters["v-one"]))


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "adapter_model.safetensors")
        change(weights)
        save_file(weights, folder / "adapter_model.safetensors")

    return rewrite


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (change_config(task_type="SEQ_CLS"), "such as a reward model"),
        (change_config(peft_type="IA3"), "is not a LoRA adapter"),
        (change_config(use_dora=True), "DoRA"),
        (change_config(modules_to_save=["score"]), "whole trained modules"),
        (change_config(bias="all"), "trained biases"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "no readable"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "no readable"),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(
                folder / "adapter_model.bin"
            ),
            "pickled adapters are never read",
        ),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"short"),
            "not a readable safetensors",
        ),
        (change_weights(lambda w: w[FIRST].fill_(float("nan"))), "not finite"),
        (
            change_weights(lambda w: w.update({FIRST: torch.zeros(4, 31)})),
            "trained on another base",
        ),
        (change_weights(lambda w: w.pop(FIRST)), "only one half"),
        (change_weights(lambda w: w.update({"score.weight": torch.zeros(1, 1)})), "not heads"),
        (
            change_weights(lambda w: w.update({FIRST.replace("q_proj", "x"): w.pop(FIRST)})),
            "only one half|does not have",
        ),
        (shutil.rmtree, "no adapter folder"),
    ],
)
def test_it_refuses_what_it_cannot_serve(
    base: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    damage: Callable[[Path], Any],
    sentence: str,
) -> None:
    folder = Path(shutil.copytree(adapters["v-one"], tmp_path / "damaged"))
    damage(folder)
    runtime = Runtime(base, rows=1, dtype="float32")
    with pytest.raises(Refusal, match=sentence):
        runtime.bank.load("damaged", str(folder))
    assert runtime.bank.loaded() == []


def test_it_adapts_the_language_head_too(base: Path, tmp_path: Path) -> None:
    folder = tiny.build_adapter(base, tmp_path / "head", seed=4, target_modules=["lm_head"])
    runtime = Runtime(base, rows=4, dtype="float32")
    runtime.bank.load("v-head", str(folder))
    served = served_logits(runtime, ["v-head"] * 4)
    wanted = peft_logits(base, folder, PROMPTS[0])
    torch.testing.assert_close(served[0], wanted, rtol=1e-4, atol=1e-4)
