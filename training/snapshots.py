"""Build snapshots: judgements in, immutable hashed Parquet and a balanced manifest out.

The rows of each part stand in a canonical order: by prompt, judgement, chosen and rejected answer.
A part's digest is over one line for each row (``training.parts``), and a snapshot's is SHA-256 over
``train TAB digest LF heldout TAB digest LF``. A line stands for all that its row says, so the same
rows give the same digest and, with the same pyarrow, the same files on any machine, in whatever
order they were stored.

Memory is flat: rows come from a server-side cursor and leave in row groups of bounded size.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from django.conf import settings
from django.db import transaction

from accounts.errors import Conflict, ProductError
from accounts.models import Project, User
from accounts.services import audit
from feedback.models import Campaign
from inference.artifacts import file_digest
from training import leaks, leases, lineage, near, pii, storage
from training.cleaning import Cleaning
from training.ledger import Exclusion, Ledger
from training.lengths import Repeats
from training.masking import Masking
from training.models import Snapshot
from training.options import Kind, Options, Pii, Votes
from training.parts import Part
from training.rows import Composer, Row
from training.scales import check_scales, scales_of
from training.sources import Group, Scope, competences
from training.splits import Split, heldout_annotators, with_alike

FORMAT = "laurel-rows-3"
PARTS = ("train", "heldout")
DRAFT = ".draft-"
NOTHING = {
    Kind.PREFERENCE: "no pair",
    Kind.UNPAIRED: "no answer that is called good or bad",
    Kind.SFT: "no answer to imitate",
    Kind.RATINGS: "no answer with ratings",
}


@transaction.atomic
def create_snapshot(
    *,
    project: Project,
    campaigns: Sequence[Campaign],
    by: User | None,
    heldout_fraction: float = 0.2,
    kind: str = Kind.PREFERENCE,
    options: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Queue a snapshot of everything judged so far in these campaigns.

    ``options`` are those of ``training.options.Options``; ProductError where they make no sense.
    """
    from training.tasks import build_snapshot

    chosen = Options.read(options or {})
    if chosen.pii != Pii.OFF:
        pii.require()
    if not campaigns and not chosen.feedback:
        raise ProductError("Choose at least one campaign to take a snapshot of.")
    if any(campaign.project_id != project.pk for campaign in campaigns):
        raise ProductError("A campaign belongs to another project.")
    check_scales(kind, chosen, campaigns)
    snapshot = Snapshot(
        project=project,
        kind=kind,
        options=chosen.as_dict(),
        heldout_fraction=heldout_fraction,
        created_by=by,
    )
    snapshot.full_clean()
    snapshot.save()
    snapshot.campaigns.set(campaigns)
    audit(project=project, by=by, action="snapshot.create", target=f"snapshot {snapshot.pk}")
    build_snapshot.delay_on_commit(snapshot.pk)
    return snapshot


def build_snapshot(*, snapshot_id: int) -> Snapshot:
    """Write a queued snapshot's files and mark it ready; left alone where another worker does so.

    A crash leaves it unfinished, for ``sweep_builds`` to queue again.
    """
    state = Snapshot.State
    lease = leases.claim(Snapshot.objects.filter(pk=snapshot_id), held=state.BUILDING)
    snapshot = Snapshot.objects.get(pk=snapshot_id)
    if lease is None:
        return snapshot
    mine = Snapshot.objects.filter(pk=snapshot_id, state=state.BUILDING, lease=lease)
    root = _root()
    draft = root / f"{DRAFT}{lease.hex}"
    try:
        with leases.keep(mine):
            draft.mkdir(parents=True)
            manifest = _write(snapshot, draft)
            with transaction.atomic():
                leases.lock_project(snapshot.project_id)  # a sweep finds it named, or has ended
                path = storage.address(manifest)
                mine.update(path=path)
            storage.publish(draft, path, manifest)
    except Exception as error:  # whatever it is, the page has to say that it will not come
        mine.update(state=state.FAILED, reason=_plain_reason(error)[:500])
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    with transaction.atomic():
        # A retraction sees this snapshot, or is seen by it.
        leases.lock_project(snapshot.project_id)
        ready = mine.update(
            state=state.READY,
            digest=manifest["digest"],
            path=path,
            manifest=manifest,
        )
        if ready:
            snapshot.refresh_from_db()
            lineage.record_sources(snapshot=snapshot)
    if not ready:
        storage.delete_unnamed(project_id=snapshot.project_id, snapshot_path=path)
        raise Conflict("This snapshot was changed while it was being built.")
    return snapshot


