"""The rank tree against TRL 1.16: same base, LoRA, pairs and number format, medians.

`python -m benchmarks.training --base DIR --json PATH` (about 20 minutes on two quiet cores; --quick
takes about 5). Each side of a row is measured in a process of its own, so that peak memory is its
own too. TRL gets its best micro-batch: 1, 2, 4 … pairs, for as long as a pair gets cheaper. All
micro-batches of a ranking are of one shape, so up to TIMED of them are timed and their median
counts for each. `trl_with_store` gives TRL its reference log-probs beforehand, as the tree has them
in `tree_with_store`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SHAPES = [(128, 128, 2), (256, 64, 2), (128, 64, 4), (256, 64, 4), (128, 64, 8)]
QUICK = [("dpo", 128, 128, 2), ("dpo", 128, 64, 4), ("reward", 128, 64, 4), ("orpo", 128, 64, 4)]
ROWS = [(method, *shape) for method in ("dpo", "reward", "orpo") for shape in SHAPES]
TIMED = 6
BETA = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    parser.add_argument("--base", type=Path, default=default_base())
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="four rows only")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.base, json.loads(options.measure))))
        return 0
    if not (options.base / "config.json").exists():
        parser.error(f"{options.base} is not a base; prepare one or give --base")
    result = compare(options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def default_base() -> Path:
    var = Path(os.environ.get("LAUREL_VAR") or Path(__file__).parents[1] / "var")
    return var / "bases" / "smollm2-135m-instruct"


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every row; print each as it comes."""
    started = time.monotonic()
    peak = child(options, {"what": "peak", "dtype": options.dtype})
    rows = QUICK if options.quick else ROWS
    runs = [one_row(options, row, peak["flops_per_second"]) for row in rows]
    growth = child(options, {"what": "growth", "dtype": options.dtype})
    print(f"reference pass after 5 % growth: {growth['share']:.1%} of the first", flush=True)
    return {
        "dtype": options.dtype,
        "matmul_peak_flops": peak["flops_per_second"],
        "runs": runs,
        "reference_share_on_5_percent_growth": growth["share"],
        "seconds": round(time.monotonic() - started, 1),
    }


def one_row(options: argparse.Namespace, row: tuple[Any, ...], peak: float) -> dict[str, Any]:
    method, prompt, response, k = row
    case = {
        "method": method,
        "shape": [prompt, response, k],
        "dtype": options.dtype,
        "repeats": options.repeats,
    }
    tree = child(options, {**case, "what": "tree"})
    trl = child(options, {**case, "what": "trl"})
    figures = {
        "trl": trl["seconds"],
        "tree": tree["seconds"],
        "tree_with_store": tree["seconds_with_store"],
    }
    if method == "dpo":
        figures["trl_with_store"] = trl["seconds_with_store"]
    errors = child(options, {**case, "what": "error", "dtype": "fp32"})
    result = {
        "method": method,
        "prompt": prompt,
        "response": response,
        "k": k,
        "seconds_per_ranking": figures,
        "trl_micro_batch": trl["micro_batch"],
        "trl_seconds_per_pair": trl["seconds_per_pair"],
        **errors,
        "peak_memory_mb": {"trl": trl["peak_memory_mb"], "tree": tree["peak_memory_mb"]},
        "tokens_per_second": tree["tokens"] / figures["tree_with_store"],
        "share_of_matmul_peak": tree["flops"] / figures["tree_with_store"] / peak,
    }
    ratio = figures["trl"] / figures["tree_with_store"]
    print(f"{row}: {ratio:.1f} times TRL; {json.dumps(result)}", flush=True)
    return result


