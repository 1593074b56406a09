"""A tiny base with three unlike adapters, and one engine process that serves them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.inference.engine import tiny

KEY = "test-key"


@dataclass
class Engine:
    """A running engine process."""

    process: subprocess.Popen[str]
    url: str

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30
        )

    def metric(self, name: str) -> float:
        with self.client() as client:
            text = client.get("/metrics").text
        found = re.search(rf"^vllm:{name}{{.*}} (\S+)$", text, re.MULTILINE)
        assert found, name
        return float(found[1])


def start_engine(model: Path, *options: str) -> Engine:
    command = [sys.executable, "-m", "inference.engine", "serve", "--model", str(model)]
    process = subprocess.Popen(
        [*command, "--served-name", "tiny", "--dtype", "float32", "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ENGINE_API_KEY": KEY, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return Engine(process, found[0])
    raise AssertionError(f"The engine ended with {process.wait()}.")


def stop_engine(engine: Engine) -> int:
    engine.process.send_signal(signal.SIGTERM)
    try:
        return engine.process.wait(timeout=15)
    finally:
        engine.process.kill()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters that differ in rank, scale and in what they adapt."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "v-one": tiny.build_adapter(base, folder / "one", seed=1),
        "v-two": tiny.build_adapter(
            base, folder / "two", seed=2, r=2, target_modules=["q_proj", "v_proj"], use_rslora=True
        ),
        "v-three": tiny.build_adapter(
            base,
            folder / "three",
            seed=3,
            rank_pattern={"down_proj": 8},
            alpha_pattern={"down_proj": 4},
        ),
    }


@pytest.fixture(scope="session")
def shared_engine(base: Path) -> Iterator[Engine]:
    engine = start_engine(base, "--rows", "4", "--queue", "8", "--prefill-chunk", "16")
    yield engine
    stop_engine(engine)


@pytest.fixture
def engine(shared_engine: Engine, adapters: dict[str, Path]) -> Engine:
    """The shared engine with all three adapters loaded, whatever a test before unloaded."""
    with shared_engine.client() as client:
        for name, path in adapters.items():
            body = {"lora_name": name, "lora_path": str(path)}
            assert client.post("/v1/load_lora_adapter", json=body).status_code == 200
    return shared_engine
