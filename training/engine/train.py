"""One run, read from top to bottom: check, load, reference, train, evaluate, save, prove.

Everything that decides the result is in run.json; everything that was done is in events.jsonl and
report.json. A directory with a checkpoint goes on from it.
"""

from __future__ import annotations

import gc
import hashlib
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.artifacts import adapter_digest, model_digest
from training.engine.arguments import Arguments, refuse_shards
from training.engine.checkpoints import (
    Progress,
    load_checkpoint,
    load_progress,
    random_state,
    restore,
    save_checkpoint,
    set_random_state,
)
from training.engine.data import RowCounts, Tree, read_trees, split_tree, split_votes
from training.engine.errors import CRASHED, Cancelled, Paused, RunError, is_out_of_memory
from training.engine.evaluate import divergence, evaluate
from training.engine.events import EventLog
from training.engine.general import read_general
from training.engine.methods import METHODS, Method, Scores, means, pair_metrics
from training.engine.models import (
    CLEAR_GAIN,
    DTYPES,
    add_adapter,
    bf16_speedup,
    cast_weights,
    load_base,
    load_tokenizer,
    make_all_trainable,
    pick_device,
    save_adapter,
    save_model,
    without_adapter,
)
from training.engine.perplexity import perplexity
from training.engine.policy import Policy, choose_computation
from training.engine.prove import read_proof, write_probe
from training.engine.reference import ReferenceStore, store_group
from training.engine.report import Clock, make_report, memory_mb
from training.engine.rundir import Run, var_folder, write_json
from training.engine.sharding import alike, gradient_norm, shard, whole_weights
from training.engine.stopping import Stop
from training.engine.team import Team
from training.engine.threads import Threads
from training.engine.tree import Pack, build_pack, group_trees, sum_by_response
from training.engine.with_trl import TrlLoss, trl_refuses

CHECKPOINT_SECONDS = 20.0
TOKEN_BUDGET = {"cpu": 1024, "cuda": 16384}
LARGEST_TREE = 4096  # tokens; a larger tree is cut into trees that share its prompt
SMALL_BASE = 2_000_000_000  # parameters; up to here the tree is checked in fp32
BF16_ERROR = 0.1  # nats per token that bf16 may be off on average to be called accurate


@dataclass
class Session:
    """A loaded run: what the phases below hand to one another."""

    run: Run
    events: EventLog
    stop: Stop
    threads: Threads
    method: Method
    policy: Policy
    store: ReferenceStore
    progress: Progress
    train: list[Tree]
    heldout: list[Tree]
    strangers: list[Tree]  # for KTO: each training prompt with an answer to another one
    team: Team
    clock: Clock
    trl: TrlLoss | None = None

    @property
    def arguments(self) -> Arguments:
        return self.run.arguments

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def breathe(self) -> None:
        """Come up for air before a pass: stop if asked, make room for other processes."""
        self.stop.check()
        self.threads.adapt()

    def score(self, pack: Pack, baseline: Tensor | None = None) -> Scores:
        """Score a pack with the policy, and look its references up."""
        if self.method.head == "score":
            return Scores(pack, values=self.policy.values(pack))
        logps = sum_by_response(pack, self.policy.token_logps(pack))
        references = self.references(pack) if self.method.reference else None
        return Scores(pack, logps, references, baseline=baseline)

    def references(self, pack: Pack) -> Tensor:
        """Return the stored reference log-probs of a pack's responses [R]."""
        found = []
        for tree in pack.trees:
            for response in tree.responses:
                values = self.store.get(tree.prompt, response)
                assert values is not None  # fill_references came before
                found.append(float(values.sum(dtype=np.float64)))
        return torch.tensor(found, dtype=torch.float64, device=self.device)


