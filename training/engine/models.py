"""Load a base in the right number format, put a LoRA on it, save the LoRA."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from training.engine.adapters import load_adapter
from training.engine.arguments import Arguments
from training.engine.attention import PIECEWISE
from training.engine.errors import RunError
from training.engine.rundir import Artifact

transformers.utils.logging.disable_progress_bar()
# Its load report calls a fresh score head missing; the proof is what tells whether one got lost.
transformers.utils.logging.set_verbosity_error()

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLEAR_GAIN = 1.3  # how much quicker bf16 must be to be worth its rounding


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_speedup(device: torch.device, width: int) -> float:
    """Measure how many times quicker a matrix product is in bf16 than in fp32 here."""

    def seconds(dtype: torch.dtype) -> float:
        left = torch.randn(256, width, device=device).to(dtype)
        right = torch.randn(width, 4 * width, device=device).to(dtype)
        best = float("inf")
        for _ in range(8):
            started = time.perf_counter()
            (left @ right)[0, 0].item()
            best = min(best, time.perf_counter() - started)
        return best

    return seconds(torch.float32) / seconds(torch.bfloat16)


def cast_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Turn the weights into another format, and nothing else.

    `model.to(dtype)` would round the rotary frequencies too, which from_pretrained keeps in fp32.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def load_tokenizer(base: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise RunError(f"The tokenizer in {base} cannot be loaded: {error}.") from error


def load_base(
    base: Path,
    *,
    head: str,
    tuning: str,
    dtype: torch.dtype,
    device: torch.device,
    on_host: bool = False,
) -> Any:
    """Load a base for language modelling or with a score head; safetensors only.

    `on_host` leaves it in the host's memory, made for the device all the same.
    """
    kind = AutoModelForSequenceClassification if head == "score" else AutoModelForCausalLM
    options: dict[str, Any] = {"num_labels": 1} if head == "score" else {}
    if tuning == "qlora4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["lm_head", "score"],
        )
    elif tuning == "qlora8":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_skip_modules=["lm_head", "score"]
        )
    if "quantization_config" in options:
        options["device_map"] = {"": str(device)}
    try:
        model = _with_attention(kind, base, dtype, device, options)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"The base {base} cannot be loaded: {error}.") from error
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes repacks weights at the first pass without gradient, for a kernel that
            # training cannot use; the reference and the policy have to be computed alike.
            module.support_avx512bf16_for_cpu = False
    disable_dropout(model)
    if head == "score":
        settle_padding(model.config)
    return model if on_host or "quantization_config" in options else model.to(device)


def _with_attention(
    kind: Any, base: Path, dtype: torch.dtype, device: torch.device, options: dict[str, Any]
) -> Any:
    """Load with the quickest attention that the architecture and the device take."""
    kinds = ["flex_attention"] if device.type == "cuda" else []
    for attention in [*kinds, "sdpa"]:
        with suppress(ImportError, ValueError):  # what else is wrong, the last try says
            model = kind.from_pretrained(
                base, dtype=dtype, attn_implementation=attention, use_safetensors=True, **options
            )
            if attention == "sdpa":  # a class with an attention of its own keeps it
                model.set_attn_implementation(PIECEWISE)
            return model
    return kind.from_pretrained(
        base, dtype=dtype, attn_implementation="eager", use_safetensors=True, **options
    )


def settle_padding(config: Any) -> None:
    """Name a pad that ends no answer: transformers reads the score off the last token but pads.

    With pad = eos it would be read before the end of the turn, where it was never trained.
    """
    text = config.get_text_config()
    named = text.eos_token_id
    ends = {*named} if isinstance(named, list) else {named}
    for pad in (text.pad_token_id, text.bos_token_id, *range(len(ends) + 1)):
        if pad is not None and pad not in ends:
            text.pad_token_id = pad
            return


def disable_dropout(model: torch.nn.Module) -> None:
    """Turn the base's own dropout off, or policy and reference differ before the first step."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:  # OPT's dropout and layerdrop, …
                setattr(module, name, 0.0)


def add_adapter(
    model: Any, arguments: Arguments, *, head: str, seed: int, parent: Artifact | None
) -> Any:
    """Put a fresh LoRA on a base, seeded, or take up the parent's; its weights are fp32.

    Full-weights tuning of a bare base needs no adapter: the model itself comes back.
    """
    torch.manual_seed(seed)
    if parent is None and arguments.tuning == "full":
        return model
    if parent is not None:
        adapted = load_adapter(model, parent.path, head=head, trainable=True)
    else:
        adapted = _fresh_adapter(model, arguments, head=head)
    if head == "score":
        keep_score_in_fp32(adapted)
    return adapted


def _fresh_adapter(model: Any, arguments: Arguments, *, head: str) -> Any:
    names = arguments.target_modules
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        use_dora=arguments.tuning == "dora",
        target_modules="all-linear" if names == ["all-linear"] else names,
        # Without SEQ_CLS the score head is neither trained nor saved, and nothing says so.
        task_type="SEQ_CLS" if head == "score" else "CAUSAL_LM",
        modules_to_save=["score"] if head == "score" else None,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise RunError(f"target_modules does not fit this base: {error}") from error
    if head == "lm" and getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if any(isinstance(one, BaseTunerLayer) for one in ends):
            raise RunError(
                "target_modules names the embeddings or the head, which are one matrix in this "
                "base: a merged LoRA would change both. Leave them out."
            )
    return adapted


def keep_score_in_fp32(model: Any) -> None:
    """Hold and compute a reward model's score head in fp32, whatever its base is in.

    Steps of a usual size vanish in bf16's rounding.
    """
    head = (model.get_base_model() if hasattr(model, "peft_config") else model).score
    head.float()
    head.register_forward_pre_hook(lambda _, given: tuple(one.float() for one in given))


@contextmanager
def without_adapter(model: Any, *, off: bool) -> Iterator[None]:
    """Let the bare base speak while `off`; a model without an adapter is one."""
    with model.disable_adapter() if off and hasattr(model, "peft_config") else nullcontext():
        yield


def make_all_trainable(model: Any) -> Any:
    """Fold an adapter into the weights, if there is one, and free every weight for training."""
    whole = model.merge_and_unload() if hasattr(model, "peft_config") else model
    return whole.requires_grad_(True)


def save_model(
    model: Any, tokenizer: Any, folder: Path, *, weights: Mapping[str, Any] | None = None
) -> None:
    """Write a whole model and its tokenizer as safetensors; whole or not at all.

    `weights` stand in for the model's own where these are shards.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    # In one file, so that the digest is over one file.
    model.save_pretrained(draft, max_shard_size="1TB", state_dict=weights)
    tokenizer.save_pretrained(draft)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(draft, folder)


def save_adapter(model: Any, tokenizer: Any, folder: Path, *, base: Artifact) -> None:
    """Write the adapter as stock PEFT reads it; the folder appears whole or not at all.

    Equal weights give equal bytes: no local path, no set order goes into the configuration.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())},
        draft / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    model.active_peft_config.save_pretrained(draft)
    path = draft / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_name(base)
    config["revision"] = base.digest or None
    config["inference_mode"] = True
    for name in ("target_modules", "modules_to_save"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    tokenizer.save_pretrained(draft)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(draft, folder)


def base_name(base: Artifact) -> str:
    """Return the base's name from its record, or the name of its folder."""
    try:
        return str(json.loads((base.path / "base.json").read_text())["name"])
    except (OSError, ValueError, KeyError):
        return base.path.name
