"""The arguments of every method: meaning, unit, default, limits and source in one place.

The form, the REST body and run.json all come from these dataclasses. No torch in here, so the web
process can import it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

DPO_PAPER = "Rafailov et al. 2023, arXiv 2305.18290"
LORA_PAPER = "Hu et al. 2021, arXiv 2106.09685"


class ArgumentError(ValueError):
    """An argument is missing, unknown or out of its range; the message says what to change."""


def argument(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    source: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    basic: bool = False,
) -> Any:
    """Declare one argument; `basic` ones stand on the short form."""
    metadata = {
        "meaning": meaning,
        "unit": unit,
        "source": source,
        "minimum": minimum,
        "maximum": maximum,
        "basic": basic,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What every method takes."""

    learning_rate: float = argument(
        2e-4,
        "How far one step moves the trained weights; the peak of the schedule.",
        unit="per step",
        source="LoRA bears about ten times the rate of full weights (TRL's LoRA guide)",
        minimum=1e-9,
        maximum=1.0,
        basic=True,
    )
    epochs: int = argument(
        3,
        "How often each prompt is learnt from.",
        unit="passes",
        minimum=1,
        maximum=1000,
        basic=True,
    )
    batch_size: int = argument(
        4,
        "Prompts per optimizer step, each with all its responses and pairs. A step's loss is the "
        "weighted mean over all its pairs, however they are packed.",
        unit="prompts",
        minimum=1,
        maximum=4096,
        basic=True,
    )
    max_steps: int = argument(
        0,
        "Stop after this many optimizer steps; 0 goes through all epochs.",
        unit="steps",
        minimum=0,
    )
    max_length: int = argument(
        1024,
        "Longest prompt plus one response. What a response has beyond it is cut off and counted.",
        unit="tokens",
        minimum=8,
        maximum=1_000_000,
        basic=True,
    )
    max_prompt_length: int = argument(
        512,
        "Longest prompt; of a longer one the beginning is cut off and counted.",
        unit="tokens",
        minimum=4,
        maximum=1_000_000,
    )
    token_budget: int = argument(
        0,
        "Most tokens in one forward pass; several prompts are packed up to it. 0 chooses for the "
        "device. It changes speed and memory, never the result.",
        unit="tokens",
        minimum=0,
    )
    scheduler: Literal["linear", "cosine", "constant"] = argument(
        "linear", "How the learning rate falls after the warm-up.", source="TRL's default"
    )
    warmup_ratio: float = argument(
        0.1,
        "Share of the steps in which the learning rate rises from 0.",
        unit="share",
        minimum=0.0,
        maximum=1.0,
    )
    weight_decay: float = argument(
        0.0,
        "AdamW's pull of the trained matrices towards 0; biases and norms are left alone.",
        unit="per step",
        minimum=0.0,
        maximum=1.0,
        source="AdamW, arXiv 1711.05101",
    )
    max_grad_norm: float = argument(
        1.0, "A step's gradient is scaled down to this norm; 0 leaves it alone.", minimum=0.0
    )
    tuning: Literal["lora", "dora", "qlora4", "qlora8", "full"] = argument(
        "lora",
        "What is trained: a LoRA on the base as it is; a DoRA, which learns each weight row's "
        "length apart from its direction, is slower and is kept but not served here; a LoRA on the "
        "base held in 4-bit NF4 or in 8 bit, which needs less memory and more time; or full: every "
        "weight, which needs four times the base's size in fp32, a learning_rate near 1e-5, and "
        "gives a whole model.",
        source=f"{LORA_PAPER}; DoRA, arXiv 2402.09353; QLoRA, arXiv 2305.14314",
    )
    lora_r: int = argument(
        16, "Rank of the LoRA matrices.", source=LORA_PAPER, minimum=1, maximum=1024, basic=True
    )
    lora_alpha: float = argument(
        32.0,
        "LoRA's scale: its output counts alpha / rank times.",
        source=LORA_PAPER,
        minimum=0.01,
    )
    lora_dropout: float = argument(
        0.0, "Share of LoRA inputs zeroed in training.", unit="share", minimum=0.0, maximum=0.95
    )
    target_modules: list[str] = argument(  # noqa: RUF009
        ["all-linear"],
        "Names of the layers that get a LoRA; all-linear means every linear layer but the head.",
        source="QLoRA, arXiv 2305.14314, section 4: all layers, or quality is lost",
    )
    precision: Literal["auto", "fp32", "bf16"] = argument(
        "auto",
        "Number format of the frozen weights and of the arithmetic; LoRA weights and the "
        "optimizer are fp32 always. auto takes bf16 where this device is measured to be quicker "
        "and accurate with it.",
    )
    engine: Literal["auto", "tree", "trl"] = argument(
        "auto",
        "What computes the loss: our rank tree, or TRL's own trainers. auto takes the tree, and "
        "TRL where the architecture cannot take the tree's mask.",
    )
    gradient_checkpointing: bool = argument(
        False, "Compute activations twice to hold fewer of them: less memory, a third more time."
    )
    checkpoint_every: int = argument(
        0,
        "Steps between checkpoints; 0 writes one about every 20 seconds.",
        unit="steps",
        minimum=0,
    )

    def check(self) -> None:
        """Raise ArgumentError where fields contradict one another."""
        if self.max_prompt_length >= self.max_length:
            raise ArgumentError(
                f"max_prompt_length ({self.max_prompt_length}) leaves no room for a response: "
                f"keep it below max_length ({self.max_length})."
            )
        if not self.target_modules or not all(self.target_modules):
            raise ArgumentError("target_modules is empty: name a layer, or use all-linear.")
        if self.tuning == "full" and self.precision == "bf16":
            raise ArgumentError(
                "Full weights are trained in fp32, or small steps would vanish in rounding: set "
                "precision to auto, or tuning to lora."
            )


