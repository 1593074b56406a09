"""The engine over real HTTP: one process, the stock clients."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.inference.engine.conftest import KEY, Engine

NAMES = ["tiny", "v-one", "v-two", "v-three"]


@pytest.fixture
def client(engine: Engine) -> Iterator[httpx.Client]:
    with engine.client() as client:
        yield client


@pytest.fixture
def stock(engine: Engine) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{engine.url}/v1", api_key=KEY, max_retries=0)


def ask(model: str = "tiny", text: str = "Tell me.", **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": 24, **options}


def text_of(client: httpx.Client, body: dict[str, Any]) -> str:
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


async def post_all(engine: Engine, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=len(bodies))
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(
        base_url=engine.url, headers=headers, timeout=60, limits=limits
    ) as client:
        posts = [client.post("/v1/chat/completions", json=body) for body in bodies]
        return await asyncio.gather(*posts)


def wait_until_idle(engine: Engine, seconds: float) -> None:
    end = time.monotonic() + seconds
    while engine.metric("num_requests_running") or engine.metric("num_requests_waiting"):
        assert time.monotonic() < end, "The engine did not become idle."
        time.sleep(0.02)


def test_the_stock_client_lists_the_base_and_the_adapters(stock: openai.OpenAI) -> None:
    models = {model.id: model for model in stock.models.list()}
    assert set(models) == set(NAMES)
    assert models["v-one"].parent == "tiny"  # type: ignore[attr-defined]


def test_the_stock_client_chats(stock: openai.OpenAI) -> None:
    answer = stock.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Tell me."}]}],
        max_completion_tokens=5,
        extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 5


def test_a_stream_adds_up_to_the_whole_answer(stock: openai.OpenAI, client: httpx.Client) -> None:
    for seed in range(5):
        body = ask(seed=seed, temperature=1.5, ignore_eos=True)
        pieces, reason, usage = [], None, None
        stream = stock.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Tell me."}],
            max_tokens=24,
            temperature=1.5,
            seed=seed,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        for chunk in stream:
            usage = chunk.usage or usage
            if chunk.choices:
                pieces.append(chunk.choices[0].delta.content or "")
                reason = chunk.choices[0].finish_reason or reason
        assert "".join(pieces) == text_of(client, body)
        assert len(pieces) > 5
        assert reason == "length"
        assert usage is not None
        assert usage.completion_tokens == 24


def test_it_stops_at_a_stop_string_and_hides_it(stock: openai.OpenAI, client: httpx.Client) -> None:
    whole = text_of(client, ask(temperature=0, ignore_eos=True))
    stop = whole[6:9]
    response = client.post(
        "/v1/chat/completions", json=ask(temperature=0, ignore_eos=True, stop=[stop, "never"])
    )
    choice = response.json()["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"
    assert response.json()["usage"]["completion_tokens"] < 24
    stream = stock.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Tell me."}],
        max_tokens=24,
        temperature=0,
        stop=stop,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert streamed == whole[: whole.index(stop)]


def test_it_ends_at_the_models_end_token(client: httpx.Client) -> None:
    # Random weights meet the end token now and then at a high temperature.
    reasons = set()
    for seed in range(8):
        body = ask(seed=seed, temperature=2, max_tokens=600)
        choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
        reasons.add(choice["finish_reason"])
        assert "<|im_end|>" not in choice["message"]["content"]
    assert "stop" in reasons


async def test_a_seed_means_the_same_in_any_company(engine: Engine, client: httpx.Client) -> None:
    bodies = [
        ask(NAMES[i % 4], f"Number {i}.", seed=i, temperature=[1.0, 0.7, 0][i % 3], top_p=0.95)
        for i in range(8)
    ]
    alone = [text_of(client, body) for body in bodies]
    together = await post_all(engine, bodies)
    assert [r.json()["choices"][0]["message"]["content"] for r in together] == alone
    assert len(set(alone)) == len(alone)


def test_n_samples_are_those_of_any_other_day(client: httpx.Client) -> None:
    # Six samples on four rows: two of them join when others leave.
    body = ask(n=6, seed=3, temperature=1.0)
    first, second = (
        client.post("/v1/chat/completions", json=body).json()["choices"] for _ in range(2)
    )
    assert first == second
    assert [choice["index"] for choice in first] == list(range(6))
    assert len({choice["message"]["content"] for choice in first}) > 1
    assert first[0]["message"]["content"] == text_of(client, ask(seed=3, temperature=1.0))


def test_it_reports_log_probabilities(client: httpx.Client) -> None:
    body = ask(temperature=0, logprobs=True, top_logprobs=2, max_tokens=4, ignore_eos=True)
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 4
    for entry in content:
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] < 0
        assert len(entry["top_logprobs"]) == 2


async def test_loading_under_load_fails_nothing(engine: Engine, adapters: dict[str, Path]) -> None:
    """Load and unload an adapter again and again while four streams of requests go on."""
    headers = {"Authorization": f"Bearer {KEY}"}
    statuses: list[int] = []
    async with httpx.AsyncClient(base_url=engine.url, headers=headers, timeout=30) as client:
        done = asyncio.Event()

        async def keep_asking(name: str) -> None:
            while not done.is_set():
                response = await client.post("/v1/chat/completions", json=ask(name, seed=1))
                statuses.append(response.status_code)

        async def keep_moving() -> None:
            body = {"lora_name": "v-moving", "lora_path": str(adapters["v-one"])}
            for _ in range(15):
                assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
                moving = ask("v-moving", ignore_eos=True, stream=True)
                async with client.stream("POST", "/v1/chat/completions", json=moving) as reply:
                    lines = reply.aiter_lines()
                    await anext(lines)
                    # In flight for certain: the unload must wait for it, not cut it off.
                    unload = client.post("/v1/unload_lora_adapter", json=body)
                    unloading = asyncio.create_task(unload)
                    rest = [line async for line in lines if line]
                assert rest[-1] == "data: [DONE]"
                assert not any("error" in line for line in rest)
                assert (await unloading).status_code == 200
            done.set()

        await asyncio.gather(keep_moving(), *(keep_asking(name) for name in NAMES))
    assert set(statuses) == {200}
    assert len(statuses) > 30


def test_an_unloaded_adapter_is_unknown(client: httpx.Client) -> None:
    body = {"lora_name": "v-two"}
    assert client.post("/v1/unload_lora_adapter", json=body).status_code == 200
    assert client.post("/v1/unload_lora_adapter", json=body).status_code == 404
    response = client.post("/v1/chat/completions", json=ask("v-two"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_overload_answers_429_and_nothing_is_lost(engine: Engine) -> None:
    refused_before = engine.metric("requests_refused_total")
    bodies = [ask(seed=i, max_tokens=60, ignore_eos=True) for i in range(60)]
    responses = await post_all(engine, bodies)
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8
    refused = next(r for r in responses if r.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert engine.metric("requests_refused_total") - refused_before == statuses.count(429)
    assert engine.metric("requests_failed_total") == 0


def test_a_client_that_leaves_frees_its_row(engine: Engine, client: httpx.Client) -> None:
    endless = ask(max_tokens=4000, ignore_eos=True, n=6)
    with client.stream("POST", "/v1/chat/completions", json={**endless, "stream": True}) as reply:
        lines = reply.iter_lines()
        for _ in range(40):  # past the opening chunks of the six samples
            next(lines)
        assert engine.metric("num_requests_running") > 0
    wait_until_idle(engine, 1.5)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=endless, timeout=0.2)
    wait_until_idle(engine, 1.5)


def test_a_prompt_longer_than_a_chunk_is_read_whole(client: httpx.Client) -> None:
    words = " ".join(f"word{i}" for i in range(60))
    body = ask(text=words, temperature=0, max_tokens=1, logprobs=True)
    first = client.post("/v1/chat/completions", json=body).json()
    assert first["usage"]["prompt_tokens"] > 5 * 16
    changed = client.post("/v1/chat/completions", json={**body, **ask(text="x" + words)}).json()
    assert first["choices"] != changed["choices"]


def test_health_needs_no_key_and_all_else_does(engine: Engine) -> None:
    assert httpx.get(f"{engine.url}/health").status_code == 200
    for path in ("/metrics", "/v1/models"):
        response = httpx.get(engine.url + path, headers={"Authorization": "Bearer wrong"})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"messages": []}, 400, "messages: List should have at least 1 item"),
        ({"messages": "hello"}, 400, "messages: "),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "chat template refuses"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ({"temperature": -1}, 400, "temperature: "),
        ({"temperature": "warm"}, 400, "temperature: "),
        ({"top_p": 0}, 400, "top_p: "),
        ({"max_tokens": 0}, 400, "max_tokens: "),
        ({"max_tokens": 4096}, 400, "context is 4096 tokens"),
        ({"messages": [{"role": "user", "content": "a b " * 5000}]}, 400, "shorten them"),
        ({"n": 65}, 400, "n: "),
        ({"seed": -1}, 400, "seed: "),
        ({"stop": ["", "x"]}, 400, "stop takes up to 16 strings"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty is not supported"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"model": "v-none"}, 404, "v-none is not loaded"),
    ],
)
def test_bad_requests_get_one_sentence(
    client: httpx.Client, change: dict[str, Any], status: int, sentence: str
) -> None:
    response = client.post("/v1/chat/completions", json={**ask(), **change})
    assert response.status_code == status
    assert sentence in response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"null"])
def test_malformed_json_gets_400(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_beyond_the_limit_gets_413(client: httpx.Client) -> None:
    response = client.post("/v1/chat/completions", json=ask(text="x" * 5_000_000))
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"lora_name": "v-new"}, 400, "lora_path: Field required"),
        ({"lora_name": "v-new", "lora_path": "/no/such"}, 404, "no adapter folder"),
        ({"lora_name": "tiny", "lora_path": "/no/such"}, 400, "base's own name"),
        ({"lora_name": "v new", "lora_path": "/no/such"}, 400, "lora_name: "),
        ({"lora_name": "v-one", "lora_path": "/no/such"}, 400, "names are never reused"),
    ],
)
def test_bad_adapters_are_refused(
    client: httpx.Client, body: dict[str, Any], status: int, sentence: str
) -> None:
    response = client.post("/v1/load_lora_adapter", json=body)
    assert response.status_code == status
    assert sentence in response.json()["error"]["message"]


def test_unknown_paths_and_methods_answer_in_the_same_shape(client: httpx.Client) -> None:
    assert json.loads(client.get("/v1/nothing").text)["error"]["code"] == "not_found"
    assert client.get("/v1/chat/completions").status_code == 405
