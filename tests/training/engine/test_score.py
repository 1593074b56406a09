"""Scoring by a reward model in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from peft import PeftModel

from tests.inference.engine import tiny
from training.engine.arguments import parse_arguments
from training.engine.models import (
    add_adapter,
    keep_score_in_fp32,
    load_base,
    load_tokenizer,
    save_adapter,
)
from training.engine.rundir import Artifact


def test_it_scores_as_the_saved_model_does(tmp_path: Path) -> None:
    folder = tiny.build_model(tmp_path / "tiny")
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(1)
    model = add_adapter(
        load_base(
            folder,
            head="score",
            tuning="lora",
            dtype=torch.float32,
            device=torch.device("cpu"),
        ),
        parse_arguments("reward", {"lora_r": 4}),
        head="score",
        seed=1,
        parent=None,
    )
    save_adapter(model, tokenizer, tmp_path / "adapter", base=Artifact(folder, ""))
    prompt = [{"role": "user", "content": "Which tea?"}]
    answers = ["Green.", "I do not know, and I never shall."]
    items = [{"prompt": prompt, "response": one} for one in answers]
    job = {"base": str(folder), "adapter": str(tmp_path / "adapter"), "items": items}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "training.engine.score", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    scores = json.loads((tmp_path / "scores.json").read_text())
    base = load_base(
        folder, head="score", tuning="lora", dtype=torch.float32, device=torch.device("cpu")
    )
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    keep_score_in_fp32(plain)
    for answer, score in zip(answers, scores, strict=True):
        turns = [*prompt, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            expected = float(plain(input_ids=ids).logits[0, 0])
        assert abs(score - expected) < 1e-4
    assert scores[0] != scores[1]
