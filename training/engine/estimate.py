"""What a run will take: steps, tokens, memory, disk and time, from shapes alone. No torch in here.

The web process asks before anything is queued; what a machine measured later corrects the answer.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.engine.arguments import Arguments
from training.engine.data import Tree, divergence_trees

MB = 1_048_576
# Fields of a base's configuration, by the names that architectures give them.
WIDTH = ("hidden_size", "n_embd", "d_model")
DEPTH = ("num_hidden_layers", "n_layer", "num_layers")
HEADS = ("num_attention_heads", "n_head")
BYTES = {"fp32": 4.0, "bf16": 2.0}
# bitsandbytes' NF4 with double quantisation: 4 bits and 0.127 bits of constants a weight (QLoRA,
# arXiv 2305.14314, section 3); 8 bits and one fp32 a row.
QUANTISED = {"qlora4": 0.516, "qlora8": 1.01}
LOGIT_ROWS = 512  # training.engine.logprobs.ROWS
TOKEN_BUDGET = {"cpu": 1024, "cuda": 16384}  # training.engine.train.TOKEN_BUDGET
# What Python, torch and transformers take before any weight, with what the allocator keeps between
# packs of many sizes; on CUDA, whose allocator reports its own peak, the context.
RUNTIME_MB = {"cpu": 930.0, "cuda": 500.0}
# The share of a device's peak that a training step reaches; only until the first measurement.
EFFICIENCY = 0.35
# A pass forward costs 2 operations a weight and token; the gradient back to the activations as much
# again, and a frozen weight needs no gradient of its own (Kaplan et al. 2020, arXiv 2001.08361).
FORWARD, BACKWARD, WEIGHT_GRADIENT = 2.0, 2.0, 2.0
# Of every linear layer's two ends, how many copies are kept; how many of the attention's weights
# (the fused kernel keeps few); how many of a block of logits exist at once. Fitted to SmolLM2-135M:
# packs of 128 to 1,536 tokens on a CPU in fp32, bf16 and 4 bits.
ACTIVATION_COPIES = 1.6
ATTENTION_COPIES = 0.2
LOGIT_COPIES = 3
CHECKPOINTS = 2  # training.engine.checkpoints.KEPT
FILE_MB = 4096 / MB  # what a file of a few hundred bytes takes on a disk
HEADROOM = 0.95  # of a device's memory that a run may plan for


@dataclass(frozen=True)
class Matrix:
    """One linear layer: the last part of its name, and its two sizes."""

    name: str
    d_in: int
    d_out: int

    @property
    def size(self) -> int:
        return self.d_in * self.d_out


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A base as far as memory and time go."""

    width: int
    depth: int
    heads: int
    vocabulary: int
    parameters: int
    matrices: tuple[Matrix, ...]

    @property
    def frozen(self) -> int:
        """Count the weights of the linear layers, which quantisation makes smaller."""
        return sum(matrix.size for matrix in self.matrices)