def train(run: Run, events: EventLog, stop: Stop, team: Team) -> None:
    """Carry a run from where it stands to its report."""
    if run.report.exists():
        events.state("done")
        return
    clock = Clock(events)
    clock.enter("loading")
    tokenizer = load_tokenizer(run.base.path)
    trees, counts, heldout = read_data(run, tokenizer)
    stop.check()
    session = load(run, clock, stop, team, tokenizer, trees, heldout)
    stop.check()
    if session.method.reference:
        clock.enter("reference")
        fill_references(session)
    if run.full:
        free_all_weights(session)
    general = None
    if session.method.head == "lm":
        general = read_general(tokenizer)
    parameters = trainable(session.policy.model)
    optimizer = torch.optim.AdamW(
        parameter_groups(parameters, run.arguments.weight_decay),
        lr=run.arguments.learning_rate,
    )
    if (found := load_checkpoint(run.checkpoints)) is not None:
        session.progress, tensors = found
        check_unchanged(run, session.progress)
        session.progress.asked = run.asked
        restore(tensors, parameters, optimizer)
        events.note(f"Resumed after step {session.progress.step}.")
    elif session.heldout:
        clock.enter("evaluating")
        session.progress.before = evaluate_before(session) | _general(session, general)
    clock.enter("training")
    train_steps(session, parameters, optimizer)
    after = None
    if session.heldout:
        clock.enter("evaluating")
        after = evaluate_now(session) | _general(session, general) | _divergence(session)
        events.write("evaluation", before=session.progress.before, after=after)
    clock.enter("saving")
    weights = whole_weights(session.policy.model) if run.full and team.sharded else None
    longest = max(session.train, key=lambda tree: tree.tokens)
    if team.first or team.sharded:
        write_probe(
            run,
            session.policy,
            [*longest.prompt, *longest.responses[0]],
            precision=session.progress.precision,
            team=team,
        )
    team.leave()
    if not team.first:
        return
    if run.full:
        save_model(session.policy.model, tokenizer, run.model, weights=weights)
    else:
        save_adapter(session.policy.model, tokenizer, run.adapter, base=run.base)
    report = make_report(session, parameters, counts, after)
    del session, parameters, optimizer
    gc.collect()
    clock.enter("proving")
    report["proof"] = prove_in_a_fresh_process(run, stop)
    if run.full:
        report["model_digest"] = model_digest(run.model)
    else:
        report["adapter_digest"] = adapter_digest(run.adapter)
    report["throughput"]["seconds"] = clock.finish()
    write_json(run.report, report)
    events.state("done")


def read_data(run: Run, tokenizer: Any) -> tuple[list[Tree], RowCounts, list[Tree]]:
    """Read the snapshot's two parts; RunError when there is nothing to learn from."""
    arguments = run.arguments
    limits: dict[str, Any] = {
        "max_length": arguments.max_length,
        "max_prompt_length": arguments.max_prompt_length,
        "keep_ties": getattr(arguments, "ties", "ignore") == "rao-kupper",
        "single": METHODS[run.method].single,
    }
    trees, counts = read_trees(run.snapshot.path / "train.parquet", tokenizer, **limits)
    trees = [tree for tree in trees if METHODS[run.method].weight(tree) > 0]
    if not trees:
        raise RunError(
            f"None of the snapshot's {counts.rows} training rows can be used: each needs two "
            "different responses, and a prompt that leaves room for them below max_length."
        )
    path = run.snapshot.path / "heldout.parquet"
    heldout = read_trees(path, tokenizer, **limits)[0] if path.exists() else []
    heldout = [tree for tree in heldout if tree.ordered]
    trees = [part for tree in trees for part in split_training_tree(tree, METHODS[run.method])]
    return trees, counts, [part for tree in heldout for part in split_tree(tree, LARGEST_TREE)]


def split_training_tree(tree: Tree, method: Method) -> Iterator[Tree]:
    """Cut a tree that is too large for one pack so that nothing it teaches gets lost."""
    if method.single:
        return split_votes(tree, LARGEST_TREE, method.taught(tree))
    return split_tree(tree, LARGEST_TREE)


def strangers_of(trees: Sequence[Tree]) -> list[Tree]:
    """Return each tree's prompt with an answer to the next other prompt, for KTO's baseline.

    The parts of a large tree stand side by side; where there is but one prompt, its own answers
    have to do.
    """
    count = len(trees)
    after = [(place + 1) % count for place in range(count)]
    for place in [*reversed(range(count))] * 2:  # twice, as the last is followed by the first
        following = (place + 1) % count
        if trees[following].prompt == trees[place].prompt:
            after[place] = after[following]
    return [
        Tree(tree.prompt, trees[other].responses[:1], ())
        for tree, other in zip(trees, after, strict=True)
    ]