def sweep_builds() -> int:
    """Queue again what silent workers were building, delete their drafts; return how many."""
    from training.tasks import build_snapshot

    lost = leases.take_back(Snapshot.objects.all(), held=Snapshot.State.BUILDING)
    for snapshot_id in lost:
        build_snapshot.delay(snapshot_id)
    drafts = list(_root().glob(f"{DRAFT}*"))  # before the leases: a draft comes after its lease
    building = Snapshot.objects.filter(state=Snapshot.State.BUILDING, lease__isnull=False)
    kept = {f"{DRAFT}{lease.hex}" for lease in building.values_list("lease", flat=True) if lease}
    for draft in drafts:
        if draft.name not in kept:
            shutil.rmtree(draft, ignore_errors=True)
    storage.sweep_uploads()
    storage.sweep_copies()
    return len(lost)


def _root() -> Path:
    return Path(settings.ARTIFACTS_DIR) / "snapshots"


def _plain_reason(error: Exception) -> str:
    """Say why a build failed, and what to do where that is known."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            "No space left where snapshots are written. Nothing was kept of this one; "
            "free some space and take it again."
        )
    return str(error) or type(error).__name__


def heldout_prompts(snapshot: Snapshot) -> list[str]:
    """Return the ids of the held-out prompts, in order, read from the snapshot's own file."""
    found: dict[str, None] = {}
    with pq.ParquetFile(storage.local_file(snapshot, "heldout.parquet")) as file:
        for batch in file.iter_batches(columns=["prompt_id"]):
            found.update(dict.fromkeys(batch.column(0).unique().to_pylist()))
    return sorted(found)


def heldout_references(snapshot: Snapshot) -> dict[str, str]:
    """Return, for each held-out prompt, the text of the first answer that was chosen there."""
    found: dict[str, str] = {}
    if snapshot.kind == Kind.RATINGS:
        return found  # where everything is rated, nothing is chosen
    with pq.ParquetFile(storage.local_file(snapshot, "heldout.parquet")) as file:
        for batch in file.iter_batches(columns=["prompt_id", "chosen"]):
            for row in batch.to_pylist():
                if row["chosen"]:
                    found.setdefault(row["prompt_id"], row["chosen"][-1]["content"])
    return found