def refuse_shards(arguments: Arguments) -> str:
    """Say why a run cannot be sharded over processes; "" where it can."""
    if arguments.tuning.startswith("qlora"):
        return "A base in 4 or 8 bits takes no shards: set tuning to lora, or RUN_SHARDING to ddp."
    if arguments.tuning == "dora":
        return "A DoRA measures whole weights: set tuning to lora, or RUN_SHARDING to ddp."
    if arguments.engine == "trl":
        return "TRL's trainers take no shards: set engine to auto, or RUN_SHARDING to ddp."
    return ""


def _refuse_trl(arguments: Arguments, what: str) -> None:
    if arguments.engine == "trl":
        raise ArgumentError(f"{what}: set engine to tree, or to auto.")


REFERENCE = (
    "What the policy is held close to and measured against: the base, or the adapter that the run "
    "starts from. Without such an adapter both are the base."
)


@dataclass(frozen=True, kw_only=True)
class DpoArguments(Arguments):
    """Direct preference optimisation."""

    beta: float = argument(
        0.1,
        "How strongly the policy is held to the reference; smaller lets it move further.",
        source=DPO_PAPER,
        minimum=1e-6,
        maximum=100.0,
        basic=True,
    )
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = argument(
        "sigmoid",
        "Shape of the pair loss: sigmoid (DPO), ipo (a squared distance, bounded margins), hinge "
        "(SLiC), robust (unbiased under a known share of flipped labels).",
        source=f"{DPO_PAPER}; IPO 2310.12036; SLiC 2305.10425; robust DPO 2403.00409",
    )
    label_smoothing: float = argument(
        0.0,
        "Share of judgements taken to be the wrong way round.",
        unit="share",
        source="Mitchell 2023 (conservative DPO); robust DPO, arXiv 2403.00409",
        minimum=0.0,
        maximum=0.49,
    )
    length_normalised: bool = argument(
        False,
        "Divide each response's log-ratio by its length, against a bias to long responses.",
        source="Tülu 3, arXiv 2411.15124, section 5.1",
    )
    ties: Literal["ignore", "rao-kupper"] = argument(
        "ignore",
        "What to do with rows marked as ties: leave them out, or learn them as ties.",
        source="Chen et al. 2024, arXiv 2409.17431",
    )
    tie_threshold: float = argument(
        3.0,
        "Rao-Kupper's nu: how many times better one response must be before people say so.",
        source="Chen et al. 2024, arXiv 2409.17431",
        minimum=1.001,
        maximum=100.0,
    )
    reference: Literal["base", "parent"] = argument("parent", REFERENCE)

    def check(self) -> None:
        super().check()
        if self.loss == "robust" and self.label_smoothing == 0:
            raise ArgumentError(
                "The robust loss needs label_smoothing above 0, the share of flipped judgements."
            )
        if self.loss in ("ipo", "hinge") and self.label_smoothing:
            raise ArgumentError(
                f"The {self.loss} loss takes no label_smoothing: set it to 0, "
                "or choose sigmoid or robust."
            )
        if self.ties == "rao-kupper" and (self.loss != "sigmoid" or self.label_smoothing):
            raise ArgumentError(
                "Ties are learnt with the sigmoid loss and no label_smoothing: choose these, "
                "or set ties to ignore."
            )
        if self.loss == "ipo" and self.length_normalised:
            raise ArgumentError(
                "The ipo loss divides by the length already: leave length_normalised off."
            )
        if self.ties == "rao-kupper":
            _refuse_trl(self, "TRL knows no ties")
        if self.label_smoothing and self.loss == "sigmoid":
            _refuse_trl(self, "TRL drops label_smoothing from the sigmoid loss without a word")
        if self.length_normalised and self.loss != "sigmoid":
            _refuse_trl(self, "TRL divides by the length in the sigmoid loss only")


