"""Compare two versions on held-out prompts by a rule."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import httpx
from django.conf import settings
from django.db import transaction

from accounts.errors import ProductError, Unavailable
from accounts.models import User
from feedback.models import Prompt, text_digest
from feedback.services import GENERATION_THREADS
from inference import client
from inference.models import Completion, Version
from inference.services import load_on_engines
from training.models import Evaluation, Snapshot
from training.snapshots import heldout_prompts
from training.statistics import win_rate

Rule = Callable[[str, str], float]
DEFAULT_SAMPLING = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 64}


def load_rule(name: str) -> Rule:
    """Return the function behind ``module:function``: (prompt, response) to a number."""
    module_name, _, function_name = name.partition(":")
    try:
        rule = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ProductError(
            f"There is no rule “{name}”. Name it as module:function, for example "
            "training.rules:concise."
        ) from error
    if not callable(rule):
        raise ProductError(f"“{name}” is not a function of (prompt, response).")
    return rule  # type: ignore[no-any-return]


@transaction.atomic
def start_evaluation(
    *,
    challenger: Version,
    champion: Version,
    snapshot: Snapshot,
    rule: str,
    by: User | None,
    samples: int = 4,
    seed: int = 0,
    sampling: dict[str, Any] | None = None,
) -> Evaluation:
    """Queue a comparison of two versions on the snapshot's held-out prompts."""
    from training.tasks import evaluate

    if challenger.project_id != snapshot.project_id or champion.project_id != snapshot.project_id:
        raise ProductError("Challenger, champion and snapshot must be of one project.")
    if challenger.pk == champion.pk:
        raise ProductError("A version cannot be compared with itself. Choose another champion.")
    if rule not in settings.EVALUATION_RULES:
        raise ProductError(
            f"“{rule}” is not among the rules of this site: {', '.join(settings.EVALUATION_RULES)}."
        )
    evaluation = Evaluation(
        project=snapshot.project,
        challenger=challenger,
        champion=champion,
        snapshot=snapshot,
        rule=rule,
        samples=samples,
        seed=seed,
        sampling=DEFAULT_SAMPLING | (sampling or {}),
        created_by=by,
    )
    evaluation.full_clean()
    evaluation.save()
    evaluate.delay_on_commit(evaluation.pk)
    return evaluation


def evaluate(*, evaluation_id: int) -> Evaluation:
    """Generate with both versions, judge each pair by the rule, store the win rate."""
    evaluation = Evaluation.objects.select_related(
        "challenger__base", "champion__base", "snapshot", "project"
    ).get(pk=evaluation_id)
    mine = Evaluation.objects.filter(pk=evaluation_id)
    mine.update(state=Evaluation.State.RUNNING, reason="", compared=0)
    try:
        result = _compare(evaluation)
    except (ProductError, Unavailable) as error:
        mine.update(state=Evaluation.State.FAILED, reason=error.message[:500])
    else:
        mine.update(state=Evaluation.State.DONE, result=result)
    evaluation.refresh_from_db()
    return evaluation


def _compare(evaluation: Evaluation) -> dict[str, Any]:
    rule = load_rule(evaluation.rule)
    heldout = heldout_prompts(evaluation.snapshot)
    prompts = list(Prompt.objects.filter(project=evaluation.project, digest__in=heldout))
    if not prompts:
        raise ProductError("This snapshot holds out no prompts, so there is nothing to compare on.")
    load_on_engines(evaluation.challenger)
    load_on_engines(evaluation.champion)
    timeout = httpx.Timeout(settings.ENGINE_TIMEOUT_SECONDS, connect=5)
    scores: dict[int, list[float]] = {}
    lengths: dict[str, list[int]] = {"challenger": [], "champion": []}
    with httpx.Client(timeout=timeout) as http, ThreadPoolExecutor(GENERATION_THREADS) as threads:
        jobs = [
            (prompt, sample, side, threads.submit(_answer, http, evaluation, prompt, sample, side))
            for prompt in prompts
            for sample in range(evaluation.samples)
            for side in ("challenger", "champion")
        ]
        answers: dict[tuple[int, int, str], str] = {}
        for prompt, sample, side, job in jobs:
            completion = job.result()
            completion.save(force_insert=True)
            answers[prompt.pk, sample, side] = completion.text
            lengths[side].append(completion.completion_tokens)
            Evaluation.objects.filter(pk=evaluation.pk).update(compared=len(answers) // 2)
    for prompt in prompts:
        for sample in range(evaluation.samples):
            ours = rule(prompt.last_turn, answers[prompt.pk, sample, "challenger"])
            theirs = rule(prompt.last_turn, answers[prompt.pk, sample, "champion"])
            score = 1.0 if ours > theirs else 0.0 if ours < theirs else 0.5
            scores.setdefault(prompt.pk, []).append(score)
    return {
        "win_rate": asdict(win_rate(list(scores.values()))),
        "prompts": len(prompts),
        "mean_tokens": {side: sum(n) / len(n) for side, n in lengths.items()},
    }


def _answer(
    http: httpx.Client, evaluation: Evaluation, prompt: Prompt, sample: int, side: str
) -> Completion:
    version = evaluation.challenger if side == "challenger" else evaluation.champion
    seed = int(text_digest([evaluation.seed, prompt.digest, sample])[:8], 16) & 0x7FFFFFFF
    sampling = {**evaluation.sampling, "seed": seed}
    generated = client.chat(
        http,
        url=settings.ENGINE_URLS[(prompt.pk + sample) % len(settings.ENGINE_URLS)],
        model=version.served_name,
        messages=prompt.messages,
        sampling=sampling,
    )
    return Completion(
        project_id=evaluation.project_id,
        version=version,
        requested_model=version.name,
        source=Completion.Source.EVALUATION,
        messages=prompt.messages,
        text=generated.text,
        sampling=sampling,
        finish_reason=generated.finish_reason,
        prompt_tokens=generated.prompt_tokens,
        completion_tokens=generated.completion_tokens,
        milliseconds=generated.milliseconds,
    )
