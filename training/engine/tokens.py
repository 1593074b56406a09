"""Count a snapshot's tokens as training will see them, without torch: the web process asks.

Rows go through the engine's own ``read_trees``; only the tokenizer is a lighter one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from training.engine.arguments import Arguments
from training.engine.data import DAY, Tree, read_trees
from training.engine.errors import RunError
from training.engine.estimate import Tokens, count_tokens
from training.engine.general import read_general

# Rows beyond this are not read: a snapshot is sorted by a digest of its prompts, so its first rows
# are a fair sample of all.
SAMPLED_ROWS = 2000
# Methods that also learn from a response that was judged alone (training.engine.methods).
SINGLE = ("kto", "sft")


class PlainTokenizer:
    """The few things that ``Encoder`` asks of a tokenizer, from a base's files."""

    def __init__(self, folder: Path) -> None:
        """Raise OSError or ValueError where the files are missing or damaged."""
        self.backend = Tokenizer.from_str((folder / "tokenizer.json").read_text())
        # A file may ask for what it was last used with; transformers does not listen either.
        self.backend.no_truncation()
        self.backend.no_padding()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        template = folder / "chat_template.jinja"
        self.chat_template = (
            template.read_text() if template.exists() else _default(config.get("chat_template"))
        )
        self.special = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in config.items()
            if name.endswith("_token") and isinstance(value, str | dict)
        }
        self.eos_token = self.special.get("eos_token")
        self.eos_token_id = self.backend.token_to_id(self.eos_token or "")
        self.bos_token_id = self.backend.token_to_id(self.special.get("bos_token", ""))
        self.added_tokens_decoder = self.backend.get_added_tokens_decoder()
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = DAY.strftime
        environment.filters["tojson"] = _json
        self.compiled = functools.cache(environment.from_string)

    def get_chat_template(self) -> str:
        return self.chat_template

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        chat_template: str | None = None,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        assert not tokenize
        return self.compiled(chat_template or self.chat_template).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.special,
        )

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}


class Generation(Extension):
    """Read over the marks that templates put around what an assistant says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _default(template: Any) -> str:
    """Return the template for plain chats; some tokenizers name several."""
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}.get("default")
    return template or ""


def _json(value: Any, **options: Any) -> str:
    """Write JSON as templates are given it: no HTML escapes, and letters of every language."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> None:
    raise TemplateError(message)


def limits_of(method: str, arguments: Arguments) -> dict[str, Any]:
    """Return what decides which rows are read and where they are cut."""
    return {
        "max_length": arguments.max_length,
        "max_prompt_length": arguments.max_prompt_length,
        "keep_ties": getattr(arguments, "ties", "ignore") == "rao-kupper",
        "single": method in SINGLE,
    }


def count_snapshot(folder: Path, base: Path, limits: dict[str, Any]) -> Tokens:
    """Return what training on a snapshot would read, from a sample where it is large.

    Raises RunError, OSError or ValueError where snapshot or base cannot be read.
    """
    tokenizer = PlainTokenizer(base)
    with tempfile.TemporaryDirectory() as spare:
        path, rows = _sample(folder / "train.parquet", Path(spare))
        trees, counts = read_trees(path, tokenizer, **limits)
        heldout, share = folder / "heldout.parquet", 1.0
        held: list[Tree] = []
        if heldout.exists():
            path, held_rows = _sample(heldout, Path(spare))
            held, held_counts = read_trees(path, tokenizer, **limits)
            share = held_rows / max(1, held_counts.rows)
    found = count_tokens(
        trees,
        held,
        rows=counts.rows,
        used=counts.used,
        truncated=counts.truncated,
        general_tokens=len(read_general(tokenizer)),
        scale=rows / max(1, counts.rows),
    )
    return dataclasses.replace(
        found,
        heldout_tokens=round(found.heldout_tokens * share),
        heldout_responses=round(found.heldout_responses * share),
    )


def _sample(path: Path, spare: Path) -> tuple[Path, int]:
    """Return a file of the first rows, and how many rows there are in all."""
    try:
        with pq.ParquetFile(path) as file:
            rows: int = file.metadata.num_rows
            if rows <= SAMPLED_ROWS:
                return path, rows
            sample = spare / path.name
            first = next(file.iter_batches(SAMPLED_ROWS))
            pq.write_table(pa.Table.from_batches([first]), sample)
            return sample, rows
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise RunError(f"{path.name} cannot be read: take the snapshot again.") from error