def load(
    run: Run,
    clock: Clock,
    stop: Stop,
    team: Team,
    tokenizer: Any,
    trees: list[Tree],
    heldout: list[Tree],
) -> Session:
    """Load the base, check the tree on it, choose the number format, add the adapter."""
    arguments, method = run.arguments, METHODS[run.method]
    events = clock.events
    threads = Threads()
    if team.sharded and (refusal := refuse_shards(arguments)):
        raise RunError(refusal)
    budget = arguments.token_budget or TOKEN_BUDGET[pick_device().type]
    progress = Progress(token_budget=budget, asked=run.asked)
    resumed = load_progress(run.checkpoints)
    precision = resumed.precision if resumed else arguments.precision
    wanted = None if precision == "auto" else DTYPES[precision]
    quantised = arguments.tuning.startswith("qlora")
    load = partial(load_policy, run, team)
    # The tree is checked in fp32, except where another format would mean to load anew.
    policy = load(wanted or torch.float32 if quantised or team.sharded else torch.float32)
    check_fit(policy.inner, [*trees, *heldout])
    stop.check()
    threads.adapt()
    clock.enter("checking")
    shortest = sorted(trees, key=lambda tree: tree.tokens)[:2]
    with_trl = choose_engine(policy, arguments, shortest, events)
    if team.sharded and policy.plain:
        raise RunError(
            f"{type(policy.inner).__name__} cannot take the tree's mask, and shards need the "
            "tree: set RUN_SHARDING to ddp."
        )
    if wanted is None and (quantised or run.full):
        wanted = torch.float32
    elif wanted is None:
        policy = choose_precision(policy, shortest, events, team, load)
        wanted = policy.inner.dtype
    elif not quantised:
        policy = in_format(policy, wanted, team, load)
    progress.plain = policy.plain
    progress.precision = "bf16" if wanted == torch.bfloat16 else "fp32"
    model = add_adapter(policy.inner, arguments, head=method.head, seed=run.seed, parent=run.parent)
    policy = Policy(model, head=method.head, plain=policy.plain, enter=policy.enter)
    store = ReferenceStore(
        var_folder() / "reference",
        base=run.base.digest,
        adapter=run.parent.digest if run.parent and keeps_parent(run) else "",
        precision=f"{arguments.tuning if quantised else 'whole'}-{progress.precision}",
    )
    strangers = strangers_of(trees) if method.baseline else []
    session = Session(
        run,
        events,
        stop,
        threads,
        method,
        policy,
        store,
        progress,
        trees,
        heldout,
        strangers,
        team,
        clock,
    )
    if with_trl:
        session.trl = TrlLoss(
            run.method,
            arguments,
            model,
            tokenizer,
            store,
            run.directory / "trl",
            seed=run.seed,
            base_is_reference=not keeps_parent(run),
        )
    return session


def check_fit(model: Any, trees: Sequence[Tree]) -> None:
    """Refuse tokens that the base has no embedding for, and texts longer than it can read."""
    known = model.get_input_embeddings().weight.shape[0]
    largest = max(max(part) for tree in trees for part in (tree.prompt, *tree.responses))
    if largest >= known:
        raise RunError(
            f"The tokenizer writes token {largest}, but the base has {known:,} embeddings: tokens "
            "were added to one without the other. Resize the base's embeddings, or take the "
            "tokenizer that belongs to it."
        )
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(tree.prompt) + max(map(len, tree.responses)) for tree in trees)
    if limit and longest > limit:
        raise RunError(
            f"A prompt with its response is {longest:,} tokens long, but the base reads {limit:,}: "
            f"lower max_length to {limit}."
        )


def load_policy(run: Run, team: Team, dtype: torch.dtype, *, folded: bool = False) -> Policy:
    """Load the base, sharded where the team shards; `folded` with the parent in its weights.

    Shards are cut from a whole copy in the host's memory, one for each process.
    """
    device, method = pick_device(), METHODS[run.method]
    torch.manual_seed(run.seed)  # a score head starts at random
    base = load_base(
        run.base.path,
        head=method.head,
        tuning=run.arguments.tuning,
        dtype=dtype,
        device=device,
        on_host=team.sharded,
    )
    base.eval()
    if run.arguments.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    if folded:
        adapted = add_adapter(
            base, run.arguments, head=method.head, seed=run.seed, parent=run.parent
        )
        base = make_all_trainable(adapted)
    enter = shard(base, device, team.size) if team.sharded else None
    return Policy(base, head=method.head, enter=enter)


