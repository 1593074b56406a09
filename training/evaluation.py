"""Compare two versions on held-out prompts: by a rule, a reward model, or people."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import httpx
import structlog
from django.conf import settings
from django.db import transaction

from accounts.errors import ProductError, Unavailable
from accounts.models import User
from feedback.models import Prompt
from feedback.services import GENERATION_THREADS
from inference import client
from inference.models import Completion, Version
from inference.services import check_servable, load_on_engines
from training import judges, labelled, leases
from training.judges import Answers, Comparison
from training.models import Evaluation, Snapshot
from training.snapshots import heldout_prompts, heldout_references
from training.statistics import fragility, length_controlled, win_rate

log = structlog.get_logger(__name__)

Rule = Callable[[str, str], float]
SIDES = ("challenger", "champion")
NOTHING_HELD_OUT = (
    "This snapshot holds out no prompts, so there is nothing to compare on. Take one with a "
    "larger held-out share, or of more prompts."
)
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
    by: User | None,
    judge: str = Evaluation.Judge.RULE,
    rule: str = "",
    reward_version: Version | None = None,
    judgements_per_item: int = 3,
    samples: int = 4,
    seed: int = 0,
    sampling: dict[str, Any] | None = None,
) -> Evaluation:
    """Queue a comparison of two versions on the snapshot's held-out prompts.

    By people it opens a blind campaign at once; its judgements are the result.
    """
    from training.tasks import evaluate

    if challenger.project_id != snapshot.project_id or champion.project_id != snapshot.project_id:
        raise ProductError("Challenger, champion and snapshot must be of one project.")
    if challenger.pk == champion.pk:
        raise ProductError("A version cannot be compared with itself. Choose another champion.")
    if "reward" in (challenger.method, champion.method):
        raise ProductError("A reward model writes no answers. Choose versions that do.")
    for version in (challenger, champion):
        check_servable(version)
    if snapshot.state != Snapshot.State.READY:
        raise ProductError(f"Snapshot {snapshot.pk} is {snapshot.state}. Choose one that is ready.")
    if snapshot.manifest.get("prompts", {}).get("heldout") == 0:
        raise ProductError(NOTHING_HELD_OUT)
    evaluation = Evaluation(
        project=snapshot.project,
        challenger=challenger,
        champion=champion,
        snapshot=snapshot,
        judge=judge,
        samples=samples,
        seed=seed,
        sampling=DEFAULT_SAMPLING | (sampling or {}),
        created_by=by,
    )
    if judge == Evaluation.Judge.RULE:
        if rule not in settings.EVALUATION_RULES:
            raise ProductError(
                f"“{rule}” is not among the rules of this site: "
                f"{', '.join(settings.EVALUATION_RULES)}."
            )
        evaluation.rule = rule
    elif judge == Evaluation.Judge.REWARD:
        if reward_version is None or reward_version.method != "reward":
            raise ProductError("Choose a reward model, a version that a reward run gave.")
        if reward_version.project_id != snapshot.project_id:
            raise ProductError("The reward model belongs to another project.")
        evaluation.reward_version = reward_version
    evaluation.full_clean()
    evaluation.save()
    if judge != Evaluation.Judge.PEOPLE:
        evaluate.delay_on_commit(evaluation.pk)
        return evaluation
    evaluation.campaign = judges.ask_people(
        evaluation,
        prompts=_prompts(evaluation),
        judgements_per_item=judgements_per_item,
        by=by,
    )
    evaluation.state, evaluation.samples = Evaluation.State.RUNNING, 1
    evaluation.save(update_fields=["campaign", "state", "samples"])
    return evaluation


def evaluate(*, evaluation_id: int) -> Evaluation:
    """Generate with both versions, have each pair judged, store the win rate.

    Left alone where another worker does so, or where it is done.
    """
    evaluation = Evaluation.objects.select_related(
        "challenger__base", "champion__base", "reward_version__base", "snapshot", "project"
    ).get(pk=evaluation_id)
    if evaluation.judge == Evaluation.Judge.PEOPLE:
        return evaluation  # its campaign's judgements come when they come
    rows = Evaluation.objects.filter(pk=evaluation_id)
    lease = leases.claim(rows, held=Evaluation.State.RUNNING)
    if lease is None:
        return evaluation
    mine = rows.filter(lease=lease, state=Evaluation.State.RUNNING)
    mine.update(compared=0)
    try:
        with leases.keep(mine):
            answers = _answers(evaluation)
            result = summarise(evaluation, _judged(evaluation, answers))
    except (ProductError, Unavailable) as error:
        mine.update(state=Evaluation.State.FAILED, reason=error.message[:500])
    except (OSError, ValueError, KeyError) as error:
        # Tried again it would break again, and end as a worker that was lost.
        log.exception("evaluation_failed", evaluation=evaluation_id)
        mine.update(
            state=Evaluation.State.FAILED,
            reason=f"It broke: {error or repr(error)}. Mend that, then compare again."[:500],
        )
    else:
        mine.update(state=Evaluation.State.DONE, result=result)
    evaluation.refresh_from_db()
    return evaluation


def sweep_evaluations() -> int:
    """Queue again what silent workers were comparing; return how many."""
    from training.tasks import evaluate

    # People's are nobody's to hold: they have no heartbeat.
    workers = Evaluation.objects.exclude(judge=Evaluation.Judge.PEOPLE)
    lost = leases.take_back(workers, held=Evaluation.State.RUNNING)
    for evaluation_id in lost:
        evaluate.delay(evaluation_id)
    return len(lost)


def settle_evaluations() -> int:
    """Finish every comparison by people whose last judgement is in; return how many."""
    settled = 0
    waiting = Evaluation.objects.filter(
        state=Evaluation.State.RUNNING, judge=Evaluation.Judge.PEOPLE
    ).select_related("challenger", "champion", "snapshot", "campaign")
    for evaluation in waiting:
        if not judges.people_are_done(evaluation):
            continue
        comparisons = judges.read_people(evaluation)
        mine = Evaluation.objects.filter(pk=evaluation.pk, state=Evaluation.State.RUNNING)
        if comparisons:
            changes: dict[str, Any] = {
                "state": Evaluation.State.DONE,
                "result": summarise(evaluation, comparisons),
                "compared": len(comparisons),
            }
        else:
            reason = "Its campaign ended without a judgement. Compare again."
            changes = {"state": Evaluation.State.FAILED, "reason": reason}
        settled += mine.update(**changes)
    return settled


def so_far(evaluation: Evaluation) -> dict[str, Any]:
    """Return the result, or what people's judgements come to so far."""
    people = evaluation.judge == Evaluation.Judge.PEOPLE and evaluation.campaign is not None
    result: dict[str, Any] = evaluation.result
    if result or not people:
        return result
    comparisons = judges.read_people(evaluation)
    return summarise(evaluation, comparisons) if comparisons else {}


