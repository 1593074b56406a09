"""The prompts that versions are measured on, which no snapshot may teach.

They are what earlier snapshots of the project held out, as far as their files are there, and what
is there to evaluate on: prompts with the tag “evaluation”, those that evaluations asked of versions
and those that they put to people.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from feedback.models import Prompt, text_digest
from inference.models import Completion
from training import storage
from training.ledger import Exclusion
from training.models import Snapshot
from training.sources import Message, asked

EVALUATION_TAG = "evaluation"


def leaked(snapshot: Snapshot) -> dict[str, Exclusion]:
    """Return why each prompt must not be trained on, by digest; the graver reason where both do."""
    found = {digest: Exclusion.EVALUATION_LEAK for digest, _ in _evaluated(snapshot)}
    for batch in _held_out(snapshot, "prompt_id"):
        ids = batch.column(0).unique().to_pylist()
        found |= dict.fromkeys(ids, Exclusion.HELDOUT_LEAK)
    return found


def texts(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Yield the digest of each of these prompts and what is asked in it; some of them twice."""
    for digest, messages in _evaluated(snapshot):
        yield digest, asked(messages)
    last = ""
    for batch in _held_out(snapshot, "prompt_id", "prompt"):
        for row in batch.to_pylist():
            if row["prompt_id"] != last:  # the rows of a prompt stand together
                last = row["prompt_id"]
                yield last, asked(row["prompt"])


def _held_out(snapshot: Snapshot, *columns: str) -> Iterator[pa.RecordBatch]:
    """Yield what earlier snapshots hold out; those whose files are gone or damaged are left out."""
    earlier = Snapshot.objects.filter(
        project=snapshot.project_id, state=Snapshot.State.READY, pk__lt=snapshot.pk
    )
    for one in earlier.order_by("pk"):
        with contextlib.suppress(OSError, storage.Damaged):
            path = storage.local_file(one, "heldout.parquet")
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(columns=list(columns))


def _evaluated(snapshot: Snapshot) -> Iterator[tuple[str, list[Message]]]:
    prompts = Prompt.objects.filter(project=snapshot.project_id)
    shown = prompts.filter(items__campaign__evaluation__isnull=False).distinct()
    for some in (prompts.filter(tags__contains=[EVALUATION_TAG]), shown):
        yield from some.order_by("pk").values_list("digest", "messages").iterator()
    answered = Completion.objects.filter(
        project=snapshot.project_id, source=Completion.Source.EVALUATION
    )
    for messages in answered.order_by().values_list("messages", flat=True).distinct().iterator():
        yield text_digest(messages), messages