def in_format(
    policy: Policy, dtype: torch.dtype, team: Team, load: Callable[[torch.dtype], Policy]
) -> Policy:
    """Return the policy in a number format; where rounding in place cannot do, it is loaded anew.

    Shards keep their format, and what was rounded has lost its digits.
    """
    if policy.inner.dtype == dtype:
        return policy
    if dtype == torch.bfloat16 and not team.sharded:
        cast_weights(policy.inner, dtype)
        return policy
    anew = load(dtype)
    anew.plain = policy.plain
    anew.inner.set_attn_implementation(policy.inner.config._attn_implementation)
    return anew


def free_all_weights(session: Session) -> None:
    """Train every weight from here on, an adapter to start from folded in.

    Shards cannot take an adapter in: it is folded into a whole copy, which is sharded again.
    """
    run, team = session.run, session.team
    if team.sharded and run.parent is not None:
        session.policy = load_policy(run, team, torch.float32, folded=True)
    else:
        session.policy.model = make_all_trainable(session.policy.model)


def choose_engine(
    policy: Policy, arguments: Arguments, trees: Sequence[Tree], events: EventLog
) -> bool:
    """Say whether TRL's trainers compute the loss; leave a note where that was not asked for."""
    if arguments.engine == "trl":
        policy.plain = True  # nothing but plain log-probs anywhere
        return True
    note = choose_computation(policy, trees)
    if note is None:
        return False
    refusal = "The engine tree was asked for" if arguments.engine == "tree" else ""
    refusal = refusal or trl_refuses(arguments).rstrip(".")
    if refusal:
        events.note(f"{note} Each response is computed alone, which is slower. {refusal}.")
        return False
    events.note(f"{note} TRL's own trainer computes the loss.")
    return True


def keeps_parent(run: Run) -> bool:
    """Say whether the parent adapter, rather than the bare base, is the reference."""
    return run.parent is not None and getattr(run.arguments, "reference", "base") == "parent"


@torch.no_grad()
def choose_precision(
    policy: Policy,
    trees: Sequence[Tree],
    events: EventLog,
    team: Team,
    load: Callable[[torch.dtype], Policy],
) -> Policy:
    """Take bf16 where it is clearly quicker on this device and accurate on this base.

    Processes may measure differently; the first one's word counts.
    """
    width = policy.inner.config.get_text_config().hidden_size
    gain = team.agree(bf16_speedup(policy.device, width))
    if gain < CLEAR_GAIN:
        return policy
    pack = build_pack(trees, policy.device)

    def score(policy: Policy) -> Tensor:
        return policy.values(pack) if policy.head == "score" else policy.token_logps(pack)

    exact = score(policy)
    rounded = in_format(policy, torch.bfloat16, team, load)
    error = team.agree(float((score(rounded) - exact).abs().mean()))
    if error > BF16_ERROR:
        events.note(f"Trained in fp32: bf16 is off by {error:.2f} nats per token on this base.")
        return in_format(policy, torch.float32, team, load)
    events.note(f"Computed in bf16: {gain:.1f}x as quick here, {error:.3f} nats off per token.")
    return rounded


def fill_references(session: Session) -> None:
    """Compute the reference log-probs that the store lacks; what it has costs nothing."""
    trees = [*session.train, *session.heldout, *session.strangers]
    missing = [part for tree in trees if (part := session.store.missing(tree))]
    count = sum(len(tree.responses) for tree in missing)
    total = sum(len(tree.responses) for tree in trees)
    if count < total:
        session.events.note(f"Reference log-probs: {total - count} of {total} were stored already.")
    off = not keeps_parent(session.run)
    session.policy.model.eval()
    with without_adapter(session.policy.model, off=off):
        groups = group_trees(session.team.agree(missing), session.progress.token_budget)
        for group, _ in session.team.deal(groups):
            session.breathe()
            store_group(session.store, session.policy, group)
        session.team.wait()
        fill_other_disks(session, trees)


def fill_other_disks(session: Session, trees: Sequence[Tree]) -> None:
    """Compute what a host with a disk of its own still lacks; all processes keep step with it."""
    store, team = session.store, session.team
    if team.alone or not team.any(any(store.missing(tree) for tree in trees)):
        return
    bare = [Tree(tree.prompt, tree.responses, ()) for tree in trees]
    for group in group_trees(bare, session.progress.token_budget):
        if team.any(any(store.missing(tree) for tree in group)):
            store_group(store, session.policy, group)


def evaluate_before(session: Session) -> dict[str, float]:
    """Evaluate the untrained policy; where it is the reference itself, its rewards are 0."""
    is_reference = session.method.reference and (
        session.run.parent is None or keeps_parent(session.run)
    )
    if not is_reference:
        return evaluate_now(session)

    def score(pack: Pack) -> Scores:
        logps = session.references(pack)
        return Scores(pack, logps, logps)

    return _evaluate(session, score)


