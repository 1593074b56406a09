"""Formats out: the rows of a snapshot as other tools read them, streamed, never held whole.

Every row but OpenAI's, whose shape is fixed, names the judgement it comes from. OpenAI's rows map
back by content: ``prompt_id``, ``chosen_id`` and ``rejected_id`` of a snapshot are the digests
(``feedback.models.text_digest``) of the conversation and of the two texts.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feedback.models import Judgement, Response
from training.models import Snapshot
from training.options import Kind, Options, Pairs, Votes

Row = dict[str, Any]
Message = dict[str, str]
ROWS_PER_BATCH = 500
BLOCK_BYTES = 65_536
# What was begun with other code is not gone on with.
CODE = hashlib.sha256(Path(__file__).read_bytes() + pa.__version__.encode()).hexdigest()
SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}
CONTENT_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}
RATED_TEXTS = ("prompt", "response", "judgement_id", "prompt_id")
# Kinds whose rows have a chosen or a rejected answer.
ANSWERS = (Kind.PREFERENCE, Kind.UNPAIRED, Kind.SFT)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write a snapshot down."""

    name: str
    label: str
    extension: str
    write: Callable[[Iterator[Row]], Iterator[bytes]]
    kinds: tuple[str, ...] = (Kind.PREFERENCE,)
    # Puts rankings together again, so it needs all pairs of each.
    whole_rankings: bool = False
    # The same snapshot is always written the same; not so where the database is asked.
    fixed: bool = True

    def fits(self, snapshot: Snapshot) -> bool:
        """Say whether the rows of this snapshot can be written so."""
        if snapshot.kind not in self.kinds:
            return False
        options = Options.read(snapshot.options)
        whole = options.votes == Votes.INDIVIDUAL and options.pairs == Pairs.ALL
        return whole or not self.whole_rankings

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.extension]

    def filename(self, snapshot_id: int, part: str) -> str:
        return f"snapshot-{snapshot_id}-{part}-{self.name}.{self.extension}"


def fitting(snapshot: Snapshot) -> list[Format]:
    """Return the formats that the rows of this snapshot can be written in."""
    return [one for one in FORMATS.values() if one.fits(snapshot)]


def export(path: Path, name: str) -> Iterator[bytes]:
    """Yield the part of a snapshot at ``path`` in the format ``name``, a row or so at a time."""
    return FORMATS[name].write(read_rows(path))


def identity(snapshot: Snapshot, part: str, name: str) -> str | None:
    """Return what stands for the bytes of an export; None where they may change."""
    if not FORMATS[name].fixed:
        return None
    return hashlib.sha256(f"{snapshot.digest}\n{part}\n{name}\n{CODE}".encode()).hexdigest()


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the canonical rows of a snapshot's file in their order."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
            yield from batch.to_pylist()


