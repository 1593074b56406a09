"""Build snapshots: judgements in, immutable hashed Parquet and a balanced manifest out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from django.conf import settings
from django.db import transaction

from accounts.errors import Conflict, ProductError
from accounts.models import Project, User
from accounts.services import audit
from feedback.models import Campaign, Judgement, Response
from training.ledger import Ledger, Pair, pairs_of
from training.models import Snapshot

FORMAT = "laurel-preferences-1"
ROWS_PER_GROUP = 10_000
JUDGEMENTS_PER_FETCH = 500

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("prompt", _MESSAGES),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("prompt_id", pa.string()),
        ("margin", pa.float64()),
        ("weight", pa.float64()),
        ("judgement_id", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
    ]
)


@transaction.atomic
def create_snapshot(
    *,
    project: Project,
    campaigns: Sequence[Campaign],
    by: User | None,
    heldout_fraction: float = 0.2,
) -> Snapshot:
    """Queue a snapshot of everything judged so far in these campaigns."""
    from training.tasks import build_snapshot

    if not campaigns:
        raise ProductError("Choose at least one campaign to take a snapshot of.")
    if any(campaign.project_id != project.pk for campaign in campaigns):
        raise ProductError("A campaign belongs to another project.")
    snapshot = Snapshot(project=project, heldout_fraction=heldout_fraction, created_by=by)
    snapshot.full_clean()
    snapshot.save()
    snapshot.campaigns.set(campaigns)
    audit(project=project, by=by, action="snapshot.create", target=f"snapshot {snapshot.pk}")
    build_snapshot.delay_on_commit(snapshot.pk)
    return snapshot


def build_snapshot(*, snapshot_id: int) -> Snapshot:
    """Write a queued snapshot's files and mark it ready; a crash leaves it unfinished."""
    snapshot = Snapshot.objects.get(pk=snapshot_id)
    if snapshot.state == Snapshot.State.READY:
        return snapshot
    Snapshot.objects.filter(pk=snapshot_id).update(state=Snapshot.State.BUILDING, reason="")
    root = Path(settings.ARTIFACTS_DIR) / "snapshots"
    draft = root / f".draft-{uuid.uuid4().hex}"
    try:
        draft.mkdir(parents=True)
        manifest = _write(snapshot, draft)
        path = _publish(draft, root, manifest["digest"])
    except (ProductError, AssertionError, OSError) as error:
        Snapshot.objects.filter(pk=snapshot_id).update(
            state=Snapshot.State.FAILED, reason=str(error)[:500]
        )
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    ready = Snapshot.objects.filter(pk=snapshot_id, state=Snapshot.State.BUILDING).update(
        state=Snapshot.State.READY,
        digest=manifest["digest"],
        path=str(path.relative_to(settings.ARTIFACTS_DIR)),
        manifest=manifest,
    )
    if not ready:
        raise Conflict("This snapshot was changed while it was being built.")
    snapshot.refresh_from_db()
    return snapshot


def is_heldout(prompt_id: str, fraction: float) -> bool:
    """Say on which side of the split a prompt lies.

    It depends on the prompt alone, so the side never changes as the data grows, and nothing that
    was held out once is trained on later (with the same fraction).
    """
    point = int(hashlib.sha256(f"heldout:{prompt_id}".encode()).hexdigest()[:12], 16) / 16**12
    return point < fraction


def _write(snapshot: Snapshot, folder: Path) -> dict[str, Any]:
    ledger = Ledger()
    digest = hashlib.sha256()
    prompts: dict[str, set[str]] = {"train": set(), "heldout": set()}
    rows = {"train": 0, "heldout": 0}
    buffers: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
    writers = {part: _writer(folder / f"{part}.parquet") for part in buffers}
    try:
        for pair in _pairs(snapshot, ledger):
            heldout = is_heldout(pair.prompt_id, snapshot.heldout_fraction)
            part = "heldout" if heldout else "train"
            row = pair.row()
            digest.update(part.encode() + b"\t" + _canonical(row) + b"\n")
            prompts[part].add(pair.prompt_id)
            rows[part] += 1
            buffers[part].append(row)
            if len(buffers[part]) == ROWS_PER_GROUP:
                _flush(writers[part], buffers[part])
        for part, writer in writers.items():
            _flush(writer, buffers[part])
    finally:
        for writer in writers.values():
            writer.close()
    ledger.check()
    if ledger.pairs == 0:
        raise ProductError(
            "These judgements give no pair: "
            + (", ".join(f"{n} {why}" for why, n in ledger.excluded.items()) or "there are none")
            + ". Collect judgements that prefer one response to another."
        )
    manifest = {
        "format": FORMAT,
        "digest": digest.hexdigest(),
        "ledger": ledger.as_dict(),
        "rows": rows,
        "prompts": {part: len(ids) for part, ids in prompts.items()},
        "heldout_fraction": snapshot.heldout_fraction,
        "heldout_prompts": sorted(prompts["heldout"]),
        "files": {f"{part}.parquet": _file_digest(folder / f"{part}.parquet") for part in rows},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


def _pairs(snapshot: Snapshot, ledger: Ledger) -> Iterator[Pair]:
    """Yield the pairs in canonical order: by prompt, judgement, chosen, rejected."""
    judgements = (
        Judgement.objects.filter(campaign__in=snapshot.campaigns.all())
        .select_related("item__prompt")
        .order_by("item__prompt__digest", "client_id")
    )
    for batch in _batches(judgements.iterator(chunk_size=JUDGEMENTS_PER_FETCH)):
        texts: dict[int, dict[int, str]] = {}
        items = {judgement.item_id for judgement in batch}
        for response in Response.objects.filter(item__in=items):
            texts.setdefault(response.item_id, {})[response.pk] = response.text
        for judgement in batch:
            pairs, exclusion = pairs_of(judgement, texts[judgement.item_id])
            ledger.enter(pairs, exclusion)
            yield from sorted(pairs, key=lambda pair: (pair.chosen, pair.rejected))


def _batches(judgements: Iterable[Judgement]) -> Iterator[list[Judgement]]:
    batch: list[Judgement] = []
    for judgement in judgements:
        batch.append(judgement)
        if len(batch) == JUDGEMENTS_PER_FETCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _writer(path: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", write_statistics=True)


def _flush(writer: pq.ParquetWriter, rows: list[dict[str, Any]]) -> None:
    if rows:
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
        rows.clear()


def _canonical(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(draft: Path, root: Path, digest: str) -> Path:
    """Move a finished draft to its content address; an equal one already there stays."""
    for file in draft.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    target = root / digest[:2] / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.rename(draft, target)
    return target
