"""Versions, the alias and its ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from django.db import IntegrityError, transaction
from rest_framework.test import APIClient
from safetensors.numpy import save_file

from accounts.errors import Conflict, ProductError, Unavailable
from accounts.models import Project, User
from inference import artifacts, services
from inference.models import Alias, AliasMove, BaseModel, Version


def make_adapter(folder: Path, seed: int) -> Path:
    """Write the smallest files that count as an adapter."""
    folder.mkdir(parents=True)
    weights = np.full((2, 2), seed, dtype=np.float32)
    save_file({"lora": weights}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return folder


@pytest.fixture
def register(
    project: Project, base: BaseModel, base_version: Version, owner: User, tmp_path: Path
) -> Callable[[int], Version]:
    """Return a function that registers an adapter made from a number."""

    def register_one(seed: int) -> Version:
        folder = tmp_path / f"adapter-{seed}"
        return services.register_version(
            project=project,
            base=base,
            parent=base_version,
            method="dpo",
            adapter_folder=folder if folder.exists() else make_adapter(folder, seed),
            snapshot_digest="s" * 64,
            metrics={},
            proof={"passed": True},
            by=owner,
        )

    return register_one


def point(project: Project, version: Version) -> None:
    """Move production without an engine: these tests are about the ledger."""
    alias = Alias.objects.get(project=project, name="production")
    AliasMove.objects.create(
        alias=alias,
        kind=AliasMove.Kind.PROMOTE,
        from_version=alias.version,
        to_version=version,
        milliseconds=0,
    )
    alias.version = version
    alias.save()


def test_it_registers_the_same_bytes_once(register: Callable[[int], Version]) -> None:
    first, again, second = register(1), register(1), register(2)
    assert first == again
    assert [first.number, second.number] == [1, 2]
    assert artifacts.adapter_digest(first.folder) == first.digest
    assert first.served_name == f"v-{first.digest[:16]}"


def test_a_dora_is_kept_and_not_served(register: Callable[[int], Version]) -> None:
    version = register(1)
    services.check_servable(version)
    version.proof = {"passed": True, "weights": "dora"}
    with pytest.raises(ProductError, match="it is a DoRA"):
        services.check_servable(version)


def test_it_heals_a_damaged_copy(register: Callable[[int], Version]) -> None:
    version = register(1)
    (version.folder / "adapter_config.json").write_text("{}")
    assert register(1) == version
    assert artifacts.adapter_digest(version.folder) == version.digest


def test_it_refuses_an_adapter_without_proof(
    project: Project, base: BaseModel, tmp_path: Path
) -> None:
    with pytest.raises(ProductError, match="not proved"):
        services.register_version(
            project=project,
            base=base,
            parent=None,
            method="dpo",
            adapter_folder=make_adapter(tmp_path / "a", 1),
            snapshot_digest="",
            metrics={},
            proof={"passed": False},
            by=None,
        )
    assert not Version.objects.exists()


def test_the_database_refuses_to_change_a_version(register: Callable[[int], Version]) -> None:
    version = register(1)
    with pytest.raises(IntegrityError, match="never changed"), transaction.atomic():
        Version.objects.filter(pk=version.pk).update(digest=hashlib.sha256(b"x").hexdigest())


def test_the_database_refuses_to_change_the_ledger(base_version: Version) -> None:
    move = AliasMove.objects.get()
    with pytest.raises(IntegrityError, match="only appended"), transaction.atomic():
        AliasMove.objects.filter(pk=move.pk).update(why="something else")
    with pytest.raises(IntegrityError, match="only appended"), transaction.atomic():
        move.delete()


def test_the_ledger_survives_the_account_of_the_mover(
    project: Project, base_version: Version, lead: User
) -> None:
    alias = Alias.objects.get(project=project)
    move = AliasMove.objects.create(
        alias=alias, kind="promote", to_version=base_version, by=lead, milliseconds=0
    )
    AliasMove.objects.filter(by=lead).update(by=None)
    move.refresh_from_db()
    assert move.by is None


def test_nothing_moves_when_the_engine_is_away(
    project: Project, base_version: Version, register: Callable[[int], Version], owner: User
) -> None:
    with pytest.raises(Unavailable, match="Nothing was changed"):
        services.promote(project=project, version=register(1), by=owner, why="a test")
    assert Alias.objects.get(project=project).version == base_version
    assert AliasMove.objects.count() == 1


def test_it_rolls_back_step_by_step_and_never_swings(
    project: Project, base_version: Version, register: Callable[[int], Version]
) -> None:
    point(project, register(1))
    point(project, base_version)  # a promotion of the base, not a roll-back
    back = services.roll_back  # to v1, which no engine has: checked through the target only
    alias = Alias.objects.get(project=project)
    assert services.version_before(alias) == register(1)
    with pytest.raises(Unavailable):
        back(project=project, by=None)


def test_it_rolls_back_to_the_base(
    project: Project, base_version: Version, register: Callable[[int], Version], owner: User
) -> None:
    point(project, register(1))
    move = services.roll_back(project=project, by=owner, why="worse")
    assert move.to_version == base_version
    assert Alias.objects.get(project=project).version == base_version
    with pytest.raises(Conflict, match="nothing to roll"):
        services.roll_back(project=project, by=owner)


def test_a_retried_roll_back_walks_no_second_step(
    project: Project,
    base_version: Version,
    register: Callable[[int], Version],
    owner: User,
    api: Callable[..., APIClient],
) -> None:
    point(project, register(1))
    point(project, base_version)
    point(project, register(2))
    wanted = {"to": base_version.pk, "why": "worse"}
    assert api(owner).post("/api/rollback", wanted).status_code == 200
    answer = api(owner).post("/api/rollback", wanted)
    assert answer.status_code == 409
    assert "already names" in answer.json()["message"]
    assert Alias.objects.get(project=project).version == base_version


def test_it_refuses_a_move_to_where_the_alias_is(
    project: Project, base_version: Version, owner: User
) -> None:
    with pytest.raises(Conflict, match="already names base"):
        services.promote(project=project, version=base_version, by=owner)


def test_it_keeps_the_version_before_warm(
    project: Project, base_version: Version, register: Callable[[int], Version]
) -> None:
    first, second = register(1), register(2)
    point(project, first)
    point(project, second)
    assert {version.pk for version in services.wanted_on_engines()} == {first.pk, second.pk}


def test_rest_lists_fetches_and_downloads_versions(
    register: Callable[[int], Version], lead: User, api: Callable[..., APIClient]
) -> None:
    version, client = register(1), api(lead)
    listed = client.get("/api/versions/").json()["results"]
    assert [row["name"] for row in listed] == ["v1", "base"]
    assert client.get(f"/api/versions/{version.pk}/").json()["digest"] == version.digest
    files = client.get(f"/api/versions/{version.pk}/files/").json()
    assert [row["name"] for row in files] == ["adapter_config.json", "adapter_model.safetensors"]
    got = client.get(f"/api/versions/{version.pk}/files/adapter_config.json")
    assert b"".join(got.streaming_content) == b'{"peft_type": "LORA"}'  # type: ignore[attr-defined]
    assert client.get(f"/api/versions/{version.pk}/files/..%2Fsecret").status_code == 404


def test_an_adapter_downloads_in_two_halves(
    register: Callable[[int], Version],
    lead: User,
    stranger: User,
    api: Callable[..., APIClient],
) -> None:
    version, client = register(1), api(lead)
    weights = (version.folder / "adapter_model.safetensors").read_bytes()
    path = f"/api/versions/{version.pk}/files/adapter_model.safetensors"
    first = client.get(path, headers={"Range": "bytes=0-49"})
    asked = {"Range": "bytes=50-", "If-Range": first["ETag"]}
    second = client.get(path, headers=asked)
    assert (first.status_code, second.status_code) == (206, 206)
    assert b"".join(first) + b"".join(second) == weights  # type: ignore[arg-type]
    other = f"/api/versions/{register(2).pk}/files/adapter_model.safetensors"
    assert client.get(other, headers=asked).status_code == 200, "other bytes: the whole"
    elsewhere = stranger.memberships.get().project
    assert api(stranger, of=elsewhere).get(path, headers=asked).status_code == 404


def test_rest_moves_need_an_admin(
    register: Callable[[int], Version],
    project: Project,
    lead: User,
    owner: User,
    api: Callable[..., APIClient],
) -> None:
    version = register(1)
    assert api(lead).post(f"/api/versions/{version.pk}/promote").status_code == 403
    assert api(lead).post("/api/rollback").status_code == 403
    refused = api(owner).post(f"/api/versions/{version.pk}/promote", {"why": "better"})
    assert refused.status_code == 503
    point(project, version)
    moved = api(owner).post("/api/rollback", {"why": "worse"})
    assert moved.status_code == 200, moved.content
    assert moved.json()["to_version_name"] == "base"
    ledger = api(owner).get("/api/aliases/moves/").json()["results"]
    assert [row["kind"] for row in ledger] == ["roll_back", "promote", "set"]
