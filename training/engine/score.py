"""python -m training.engine.score JOB_DIR: what a reward model says of answers.

job.json: {"base": folder, "adapter": folder, "items": [{"prompt": [messages], "response": text}]}.
scores.json, written whole or not at all: one number for each item, in their order.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch

from training.engine.adapters import load_adapter
from training.engine.data import Encoder, Tree
from training.engine.errors import BAD_INPUT, RunError
from training.engine.models import keep_score_in_fp32, load_base, load_tokenizer, pick_device
from training.engine.policy import Policy, choose_computation
from training.engine.rundir import write_json
from training.engine.threads import Threads
from training.engine.tree import build_pack

MAX_LENGTH, MAX_PROMPT_LENGTH = 4096, 3072


@torch.no_grad()
def score(job: dict[str, Any]) -> list[float]:
    """Return the reward of each item, computed alone and in fp32."""
    base = Path(job["base"])
    encode = Encoder(
        load_tokenizer(base), max_length=MAX_LENGTH, max_prompt_length=MAX_PROMPT_LENGTH
    )
    model = load_base(base, head="score", tuning="lora", dtype=torch.float32, device=pick_device())
    adapted = load_adapter(model, Path(job["adapter"]), head="score").eval()
    keep_score_in_fp32(adapted)
    policy, threads = Policy(adapted, head="score"), Threads()
    trees = []
    for item in job["items"]:
        prompt, _ = encode.prompt(item["prompt"])
        answer = [{"role": "assistant", "content": item["response"]}]
        tokens, _ = encode.response(item["prompt"], answer, len(prompt))
        trees.append(Tree(prompt, (tokens or (encode.tokenizer.eos_token_id,),), ()))
    choose_computation(policy, trees[:2])
    scores = []
    for tree in trees:
        threads.adapt()
        scores.append(float(policy.values(build_pack([tree], policy.device))[0]))
    return scores


def main() -> int:
    """Score the job of the directory given; return the exit code."""
    directory = Path(sys.argv[1])
    try:
        write_json(
            directory / "scores.json", score(json.loads((directory / "job.json").read_text()))
        )
    except RunError as error:
        print(error.reason, file=sys.stderr)
        return error.code
    except (OSError, ValueError, KeyError) as error:
        print(f"The job cannot be scored: {error!r}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