def evaluate_now(session: Session) -> dict[str, float]:
    session.policy.model.eval()

    def score(pack: Pack) -> Scores:
        session.breathe()
        return session.score(pack)

    return _evaluate(session, score)


def _evaluate(session: Session, score: Any) -> dict[str, float]:
    return evaluate(
        session.heldout,
        score,
        session.method,
        session.arguments,
        budget=session.progress.token_budget,
        device=session.device,
        team=session.team,
    )


def _general(session: Session, text: list[int] | None) -> dict[str, float]:
    """Return the policy's perplexity on general text, where it is a language model."""
    if text is None:
        return {}
    session.policy.model.eval()
    return {"perplexity": perplexity(session.policy, text)}


def _divergence(session: Session) -> dict[str, float]:
    """Return how far a language model has moved from its base; whole weights keep no base."""
    if session.method.head != "lm" or session.run.full:
        return {}

    def of_tokens(pack: Pack) -> Tensor:
        session.breathe()
        return session.policy.token_divergences(pack)

    return divergence(
        session.heldout,
        of_tokens,
        budget=session.progress.token_budget,
        device=session.device,
        team=session.team,
    )


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def check_unchanged(run: Run, progress: Progress) -> None:
    """Refuse a checkpoint of other data or arguments: what came of both would be neither's."""
    if progress.asked not in ("", run.asked, run.continues):
        raise RunError(
            f"run.json was changed after step {progress.step}: put it back to go on, or remove "
            f"{run.checkpoints} to begin anew."
        )


def parameter_groups(
    parameters: dict[str, torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Pull matrices towards 0, but no bias, norm or DoRA length: small is not better for those."""
    matrices = [one for one in parameters.values() if one.ndim > 1]
    vectors = [one for one in parameters.values() if one.ndim <= 1]
    return [
        {"params": part, "weight_decay": decay}
        for members, decay in ((matrices, weight_decay), (vectors, 0.0))
        for part in alike(members)
    ]


def batches(count: int, arguments: Arguments, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (epoch, places of the trees) for each step; it depends on nothing but these three."""
    for epoch in range(arguments.epochs):
        generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, arguments.batch_size):
            yield epoch, order[start : start + arguments.batch_size]


def _epoch_seed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[:7], "big")


def total_steps(count: int, arguments: Arguments) -> int:
    steps = arguments.epochs * math.ceil(count / arguments.batch_size)
    return min(steps, arguments.max_steps) if arguments.max_steps else steps


def learning_rate(step: int, total: int, arguments: Arguments) -> float:
    """Return the rate of a step (counted from 0): the rise, then the scheduler's way to 0."""
    warmup = math.ceil(arguments.warmup_ratio * total)
    if step < warmup:
        return arguments.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    if arguments.scheduler == "cosine":
        return arguments.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return arguments.learning_rate * (1 - done if arguments.scheduler == "linear" else 1.0)


