"""The engine as a process: start, refuse to start, stop."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from inference.engine.__main__ import main
from tests.inference.engine.conftest import Engine, start_engine, stop_engine


def test_a_port_in_use_is_one_sentence(
    engine: Engine, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINE_API_KEY", "key")
    port = engine.url.rpartition(":")[2]
    assert main(["serve", "--model", str(base), "--port", port]) == 2
    assert f"Port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


def test_it_does_not_start_without_a_key(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("ENGINE_API_KEY", raising=False)
    assert main(["serve", "--model", str(base)]) == 2
    assert "Give a key" in capsys.readouterr().err
    missing = str(tmp_path / "none")
    assert main(["serve", "--model", str(base), "--api-key-file", missing]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_sigterm_ends_it_soon_even_mid_stream(base: Path) -> None:
    engine = start_engine(base, "--drain-seconds", "1")
    streaming = threading.Event()

    def stream() -> None:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Go on."}],
            "max_tokens": 4000,
            "ignore_eos": True,
            "stream": True,
        }
        with (
            engine.client() as client,
            client.stream("POST", "/v1/chat/completions", json=body) as reply,
        ):
            try:
                for _ in reply.iter_lines():
                    streaming.set()
            except httpx.TransportError:
                pass

    reader = threading.Thread(target=stream)
    reader.start()
    assert streaming.wait(10)
    started = time.monotonic()
    assert stop_engine(engine) == 0
    assert time.monotonic() - started < 4
    reader.join(10)
    assert not reader.is_alive()


def test_it_never_imports_django() -> None:
    code = (
        "import sys, inference.engine.serve, inference.engine.base, inference.engine.__main__;"
        "assert 'torch' in sys.modules; assert 'django' not in sys.modules;"
        "assert 'peft' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
