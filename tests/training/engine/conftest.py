"""A base, a tokenizer and a snapshot, tiny and made on the spot."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
WORDS = [
    "river",
    "sea",
    "light",
    "house",
    "road",
    "field",
    "green",
    "warm",
    "small",
    "old",
    "bird",
    "song",
    "tree",
    "stone",
    "hand",
    "day",
]
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("prompt_id", pa.string()),
        ("margin", pa.float64()),
        ("weight", pa.float64()),
        ("judgement_id", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
    ]
)


@pytest.fixture(autouse=True)
def own_reference_store(tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUREL_VAR", str(tmp_path_factory.mktemp("var")))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|pad|>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
    )


SIZES = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_model(kind: str, attention: str = "", **changes: Any) -> Any:
    """Return a random two-layer model of an architecture, in fp32, always the same one.

    It attends in pieces, as a base from `load_base` does on a CPU, unless told otherwise.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from training.engine.attention import PIECEWISE

    torch.manual_seed(7)
    config = AutoConfig.for_model(kind, **{**SIZES, **changes})
    # Larger than the usual start, so that wrong attention shows in the output.
    config.initializer_range = 0.2
    return AutoModelForCausalLM.from_config(
        config, attn_implementation=attention or PIECEWISE, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="session")
def base(tmp_path_factory: Any, tokenizer: Any) -> Path:
    """A tiny Llama in a folder."""
    folder: Path = tmp_path_factory.mktemp("base") / "tiny-llama"
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text(words: random.Random, count: int) -> str:
    return " ".join(words.choice(WORDS) for _ in range(count))


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def answer(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def preference_rows(part: str, prompts: int, responses: int = 4) -> list[dict[str, Any]]:
    """Return rows in which the shorter response is always the better one."""
    words = random.Random(part)
    rows = []
    for number in range(prompts):
        prompt = user(f"{part} {number}: {text(words, 3 + number % 4)}")
        texts = [f"{place} " + text(words, 2 + 3 * place) for place in range(responses)]
        for better in range(responses):
            for worse in range(better + 1, responses):
                rows.append(
                    {
                        "prompt": prompt,
                        "chosen": answer(texts[better]),
                        "rejected": answer(texts[worse]),
                        "prompt_id": f"{part}-{number}",
                        "margin": 1.0,
                        "weight": 1.0,
                        "judgement_id": f"{number}",
                    }
                )
    return rows


def write_snapshot(folder: Path, **parts: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"{part}.parquet")
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: Any) -> Path:
    return write_snapshot(
        tmp_path_factory.mktemp("snapshot"),
        train=preference_rows("train", 8),
        heldout=preference_rows("heldout", 4),
    )


@pytest.fixture
def make_run(tmp_path: Path, base: Path, snapshot: Path) -> Callable[..., Path]:
    """Return a function that writes run.json and returns the run directory."""

    def make(name: str = "run", *, method: str = "dpo", **changes: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        arguments = {
            "precision": "fp32",
            "learning_rate": 1e-2,
            "lora_r": 4,
            "max_length": 256,
            "max_prompt_length": 128,
            **changes.pop("arguments", {}),
        }
        description = {
            "id": name,
            "method": method,
            "base": {"path": str(base), "digest": "base"},
            "parent": None,
            "snapshot": {"path": str(snapshot), "digest": "snapshot"},
            "seed": 0,
            "code_version": "test",
            "arguments": arguments,
            **changes,
        }
        (directory / "run.json").write_text(json.dumps(description))
        return directory

    return make


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    lines = (directory / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["type"] == kind]
