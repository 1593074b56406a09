"""Bases as they come: pads that end a turn, dropout under other names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.engine.conftest import tiny_model
from training.engine.data import Tree
from training.engine.models import load_base
from training.engine.policy import Policy
from training.engine.tree import build_pack


def bare(base: Path, head: str = "lm") -> Any:
    cpu = torch.device("cpu")
    return load_base(base, head=head, tuning="lora", dtype=torch.float32, device=cpu)


@pytest.mark.parametrize("named", [False, True])
def test_transformers_reads_the_score_where_it_was_trained(
    base: Path, tmp_path: Path, named: bool
) -> None:
    """With pad = eos, or without a pad, it would skip the end of the turn."""
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 2 if named else None}))
    model = bare(folder, "score").eval()
    pack = build_pack([Tree((1, 20, 30), ((40, 50, 2), (60, 2)), ())])
    with torch.no_grad():
        found = Policy(model, head="score").values(pack)
        for place, response in enumerate(((40, 50, 2), (60, 2))):
            ids = torch.tensor([[1, 20, 30, *response]])
            logits = model(input_ids=ids).logits
            assert logits.item() == pytest.approx(found[place].item(), abs=1e-5)


def test_an_old_base_has_all_its_dropout_turned_off(tmp_path: Path) -> None:
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.5, "layerdrop": 0.5}
    tiny_model("opt", **sizes).save_pretrained(tmp_path)
    model = bare(tmp_path).train()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        first, second = (model(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second)
