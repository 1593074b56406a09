"""Build snapshots: judgements in, immutable hashed Parquet and a balanced manifest out.

The rows of each part stand in a canonical order: by prompt, judgement, chosen and rejected answer.
A part's digest is SHA-256 over one line of ASCII for each row, in that order:

    prompt_id TAB judgement_id TAB margin TAB weight TAB chosen_id TAB rejected_id LF

and a snapshot's is SHA-256 over ``train TAB digest LF heldout TAB digest LF``.

``prompt_id``, ``chosen_id`` and ``rejected_id`` are themselves digests of the conversation and of
the two texts, so a line stands for all that its row says. The same rows give the same digest and,
with the same pyarrow, the same files on any machine, in whatever order they were stored.

Memory is flat: rows come from a server-side cursor and leave in row groups of bounded size.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from django.conf import settings
from django.db import connection, transaction

from accounts.errors import Conflict, ProductError
from accounts.models import Project, User
from accounts.services import audit
from feedback.models import Campaign, text_digest
from training import lineage
from training.ledger import Exclusion, Ledger, exclusion_of, margin_of, pairs_of
from training.models import Snapshot

FORMAT = "laurel-preferences-2"
# A row group ends after so many rows, or so many characters where texts are long.
ROWS_PER_GROUP = 12_000
CHARACTERS_PER_GROUP = 24_000_000
JUDGEMENTS_PER_FETCH = 500
WEIGHT = 1.0
PARTS = ("train", "heldout")

# The narrow rows are sorted first; prompts and texts are looked up in that order (OFFSET 0 keeps
# the planner from sorting the texts, too).
_QUERY = """
SELECT judged.digest, judged.client_id::text, judged.ranking::text, judged.strength,
       judged.both_bad, judged.retracted, prompt.messages::text, response.ids, response.texts
  FROM (SELECT prompt.digest, judgement.client_id, judgement.ranking, judgement.strength,
               judgement.both_bad, judgement.retracted_at IS NOT NULL AS retracted,
               judgement.item_id, prompt.id AS prompt_id
          FROM feedback_judgement AS judgement
          JOIN feedback_item AS item ON item.id = judgement.item_id
          JOIN feedback_prompt AS prompt ON prompt.id = item.prompt_id
         WHERE judgement.campaign_id = ANY(%s)
         ORDER BY prompt.digest COLLATE "C", judgement.client_id
        OFFSET 0) AS judged
 CROSS JOIN LATERAL (SELECT messages FROM feedback_prompt
                      WHERE feedback_prompt.id = judged.prompt_id OFFSET 0) AS prompt
 CROSS JOIN LATERAL (SELECT array_agg(id) AS ids, array_agg(text) AS texts
                       FROM feedback_response WHERE item_id = judged.item_id) AS response
"""

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
    except Exception as error:  # whatever it is, the page has to say that it will not come
        Snapshot.objects.filter(pk=snapshot_id).update(
            state=Snapshot.State.FAILED, reason=_plain_reason(error)[:500]
        )
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    with transaction.atomic():
        lineage.lock(snapshot.project_id)  # a retraction sees this snapshot, or is seen by it
        ready = Snapshot.objects.filter(pk=snapshot_id, state=Snapshot.State.BUILDING).update(
            state=Snapshot.State.READY,
            digest=manifest["digest"],
            path=str(path.relative_to(settings.ARTIFACTS_DIR)),
            manifest=manifest,
        )
        if not ready:
            raise Conflict("This snapshot was changed while it was being built.")
        snapshot.refresh_from_db()
        lineage.record_sources(snapshot=snapshot)
    return snapshot


def _plain_reason(error: Exception) -> str:
    """Say why a build failed, and what to do where that is known."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            "No space left where snapshots are written. Nothing was kept of this one; "
            "free some space and take it again."
        )
    return str(error) or type(error).__name__


def is_heldout(prompt_id: str, fraction: float) -> bool:
    """Say on which side of the split a prompt lies.

    It depends on the prompt alone, so the side never changes as the data grows, and nothing that
    was held out once is trained on later (with the same fraction).
    """
    point = int(hashlib.sha256(f"heldout:{prompt_id}".encode()).hexdigest()[:12], 16) / 16**12
    return point < fraction