def blocks(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of about 64 kB: fewer turns for whoever sends them."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= BLOCK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def _json_lines(rows: Callable[[Iterator[Row]], Iterator[Row]]) -> Callable[..., Iterator[bytes]]:
    def write(source: Iterator[Row]) -> Iterator[bytes]:
        for row in rows(source):
            yield json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    return write


def _origin(row: Row) -> Row:
    return {"judgement_id": ",".join(row["judgement_ids"]), "prompt_id": row["prompt_id"]}


# What TRL reads


def preference(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield conversational preference rows: the prompt apart from the two answers."""
    for row in rows:
        yield {name: row[name] for name in ("prompt", "chosen", "rejected")} | _origin(row)


def preference_standard(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield preference rows in plain text; a conversation is written as a dialogue."""
    for row in rows:
        prompt, lead = plain_prompt(row["prompt"])
        yield {
            "prompt": prompt,
            "chosen": lead + row["chosen"][0]["content"],
            "rejected": lead + row["rejected"][0]["content"],
        } | _origin(row)


def implicit_prompt(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield preference rows whose prompt is the common beginning of both conversations."""
    for row in rows:
        yield {
            "chosen": row["prompt"] + row["chosen"],
            "rejected": row["prompt"] + row["rejected"],
        } | _origin(row)


def unpaired(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield a row for each answer: the chosen one labelled true, the rejected one false."""
    for row in rows:
        for side, label in (("chosen", True), ("rejected", False)):
            if row[side] is not None:
                completion = {"completion": row[side], "label": label}
                yield {"prompt": row["prompt"]} | completion | _origin(row)


def best_messages(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield conversations to imitate: what each judgement put first (several where they tie)."""
    for pairs in _by(rows, "judgement_id"):
        beaten = {row["rejected_id"] for row in pairs}
        best = {
            row["chosen_id"]: row
            for row in pairs
            if row["chosen"] is not None and row["chosen_id"] not in beaten
        }
        for row in best.values():
            yield {"messages": row["prompt"] + row["chosen"]} | _origin(row)


def reward_margin(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows for a reward model: whole conversations and how much better the first is."""
    for row in rows:
        yield {
            "chosen": row["prompt"] + row["chosen"],
            "rejected": row["prompt"] + row["rejected"],
            "margin": row["margin"],
        } | _origin(row)


def rankings(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield each judgement's ranking again: answers from best to worst, equal ranks for ties.

    A response's rank is one more than the number of responses that beat it.
    """
    for pairs in _by(rows, "judgement_id"):
        texts: dict[str, str] = {}
        losses: dict[str, int] = {}
        for row in pairs:
            for side in ("chosen", "rejected"):
                texts[row[f"{side}_id"]] = row[side][0]["content"]
                losses.setdefault(row[f"{side}_id"], 0)
            losses[row["rejected_id"]] += 1
        order = sorted(losses, key=lambda one: (losses[one], one))
        yield {
            "prompt": pairs[0]["prompt"],
            "responses": [texts[one] for one in order],
            "ranks": [losses[one] + 1 for one in order],
        } | _origin(pairs[0])


# What others read


def openai_dpo(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield OpenAI's rows for preference fine-tuning; nothing may be added to their shape."""
    for row in rows:
        yield {
            "input": {"messages": row["prompt"], "tools": [], "parallel_tool_calls": True},
            "preferred_output": row["chosen"],
            "non_preferred_output": row["rejected"],
        }


def helpsteer(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield HelpSteer-like rows: both answers and every judgement's own number from -3 to 3.

    Below zero the first answer is better. Judgements of the same two answers share a row.
    """
    for pairs in _by(rows, "prompt_id"):
        same: dict[tuple[str, ...], list[Row]] = {}
        for row in pairs:
            same.setdefault(tuple(sorted((row["chosen_id"], row["rejected_id"]))), []).append(row)
        for group in same.values():
            first, swapped = group[0], _swapped(group[0])
            left, right = ("rejected", "chosen") if swapped else ("chosen", "rejected")
            scores = [
                _strength(row) * (-1 if row["chosen_id"] == first[f"{left}_id"] else 1)
                for row in group
            ]
            yield {
                "context": first["prompt"],
                "response1": first[left][0]["content"],
                "response2": first[right][0]["content"],
                "overall_preference": round(sum(scores) / len(scores)),
                "individual_preference": [
                    {"score": score, "judgement_id": row["judgement_id"]}
                    for score, row in zip(scores, group, strict=True)
                ],
                "prompt_id": first["prompt_id"],
            }


def rated_rows(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield HelpSteer-like rows: one answer with a column for each scale, null where it has none.

    The prompt is text, as in HelpSteer. A scale that is called as another column is gets “_rating”.
    """
    for row in rows:
        found = {
            "prompt": plain_prompt(row["prompt"])[0],
            "response": row["response"][0]["content"],
            "annotators": row["annotators"],
        } | _origin(row)
        scores = row["ratings"].items()
        yield found | {f"{one}_rating" if one in found else one: score for one, score in scores}


def rated_csv(rows: Iterator[Row]) -> Iterator[bytes]:
    """Yield the HelpSteer-like rows as a table, a scale without a score empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    for number, row in enumerate(rated_rows(rows)):
        if number == 0:
            writer.writerow(row)
        writer.writerow(row.values())
        yield buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()


def rated_parquet(rows: Iterator[Row]) -> Iterator[bytes]:
    """Yield the HelpSteer-like rows as a Parquet file, a row group at a time."""
    sink = _Pieces()
    writer: pq.ParquetWriter | None = None
    for batch in _batches(rated_rows(rows)):
        if writer is None:
            known = {"annotators": pa.int64()} | dict.fromkeys(RATED_TEXTS, pa.string())
            fields = [(name, known.get(name, pa.float64())) for name in batch[0]]
            writer = pq.ParquetWriter(sink, pa.schema(fields), compression="zstd")
        writer.write_table(pa.Table.from_pylist(batch, schema=writer.schema))
        yield sink.take()
    if writer is not None:
        writer.close()
        yield sink.take()


class _Pieces(io.RawIOBase):
    """A file to write to whose content is taken away meanwhile; Arrow counts the bytes itself."""

    def __init__(self) -> None:
        self.held: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.held.append(bytes(data))
        return len(self.held[-1])

    def take(self) -> bytes:
        """Return what was written since the last time."""
        held, self.held = self.held, []
        return b"".join(held)


def arena_battles(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield battles between models; a question to the database for every few hundred rows.

    Who wrote an answer and who judged it is not in a snapshot; what has been erased since is
    “unknown”.
    """
    for batch in _batches(rows):
        judges, writers = _who(batch)
        for row in batch:
            item, judge, time = judges.get(row["judgement_id"], (0, "unknown", 0.0))
            swapped = _swapped(row)
            a, b = ("rejected", "chosen") if swapped else ("chosen", "rejected")
            model = {s: writers.get((item, row[s][0]["content"]), "unknown") for s in (a, b)}
            yield {
                "question_id": row["prompt_id"],
                "model_a": model[a],
                "model_b": model[b],
                "winner": "model_b" if swapped else "model_a",
                "judge": judge,
                "conversation_a": row["prompt"] + row[a],
                "conversation_b": row["prompt"] + row[b],
                "turn": sum(message["role"] == "user" for message in row["prompt"]),
                "anony": True,
                "language": "unknown",
                "tstamp": time,
                "judgement_id": row["judgement_id"],
            }


def _who(
    rows: list[Row],
) -> tuple[dict[str, tuple[int, str, float]], dict[tuple[int, str], str]]:
    """Return (item, judge, time) by judgement, and the model by (item, text). Two queries."""
    # Feedback on an answer in use, and what several people decided together, has no one judge.
    wanted = {row["judgement_id"] for row in rows if len(row["judgement_ids"]) == 1}
    wanted = {one for one in wanted if "/" not in one}
    judges = {
        str(client_id): (item, f"annotator-{annotator}", created_at.timestamp())
        for client_id, item, annotator, created_at in Judgement.objects.filter(
            client_id__in=wanted
        ).values_list("client_id", "item_id", "annotator_id", "created_at")
    }
    responses = Response.objects.filter(item__in={item for item, _, _ in judges.values()})
    writers = {
        (response.item_id, response.text): (
            response.completion.version.name if response.completion else response.source
        )
        or "unknown"
        for response in responses.select_related("completion__version")
    }
    return judges, writers


CSV_COLUMNS = (
    "judgement_id", "prompt_id", "prompt", "chosen", "rejected", "margin", "weight", "probability",
)  # fmt: skip


def csv_table(rows: Iterator[Row]) -> Iterator[bytes]:
    """Yield a table; the prompt is its text, or JSON where it has several messages."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        cells = row | _origin(row)
        for side in ("chosen", "rejected"):
            cells[side] = row[side][0]["content"] if row[side] is not None else ""
        cells["prompt"] = _cell(row["prompt"])
        writer.writerow([cells[name] for name in CSV_COLUMNS])
        yield buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue().encode()


def _cell(prompt: list[Message]) -> str:
    if (
        len(prompt) == 1
        and prompt[0]["role"] == "user"
        and not prompt[0]["content"].startswith("[")
    ):
        return prompt[0]["content"]
    return json.dumps(prompt, ensure_ascii=False)


# Shared


def plain_prompt(prompt: list[Message]) -> tuple[str, str]:
    """Return a prompt as text, and what stands before an answer to it.

    One question is its own text. A conversation is written in the HH style, from
    ``\\n\\nHuman:`` to an open ``\\n\\nAssistant:``.
    """
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"], ""
    turns = [f"\n\n{SPEAKERS[turn['role']]}: {turn['content']}" for turn in prompt]
    return "".join(turns) + "\n\nAssistant:", " "


def _by(rows: Iterator[Row], column: str) -> Iterator[list[Row]]:
    """Yield runs of rows with the same value; a snapshot is ordered by prompt, then judgement."""
    for _, group in groupby(rows, key=lambda row: row[column]):
        yield list(group)


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _swapped(row: Row) -> bool:
    """Say whether the chosen answer goes second: half of the time, the same on every machine."""
    pair = "".join(sorted((row["chosen_id"], row["rejected_id"])))
    first = min(row["chosen_id"], row["rejected_id"])
    heads = hashlib.sha256(pair.encode()).digest()[0] % 2 == 0
    return bool((row["chosen_id"] == first) == heads)


def _strength(row: Row) -> int:
    return int(max(1, min(3, round(row["margin"]))))


FORMATS = {
    one.name: one
    for one in (
        Format(
            name="trl-preference",
            label="TRL preference, conversational",
            extension="jsonl",
            write=_json_lines(preference),
        ),
        Format(
            name="trl-preference-standard",
            label="TRL preference, plain text",
            extension="jsonl",
            write=_json_lines(preference_standard),
        ),
        Format(
            name="trl-implicit-prompt",
            label="TRL preference, prompt inside both",
            extension="jsonl",
            write=_json_lines(implicit_prompt),
        ),
        Format(
            name="trl-kto",
            label="TRL unpaired (KTO)",
            extension="jsonl",
            write=_json_lines(unpaired),
            kinds=(Kind.PREFERENCE, Kind.UNPAIRED),
        ),
        Format(
            name="sft-messages",
            label="SFT messages, the best answers",
            extension="jsonl",
            write=_json_lines(best_messages),
            kinds=ANSWERS,
        ),
        Format(
            name="reward-margin",
            label="reward model, with margin",
            extension="jsonl",
            write=_json_lines(reward_margin),
        ),
        Format(
            name="rankings",
            label="whole rankings",
            extension="jsonl",
            write=_json_lines(rankings),
            whole_rankings=True,
        ),
        Format(
            name="openai-dpo", label="OpenAI DPO", extension="jsonl", write=_json_lines(openai_dpo)
        ),
        Format(
            name="helpsteer",
            label="HelpSteer-like",
            extension="jsonl",
            write=_json_lines(helpsteer),
        ),
        Format(
            name="arena",
            label="Arena battles",
            extension="jsonl",
            write=_json_lines(arena_battles),
            fixed=False,
        ),
        Format(name="csv", label="CSV", extension="csv", write=csv_table, kinds=ANSWERS),
        Format(
            name="helpsteer-ratings",
            label="HelpSteer-like, a column for each scale",
            extension="jsonl",
            write=_json_lines(rated_rows),
            kinds=(Kind.RATINGS,),
        ),
        Format(
            name="helpsteer-ratings-csv",
            label="HelpSteer-like, CSV",
            extension="csv",
            write=rated_csv,
            kinds=(Kind.RATINGS,),
        ),
        Format(
            name="helpsteer-ratings-parquet",
            label="HelpSteer-like, Parquet",
            extension="parquet",
            write=rated_parquet,
            kinds=(Kind.RATINGS,),
        ),
    )
}
