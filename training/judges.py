"""Who says which answer is better: a rule, a reward model, or people who see neither version."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from accounts.errors import ProductError
from accounts.models import User
from accounts.processes import die_with_parent
from feedback.models import Campaign, ItemRole, Prompt, Slot
from feedback.services import create_campaign
from inference.models import Completion, Version
from training.models import Evaluation
from training.runs import child_environment

SCORE_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One prompt answered by both: 1 where the challenger won, 0 where it lost, 1/2 for a tie."""

    prompt_id: str
    score: float
    challenger_tokens: int
    champion_tokens: int
    challenger_text: str
    champion_text: str


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Both sides' completions of one prompt and sample."""

    prompt: Prompt
    challenger: Completion
    champion: Completion

    def compared(self, ours: float, theirs: float) -> Comparison:
        """Return the comparison that two scores, higher is better, make of it."""
        return Comparison(
            prompt_id=self.prompt.digest,
            score=1.0 if ours > theirs else 0.0 if ours < theirs else 0.5,
            challenger_tokens=self.challenger.completion_tokens,
            champion_tokens=self.champion.completion_tokens,
            challenger_text=self.challenger.text,
            champion_text=self.champion.text,
        )


def judge_by_reward(reward: Version, answers: Sequence[Answers]) -> list[Comparison]:
    """Compare by a reward model's scores, computed by a child process that knows torch."""
    items = [
        {"prompt": one.prompt.messages, "response": side.text}
        for one in answers
        for side in (one.challenger, one.champion)
    ]
    scores = _score(reward, items)
    pairs = zip(scores[::2], scores[1::2], strict=True)
    return [one.compared(*pair) for one, pair in zip(answers, pairs, strict=True)]


def _score(reward: Version, items: list[dict[str, Any]]) -> list[float]:
    job = {"base": reward.base.path, "adapter": str(reward.folder), "items": items}
    with tempfile.TemporaryDirectory(prefix="laurel-score-") as folder:
        directory = Path(folder)
        (directory / "job.json").write_text(json.dumps(job))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "training.engine.score", str(directory)],
                cwd=settings.BASE_DIR,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SCORE_SECONDS,
                check=False,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )
        except subprocess.TimeoutExpired as error:
            raise ProductError(
                "The reward model took more than an hour. Compare on fewer prompts or samples."
            ) from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ProductError(f"The reward model could not score the answers: {last}")
        scores: list[float] = json.loads((directory / "scores.json").read_text())
    return scores


def ask_people(
    evaluation: Evaluation,
    *,
    prompts: Sequence[Prompt],
    judgements_per_item: int,
    by: User | None,
) -> Campaign:
    """Open a blind pairwise campaign over both versions' answers; its name tells neither."""
    sources = [
        {"version": version.pk, **evaluation.sampling}
        for version in (evaluation.challenger, evaluation.champion)
    ]
    return create_campaign(
        project=evaluation.project,
        by=by,
        name=f"Blind comparison {evaluation.pk}",
        kind=Campaign.Kind.PAIRWISE,
        prompts=prompts,
        sources=sources,
        judgements_per_item=judgements_per_item,
        instructions="Say which of the two answers is better. Who wrote them stays hidden.",
        seed=evaluation.seed,
    )


def read_people(evaluation: Evaluation) -> list[Comparison]:
    """Return what people have said so far, one comparison for each judgement."""
    assert evaluation.campaign is not None
    comparisons = []
    judged = evaluation.campaign.judgements.filter(
        retracted_at__isnull=True, item__role=ItemRole.NORMAL
    )
    judged = judged.select_related("item__prompt").prefetch_related("item__responses__completion")
    for judgement in judged.order_by("pk"):
        sides = {
            response.completion.version_id: response
            for response in judgement.item.responses.all()
            if response.completion is not None
        }
        ours, theirs = (
            sides.get(one) for one in (evaluation.challenger_id, evaluation.champion_id)
        )
        if ours is None or theirs is None:
            continue
        assert ours.completion is not None
        assert theirs.completion is not None
        answers = Answers(
            prompt=judgement.item.prompt, challenger=ours.completion, champion=theirs.completion
        )
        places = {
            one: -place for place, group in enumerate(judgement.ranking or []) for one in group
        }
        comparisons.append(answers.compared(places.get(ours.pk, 0), places.get(theirs.pk, 0)))
    return comparisons


def people_are_done(evaluation: Evaluation) -> bool:
    """Say whether nothing more will come: every slot is filled, or the campaign was closed."""
    campaign = evaluation.campaign
    assert campaign is not None
    if campaign.state in (Campaign.State.CLOSED, Campaign.State.FAILED):
        return True
    waiting = campaign.slots.filter(role=ItemRole.NORMAL).exclude(state=Slot.State.FILLED)
    return campaign.state == Campaign.State.OPEN and not waiting.exists()