def heldout_prompts(snapshot: Snapshot) -> list[str]:
    """Return the ids of the held-out prompts, in order, read from the snapshot's own file."""
    found: dict[str, None] = {}
    with pq.ParquetFile(snapshot.folder / "heldout.parquet") as file:
        for batch in file.iter_batches(columns=["prompt_id"]):
            found.update(dict.fromkeys(batch.column(0).unique().to_pylist()))
    return sorted(found)


def heldout_references(snapshot: Snapshot) -> dict[str, str]:
    """Return, for each held-out prompt, the text of the first answer that was chosen there."""
    found: dict[str, str] = {}
    with pq.ParquetFile(snapshot.folder / "heldout.parquet") as file:
        for batch in file.iter_batches(columns=["prompt_id", "chosen"]):
            for row in batch.to_pylist():
                if row["chosen"]:
                    found.setdefault(row["prompt_id"], row["chosen"][-1]["content"])
    return found


@dataclass(frozen=True, slots=True)
class _Judged:
    """One judgement that gives pairs; ``texts`` and ``digests`` are those of its item."""

    prompt_id: str
    messages: list[dict[str, str]]
    characters: int  # of the messages, as stored
    client_id: str
    margin: float
    texts: dict[int, str]
    digests: dict[int, str]
    pairs: list[tuple[int, int]]


