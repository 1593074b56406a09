"""A reward model as judge, from the request over REST to the gate: a real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback.models import Campaign
from inference import services
from inference.models import AliasMove, Completion, Version
from tests.inference.engine import tiny
from tests.inference.engine.conftest import KEY, Engine, start_engine, stop_engine
from tests.training.test_runs import base_version, folder  # noqa: F401
from tests.training.test_snapshots import judge_all, strict, take_snapshot
from training import gate
from training.evaluation import evaluate
from training.models import Evaluation, Snapshot

SAMPLES = 3


@pytest.fixture(scope="module")
def running_engine(folder: Path) -> Iterator[Engine]:  # noqa: F811
    engine = start_engine(folder)
    yield engine
    stop_engine(engine)


@pytest.fixture
def engine(running_engine: Engine, settings: Any) -> Engine:
    settings.ENGINE_URLS = [running_engine.url]
    settings.ENGINE_API_KEY = KEY
    return running_engine


@pytest.fixture
def snapshot(make_campaign: Callable[..., Campaign], project: Project, annotator: User) -> Snapshot:
    campaign = make_campaign(items=20, responses=3, judgements_per_item=1)
    judge_all(campaign, annotator, strict)
    return take_snapshot(project, campaign)


@pytest.fixture
def register(
    project: Project,
    base_version: Version,  # noqa: F811
    owner: User,
) -> Callable[[str, Path], Version]:
    """Return a function that registers an adapter as a run's end does."""

    def make(method: str, adapter: Path) -> Version:
        return services.register_version(
            project=project,
            base=base_version.base,
            parent=base_version,
            method=method,
            adapter_folder=adapter,
            snapshot_digest="s" * 64,
            metrics={},
            proof={"passed": True},
            by=owner,
        )

    return make


@pytest.fixture
def challenger(
    register: Callable[[str, Path], Version],
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> Version:
    return register("dpo", tiny.build_adapter(folder, tmp_path / "adapter", seed=1))


@pytest.fixture
def reward(
    register: Callable[[str, Path], Version],
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> Version:
    """Return a reward model with random weights, saved as a run saves one."""
    import torch

    from training.engine import models
    from training.engine.arguments import parse_arguments
    from training.engine.rundir import Artifact

    base = models.load_base(
        folder, head="score", tuning="lora", dtype=torch.float32, device=torch.device("cpu")
    )
    arguments = parse_arguments("reward", {"lora_r": 4})
    model = models.add_adapter(base, arguments, head="score", seed=1, parent=None)
    tokenizer = models.load_tokenizer(folder)
    models.save_adapter(model, tokenizer, tmp_path / "reward", base=Artifact(folder, ""))
    return register("reward", tmp_path / "reward")


def scores(reward: Version, answers: list[Completion]) -> list[float]:
    """Score answers one by one with stock PEFT on the model's own forward."""
    import torch
    from peft import PeftModel

    from training.engine.models import keep_score_in_fp32, load_base, load_tokenizer

    base = Path(reward.base.path)
    cpu = torch.device("cpu")
    model = load_base(base, head="score", tuning="lora", dtype=torch.float32, device=cpu)
    adapted = PeftModel.from_pretrained(model, reward.folder).eval()
    keep_score_in_fp32(adapted)
    tokenizer = load_tokenizer(base)
    found = []
    for one in answers:
        turns = [*one.messages, {"role": "assistant", "content": one.text}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            found.append(float(adapted(input_ids=ids).logits[0, 0]))
    return found


@pytest.mark.django_db(transaction=True)
def test_a_reward_model_judges_from_request_to_gate(
    engine: Engine,
    snapshot: Snapshot,
    challenger: Version,
    reward: Version,
    base_version: Version,  # noqa: F811
    project: Project,
    owner: User,
    lead: User,
    api: Callable[..., APIClient],
    login: Callable[[User], Client],
) -> None:
    body = {
        "challenger": challenger.pk,
        "champion": base_version.pk,
        "snapshot": snapshot.pk,
        "judge": "reward",
        "reward_version": reward.pk,
        "samples": SAMPLES,
    }
    asked = api(lead).post("/api/evaluations/", body)
    assert (asked.status_code, asked.json()["state"]) == (201, "queued")
    number = asked.json()["id"]
    done = evaluate(evaluation_id=number)  # as the worker does
    assert done.state == Evaluation.State.DONE, done.reason

    prompts = snapshot.manifest["prompts"]["heldout"]
    # Both sides answer a prompt's sample with one seed; ids are drawn and order nothing.
    answers = list(Completion.objects.filter(source=Completion.Source.EVALUATION))
    answers.sort(key=lambda one: one.sampling["seed"])
    ours = [one for one in answers if one.version_id == challenger.pk]
    theirs = [one for one in answers if one.version_id == base_version.pk]
    assert len(ours) == len(theirs) == prompts * SAMPLES
    pairs = zip(scores(reward, ours), scores(reward, theirs), strict=True)
    wins = [1.0 if our > their else 0.5 if our == their else 0.0 for our, their in pairs]
    share = done.result["win_rate"]
    assert share["value"] == pytest.approx(sum(wins) / len(wins))
    assert done.result["labelled"]["answers"] == len(wins)

    answer = api(lead).get(f"/api/evaluations/{number}/").json()
    assert answer["result"] == done.result
    page = login(lead).get(reverse("evaluation", args=[project.slug, number])).content.decode()
    assert f"{reward.name}</a>" in page, "the judge is named"
    beats = share["low"] > 0.5
    assert gate.proposal(challenger).proposed is answer["proposed"] is beats
    refusal = nullcontext() if beats else pytest.raises(ProductError, match="not shown to beat")
    with refusal:
        services.promote(project=project, version=challenger, by=owner)
    move = services.promote(project=project, version=challenger, by=owner, why="A test asks.")
    assert AliasMove.objects.get(pk=move.pk).overruled is not beats