@dataclass(frozen=True, kw_only=True)
class OrpoArguments(Arguments):
    """Odds-ratio preference optimisation: no reference, learns the chosen text as well."""

    beta: float = argument(
        0.1,
        "Weight of the odds-ratio term beside the likelihood of the chosen response (lambda in "
        "the paper).",
        source="Hong et al. 2024, arXiv 2403.07691",
        minimum=0.0,
        maximum=100.0,
        basic=True,
    )

    def check(self) -> None:
        super().check()
        _refuse_trl(self, "TRL's ORPO is experimental and may vanish")


@dataclass(frozen=True, kw_only=True)
class SimpoArguments(Arguments):
    """Simple preference optimisation: mean log-probability as the reward, no reference."""

    beta: float = argument(
        2.0,
        "Scale of the reward.",
        source="Meng et al. 2024, arXiv 2405.14734",
        minimum=1e-6,
        maximum=100.0,
        basic=True,
    )
    gamma: float = argument(
        1.0,
        "By how much the chosen reward should exceed the rejected one.",
        unit="reward",
        source="Meng et al. 2024, arXiv 2405.14734 (0.3 to 1.6)",
        minimum=0.0,
        maximum=100.0,
    )

    def check(self) -> None:
        super().check()
        _refuse_trl(self, "TRL's SimPO is experimental and may vanish")


@dataclass(frozen=True, kw_only=True)
class RewardArguments(Arguments):
    """Bradley-Terry reward model: a LoRA and a score head."""

    use_margin: bool = argument(
        False,
        "Ask for a score difference of at least the row's preference strength, so clear "
        "preferences count for more.",
        source="Llama 2, arXiv 2307.09288, equation 2",
    )
    centring: float = argument(
        0.0,
        "Weight of the squared sum of a pair's scores, which keeps scores around 0.",
        source="Eisenstein et al. 2023, arXiv 2312.09244 (0.01)",
        minimum=0.0,
        maximum=10.0,
    )


