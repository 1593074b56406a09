"""Preflight: foretold before anything is queued, refused where it cannot fit, learnt from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient
from transformers import LlamaConfig, LlamaForCausalLM

from accounts.errors import ProductError
from accounts.models import Project, User
from inference.models import BaseModel, Version
from inference.services import adopt_base
from tests.inference.engine import tiny
from tests.training.test_runs import (  # noqa: F401
    ARGUMENTS,
    base_version,
    folder,
    snapshot,
    start,
)
from training import machines, runs
from training.engine.estimate import HEADROOM
from training.models import Machine, Run, Snapshot, Throughput
from training.preflight import Preflight, check_run

Check = Callable[..., Preflight]


@pytest.fixture
def check(snapshot: Snapshot, base_version: Version) -> Check:  # noqa: F811
    """Return a function that foretells a small DPO run."""

    def foretell(**changes: Any) -> Preflight:
        found = check_run(
            snapshot=snapshot,
            start_version=base_version,
            method="dpo",
            arguments=ARGUMENTS | changes,
        )
        assert found is not None
        return found

    return foretell


TOO_LARGE = {"batch_size": 64, "token_budget": 100_000}


@pytest.fixture
def small_machine(check: Check) -> Machine:
    """Return a machine, the last to train, with room for small packs and none for TOO_LARGE."""
    least = check(batch_size=64, token_budget=1).estimate.peak_memory_mb
    most = check(**TOO_LARGE).estimate.peak_memory_mb
    assert least < most
    return Machine.objects.create(
        name="small",
        hardware="a small CPU",
        device="cpu",
        memory_mb=(least + most) / 2 / HEADROOM,
        disk_mb=500,
        gflops=10,
    )


@pytest.fixture
def wide_version(project: Project, tmp_path: Path) -> Version:
    """Return a base that is wide enough for its arithmetic to be what takes time."""
    tokenizer = tiny.build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=4,
        num_attention_heads=5,
        max_position_embeddings=1024,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    base = BaseModel.objects.create(
        name="wide",
        source="made for this test",
        path=str(tmp_path / "wide"),
        digest="2" * 64,
        licence="Apache-2.0",
        size_bytes=1,
        parameters=1,
    )
    return adopt_base(project=project, base=base)


@pytest.mark.django_db(transaction=True)
def test_it_foretells_what_the_engine_then_does(
    snapshot: Snapshot,  # noqa: F811
    wide_version: Version,
    owner: User,
) -> None:
    def begin() -> Run:
        return runs.start_run(
            snapshot=snapshot,
            start_version=wide_version,
            method="dpo",
            arguments=ARGUMENTS,
            by=owner,
        )

    run = begin()
    runs.execute_run(run_id=run.pk)
    run.refresh_from_db()
    assert run.state == Run.State.SUCCEEDED, run.reason
    foretold, report = run.prediction, run.report
    assert foretold["steps"] == report["steps"]
    assert foretold["trainable_parameters"] == report["trainable_parameters"]
    assert foretold["total_parameters"] == report["total_parameters"]
    row = Throughput.objects.get()
    assert (row.base, row.method, row.precision) == (run.start_version.base, "dpo", "fp32")
    assert row.tokens_per_second == pytest.approx(foretold["tokens"] / report["seconds"])
    again = begin().prediction
    assert again["training_seconds"] == pytest.approx(report["seconds"], abs=0.06)
    assert again["peak_memory_mb"] == pytest.approx(report["peak_memory_mb"], rel=0.02)
    phases = report["throughput"]["seconds"]
    passes = phases["reference"] + phases["evaluating"]
    # Within a factor of two: other work on the machine comes and goes between the phases.
    assert passes / 2 < again["passes_seconds"] < passes * 2


def test_it_counts_rows_tokens_and_steps(check: Check, snapshot: Snapshot) -> None:  # noqa: F811
    found = check().estimate
    assert found.rows == found.used == snapshot.manifest["rows"]["train"]
    assert found.trees == snapshot.manifest["prompts"]["train"]
    assert found.steps == 2 * -(-found.trees // 2)
    assert found.tokens > found.rows
    assert check(max_length=40, max_prompt_length=20).estimate.truncated > 0


def test_it_proposes_the_nearest_that_fits(check: Check, small_machine: Machine) -> None:
    found = check(**TOO_LARGE)
    assert not found.fits
    assert "of memory" in found.problems[0]
    assert found.proposal is not None
    assert set(found.proposal.changes) == {"token_budget"}, "what costs least comes first"
    taken = check(batch_size=64, **found.proposal.changes)
    assert taken.fits
    Machine.objects.update(memory_mb=10)
    assert check().proposal is None


def test_shards_need_less_memory_and_a_base_in_whole_numbers(check: Check, settings: Any) -> None:
    alone = check(tuning="full").estimate.memory_mb
    settings.RUN_LAUNCHER, settings.RUN_SHARDING, settings.RUN_PROCESSES = "accelerate", "fsdp", 4
    found = check(tuning="full")
    assert found.hardware.shards == 4
    assert found.estimate.memory_mb["optimizer"] == pytest.approx(alone["optimizer"] / 4, abs=0.1)
    assert found.fits
    refused = check(tuning="qlora4")
    assert "takes no shards" in refused.problems[0]
    assert refused.proposal is not None
    assert refused.proposal.changes["tuning"] == "lora"
    assert "--num_processes 4 -m training.engine" in " ".join(runs.launch_command(Path("run")))
    assert runs.child_environment()["RUN_SHARDING"] == "fsdp"


def test_a_run_that_cannot_fit_is_refused_before_it_is_queued(
    start: Callable[..., Run],  # noqa: F811
    small_machine: Machine,
) -> None:
    Machine.objects.update(disk_mb=0.001)
    with pytest.raises(ProductError, match=r"cannot fit.*the disk are free"):
        start()
    assert not Run.objects.exists()


def test_it_costs_what_an_hour_costs(check: Check, settings: Any) -> None:
    assert check().cost is None
    settings.PRICE_PER_HOUR = 3600.0
    found = check()
    assert found.cost == pytest.approx(found.estimate.seconds, abs=0.01)


def test_a_run_of_another_kind_teaches_nothing_about_time(
    check: Check,
    small_machine: Machine,
    base_version: Version,  # noqa: F811
) -> None:
    kinds: list[dict[str, Any]] = [{}, {"gradient_checkpointing": True}, {"engine": "trl"}]
    guessed = [check(**kind).estimate.training_seconds for kind in kinds]
    Throughput.objects.create(
        machine=small_machine,
        base=base_version.base,
        method="dpo",
        engine="tree",
        tuning="lora",
        precision="fp32",
        tokens_per_second=1.0,
        overhead_seconds=0.0,
        memory_factor=1.0,
    )
    known = [check(**kind).estimate.training_seconds for kind in kinds]
    assert known[0] > 10 * guessed[0]
    assert known[1:] == guessed[1:]


def test_an_interrupted_run_teaches_nothing(start: Callable[..., Run]) -> None:  # noqa: F811
    run = start()
    run.attempts = 2
    machines.learn_from(run, {"seconds": 1.0, "peak_memory_mb": 900, "steps": 4}, 2.0)
    assert not Throughput.objects.exists()


def test_the_page_shows_it_and_takes_a_proposal(
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    small_machine: Machine,
    owner: User,
    login: Callable[[User], Client],
) -> None:
    client, slug = login(owner), snapshot.project.slug
    form = {
        "snapshot": snapshot.pk,
        "start_version": base_version.pk,
        "method": "dpo",
        "seed": 0,
        "a-batch_size": 64,
        "a-target_modules": "all-linear",
        "a-precision": "fp32",
        "a-as_json": json.dumps({"token_budget": 100_000}),
    }
    fragment = client.post(reverse("run_preflight", args=[slug]), form).content.decode()
    assert "This run cannot fit." in fragment
    assert "Trained weights" in fragment
    take = json.dumps({"token_budget": 300, "gradient_checkpointing": True})
    page = client.post(reverse("run_new", args=[slug]), form | {"take": take})
    text = page.content.decode()
    assert page.status_code == 200
    assert not Run.objects.exists(), "taking it changes the form, and starts nothing"
    assert 'name="a-token_budget" value="300"' in text
    assert "100000" not in text
    refused = client.post(reverse("run_new", args=[slug]), form)
    assert refused.status_code == 400
    assert "The nearest that does" in refused.content.decode()


def test_rest_foretells_a_run(
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    small_machine: Machine,
    owner: User,
    lead: User,
    api: Callable[..., APIClient],
) -> None:
    body = {"snapshot": snapshot.pk, "method": "dpo", "arguments": ARGUMENTS}
    assert api(lead).post("/api/runs/preflight", body).status_code == 403
    found = api(owner).post("/api/runs/preflight", body).json()
    assert found["fits"] is True
    assert found["estimate"]["steps"] > 0
    too_much = body | {"arguments": ARGUMENTS | TOO_LARGE}
    refused = api(owner).post("/api/runs/", too_much)
    assert refused.status_code == 400
    assert refused.json()["extra"]["preflight"]["proposal"]["changes"]
    assert not Run.objects.exists()


def test_what_goes_on_with_an_adapter_keeps_its_shape(
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    small_machine: Machine,
    owner: User,
    settings: Any,
) -> None:
    first = Version.objects.create(
        project=snapshot.project,
        base=base_version.base,
        parent=base_version,
        number=1,
        method="dpo",
        digest="d" * 64,
        path="adapters/first",
        proof={"passed": True},
    )
    adapter = settings.ARTIFACTS_DIR / first.path
    adapter.mkdir(parents=True)
    config = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["v_proj", "q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    run = runs.start_run(
        snapshot=snapshot,
        start_version=first,
        method="dpo",
        arguments=ARGUMENTS | {"lora_r": 8},
        by=owner,
    )
    assert run.arguments["lora_r"] == 4, "what it says is what it trains"
    assert run.arguments["target_modules"] == ["q_proj", "v_proj"]

    def check(**changes: Any) -> Preflight | None:
        wanted = {"method": "dpo", "arguments": {}, "start_version": first} | changes
        return check_run(snapshot=snapshot, **wanted)

    found = check()
    assert found is not None
    assert "It goes on with the adapter of v1 as it is: lora_r 4, lora_alpha 8." in found.warnings
    with pytest.raises(ProductError, match="Full weights are trained from the base"):
        check(arguments={"tuning": "full"})
    first.method = "reward"
    with pytest.raises(ProductError, match="is a reward model"):
        check()
