"""What changes models: registration, promotion, roll-back, recording of completions."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Max
from django.utils.module_loading import import_string

from accounts.errors import Conflict, ProductError
from accounts.models import Event, Project, User
from accounts.services import audit
from accounts.webhooks import emit
from inference import artifacts, client
from inference.models import Alias, AliasMove, AliasName, BaseModel, Version


def register_base(*, folder: Path) -> BaseModel:
    """Record a prepared base folder (see ``python -m inference.engine prepare``); idempotent."""
    try:
        facts = json.loads((folder / "base.json").read_text())
    except OSError as error:
        raise ProductError(
            f"{folder} holds no prepared base model. Run: python -m inference.engine prepare "
            f"SOURCE {folder}"
        ) from error
    base, _ = BaseModel.objects.update_or_create(
        name=facts["name"],
        defaults={
            "source": facts["source"],
            "path": str(folder),
            "digest": facts["digest"],
            "licence": facts["licence"],
            "size_bytes": facts["size_bytes"],
            "parameters": facts["parameters"],
        },
    )
    return base


@transaction.atomic
def adopt_base(*, project: Project, base: BaseModel, by: User | None = None) -> Version:
    """Give the project the plain base as version 0, in production until something better is."""
    version, _ = Version.objects.get_or_create(project=project, number=0, defaults={"base": base})
    alias, created = Alias.objects.get_or_create(
        project=project, name=AliasName.PRODUCTION, defaults={"version": version}
    )
    if created:
        AliasMove.objects.create(
            alias=alias,
            kind=AliasMove.Kind.SET,
            to_version=version,
            by=by,
            why="the plain base, before any training",
            milliseconds=0,
        )
    return version


def register_version(
    *,
    project: Project,
    base: BaseModel,
    parent: Version | None,
    method: str,
    adapter_folder: Path,
    snapshot_digest: str,
    metrics: dict[str, Any],
    proof: dict[str, Any],
    by: User | None,
) -> Version:
    """Copy a proved adapter into the store and register it; the same bytes give the same row.

    The copy is complete and checked before the row exists, so a crash in between leaves no version.
    """
    if not proof.get("passed"):
        raise ProductError("This adapter is not proved, so it cannot become a version.")
    digest = artifacts.weights_digest(adapter_folder)
    path = _store_adapter(adapter_folder, digest)
    with transaction.atomic():
        Project.objects.select_for_update().get(pk=project.pk)  # numbers without gaps or doubles
        existing = Version.objects.filter(project=project, digest=digest).first()
        if existing is not None:
            return existing
        last = Version.objects.filter(project=project).aggregate(last=Max("number"))["last"] or 0
        version = Version(
            project=project,
            number=last + 1,
            base=base,
            parent=parent,
            method=method,
            digest=digest,
            path=path,
            snapshot_digest=snapshot_digest,
            metrics=metrics,
            proof=proof,
            created_by=by,
        )
        version.full_clean()
        version.save()
        audit(project=project, by=by, action="version.register", target=version.name, digest=digest)
    return version


def _store_adapter(folder: Path, digest: str) -> str:
    """Copy the adapter to its content address; return the path relative to ARTIFACTS_DIR."""
    relative = f"adapters/{digest[:2]}/{digest}"
    target = Path(settings.ARTIFACTS_DIR) / relative
    if target.exists() and artifacts.weights_digest(target) == digest:
        return relative
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{digest}.{uuid.uuid4().hex}")
    try:
        shutil.copytree(folder, draft)
        if artifacts.weights_digest(draft) != digest:
            raise ProductError("The adapter changed while it was being stored. Register it again.")
        if target.exists():  # damaged: its bytes no longer give its name
            shutil.rmtree(target)
        os.rename(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return relative


def check_servable(version: Version) -> None:
    """Raise ProductError for what no engine of ours can write answers with."""
    if version.method == "reward":
        raise ProductError(
            "A reward model scores answers and writes none, so it cannot serve. Promote a version "
            "of another method."
        )
    if version.is_full:
        raise ProductError(
            f"{version.name} is not servable here: it is a whole model, and the engines serve "
            "adapters on the base that they hold. Download it and serve it by itself, or train "
            "with tuning lora."
        )
    if version.is_dora:
        raise ProductError(
            f"{version.name} is not servable here: it is a DoRA, and the engines serve LoRA "
            "adapters. Download it and merge it into its base, or train with tuning lora."
        )


def load_on_engines(version: Version) -> None:
    """Make every engine ready to serve this version; a plain base always is."""
    check_servable(version)
    if not version.is_base:
        client.load_adapter(name=version.served_name, path=str(version.folder))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says of a promotion, in a sentence."""

    proposed: bool
    sentence: str


def verdict(version: Version, alias_name: str = AliasName.PRODUCTION) -> Verdict:
    """Ask the site's gate; it lives a floor up, hence a setting names it."""
    gate = import_string(settings.PROMOTION_GATE)
    found: Verdict = gate(version=version, alias_name=alias_name)
    return found


