"""Take up a saved adapter: safetensors only, of the right kind, with every tensor in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from inference.artifacts import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from training.engine.errors import RunError


def load_adapter(model: Any, folder: Path, *, head: str, trainable: bool = False) -> Any:
    """Return the base with a saved adapter on it; RunError says why it cannot be.

    PEFT alone reads pickles too, and only warns of tensors that are missing or that fit nowhere:
    the base would be trained, or served, as if it had no adapter.
    """
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise RunError(
            f"The adapter {folder} has no {ADAPTER_WEIGHTS}: only safetensors are read, so save "
            "it anew with PEFT."
        )
    _check_kind(folder, head)
    try:
        with safe_open(weights, framework="pt") as file:
            stored = set(file.keys())
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"The adapter {folder} does not fit this base, or is damaged: {error}."
        ) from error
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    strays = {name for name in stored - wanted if "lora_" in name}
    if lost := sorted(wanted - stored) or sorted(strays):
        raise RunError(
            f"The adapter {folder} does not fit this base, or is damaged: {len(lost)} of its "
            f"tensors are missing or fit nowhere, the first being {lost[0]}."
        )
    return adapted


def _check_kind(folder: Path, head: str) -> None:
    """Refuse a reward model where a language model is trained, and the other way round."""
    try:
        kind = json.loads((folder / ADAPTER_CONFIG).read_text()).get("task_type")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(
            f"The adapter {folder} has no readable {ADAPTER_CONFIG}: {error}."
        ) from error
    if head == "score" and kind != "SEQ_CLS":
        raise RunError(
            f"The adapter {folder} has no score head: train a reward model from the base, or go on "
            "from another reward model."
        )
    if head != "score" and kind == "SEQ_CLS":
        raise RunError(
            f"The adapter {folder} is a reward model, which writes no text: start from the base, "
            "or from an adapter that does."
        )
