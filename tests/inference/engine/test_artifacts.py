from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from inference.artifacts import adapter_digest, folder_digest


def test_it_hashes_an_adapters_weights_then_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "adapter_config.json").write_bytes(b"config")
    (tmp_path / "README.md").write_bytes(b"ignored")
    assert adapter_digest(tmp_path) == hashlib.sha256(b"weightsconfig").hexdigest()


def test_it_names_the_missing_file_of_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        adapter_digest(tmp_path)


def test_it_hashes_a_folder_by_names_and_contents(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "a").write_bytes(b"a")
        (tmp_path / folder / "sub" / "b").write_bytes(b"b")
    (tmp_path / "two" / "note").write_bytes(b"left out")
    same = folder_digest(tmp_path / "two", leave_out=["note"])
    assert folder_digest(tmp_path / "one") == same
    (tmp_path / "one" / "a").rename(tmp_path / "one" / "c")
    assert folder_digest(tmp_path / "one") != same


def test_it_knows_neither_torch_nor_django() -> None:
    code = "import sys, inference.artifacts; assert not {'torch', 'django'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