def promote(
    *,
    project: Project,
    version: Version,
    by: User | None,
    why: str = "",
    alias_name: AliasName = AliasName.PRODUCTION,
) -> AliasMove:
    """Point the alias at this version, after every engine has loaded it.

    A version that the gate does not propose needs a written reason, which the ledger keeps.
    """
    check_servable(version)
    champion = Alias.objects.filter(project=project, name=alias_name).first()
    found = verdict(version, alias_name)
    if not found.proposed and not why.strip():
        named = Alias.objects.filter(project=project, name=alias_name, version=version)
        if named.exists():
            raise Conflict(f"{alias_name} already names {version.name}. Nothing was changed.")
        raise ProductError(
            f"{found.sentence} Evaluate it first, or promote it all the same with a reason why."
        )
    return _move(
        project=project,
        alias_name=alias_name,
        version=version,
        kind=AliasMove.Kind.PROMOTE,
        by=by,
        why=why,
        overruled=not found.proposed,
        expected=champion.version_id if champion is not None else None,
    )


def roll_back(
    *,
    project: Project,
    by: User | None,
    why: str = "",
    alias_name: AliasName = AliasName.PRODUCTION,
    to: int | None = None,
) -> AliasMove:
    """Point the alias back at what it named before the promotion that holds now.

    Repeated roll-backs walk further back; they do not swing between two versions. ``to`` is the id
    of the version that the caller expects there: with it, a retry does not walk a second step.
    """
    alias = Alias.objects.filter(project=project, name=alias_name).select_related("version").first()
    target = version_before(alias) if alias is not None else None
    if alias is not None and to == alias.version_id:
        raise Conflict(f"{alias_name} already names {alias.version.name}. Nothing was changed.")
    if target is not None and to not in (None, target.pk):
        raise Conflict(_moved(alias_name))
    if alias is None or target is None:
        raise Conflict(
            f"There is nothing to roll {alias_name} back to: it has named only one version."
        )
    return _move(
        project=project,
        alias_name=alias_name,
        version=target,
        kind=AliasMove.Kind.ROLL_BACK,
        by=by,
        why=why,
        expected=alias.version_id,
    )


def _moved(alias_name: AliasName) -> str:
    return f"{alias_name} was moved by somebody else meanwhile. Look again, then decide."


def version_before(alias: Alias) -> Version | None:
    """Replay the ledger as a stack (promotion pushes, roll-back pops); return the second."""
    stack: list[Version] = []
    for move in alias.moves.select_related("to_version__base").order_by("id"):
        if move.kind == AliasMove.Kind.ROLL_BACK:
            stack.pop()
        elif not stack or stack[-1].pk != move.to_version_id:
            stack.append(move.to_version)
    return stack[-2] if len(stack) > 1 else None


def _move(
    *,
    project: Project,
    alias_name: AliasName,
    version: Version,
    kind: AliasMove.Kind,
    by: User | None,
    why: str,
    expected: int | None,
    overruled: bool = False,
) -> AliasMove:
    """Move the alias on from ``expected``, which was looked at; Conflict if it has moved."""
    if version.project_id != project.pk:
        raise ProductError("This version belongs to another project.")
    started = time.monotonic()
    load_on_engines(version)
    with transaction.atomic():
        # get_or_create inside the transaction: a project's first canary has no row to lock yet.
        alias, created = Alias.objects.select_for_update().get_or_create(
            project=project, name=alias_name, defaults={"version": version}
        )
        before = None if created else alias.version
        if before is not None and before.pk == version.pk:
            raise Conflict(f"{alias_name} already names {version.name}. Nothing was changed.")
        if expected != (before.pk if before is not None else None):
            # The gate compared with another champion, or the roll-back would skip a version.
            raise Conflict(_moved(alias_name))
        alias.version = version
        alias.save(update_fields=["version"])
        move = AliasMove.objects.create(
            alias=alias,
            kind=kind,
            from_version=before,
            to_version=version,
            by=by,
            why=why,
            overruled=overruled,
            milliseconds=(time.monotonic() - started) * 1000,
        )
        audit(
            project=project,
            by=by,
            action=f"alias.{kind}",
            target=f"{alias_name} → {version.name}",
            why=why,
        )
        emit(
            project=project,
            event=Event.ALIAS_MOVED,
            data={
                "alias": alias_name,
                "kind": str(kind),
                "from": before.name if before is not None else None,
                "to": version.name,
                "why": why,
            },
        )
    return move


def wanted_on_engines() -> list[Version]:
    """Return every adapter that must stay warm: what aliases name and what they named before."""
    wanted: dict[int, Version] = {}
    for alias in Alias.objects.select_related("version__base"):
        before = version_before(alias)
        for version in (alias.version, before):
            if version is not None and not version.is_base:
                wanted[version.pk] = version
    return list(wanted.values())


def keep_engines_warm() -> int:
    """Load what is missing on any engine (after its restart, say); return how many were loaded."""
    loaded = 0
    wanted = wanted_on_engines()
    for url in settings.ENGINE_URLS if wanted else []:
        served = client.served_names(url)
        for version in wanted:
            if version.served_name not in served:
                client.load_adapter(name=version.served_name, path=str(version.folder), urls=[url])
                loaded += 1
    return loaded
