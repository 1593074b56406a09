"""The general text that perplexity is measured on. No torch in here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.engine.errors import RunError

TEXT = Path(__file__).with_name("general.txt")


def read_general(tokenizer: Any, path: Path | None = None) -> list[int]:
    """Return a text's tokens; without a path, those of a page of plain prose of our own."""
    try:
        text = (path or TEXT).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read as text: {error}.") from error
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) < 2:
        raise RunError(f"{path or TEXT} holds no text: give a file with a page or more of prose.")
    return tokens
