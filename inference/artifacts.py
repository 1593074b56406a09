"""Digests of model files on disk: the content address of a base and of an adapter.

Standard library only, so the web process and both engines share one answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
MODEL_WEIGHTS = "model.safetensors"
MODEL_CONFIG = "config.json"
BASE_RECORD = "base.json"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of one file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def adapter_digest(path: Path | str) -> str:
    """Return the SHA-256 over an adapter's weights, then its configuration.

    A missing file raises FileNotFoundError that names it.
    """
    return _digest_of(Path(path), ADAPTER_WEIGHTS, ADAPTER_CONFIG)


def model_digest(path: Path | str) -> str:
    """Return the SHA-256 over a whole model's weights, then its configuration.

    A missing file raises FileNotFoundError that names it.
    """
    return _digest_of(Path(path), MODEL_WEIGHTS, MODEL_CONFIG)


def _digest_of(folder: Path, *names: str) -> str:
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def weights_digest(path: Path | str) -> str:
    """Return the digest of what a training left: an adapter, or a whole model."""
    whole = (Path(path) / MODEL_WEIGHTS).exists()
    return model_digest(path) if whole else adapter_digest(path)


def folder_digest(path: Path | str, *, leave_out: Iterable[str] = ()) -> str:
    """Return the SHA-256 over the sorted (relative name, file SHA-256) pairs of a folder."""
    folder, ignored = Path(path), frozenset(leave_out)
    files = {
        file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()
    }
    digest = hashlib.sha256()
    for name in sorted(files.keys() - ignored):
        digest.update(f"{name}\0{file_digest(files[name])}\n".encode())
    return digest.hexdigest()


def base_digest(path: Path | str) -> str:
    """Return the digest of a prepared base: weights, configuration and tokenizer."""
    return folder_digest(path, leave_out=(BASE_RECORD,))