def _write(snapshot: Snapshot, folder: Path) -> dict[str, Any]:
    ledger = Ledger()
    parts = {part: _Part(folder / f"{part}.parquet") for part in PARTS}
    last, part = "", parts["train"]
    try:
        for judged in _judged(snapshot, ledger):
            if judged.prompt_id != last:
                last = judged.prompt_id
                heldout = is_heldout(last, snapshot.heldout_fraction)
                part = parts["heldout" if heldout else "train"]
            part.add(judged)
        for part in parts.values():
            part.flush()
            part.writer.close()
    except BaseException:
        for part in parts.values():
            with contextlib.suppress(Exception):  # the draft goes; the first error is the one told
                part.writer.close()
        raise
    ledger.check()
    if ledger.pairs == 0:
        raise ProductError(
            "These judgements give no pair: "
            + (", ".join(f"{n} {why}" for why, n in ledger.excluded.items()) or "there are none")
            + ". Collect judgements that prefer one response to another."
        )
    digests = "".join(f"{name}\t{part.digest.hexdigest()}\n" for name, part in parts.items())
    manifest = {
        "format": FORMAT,
        "digest": hashlib.sha256(digests.encode()).hexdigest(),
        "ledger": ledger.as_dict(),
        "rows": {name: part.rows for name, part in parts.items()},
        "prompts": {name: part.prompts for name, part in parts.items()},
        "heldout_fraction": snapshot.heldout_fraction,
        "files": {f"{name}.parquet": _file_digest(folder / f"{name}.parquet") for name in parts},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


def _judged(snapshot: Snapshot, ledger: Ledger) -> Iterator[_Judged]:
    """Yield the judgements that give pairs, in canonical order, and account for all of them."""
    campaigns = list(snapshot.campaigns.values_list("pk", flat=True))
    last_digest, last_ids = "", None
    prompt: list[dict[str, str]] = []
    texts: dict[int, str] = {}
    digests: dict[int, str] = {}
    # In a transaction the cursor needs no copy of the whole result.
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute(_QUERY, [campaigns])
        while rows := cursor.fetchmany(JUDGEMENTS_PER_FETCH):
            for prompt_id, client_id, ranked, strength, bad, retracted, messages, ids, said in rows:
                ranking = json.loads(ranked) if ranked is not None else None
                exclusion = exclusion_of(retracted=retracted, ranking=ranking, both_bad=bad)
                if exclusion is not None:
                    ledger.enter(0, exclusion)
                    continue
                if prompt_id != last_digest:
                    prompt = json.loads(messages)
                    if text_digest(prompt) != prompt_id:
                        raise AssertionError(f"Prompt {prompt_id} does not match its digest.")
                    last_digest = prompt_id
                if ids != last_ids:
                    last_ids = ids
                    texts = dict(zip(ids, said, strict=True))
                    digests = {one: text_digest(text) for one, text in texts.items()}
                pairs = pairs_of(ranking or [], digests)
                ledger.enter(len(pairs), None if pairs else Exclusion.EQUAL_TEXTS)
                if pairs:
                    yield _Judged(
                        prompt_id,
                        prompt,
                        len(messages),
                        client_id,
                        margin_of(strength),
                        texts,
                        digests,
                        pairs,
                    )


class _Part:
    """One Parquet file in the making: columns are gathered by reference, then spread by ``take``.

    A prompt, a text, a judgement id is held once however many pairs name it.
    """

    def __init__(self, path: Path) -> None:
        self.writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", write_statistics=True)
        self.digest = hashlib.sha256()
        self.rows = 0
        self.prompts = 0
        self.last_prompt = ""
        self._clear()

    def _clear(self) -> None:
        self.lines: list[str] = []
        self.characters = 0
        self.item: dict[int, str] = {}  # the last judgement's, its places and longest text
        self.place: dict[int, int] = {}
        self.longest = 0
        self.prompt_ids: list[str] = []
        self.messages: list[list[dict[str, str]]] = []
        self.client_ids: list[str] = []
        self.margins: list[float] = []
        self.counts: list[int] = []  # pairs of each judgement
        self.prompt_places: list[int] = []  # of each judgement
        self.places: dict[str, int] = {}  # of each text, by its digest
        self.texts: list[str] = []
        self.chosen: list[int] = []
        self.rejected: list[int] = []

    def add(self, judged: _Judged) -> None:
        if judged.prompt_id != self.last_prompt:
            self.last_prompt = judged.prompt_id
            self.prompts += 1
        if not self.prompt_ids or self.prompt_ids[-1] != judged.prompt_id:
            self.prompt_ids.append(judged.prompt_id)
            self.messages.append(judged.messages)
        if judged.texts is not self.item:  # judgements of one item come one after another
            self.item = judged.texts
            self.place = {one: self._place(judged, one) for one in judged.texts}
            self.longest = max(map(len, judged.texts.values()))
        place = self.place
        head = f"{judged.prompt_id}\t{judged.client_id}\t{judged.margin}\t{WEIGHT}\t"
        digests = judged.digests
        for chosen, rejected in judged.pairs:
            self.chosen.append(place[chosen])
            self.rejected.append(place[rejected])
            self.lines.append(f"{head}{digests[chosen]}\t{digests[rejected]}\n")
        self.client_ids.append(judged.client_id)
        self.margins.append(judged.margin)
        self.counts.append(len(judged.pairs))
        self.prompt_places.append(len(self.prompt_ids) - 1)
        self.characters += len(judged.pairs) * (judged.characters + 2 * self.longest)
        if len(self.lines) >= ROWS_PER_GROUP or self.characters >= CHARACTERS_PER_GROUP:
            self.flush()

    def _place(self, judged: _Judged, one: int) -> int:
        place = self.places.setdefault(judged.digests[one], len(self.texts))
        if place == len(self.texts):
            self.texts.append(judged.texts[one])
        return place

    def flush(self) -> None:
        """Write what was gathered as one row group."""
        rows = len(self.lines)
        if rows == 0:
            return
        self.digest.update("".join(self.lines).encode())
        judgements = np.repeat(np.arange(len(self.counts)), self.counts)
        prompts = pa.array(np.asarray(self.prompt_places)[judgements])
        chosen, rejected = pa.array(self.chosen), pa.array(self.rejected)
        texts, ids = pa.array(self.texts, pa.string()), pa.array(list(self.places), pa.string())
        columns = [
            pa.array(self.messages, _MESSAGES).take(prompts),
            _answers(texts.take(chosen)),
            _answers(texts.take(rejected)),
            pa.array(self.prompt_ids, pa.string()).take(prompts),
            pa.array(np.asarray(self.margins)[judgements], pa.float64()),
            pa.array(np.full(rows, WEIGHT), pa.float64()),
            pa.array(self.client_ids, pa.string()).take(pa.array(judgements)),
            ids.take(chosen),
            ids.take(rejected),
        ]
        self.writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=rows)
        self.rows += rows
        self._clear()


def _answers(texts: pa.Array) -> pa.Array:
    """Return lists of one message of the assistant each."""
    roles = pa.repeat(pa.scalar("assistant"), len(texts))
    offsets = pa.array(np.arange(len(texts) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays([roles, texts], fields=list(_MESSAGES.value_type))
    )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(draft: Path, root: Path, digest: str) -> Path:
    """Move a finished draft to its content address; an equal one already there stays."""
    for file in draft.iterdir():
        _sync(file)
    _sync(draft)
    target = root / digest[:2] / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.rename(draft, target)
        _sync(target.parent)
    return target


def _sync(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder, through a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