@dataclass(frozen=True, kw_only=True)
class KtoArguments(Arguments):
    """Kahneman-Tversky optimisation: good and bad responses, no pairs needed."""

    beta: float = argument(
        0.1,
        "How strongly the policy is held to the reference; smaller lets it move further.",
        source="Ethayarajh et al. 2024, arXiv 2402.01306",
        minimum=1e-6,
        maximum=100.0,
        basic=True,
    )
    desirable_weight: float = argument(
        1.0, "What a good response counts.", source="arXiv 2402.01306, equation 8", minimum=0.0
    )
    undesirable_weight: float = argument(
        1.0, "What a bad response counts.", source="arXiv 2402.01306, equation 8", minimum=0.0
    )
    reference: Literal["base", "parent"] = argument("parent", REFERENCE)


@dataclass(frozen=True, kw_only=True)
class SftArguments(Arguments):
    """Supervised fine-tuning on each prompt's best response."""


METHODS: dict[str, type[Arguments]] = {
    "dpo": DpoArguments,
    "orpo": OrpoArguments,
    "simpo": SimpoArguments,
    "kto": KtoArguments,
    "reward": RewardArguments,
    "sft": SftArguments,
}


def argument_schema(method: str) -> list[dict[str, Any]]:
    """Describe a method's arguments for a form or an API: plain JSON values only."""
    cls = _method(method)
    hints = get_type_hints(cls)
    return [
        {
            "name": item.name,
            "type": _kind(hints[item.name]),
            "choices": list(get_args(hints[item.name])) if _is_choice(hints[item.name]) else None,
            "default": _default(item),
            **item.metadata,
        }
        for item in sorted(fields(cls), key=lambda item: not item.metadata["basic"])
    ]


def parse_arguments(method: str, given: dict[str, Any]) -> Arguments:
    """Build a method's arguments from what was given; ArgumentError says what is wrong."""
    cls = _method(method)
    hints = get_type_hints(cls)
    if not isinstance(given, dict):
        raise ArgumentError("The arguments must be an object of names and values.")
    known = {item.name: item for item in fields(cls)}
    values = {}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}."
            raise ArgumentError(f"{method} has no argument {name!r}; {hint}")
        values[name] = _checked(name, value, hints[name], known[name].metadata)
    arguments = cls(**values)
    arguments.check()
    return arguments


def check_arguments(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the complete, checked arguments: what was given, and the defaults for the rest."""
    return dataclasses.asdict(parse_arguments(method, given))


def _method(method: str) -> type[Arguments]:
    if method not in METHODS:
        raise ArgumentError(f"There is no method {method!r}: choose one of {', '.join(METHODS)}.")
    return METHODS[method]


def _is_choice(hint: Any) -> bool:
    return get_origin(hint) is Literal


def _kind(hint: Any) -> str:
    if _is_choice(hint):
        return "choice"
    return {float: "number", int: "integer", bool: "boolean"}.get(hint, "list")


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _checked(name: str, value: Any, hint: Any, metadata: Any) -> Any:
    """Return the value in its type, or raise with its name, its range and what was given."""
    if _is_choice(hint):
        if value not in get_args(hint):
            raise ArgumentError(
                f"{name} must be one of {', '.join(get_args(hint))}; got {value!r}."
            )
        return value
    if hint is bool:
        if not isinstance(value, bool):
            raise ArgumentError(f"{name} must be true or false; got {value!r}.")
        return value
    if hint not in (int, float):
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise ArgumentError(f"{name} must be a list of names; got {value!r}.")
        return names
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ArgumentError(f"{name} must be a number; got {value!r}.")
    if hint is int and value != int(value):
        raise ArgumentError(f"{name} must be a whole number; got {value!r}.")
    low, high = metadata["minimum"], metadata["maximum"]
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"at least {low:,.9g}" if high is None else f"between {low:,.9g} and {high:,.9g}"
        raise ArgumentError(f"{name} must be {span}; got {value:,.9g}.")
    return hint(value)