def child(options: argparse.Namespace, case: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "--base", str(options.base)]
    done = subprocess.run(
        [*command, "--measure", json.dumps(case)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(base: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in this process."""
    if case["what"] == "peak":
        return matmul_peak(case)
    if case["what"] == "growth":
        return growth_share(base, case)
    if case["what"] == "tree":
        return measure_tree(base, case)
    with tempfile.TemporaryDirectory() as folder:
        return measure_trl(base, case, Path(folder))


def measure_tree(base: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Time forward and backward of a ranking: with the reference pass, and with it stored."""
    tree = tree_of_text(base, *case["shape"])
    model = our_model(base, case)
    _, response, k = case["shape"]
    weights = sum(
        value.numel()
        for name, value in model.named_parameters()
        if "lora" not in name and "embed" not in name and "head" not in name
    )
    head = model.get_input_embeddings().weight.numel() if case["method"] != "reward" else 0
    seconds = median_seconds(tree_step(model, tree, case), case["repeats"])
    peak = peak_memory_mb()
    stored = seconds
    if case["method"] == "dpo":
        stored = median_seconds(tree_step(model, tree, {**case, "stored": True}), case["repeats"])
    return {
        "seconds": seconds,
        "seconds_with_store": stored,
        "peak_memory_mb": peak,
        "tokens": tree.tokens,
        # forward and backward through frozen weights: 2 + 2 operations per weight and token
        "flops": 4 * (weights * tree.tokens + head * k * response),
    }


def measure_trl(base: Path, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Find TRL's best micro-batch and time it; or compare its gradients with the tree's."""
    tree = tree_of_text(base, *case["shape"])
    pairs = len(tree.pairs)
    trainer = trl_trainer(base, case, folder)
    if case["what"] == "error":
        return gradient_errors(trainer, tree, case)

    def one_batch(size: int, **more: Any) -> Callable[[], None]:
        return trl_step(trainer, part_of(tree, size), {**case, "micro_batch": size, **more})

    per_pair: dict[int, float] = {}
    peaks: dict[int, float] = {}
    size = best = 1
    one_batch(1)()  # warm-up
    while size <= pairs:
        per_pair[size] = median_seconds(one_batch(size), 1, warm=True) / size
        peaks[size] = peak_memory_mb()
        if per_pair[size] > per_pair[best]:
            break
        best, size = size, size * 2
    count = -(-pairs // best)
    timed = min(TIMED, max(case["repeats"], count))
    seconds = count * median_seconds(one_batch(best), timed, warm=True)
    stored = seconds
    if case["method"] == "dpo":
        step = one_batch(best, stored=True)
        stored = count * median_seconds(step, min(timed, case["repeats"]), warm=True)
    return {
        "seconds": seconds * pairs / (count * best),  # the last micro-batch may be smaller
        "seconds_with_store": stored * pairs / (count * best),
        "seconds_per_pair": per_pair,
        "micro_batch": best,
        "peak_memory_mb": peaks[best],
    }


def gradient_errors(trainer: Any, tree: Any, case: dict[str, Any]) -> dict[str, float]:
    """Compare gradients of the loss over all pairs with those of TRL's own code in fp64.

    In fp32 TRL rounds as well (a margin is the difference of sums near -1,000), so the difference
    of two fp32 gradients says nothing of who is wrong; it is given all the same.
    """
    from training.engine.attention import PIECEWISE

    randomise(trainer.model)
    case = {**case, "what": "error", "micro_batch": 1, "stored": False}
    trl_step(trainer, tree, case)()
    theirs = gradient(trainer.model)
    trainer.model.get_base_model().set_attn_implementation(PIECEWISE)
    tree_step(trainer.model, tree, case)()
    ours = gradient(trainer.model)
    trainer.model.get_base_model().set_attn_implementation("sdpa")
    trainer.model.double()
    trl_step(trainer, tree, case)()
    exact = gradient(trainer.model)

    def difference(found: Any, expected: Any) -> float:
        return float((found.double() - expected).norm() / expected.norm())

    return {
        "relative_gradient_error": difference(ours, exact),
        "trl_gradient_error": difference(theirs, exact),
        "gradient_difference_in_fp32": difference(ours, theirs.double()),
    }


def part_of(tree: Any, pairs: int) -> Any:
    """Return the tree with its first pairs only."""
    return dataclasses.replace(tree, pairs=tree.pairs[:pairs])


def median_seconds(step: Callable[[], None], repeats: int, *, warm: bool = False) -> float:
    """Return the median time of a step, after one to warm up."""
    if not warm:
        step()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def tree_of_text(base: Path, prompt: int, response: int, k: int) -> Any:
    """Cut a prompt and its responses, so many tokens each, from our own documentation.

    Drawn tokens would be no text to the model: at -7 nats each their sums reach -1,700, and the
    rounding of such sums in fp32 would be most of what the gradients differ by.
    """
    from training.engine.data import Pair, Tree, Votes
    from training.engine.models import load_tokenizer

    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    tokens = load_tokenizer(base)(text)["input_ids"]
    parts = [
        tuple(tokens[start : start + response])
        for start in range(prompt, prompt + k * response, response)
    ]
    pairs = tuple(Pair(one, other) for one in range(k) for other in range(one + 1, k))
    return Tree(tuple(tokens[:prompt]), tuple(parts), pairs, (Votes(),) * k)


def load_base(base: Path, case: dict[str, Any]) -> Any:
    import torch

    from training.engine import models

    return models.load_base(
        base,
        head="score" if case["method"] == "reward" else "lm",
        tuning="lora",
        dtype=models.DTYPES[case["dtype"]],
        device=torch.device("cpu"),
    )


def our_model(base: Path, case: dict[str, Any]) -> Any:
    from training.engine.arguments import parse_arguments
    from training.engine.models import add_adapter

    method = case["method"]
    head = "score" if method == "reward" else "lm"
    arguments = parse_arguments(method, {})
    return add_adapter(load_base(base, case), arguments, head=head, seed=0, parent=None).train()


def tree_step(model: Any, tree: Any, case: dict[str, Any]) -> Callable[[], None]:
    """Return forward and backward of a ranking, with the reference unless it is stored."""
    import torch

    from training.engine.arguments import parse_arguments
    from training.engine.methods import METHODS, Scores
    from training.engine.policy import Policy
    from training.engine.tree import build_pack, sum_by_response

    method = METHODS[case["method"]]
    arguments = parse_arguments(case["method"], {"beta": BETA} if method.head == "lm" else {})
    policy = Policy(model, head=method.head)
    pack = build_pack([tree])

    def reference() -> Any:
        with torch.no_grad(), model.disable_adapter():
            return sum_by_response(pack, policy.token_logps(pack))

    stored = reference() if method.reference and case.get("stored") else None

    def step() -> None:
        model.zero_grad(set_to_none=True)
        if method.head == "score":
            scores = Scores(pack, values=policy.values(pack))
        else:
            known = (reference() if stored is None else stored) if method.reference else None
            scores = Scores(pack, sum_by_response(pack, policy.token_logps(pack)), known)
        (method.loss(scores, arguments) / len(tree.pairs)).backward()

    return step


def trl_trainer(base: Path, case: dict[str, Any], folder: Path) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    method = case["method"]
    if method == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        kinds: tuple[Any, Any] = ORPOConfig, ORPOTrainer
    else:
        kinds = (RewardConfig, RewardTrainer) if method == "reward" else (DPOConfig, DPOTrainer)
    settings: dict[str, Any] = {} if method == "reward" else {"beta": BETA}
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2
    model = load_base(base, case)
    model.set_attn_implementation("sdpa")  # its default, and the quickest for it here
    return kinds[1](
        model=model,
        args=kinds[0](
            output_dir=str(folder),
            max_length=4096,
            use_cpu=True,
            bf16=False,  # the weights are in the format asked for already
            gradient_checkpointing=False,
            report_to=[],
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=16,
            lora_alpha=32,
            target_modules="all-linear",
            task_type="SEQ_CLS" if method == "reward" else "CAUSAL_LM",
            modules_to_save=["score"] if method == "reward" else None,
        ),
    )


def trl_step(trainer: Any, tree: Any, case: dict[str, Any]) -> Callable[[], None]:
    """Return forward and backward of all pairs of a ranking, in TRL's micro-batches."""
    pairs = [(tree.responses[pair.chosen], tree.responses[pair.rejected]) for pair in tree.pairs]
    size = case.get("micro_batch", 1)
    prompt = list(tree.prompt)

    def feature(chosen: Any, rejected: Any) -> dict[str, Any]:
        if case["method"] == "dpo":
            return {
                "prompt_ids": prompt,
                "chosen_ids": list(chosen),
                "rejected_ids": list(rejected),
            } | ({"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0} if case.get("stored") else {})
        if case["method"] == "reward":
            return {"chosen_ids": prompt + list(chosen), "rejected_ids": prompt + list(rejected)}
        labels = [-100] * len(prompt)
        both = {}
        for name, one in (("chosen", chosen), ("rejected", rejected)):
            ids = prompt + list(one)
            both |= {
                f"{name}_input_ids": ids,
                f"{name}_attention_mask": [1] * len(ids),
                f"{name}_labels": labels + list(one),
            }
        return both | {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}

    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    batches = [trainer.data_collator([feature(*pair) for pair in group]) for group in groups]
    trainer.precompute_ref_logps = bool(case.get("stored"))

    def step() -> None:
        trainer.model.zero_grad(set_to_none=True)
        for batch, group in zip(batches, groups, strict=True):
            if case["method"] == "orpo" and case["what"] == "error":
                loss = orpo_on_responses(trainer, batch)
            else:
                loss = trainer.compute_loss(trainer.model, dict(batch))
            (loss * len(group) / len(pairs)).backward()

    return step


def orpo_on_responses(trainer: Any, batch: Any) -> Any:
    """Return ORPO from TRL's own log-probs and odds, learning the response alone as ours does.

    TRL's likelihood term is over the prompt too, so its whole loss cannot be compared.
    """
    chosen, rejected, *_ = trainer.concatenated_forward(trainer.model, batch)
    odds_term = trainer.odds_ratio_loss(chosen, rejected)[0]
    return -(chosen + odds_term).mean()


def randomise(model: Any) -> None:
    """Move the LoRA off its start, where the policy is the reference and gradients are special."""
    import torch

    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.02)
    model.eval()


def gradient(model: Any) -> Any:
    import torch

    found = [one.grad.flatten() for one in model.parameters() if one.grad is not None]
    return torch.cat(found)


def matmul_peak(case: dict[str, Any]) -> dict[str, Any]:
    import torch

    from training.engine.models import DTYPES

    left, right = (torch.randn(1024, 1024).to(DTYPES[case["dtype"]]) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return {"flops_per_second": 2 * 1024**3 / best}


def growth_share(base: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Fill a fresh store for 40 prompts, then for 42: the second pass over the first."""
    from training.engine.data import Tree
    from training.engine.policy import Policy
    from training.engine.reference import ReferenceStore, store_group
    from training.engine.tree import build_pack, group_trees

    draw = random.Random(1)
    trees = [
        Tree(
            tuple(draw.randrange(20, 40_000) for _ in range(64)),
            tuple(tuple(draw.randrange(20, 40_000) for _ in range(48)) for _ in range(4)),
            (),
        )
        for _ in range(42)
    ]
    policy = Policy(load_base(base, {**case, "method": "dpo"}).eval(), head="lm")
    with tempfile.TemporaryDirectory() as folder:
        store = ReferenceStore(Path(folder), base="", adapter="", precision=case["dtype"])
        policy.token_logps(build_pack(trees[:1]))  # warm-up
        times = []
        for count in (40, 42):
            started = time.perf_counter()
            missing = [part for tree in trees[:count] if (part := store.missing(tree))]
            for group in group_trees(missing, 1024):
                store_group(store, policy, group)
            times.append(time.perf_counter() - started)
    return {"share": times[1] / times[0]}


if __name__ == "__main__":
    sys.exit(main())