def read_shape(folder: Path) -> Shape:
    """Read a base's shape from its configuration and the headers of its safetensors files.

    Raises OSError, ValueError or KeyError for a folder that holds no such base.
    """
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    tensors: dict[str, Sequence[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= _header(path)
    if not tensors:
        raise ValueError(f"{folder} holds no weights in safetensors.")
    vocabulary = int(config["vocab_size"])
    matrices = []
    for name, shape in tensors.items():
        layer = name.removesuffix(".weight").rpartition(".")[2]
        if name.endswith(".weight") and len(shape) == 2 and not _is_embedding(layer, shape, config):
            matrices.append(Matrix(layer, int(shape[1]), int(shape[0])))
    return Shape(
        width=_first(config, WIDTH),
        depth=_first(config, DEPTH),
        heads=_first(config, HEADS),
        vocabulary=vocabulary,
        parameters=sum(math.prod(shape) for shape in tensors.values()),
        matrices=tuple(matrices),
    )


def _header(path: Path) -> dict[str, Sequence[int]]:
    """Return the shapes in a safetensors file: 8 bytes of length, then that much JSON."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def _is_embedding(layer: str, shape: Sequence[int], config: Mapping[str, Any]) -> bool:
    return int(config["vocab_size"]) in shape or layer in ("wpe", "wte") or "embed" in layer


def _first(config: Mapping[str, Any], names: Sequence[str]) -> int:
    return next(int(config[name]) for name in names if name in config)


# LoRA by the numbers


def lora_parameters(r: int, matrices: Sequence[Matrix]) -> int:
    """Return Σ r·(d_in + d_out), the weights that LoRA trains (Hu et al. 2021, section 4.1)."""
    return sum(r * (matrix.d_in + matrix.d_out) for matrix in matrices)


def targeted(shape: Shape, names: Sequence[str]) -> list[Matrix]:
    """Return the layers that get a LoRA, as PEFT matches names."""
    if list(names) == ["all-linear"]:
        return list(shape.matrices)
    wanted = {name.rpartition(".")[2] for name in names}
    return [matrix for matrix in shape.matrices if matrix.name in wanted]


def too_large_rank(r: int, matrices: Sequence[Matrix]) -> list[str]:
    """Name the layers where a LoRA of rank r has as many weights as the layer: it saves nothing."""
    return sorted(
        {one.name for one in matrices if r * (one.d_in + one.d_out) >= one.d_in * one.d_out}
    )


def trainable_parameters(shape: Shape, arguments: Arguments, *, head: str) -> int:
    """Count what is trained: the LoRA or DoRA, or every weight, and a reward model's score head."""
    score = shape.width if head == "score" else 0
    if is_full(arguments):
        return shape.parameters + score
    layers = targeted(shape, arguments.target_modules)
    # DoRA's magnitudes: one a row (Liu et al. 2024, arXiv 2402.09353, section 4.1).
    rows = sum(one.d_out for one in layers) if str(arguments.tuning) == "dora" else 0
    return lora_parameters(arguments.lora_r, layers) + rows + score


def is_full(arguments: Arguments) -> bool:
    return str(arguments.tuning) == "full"


# Data


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What the trees of a snapshot hold; of a sample, scaled up by ``scale`` = all rows / read."""

    rows: int
    used: int
    truncated: int
    trees: int
    tokens: int
    response_tokens: int
    responses: int
    longest: int
    spread: float  # standard deviation of the trees' tokens
    chosen_length: float  # mean tokens of the chosen responses, over pairs
    rejected_length: float
    heldout_tokens: int
    heldout_responses: int
    divergence_tokens: int = 0  # of the held-out part, what the KL from the base is measured on
    general_tokens: int = 0  # of the text that perplexity is measured on
    scale: float = 1.0

    def scaled(self, number: float) -> int:
        return round(number * self.scale)


def count_tokens(
    trees: Sequence[Tree],
    heldout: Sequence[Tree],
    *,
    rows: int,
    used: int,
    truncated: int,
    general_tokens: int = 0,
    scale: float = 1.0,
) -> Tokens:
    """Sum up trees; ``rows``, ``used`` and ``truncated`` are those of the training part."""
    heldout = [tree for tree in heldout if tree.ordered]  # as the engine reads it
    sizes = [tree.tokens for tree in trees]
    pairs = [
        (len(tree.responses[pair.chosen]), len(tree.responses[pair.rejected]))
        for tree in trees
        for pair in tree.pairs
    ]
    chosen, rejected = zip(*pairs, strict=True) if pairs else ((0,), (0,))
    return Tokens(
        rows=rows,
        used=used,
        truncated=truncated,
        trees=len(trees),
        tokens=sum(sizes),
        response_tokens=sum(len(one) for tree in trees for one in tree.responses),
        responses=sum(len(tree.responses) for tree in trees),
        longest=max(sizes, default=0),
        spread=statistics.pstdev(sizes) if sizes else 0.0,
        chosen_length=statistics.fmean(chosen),
        rejected_length=statistics.fmean(rejected),
        heldout_tokens=sum(tree.tokens for tree in heldout),
        heldout_responses=sum(len(tree.responses) for tree in heldout),
        divergence_tokens=sum(tree.tokens for tree in divergence_trees(heldout)),
        general_tokens=general_tokens,
        scale=scale,
    )


def steps(trees: int, arguments: Arguments) -> int:
    """Return the optimizer steps of a run over so many trees."""
    found = arguments.epochs * math.ceil(trees / arguments.batch_size)
    return min(found, arguments.max_steps) if arguments.max_steps else found


# Hardware


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a run would work on; sizes in MB, ``gflops`` the peak of a matrix product."""

    name: str
    device: Literal["cpu", "cuda"]
    memory_mb: float
    disk_mb: float
    gflops: float
    bf16: bool = False  # whether "auto" is expected to take it
    shards: int = 1  # processes that hold the base between them (FSDP)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What earlier runs of this kind took on this machine, against what was foretold."""

    tokens_per_second: float | None = None
    overhead_seconds: float | None = None
    memory_factor: float = 1.0
    precision: str = ""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The answer; memory and disk in MB, by what takes them."""

    steps: int
    rows: int
    used: int
    truncated: int
    trees: int
    tokens: int
    longest: int
    chosen_length: float
    rejected_length: float
    trainable_parameters: int
    total_parameters: int
    precision: str
    pack_tokens: int
    memory_mb: dict[str, float]
    peak_memory_mb: float
    disk_mb: dict[str, float]
    needed_disk_mb: float
    training_seconds: float
    passes_seconds: float  # without a gradient: the reference, and what is measured
    overhead_seconds: float
    seconds: float
    measured: bool

    @property
    def trainable_share(self) -> float:
        return self.trainable_parameters / self.total_parameters


def estimate(
    shape: Shape,
    arguments: Arguments,
    tokens: Tokens,
    hardware: Hardware,
    *,
    method: str,
    reference: bool,
    head: str,
    measured: Measured | None = None,
) -> Estimate:
    """Foretell a run; ``reference`` says whether the method needs the reference's log-probs."""
    measured = measured or Measured()
    precision = _precision(arguments, hardware, measured)
    trainable = trainable_parameters(shape, arguments, head=head)
    trees = tokens.scaled(tokens.trees)
    planned = steps(trees, arguments)
    epochs = planned * arguments.batch_size / max(1, trees)
    epochs = min(float(arguments.epochs), epochs)
    learnt = tokens.scaled(tokens.tokens * epochs)
    pack = pack_tokens(arguments, tokens, hardware.device)
    memory = _memory(shape, arguments, pack, precision, trainable, hardware, head=head)
    disk = _disk(shape, tokens, trainable, reference=reference, head=head)
    training, passes, overhead = _seconds(
        shape,
        arguments,
        tokens,
        hardware,
        measured,
        learnt,
        precision,
        reference=reference,
        head=head,
    )
    return Estimate(
        steps=planned,
        rows=tokens.scaled(tokens.rows),
        used=tokens.scaled(tokens.used),
        truncated=tokens.scaled(tokens.truncated),
        trees=trees,
        tokens=learnt,
        longest=tokens.longest,
        chosen_length=round(tokens.chosen_length, 1),
        rejected_length=round(tokens.rejected_length, 1),
        trainable_parameters=trainable,
        total_parameters=shape.parameters + (0 if is_full(arguments) else trainable),
        precision=precision,
        pack_tokens=pack,
        memory_mb={name: round(value, 1) for name, value in memory.items()},
        peak_memory_mb=round(sum(memory.values()) * measured.memory_factor, 1),
        disk_mb={name: round(value, 1) for name, value in disk.items()},
        needed_disk_mb=round(sum(disk.values()), 1),
        training_seconds=round(training, 1),
        passes_seconds=round(passes, 1),
        overhead_seconds=round(overhead, 1),
        seconds=round(training + passes + overhead, 1),
        measured=measured.tokens_per_second is not None,
    )


def _precision(arguments: Arguments, hardware: Hardware, measured: Measured) -> str:
    if arguments.precision != "auto":
        return arguments.precision
    if measured.precision:
        return measured.precision
    # The engine takes fp32 for a quantised base unless it is told otherwise, and for full weights.
    exact = str(arguments.tuning) in QUANTISED or is_full(arguments)
    return "bf16" if hardware.bf16 and not exact else "fp32"


def pack_tokens(arguments: Arguments, tokens: Tokens, device: str) -> int:
    """Return the tokens of the largest pack to expect: a large step's trees, up to the budget.

    A step takes trees at random; two spreads above the mean, few steps are larger.
    """
    budget = arguments.token_budget or TOKEN_BUDGET[device]
    count = min(arguments.batch_size, tokens.trees)
    mean = tokens.tokens / max(1, tokens.trees)
    batch = count * mean + 2 * tokens.spread * math.sqrt(count)
    return max(tokens.longest, min(budget, round(batch)))


def _memory(
    shape: Shape,
    arguments: Arguments,
    pack: int,
    precision: str,
    trainable: int,
    hardware: Hardware,
    *,
    head: str,
) -> dict[str, float]:
    number, shards = BYTES[precision], hardware.shards
    weights = _weights(shape, arguments, number)
    if shards > 1:
        # Gathered at a time: the layer that is computed, the next one, and what is no layer.
        gathered = shape.parameters - shape.frozen + 2 * shape.frozen / shape.depth
        weights = weights / shards + gathered * number
    # A base is loaded in fp32 and rounded afterwards, layer by layer, so that it can be checked.
    loading = 0.0
    if number < 4 and str(arguments.tuning) not in QUANTISED and shards == 1:
        loading = shape.parameters * (4.0 - number)
    activations = pack * _activations(shape, arguments, number, pack)
    rows = 0 if head == "score" else min(pack, LOGIT_ROWS)
    logits = rows * shape.vocabulary * 4.0 * LOGIT_COPIES
    # Of a sharded base's own weights a process trains its share; an adapter it holds whole.
    state = trainable * 4.0 / (shards if is_full(arguments) else 1)
    return {
        "runtime": RUNTIME_MB[hardware.device],
        "weights": weights / MB,
        "adapter": 0.0 if is_full(arguments) else state / MB,
        "gradients": state / MB,
        "optimizer": 2 * state / MB,
        # What loading needs is free again before the first activation.
        "activations and logits": max(loading, activations + logits) / MB,
    }


def _weights(shape: Shape, arguments: Arguments, number: float) -> float:
    share = QUANTISED.get(str(arguments.tuning))
    if share is None:
        return shape.parameters * number
    return shape.frozen * share + (shape.parameters - shape.frozen) * number


def _activations(shape: Shape, arguments: Arguments, number: float, pack: int) -> float:
    """Return the bytes that one token of a pack keeps for the backward pass.

    In a layer: the inputs and outputs of its linear parts and what lies between them (norms in
    fp32, gates, products), and the attention's weights, one row of the pack for each head. With
    gradient checkpointing: each layer's input, and one layer's whole share at a time.
    """
    ends = sum(one.d_in + one.d_out for one in shape.matrices) / shape.depth
    attention = ATTENTION_COPIES * shape.heads * pack
    inner = (ACTIVATION_COPIES * ends + 2 * shape.width * 4 / number + attention) * number
    if number < 4 and not is_full(arguments):
        # LoRA weights are fp32, so each of their inputs is kept in fp32 as well.
        layers = targeted(shape, arguments.target_modules)
        inner += sum(one.d_in for one in layers) / shape.depth * 4.0
    if arguments.gradient_checkpointing:
        return shape.depth * shape.width * number + inner
    return shape.depth * inner


def _disk(
    shape: Shape, tokens: Tokens, trainable: int, *, reference: bool, head: str
) -> dict[str, float]:
    adapter = trainable * 4.0 / MB
    disk = {
        # Adapter and optimizer in each checkpoint, and one more while it is written.
        "checkpoints": (CHECKPOINTS + 1) * 3 * adapter,
        # In the run's directory and in the store of versions.
        "adapter": 2 * adapter,
    }
    if reference:
        responses = tokens.scaled(tokens.responses) + tokens.heldout_responses
        values = tokens.scaled(tokens.response_tokens) * 4.0 / MB
        disk["reference log-probs"] = max(values, responses * FILE_MB)
    if head == "lm":
        disk["probe"] = 8 * shape.vocabulary * 4.0 / MB
    return disk


def _seconds(
    shape: Shape,
    arguments: Arguments,
    tokens: Tokens,
    hardware: Hardware,
    measured: Measured,
    learnt: int,
    precision: str,
    *,
    reference: bool,
    head: str,
) -> tuple[float, float, float]:
    """Return the seconds of the steps, of the passes without a gradient, and of all else."""
    backward = BACKWARD + (WEIGHT_GRADIENT if is_full(arguments) else 0.0)
    if arguments.gradient_checkpointing:
        backward += FORWARD
    operations = (FORWARD + backward) * shape.parameters
    rate = measured.tokens_per_second
    if rate is None:
        peak = hardware.gflops * (2 if precision == "bf16" and hardware.bf16 else 1)
        rate = EFFICIENCY * peak * 1e9 / operations
    training = learnt / rate
    forward = rate * (FORWARD + backward) / FORWARD
    extra = _tokens_without_gradient(
        tokens, reference=reference, head=head, full=is_full(arguments)
    )
    overhead = measured.overhead_seconds
    if overhead is None:
        # Loading and checking the base, and the proof, which loads it twice more.
        overhead = 10.0 + shape.parameters * 4.0 / 400e6
    return training, extra / forward, overhead


def _tokens_without_gradient(tokens: Tokens, *, reference: bool, head: str, full: bool) -> int:
    """Count what the passes without a gradient read: the reference, and the measures."""
    found = tokens.scaled(tokens.tokens) + tokens.heldout_tokens if reference else 0
    # The held-out part before and after; before, the reference's are looked up.
    found += tokens.heldout_tokens * (1 if reference else 2)
    if head == "lm" and tokens.heldout_tokens:
        found += 2 * tokens.general_tokens  # perplexity before and after
        if not full:
            found += 2 * tokens.divergence_tokens  # with the adapter and without it
    return found
