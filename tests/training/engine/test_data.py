"""Rows to trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.engine.conftest import answer, preference_rows, user, write_snapshot
from training.engine.data import Pair, Tree, read_trees, split_tree
from training.engine.errors import RunError

LIMITS = {"max_length": 256, "max_prompt_length": 128}


def row(chosen: str, rejected: str, **changes: Any) -> dict[str, Any]:
    return {
        "prompt": user("light?"),
        "chosen": answer(chosen),
        "rejected": answer(rejected),
        "prompt_id": "p",
        "margin": 1.0,
        "weight": 1.0,
        **changes,
    }


def read(folder: Path, rows: list[dict[str, Any]], tokenizer: Any, **changes: Any) -> Any:
    write_snapshot(folder, train=rows)
    return read_trees(folder / "train.parquet", tokenizer, **{**LIMITS, **changes})


def test_it_makes_one_tree_of_a_ranking(tmp_path: Path, tokenizer: Any) -> None:
    trees, counts = read(tmp_path, preference_rows("x", 2, responses=3), tokenizer)
    assert len(trees) == 2
    assert [(pair.chosen, pair.rejected) for pair in trees[0].pairs] == [(0, 1), (0, 2), (1, 2)]
    assert counts.as_dict() == {"in": 6, "used": 6, "truncated": 0, "dropped": 0}


def test_it_adds_up_equal_judgements_and_keeps_contrary_ones(
    tmp_path: Path, tokenizer: Any
) -> None:
    rows = [row("a", "b"), row("a", "b", weight=0.5), row("b", "a"), row("a", "b", margin=2.0)]
    ((tree,), _) = read(tmp_path, rows, tokenizer)
    assert tree.pairs == (Pair(0, 1, 1.5, 1.0), Pair(1, 0, 1.0, 1.0), Pair(0, 1, 1.0, 2.0))


def test_it_encodes_as_the_model_will_see_it(tmp_path: Path, tokenizer: Any) -> None:
    ((tree,), _) = read(tmp_path, [row("sea", "tree")], tokenizer)
    assert tokenizer.decode(tree.prompt) == "<|start|>user\nlight?<|end|>\n<|start|>assistant\n"
    # Nothing is learnt after the end of the turn, where generation stops.
    assert [tokenizer.decode(one) for one in tree.responses] == ["sea<|end|>", "tree<|end|>"]


def test_it_cuts_prompts_in_front_and_responses_behind(tmp_path: Path, tokenizer: Any) -> None:
    rows = [row("sea " * 50, "tree " * 50)]
    ((tree,), counts) = read(tmp_path, rows, tokenizer, max_length=12, max_prompt_length=8)
    assert len(tree.prompt) == 8
    assert tokenizer.decode(tree.prompt).endswith("sistant\n")
    assert [len(one) for one in tree.responses] == [4, 4]
    assert counts.truncated == 1


def test_it_reads_soft_labels_as_both_judgements(tmp_path: Path, tokenizer: Any) -> None:
    table = pa.Table.from_pylist([row("a", "b", probability=0.75)])
    pq.write_table(table, tmp_path / "train.parquet")
    ((tree,), _) = read_trees(tmp_path / "train.parquet", tokenizer, **LIMITS)
    assert tree.pairs == (Pair(0, 1, 0.75, 1.0), Pair(1, 0, 0.25, 1.0))


def test_it_keeps_ties_only_when_asked(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([row("a", "b", tie=True), row("a", "c", tie=False)]), path)
    ((tree,), counts) = read_trees(path, tokenizer, **LIMITS)
    assert len(tree.pairs) == 1
    assert counts.as_dict()["dropped"] == 1
    ((tree,), _) = read_trees(path, tokenizer, **LIMITS, keep_ties=True)
    assert [pair.tie for pair in tree.pairs] == [True, False]


def test_it_takes_responses_judged_alone_where_asked(tmp_path: Path, tokenizer: Any) -> None:
    rows = [row("a", "b"), row("a", "b") | {"rejected": None}, row("a", "c") | {"chosen": None}]
    with pytest.raises(RunError, match=r"Row 2 .* has no rejected response.* Train kto or sft"):
        read(tmp_path, rows, tokenizer)
    ((tree,), counts) = read(tmp_path, rows, tokenizer, single=True)
    assert counts.used == 3
    assert [(vote.good, vote.bad) for vote in tree.votes] == [(2, 0), (0, 1), (0, 1)]


def test_it_splits_a_large_tree_by_pairs() -> None:
    tree = Tree((1,) * 10, ((2,) * 10, (3,) * 10, (4,) * 10), (Pair(0, 1), Pair(0, 2), Pair(1, 2)))
    parts = list(split_tree(tree, 30))
    assert [part.tokens for part in parts] == [30, 30, 30]
    assert [part.responses[0][0] for part in parts] == [2, 2, 3]
    assert all(part.pairs == (Pair(0, 1),) for part in parts)
    assert list(split_tree(tree, 40)) == [tree]


def test_it_refuses_a_tokenizer_without_a_template(tmp_path: Path, tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(RunError, match="no chat template"):
        read(tmp_path, [row("a", "b")], bare)
