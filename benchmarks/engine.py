"""Tokens per second of the engine against plain transformers, on the same base in the same run.

    python -m benchmarks.engine [--base FOLDER] [--threads N] [--rounds N]     JSON=path to keep it

Every text has 64 new tokens, drawn at temperature 0.8 and top_p 0.95. Plain transformers gets its
requests as one padded batch, which a server could only do if they all came at one moment. Rounds
alternate, so that a busy neighbour slows both; the figures are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
NEW_TOKENS = 64
CONCURRENCY = (1, 8, 16)
ADAPTERS = ("v-a", "v-b", "v-c", "v-d")
BASE_NAME = "base"
KEY = "benchmark"


def main() -> None:
    """Measure, print a table, and write it to $JSON when that is set."""
    options = _options()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    torch.set_num_threads(options.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.bfloat16)
    tokenizer: Any = AutoTokenizer.from_pretrained(options.base, padding_side="left")
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(options.base, Path(folder))
        process, url = start_engine(options)
        try:
            result = asyncio.run(measure(url, model, tokenizer, adapters, options.rounds))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    result["threads"] = options.threads
    show(result)
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(result, indent=2) + "\n")


async def measure(
    url: str, model: Any, tokenizer: Any, adapters: dict[str, Path], rounds: int
) -> dict[str, Any]:
    """Run all rounds; tokens per second under "tokens_per_second", seconds under the rest."""
    speeds: dict[str, list[float]] = {}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600) as client:
        loads = [await load(client, name, path) for name, path in adapters.items()]
        await many(client, [BASE_NAME])
        plain(model, tokenizer, 1)
        for _ in range(rounds):
            for count in CONCURRENCY:
                mixed = [(BASE_NAME, *ADAPTERS)[i % (len(ADAPTERS) + 1)] for i in range(count)]
                for label, names in (
                    ("base", [BASE_NAME] * count),
                    ("one adapter", [ADAPTERS[0]] * count),
                    ("mixed adapters", mixed),
                ):
                    speed, _ = await many(client, names)
                    speeds.setdefault(f"engine, {label}, {count}", []).append(speed)
                speeds.setdefault(f"transformers, base, {count}", []).append(
                    plain(model, tokenizer, count)
                )
        firsts = [await first_token(client) for _ in range(5)]
        mixed = [BASE_NAME, *ADAPTERS, BASE_NAME, *ADAPTERS[:2]]
        alone = [(await many(client, [name], first=i))[1][0] for i, name in enumerate(mixed)]
        _, together = await many(client, mixed)
    return {
        "tokens_per_second": {
            label: round(statistics.median(values), 1) for label, values in speeds.items()
        },
        "adapter_load_seconds": {"first": round(loads[0], 3), "worst": round(max(loads), 3)},
        "first_token_seconds_idle": round(statistics.median(firsts), 3),
        "same_text_alone_and_in_company_bf16": f"{sum(map(str.__eq__, alone, together))}/8",
        "rounds": rounds,
    }


async def many(
    client: httpx.AsyncClient, names: list[str], *, first: int = 0
) -> tuple[float, list[str]]:
    """Send one request for each name at once; return (tokens per second, texts)."""
    started = time.perf_counter()
    bodies = [body(name, first + number) for number, name in enumerate(names)]
    replies = await asyncio.gather(
        *(client.post("/v1/chat/completions", json=each) for each in bodies)
    )
    seconds = time.perf_counter() - started
    answers = [reply.raise_for_status().json() for reply in replies]
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    return tokens / seconds, [answer["choices"][0]["message"]["content"] for answer in answers]


def plain(model: Any, tokenizer: Any, count: int) -> float:
    """Return transformers' tokens per second for one padded batch."""
    chats = [body("", number)["messages"] for number in range(count)]
    started = time.perf_counter()
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
    )
    model.generate(
        **inputs,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
    )
    return count * NEW_TOKENS / (time.perf_counter() - started)


async def first_token(client: httpx.AsyncClient) -> float:
    """Return the seconds from a request to its first text, on an idle engine."""
    started = time.perf_counter()
    asked = {**body(BASE_NAME, 0), "stream": True, "max_tokens": 4}
    async with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get(
                "content"
            ):
                return time.perf_counter() - started
    raise AssertionError("The stream held no text.")


async def load(client: httpx.AsyncClient, name: str, path: Path) -> float:
    """Load an adapter; return the seconds it took."""
    started = time.perf_counter()
    asked = {"lora_name": name, "lora_path": str(path)}
    (await client.post("/v1/load_lora_adapter", json=asked)).raise_for_status()
    return time.perf_counter() - started


def body(name: str, number: int) -> dict[str, Any]:
    """Return one request; its number makes its prompt and its seed."""
    return {
        "model": name,
        "messages": [{"role": "user", "content": f"Tell me a story about the number {number}."}],
        "max_tokens": NEW_TOKENS,
        "temperature": 0.8,
        "top_p": 0.95,
        "seed": number,
        "ignore_eos": True,
    }


def write_adapters(base: Path, folder: Path) -> dict[str, Path]:
    """Write random rank-16 adapters of all linear layers."""
    paths = {}
    for seed, name in enumerate(ADAPTERS):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=16,
            lora_alpha=1,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            init_lora_weights=False,
        )
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        paths[name] = folder / name
        get_peft_model(model, config).save_pretrained(paths[name])
    return paths


def start_engine(options: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """Start an engine on a free port and wait until it is ready."""
    command = [sys.executable, "-m", "inference.engine", "serve", "--model", str(options.base)]
    process = subprocess.Popen(
        [*command, "--served-name", BASE_NAME, "--port", "0", "--threads", str(options.threads)],
        cwd=ROOT,
        env={**os.environ, "ENGINE_API_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return process, found[0]
    raise SystemExit(f"The engine ended with {process.wait()}.")


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    speeds = result["tokens_per_second"]
    rows = ("engine, base", "engine, one adapter", "engine, mixed adapters", "transformers, base")
    print(f"tokens per second, {result['threads']} threads, medians of {result['rounds']} rounds")
    print(f"{'concurrent texts':<24}" + "".join(f"{count:>8}" for count in CONCURRENCY))
    for row in rows:
        print(f"{row:<24}" + "".join(f"{speeds[f'{row}, {n}']:>8.1f}" for n in CONCURRENCY))
    loads = result["adapter_load_seconds"]
    print(f"adapter load: first {loads['first']} s, worst {loads['worst']} s")
    print(f"first token on an idle engine: {result['first_token_seconds_idle']} s")
    print(
        "same seed, alone and among eight of five models, bf16: "
        f"{result['same_text_alone_and_in_company_bf16']} texts equal"
    )


def _options() -> argparse.Namespace:
    var = Path(os.environ.get("LAUREL_VAR", ROOT / "var"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=var / "bases" / "smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=3)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=max(1, cores - 1), help="for both")
    return parser.parse_args()


if __name__ == "__main__":
    main()