def _write(snapshot: Snapshot, folder: Path) -> dict[str, Any]:
    kind, options = Kind(snapshot.kind), Options.read(snapshot.options)
    campaigns = list(snapshot.campaigns.values_list("pk", flat=True))
    competence = competences(campaigns) if options.votes == Votes.WEIGHTED else {}
    composer = Composer(kind, options, competence)
    scope = Scope(project=snapshot.project_id, campaigns=campaigns, options=options)
    ledger, repeats = Ledger(), Repeats()
    cleaning, masking = Cleaning(options), Masking(options.pii)
    rated = scales_of(snapshot.campaigns.order_by("pk")) if kind == Kind.RATINGS else None
    scales = None if rated is None else list(rated)
    parts = {part: Part(folder / f"{part}.parquet", scales) for part in PARTS}
    try:
        with transaction.atomic():
            ledger.enter(Exclusion.SKIPPED, scope.skipped())
            leaked = leaks.leaked(snapshot) if options.leaks else {}
            alike: dict[str, str] = {}
            near_duplicates = 0
            if options.near:
                alike = near.groups(scope.prompts(), leaks.texts(snapshot) if leaked else ())
                for one, why in list(leaked.items()):
                    leaked.setdefault(alike.get(one, one), why)
            split, judges = _split(snapshot, scope, alike, leaked)
            for stored in scope.groups():
                group = masking.read(stored)
                near_duplicates += group.prompt_id in alike
                for side in split.sides(group):
                    composed = composer.compose(side.said, group.decided)
                    if side.leak is not None:
                        composed.withhold(side.leak)
                    if options.max_characters:
                        composed.withhold(Exclusion.TOO_LONG, _fits(group, options.max_characters))
                    cleaning.withhold(group, composed)
                    masking.withhold(composed)
                    ledger.account([one.id for one in side.said], composed)
                    if not composed.rows:
                        continue
                    repeats.add({one for row in composed.rows for one in row[1:3] if one})
                    parts[side.part].add(
                        group.prompt_id,
                        group.messages,
                        group.written or group.prompt_id,
                        composed.rows,
                        group.texts,
                    )
        for part in parts.values():
            part.close()
    except BaseException:
        for part in parts.values():
            part.abandon()
        raise
    ledger.check(scope.total)
    if ledger.pairs == 0:
        raise ProductError(
            f"These judgements give {NOTHING[kind]}: "
            + (", ".join(f"{n} {why}" for why, n in ledger.excluded.items()) or "there are none")
            + ". Collect judgements of another kind, or take a snapshot of another kind."
        )
    digests = "".join(f"{name}\t{part.digest.hexdigest()}\n" for name, part in parts.items())
    manifest = {
        "format": FORMAT,
        "kind": str(kind),
        "options": options.as_dict(),
        "digest": hashlib.sha256(digests.encode()).hexdigest(),
        "ledger": ledger.as_dict(),
        "rows": {name: part.rows for name, part in parts.items()},
        "prompts": {name: part.prompts for name, part in parts.items()},
        "heldout_fraction": snapshot.heldout_fraction,
        "near_duplicates": near_duplicates,
        "lengths": {name: part.lengths.as_dict() for name, part in parts.items()},
        "repeats": repeats.as_dict(),
        "agreement": composer.flips.as_dict(),
        "files": {f"{name}.parquet": file_digest(folder / f"{name}.parquet") for name in parts},
        **cleaning.as_dict(),
        **masking.as_dict(),
    }
    if judges is not None:
        manifest["annotators"] = judges
    if rated is not None:
        manifest["scales"] = {name: asdict(scale) for name, scale in rated.items()}
    (folder / storage.MANIFEST).write_bytes(storage.manifest_text(manifest))
    return manifest


def _split(
    snapshot: Snapshot,
    scope: Scope,
    alike: Mapping[str, str],
    leaked: Mapping[str, Exclusion],
) -> tuple[Split, dict[str, int] | None]:
    """Return how a snapshot parts what was said, and of how many annotators it holds out how many.

    None where the options hold out prompts alone.
    """
    options = scope.options
    split = Split(fraction=snapshot.heldout_fraction, alike=alike, leaked=leaked)
    if not options.heldout_annotators:
        return split, None
    everybody = scope.annotators()
    heldout = heldout_annotators(everybody, options.heldout_annotators)
    judged = with_alike(scope.judged_by(heldout), alike) if alike else set()
    return replace(split, annotators=heldout, judged=judged), {
        "all": len(everybody),
        "heldout": len(heldout),
    }


def _fits(group: Group, most: int) -> Callable[[Row], bool]:
    """Return whether a row's prompt and longer answer have at most so many characters together."""
    room = most - sum(len(message["content"]) for message in group.messages)
    fitting = {digest for digest, text in group.texts.items() if len(text) <= room}
    return lambda row: all(one in fitting for one in row[1:3] if one)