def train_steps(
    session: Session,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Take the steps that are left, with a checkpoint now and then."""
    run, progress, arguments = session.run, session.progress, session.arguments
    total = total_steps(len(session.train), arguments)
    save = partial(save_checkpoint, write=session.team.first)
    saved = time.monotonic()
    session.policy.model.train()
    for step, (epoch, places) in enumerate(batches(len(session.train), arguments, run.seed)):
        if step < progress.step:
            continue
        if step >= total:
            break
        started = time.monotonic()
        rate = learning_rate(step, total, arguments)
        for group in optimizer.param_groups:
            group["lr"] = rate
        begun = random_state()
        try:
            session.stop.agree()
            metrics = one_step_with_less_memory(session, places, optimizer)
            session.team.add_gradients(parameters.values())
            metrics["grad_norm"] = clip(parameters, arguments.max_grad_norm)
            check_finite(step + 1, metrics)
        except (Cancelled, Paused):
            set_random_state(begun)  # the step is taken again, with the same dropout
            save(run.checkpoints, progress, parameters, optimizer)
            raise
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent = time.monotonic() - started
        progress.step, progress.seconds = step + 1, progress.seconds + spent
        tokens = metrics.pop("tokens")
        progress.tokens += int(tokens)
        session.events.step(
            progress.step,
            total_steps=total,
            epoch=epoch + 1,
            learning_rate=rate,
            tokens_per_second=tokens / spent,
            memory_mb=memory_mb(session.device),
            **metrics,
        )
        every = arguments.checkpoint_every
        now = time.monotonic()
        due = progress.step % every == 0 if every else now - saved > CHECKPOINT_SECONDS
        if session.team.agree(due or progress.step == total):
            save(run.checkpoints, progress, parameters, optimizer)
            saved = now


def one_step_with_less_memory(
    session: Session, places: Sequence[int], optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """Take one step; when memory runs out, once in a run, halve the packs and take it again.

    Packs do not change what is learnt: the batch, and so the result, stays the same.
    """
    begun = random_state()
    try:
        return one_step(session, places)
    except (MemoryError, RuntimeError) as error:
        # Several processes would have to halve together: they end, and a person decides.
        if session.progress.halved or not session.team.alone or not is_out_of_memory(error):
            raise
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    set_random_state(begun)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    session.progress.halved = True
    session.progress.token_budget = max(1, session.progress.token_budget // 2)
    session.events.note(
        f"Memory ran out: packs are halved to {session.progress.token_budget} tokens. "
        "The batch stays the same."
    )
    return one_step(session, places)


def one_step(session: Session, places: Sequence[int]) -> dict[str, float]:
    """Add up the gradient of a batch of trees, part by part; return the batch's means."""
    trees = [session.train[place] for place in places]
    divisor = sum(map(session.method.weight, trees))
    baseline = None
    if session.method.baseline and session.trl is None:
        baseline = distance(session, places)
    sums: dict[str, float] = {}
    loss_sum, tokens = 0.0, 0
    for loss, count, metrics in parts_of_batch(session, trees, baseline):
        loss = loss / divisor
        loss.backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.item()
        tokens += count
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value
    whole = session.team.total({"loss sum": loss_sum, "tokens": float(tokens), **sums})
    loss_sum, tokens = whole.pop("loss sum"), int(whole.pop("tokens"))
    return {"loss": loss_sum, **means(whole), "tokens": tokens}


def parts_of_batch(
    session: Session, trees: Sequence[Tree], baseline: Tensor | None
) -> Iterator[tuple[Tensor, int, dict[str, float]]]:
    """Yield the summed loss, the tokens and the summed metrics of each pack of this process."""
    method, arguments = session.method, session.arguments
    budget = session.team.budget(session.progress.token_budget, sum(tree.tokens for tree in trees))
    if session.trl is not None:
        for part in session.trl.batch(session.team.share(trees), budget):
            yield part
            session.breathe()
        return
    for group, counts in session.team.deal(group_trees(trees, budget)):
        session.breathe()
        pack = build_pack(group, session.device)
        scores = session.score(pack, baseline)
        loss = method.loss(scores, arguments)
        if not counts:
            yield loss * 0.0, 0, {}
            continue
        with torch.no_grad():
            metrics = pair_metrics(scores, method.rewards(scores, arguments))
        yield loss, pack.tokens, metrics


@torch.no_grad()
def distance(session: Session, places: Sequence[int]) -> Tensor:
    """Estimate KTO's z0, KL(policy | reference) but at least 0, from answers to other prompts."""
    ratios = []
    strangers = [session.strangers[place] for place in places]
    for group in group_trees(strangers, session.progress.token_budget):
        session.breathe()
        ratios.append(session.score(build_pack(group, session.device)).ratios)
    return torch.cat(ratios).mean().clamp(min=0)


def clip(parameters: dict[str, torch.nn.Parameter], limit: float) -> float:
    """Scale the gradient down to the limit (0: leave it); return its norm before."""
    norm = gradient_norm(parameters)
    for part in alike(parameters.values()):
        torch.nn.utils.clip_grads_with_norm_(part, limit or math.inf, norm)
    return float(norm)


def check_finite(step: int, metrics: dict[str, float]) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics[name]):
            raise RunError(
                f"Step {step}: the {name.replace('_', ' ')} is not a number any more. Lower "
                "learning_rate, or set precision to fp32, and start again.",
                code=CRASHED,
            )


def prove_in_a_fresh_process(run: Run, stop: Stop) -> dict[str, Any]:
    """Run `prove` as a child and return its proof; RunError if it did not pass."""
    command = [sys.executable, "-m", "training.engine", "prove", str(run.directory)]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while True:
            try:
                child.wait(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                stop.check()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return read_proof(run.directory)