def _prompts(evaluation: Evaluation) -> list[Prompt]:
    heldout = heldout_prompts(evaluation.snapshot)
    prompts = list(Prompt.objects.filter(project=evaluation.project, digest__in=heldout))
    if not prompts:
        raise ProductError(NOTHING_HELD_OUT)
    return prompts


def _judged(evaluation: Evaluation, answers: list[Answers]) -> list[Comparison]:
    if evaluation.reward_version is not None:
        return judges.judge_by_reward(evaluation.reward_version, answers)
    rule = load_rule(evaluation.rule)
    return [
        one.compared(
            rule(one.prompt.last_turn, one.challenger.text),
            rule(one.prompt.last_turn, one.champion.text),
        )
        for one in answers
    ]


def summarise(evaluation: Evaluation, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the win rate with its interval, the same at equal length, and how fragile it is."""
    scores: dict[str, list[float]] = {}
    differences: dict[str, list[float]] = {}
    for one in comparisons:
        scores.setdefault(one.prompt_id, []).append(one.score)
        longer = float(one.challenger_tokens - one.champion_tokens)
        differences.setdefault(one.prompt_id, []).append(longer)
    grouped = list(scores.values())
    count = len(comparisons)
    return {
        "win_rate": asdict(win_rate(grouped)),
        "length_controlled": asdict(length_controlled(grouped, list(differences.values()))),
        "fragility": asdict(fragility(grouped)),
        "prompts": len(scores),
        "mean_tokens": {
            "challenger": sum(one.challenger_tokens for one in comparisons) / count,
            "champion": sum(one.champion_tokens for one in comparisons) / count,
        },
        "preference": {
            "challenger": evaluation.challenger.metrics.get("after"),
            "champion": evaluation.champion.metrics.get("after"),
        },
        "labelled": _labelled(evaluation, comparisons),
    }


def _labelled(evaluation: Evaluation, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Compare both sides' answers with what was chosen on the same prompts."""
    references = heldout_references(evaluation.snapshot)
    # Several people judge the same two answers; a rule and a reward model judge each sample once.
    people = evaluation.judge == Evaluation.Judge.PEOPLE
    judged = {one.prompt_id: one for one in comparisons}.values() if people else comparisons
    known = [one for one in judged if one.prompt_id in references]
    if not known:
        return {}
    expected = [references[one.prompt_id] for one in known]
    return {
        "answers": len(known),
        "challenger": labelled.scores(expected, [one.challenger_text for one in known]),
        "champion": labelled.scores(expected, [one.champion_text for one in known]),
    }


def _answers(evaluation: Evaluation) -> list[Answers]:
    """Have both versions answer every held-out prompt, with the same seeds."""
    prompts = _prompts(evaluation)
    load_on_engines(evaluation.challenger)
    load_on_engines(evaluation.champion)
    timeout = httpx.Timeout(settings.ENGINE_TIMEOUT_SECONDS, connect=5)
    answers = []
    with httpx.Client(timeout=timeout) as http, ThreadPoolExecutor(GENERATION_THREADS) as threads:
        jobs = [
            (
                prompt,
                [threads.submit(_answer, http, evaluation, prompt, sample, side) for side in SIDES],
            )
            for prompt in prompts
            for sample in range(evaluation.samples)
        ]
        for prompt, sides in jobs:
            ours, theirs = (side.result() for side in sides)
            Completion.objects.bulk_create([ours, theirs])
            answers.append(Answers(prompt=prompt, challenger=ours, champion=theirs))
            Evaluation.objects.filter(pk=evaluation.pk).update(compared=len(answers))
    return answers


def _answer(
    http: httpx.Client, evaluation: Evaluation, prompt: Prompt, sample: int, side: str
) -> Completion:
    version = evaluation.challenger if side == "challenger" else evaluation.champion
    seed = client.seed_of(evaluation.seed, prompt.digest, sample)
    sampling = {**evaluation.sampling, "seed": seed}
    generated = client.chat(
        http,
        url=settings.ENGINE_URLS[(prompt.pk + sample) % len(settings.ENGINE_URLS)],
        model=version.served_name,
        messages=prompt.messages,
        sampling=sampling,
    )
    return generated.completion(
        version=version,
        source=Completion.Source.EVALUATION,
        messages=prompt.messages,
        sampling=sampling,
    )
