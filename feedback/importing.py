"""Formats in: a file of others' comparisons, answers or prompts becomes ours, all of it or nothing.

A comparison becomes an item with two responses, a filled slot and a judgement by the project's
import user, so that snapshots take it like any other. A prompt that is compared K times has K
import users: one annotator judges an item once.

What a row says, not where it stands, makes its judgement's id: the same file again adds nothing.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from django.db import transaction

from accounts.errors import ProductError, TooLarge
from accounts.models import Project, User
from accounts.services import audit
from feedback import import_store
from feedback.documents import Document, attach, detach, read_documents
from feedback.import_store import WATCHED_ROWS, Watch, unwatched
from feedback.models import Campaign, canonical_json, text_digest
from feedback.services import ROLES, check_messages

Message = dict[str, str]

FEWEST_ROWS = 10
MOST_PER_PROMPT = 50
MOST_UPLOADED = 256 * 1024 * 1024
# What files hold, which compression hides: all of one, what is read as a whole, and one row.
MOST_BYTES = 1 << 30
MOST_WHOLE = 64 * 1024 * 1024
MOST_ROW = 16 * 1024 * 1024
MOST_ROWS = 10_000_000
# Of a Parquet file so much is in memory at a time.
BATCH_BYTES = 256 * 1024 * 1024
FINDINGS_KEPT = 100
SAMPLE_ROWS = 5
COLUMN_ROWS = 100
PATIENCE_SECONDS = 20
EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_TURN = re.compile(r"\n\n(Human|Assistant|System):[ ]?")
_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}


class Layout(StrEnum):
    """What the rows of a file are."""

    COMPARISONS = "comparisons"
    LABELS = "labels"
    ANSWERS = "answers"
    PROMPTS = "prompts"


WHAT_BECOMES = {
    Layout.COMPARISONS: "Each row prefers one answer to another: it becomes a judged comparison.",
    Layout.LABELS: "Each row calls one answer good or bad: it becomes a thumb up or down.",
    Layout.ANSWERS: "Each row holds an answer to imitate: it becomes a thumb up.",
    Layout.PROMPTS: "Each row is a prompt, to be answered and judged here.",
}
# What a row may be made of, and the names under which it is known, the surest first.
PARTS = {
    "prompt": ("prompt", "instruction", "question", "query", "messages", "text"),
    "chosen": ("chosen", "preferred_output", "text"),
    "rejected": ("rejected", "rejected_text", "non_preferred_output"),
    "answer": ("completion", "output", "response", "answer"),
    "label": ("label",),
    "context": ("input",),
    "strength": ("strength", "margin"),
    # A column “context” is a conversation as often; a person may say that it is documents.
    "documents": ("documents",),
}
ORIGINS = ("judgement_id", "prompt_id", "weight", "tools", "parallel_tool_calls")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read; ``line`` is the line in the file, or the row's number."""

    line: int
    values: dict[str, Any]


@dataclass(slots=True)
class Entry:
    """One row as it is understood; the texts are best first, one of them where there is no pair.

    Of many rows nearly all is text, which costs the garbage collector nothing.
    """

    line: int
    # The messages in canonical JSON.
    prompt_json: str
    texts: tuple[str, ...] = ()
    thumb: int | None = None
    strength: int | None = None
    # What stands in the first turn of the prompt.
    documents: Sequence[Document] = ()
    # Digests of the prompt, and of all that the row says.
    prompt_digest: str = field(init=False)
    said: str = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_digest = hashlib.sha256(self.prompt_json.encode()).hexdigest()
        self.said = text_digest([self.prompt_digest, self.texts, self.thumb])

    @property
    def prompt(self) -> list[Message]:
        """Return the conversation as a model reads it."""
        messages: list[Message] = json.loads(self.prompt_json)
        return messages

    @property
    def turns(self) -> list[Message]:
        """Return the prompt without what its documents became."""
        return detach(self.prompt, self.documents)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is wrong with one row."""

    line: int
    message: str


@dataclass(kw_only=True)
class Report:
    """What a file holds and what becomes of it: rows = entries + left out + errors."""

    layout: Layout
    mapping: dict[str, str]
    unused: list[str]
    rows: int = 0
    added: int = 0
    known: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    left_out_lines: list[Finding] = field(default_factory=list)
    error_count: int = 0
    errors: list[Finding] = field(default_factory=list)
    sample: list[Entry] = field(default_factory=list)

    def error(self, line: int, message: str) -> None:
        self.error_count += 1
        if len(self.errors) < FINDINGS_KEPT:
            self.errors.append(Finding(line=line, message=message))

    def leave_out(self, line: int, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        if len(self.left_out_lines) < FINDINGS_KEPT:
            self.left_out_lines.append(Finding(line=line, message=reason))

    @property
    def becomes(self) -> str:
        return WHAT_BECOMES[self.layout]

    def as_dict(self) -> dict[str, Any]:
        return {
            "layout": str(self.layout),
            "mapping": self.mapping,
            "unused_columns": self.unused,
            "rows": self.rows,
            "added": self.added,
            "known": self.known,
            "left_out": self.left_out,
            "left_out_lines": [vars(one) for one in self.left_out_lines],
            "error_count": self.error_count,
            "errors": [vars(one) for one in self.errors],
        }


@dataclass(kw_only=True)
class Plan:
    """A file understood: what would be added, and the report on it."""

    report: Report
    entries: list[Entry]


class _BadRow(Exception):
    """A row that cannot be read; refuses the file unless such rows are to be left out."""


class _LeftOut(Exception):
    """A sound row that gives nothing to learn from."""


# Reading


def read_rows(file: IO[bytes], filename: str) -> Iterator[Row | Finding]:
    """Yield the rows of a file in the format that its name tells, and what could not be read."""
    name = filename.lower()
    if name.endswith(".gz"):
        name = name.removesuffix(".gz")
        file = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
    readers = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json,
        ".csv": _table,
        ".tsv": _tabbed,
        ".parquet": _parquet,
    }
    for extension, reader in readers.items():
        if name.endswith(extension):
            return _readable(reader, file)
    raise ProductError(
        f"“{filename}” is none of {', '.join(EXTENSIONS)}, with or without .gz. "
        "Rename or convert it."
    )


def _readable(reader: Any, file: IO[bytes]) -> Iterator[Row | Finding]:
    try:
        yield from reader(file)
    except UnicodeDecodeError:
        raise ProductError("The file is not UTF-8 text. Save it as UTF-8.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ProductError("The file ends early or is not what its name says.") from None
    except pa.ArrowException as error:
        raise ProductError(f"The Parquet file cannot be read: {error}.") from None
    except csv.Error as error:
        raise ProductError(f"The table cannot be read: {error}.") from None


def _lines(file: IO[bytes]) -> Iterator[str]:
    size = number = 0
    # Not the file's own lines: of a small compressed file one can be larger than the memory.
    while line := file.readline(MOST_ROW + 1):
        number += 1
        size += len(line)
        if len(line) > MOST_ROW:
            raise TooLarge(f"Line {number} is longer than 16 MB. Is it one JSON value a line?")
        if size > MOST_BYTES:
            raise TooLarge("The file holds more than 1 GB of text. Split it.")
        yield (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode()


def _json_lines(file: IO[bytes]) -> Iterator[Row | Finding]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Finding(line=number, message=f"This is not JSON: {error}.")
            continue
        yield _object(number, values)


def _object(number: int, values: Any) -> Row | Finding:
    if isinstance(values, str):
        values = {"prompt": values}
    if not isinstance(values, dict):
        return Finding(line=number, message="This is not a JSON object.")
    return Row(number, values)


def _all_of(file: IO[bytes], instead: str) -> bytes:
    """Return the whole of a file that cannot be read piece by piece; TooLarge."""
    held = file.read(MOST_WHOLE + 1)
    if len(held) > MOST_WHOLE:
        raise TooLarge(f"The file holds more than 64 MB. {instead}")
    return held


def _json(file: IO[bytes]) -> Iterator[Row | Finding]:
    text = _all_of(file, "Save it as JSON Lines (.jsonl).").decode("utf-8-sig")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProductError(f"The file is not JSON: {error}. Is it JSON Lines (.jsonl)?") from None
    if isinstance(values, dict):
        lists = [value for value in values.values() if isinstance(value, list)]
        values = lists[0] if len(lists) == 1 else values
    if not isinstance(values, list):
        raise ProductError("The file is not a list of rows.")
    for number, value in enumerate(values, start=1):
        yield _object(number, value)


def _table(file: IO[bytes], delimiter: str = "") -> Iterator[Row | Finding]:
    csv.field_size_limit(10_000_000)
    lines = iter(_lines(file))
    first = next(lines, "")
    # Spreadsheets write semicolons where the comma is the decimal sign.
    delimiter = delimiter or (";" if ";" in first and "," not in first else ",")
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(reader, [])]
    if len(set(header)) != len(header):
        raise ProductError("Two columns of the table have the same name. Rename one.")
    while True:
        line = reader.line_num + 1
        cells = next(reader, None)
        if cells is None:
            return
        if len(cells) == len(header):
            yield Row(line, dict(zip(header, cells, strict=True)))
        elif cells:
            message = f"This row has {len(cells)} cells; the first line names {len(header)}."
            yield Finding(line=line, message=message)


def _tabbed(file: IO[bytes]) -> Iterator[Row | Finding]:
    return _table(file, delimiter="\t")


def _parquet(file: IO[bytes]) -> Iterator[Row | Finding]:
    zipped = isinstance(file, gzip.GzipFile)
    source = io.BytesIO(_all_of(file, "Send the Parquet file itself.")) if zipped else file
    number = 0
    with pq.ParquetFile(source) as table:
        for batch in table.iter_batches(batch_size=_batch_rows(table.metadata)):
            for values in batch.to_pylist():
                number += 1
                yield Row(number, values)


def _batch_rows(facts: pq.FileMetaData) -> int:
    """Return how many rows to read at a time; TooLarge where the file holds too much.

    A value that stands once in a dictionary may be that of every row, so a batch can be as many
    times as large as its part of the file.
    """
    parts = [facts.row_group(number).total_byte_size for number in range(facts.num_row_groups)]
    if sum(parts) > MOST_BYTES or facts.num_rows > MOST_ROWS:
        raise TooLarge("The file holds more than 1 GB, or 10 million rows. Split it.")
    return int(max(1, min(1000, BATCH_BYTES // max([1, *parts]))))


def columns_of(path: Path, filename: str) -> list[str]:
    """Return the names of the columns in the first rows of a file."""
    with path.open("rb") as file:
        first = islice(read_rows(file, filename), COLUMN_ROWS)
        return _columns(row for row in first if isinstance(row, Row))


def _columns(rows: Iterable[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    try:
        for name in names:
            check_text(name)
    except _BadRow as error:
        raise ProductError(f"The name of a column cannot be kept: {error}") from None
    return names


# Understanding


def detect(columns: Iterable[str], chosen: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return which column is which part of a row; ``chosen`` settles what a person decided."""
    names = list(dict.fromkeys(columns))
    if chosen:
        wrong = [name for name in chosen.values() if name not in names]
        if wrong or any(part not in PARTS for part in chosen):
            raise ProductError(
                f"The mapping names what is not there: {', '.join(wrong) or ', '.join(chosen)}. "
                f"Parts are {', '.join(PARTS)}; columns are {', '.join(names)}."
            )
        return dict(chosen)
    found: dict[str, str] = {}
    for part, known in PARTS.items():
        name = next((one for one in known if one in names), None)
        if name is not None:
            found[part] = name
    if "rejected" in found:
        for part in ("answer", "label"):
            found.pop(part, None)
        if found.get("prompt") == found.get("chosen"):
            del found["prompt"]  # text / rejected_text: the prompt is the common beginning
        if found["rejected"] == "non_preferred_output":
            found = {"prompt": "input", "chosen": "preferred_output", "rejected": found["rejected"]}
        found.pop("context", None)
    else:
        found.pop("chosen", None)
        found.pop("strength", None)
        if found.get("prompt") != "instruction":
            found.pop("context", None)
        if "answer" not in found:
            found.pop("label", None)  # a class of the text, not a verdict on an answer
    return found


def layout_of(mapping: Mapping[str, str], first: Mapping[str, Any]) -> Layout:
    """Return what the rows are, judged by their parts and the first row."""
    if "chosen" in mapping and "rejected" in mapping:
        return Layout.COMPARISONS
    if "answer" in mapping and "prompt" in mapping:
        return Layout.LABELS if "label" in mapping else Layout.ANSWERS
    if "prompt" not in mapping:
        raise ProductError(
            "No column is a prompt or a pair of answers. Say which is which; known names are "
            + "; ".join(f"{part}: {', '.join(names)}" for part, names in PARTS.items())
            + "."
        )
    turns = conversation(first.get(mapping["prompt"]))
    ends = isinstance(turns, list) and turns and turns[-1]["role"] == "assistant"
    return Layout.ANSWERS if ends else Layout.PROMPTS


def conversation(value: Any) -> list[Message] | str | None:
    """Return the messages that a value holds, its text where it is no conversation, or None.

    Understood are lists of {role, content} or {from, value}, the same as JSON text, and dialogues
    as in HH: ``\\n\\nHuman: …\\n\\nAssistant: …``.
    """
    if isinstance(value, dict):
        value = value.get("messages")
    if isinstance(value, str):
        if value.startswith("[{"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return str(value)
        else:
            return _dialogue(value)
    if not isinstance(value, list):
        return None
    messages = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise _BadRow(f"Message {number} is not an object.")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        role = _ALIASES.get(role, role) if isinstance(role, str) else role
        if role not in ROLES or not isinstance(content, str):
            raise _BadRow(f"Message {number} needs a role of {', '.join(ROLES)} and a text.")
        messages.append({"role": role, "content": content})
    return messages


def _dialogue(text: str) -> list[Message] | str:
    parts = _TURN.split("\n\n" + text.lstrip("\n"))
    if len(parts) < 3 or parts[0].strip():
        return text
    roles = {"Human": "user", "Assistant": "assistant", "System": "system"}
    return [
        {"role": roles[speaker], "content": content}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


class _Reader:
    """Turns rows into entries by a mapping."""

    def __init__(self, layout: Layout, mapping: Mapping[str, str]) -> None:
        self.layout = layout
        self.mapping = mapping

    def entry(self, row: Row) -> Entry:
        value = {part: row.values.get(name) for part, name in self.mapping.items()}
        documents = _documents(value.get("documents"))
        if self.layout == Layout.COMPARISONS:
            prompt, chosen, rejected = self._pair(value)
            if not chosen.strip() or not rejected.strip():
                raise _LeftOut("an answer is empty")
            if chosen == rejected:
                raise _LeftOut("both answers are the same")
            return Entry(
                row.line,
                canonical_json(attach(prompt, documents)),
                (chosen, rejected),
                strength=_strength(value.get("strength")),
                documents=documents,
            )
        if self.layout == Layout.PROMPTS:
            asked = canonical_json(attach(self._prompt(value), documents))
            return Entry(row.line, asked, documents=documents)
        prompt, answer = self._answered(value)
        if not answer.strip():
            raise _LeftOut("an answer is empty")
        thumb = _thumb(value["label"]) if self.layout == Layout.LABELS else 1
        asked = canonical_json(attach(prompt, documents))
        return Entry(row.line, asked, (answer,), thumb=thumb, documents=documents)

    def _prompt(self, value: dict[str, Any]) -> list[Message]:
        prompt = conversation(value.get("prompt"))
        if prompt is None:
            raise _BadRow(f"“{self.mapping['prompt']}” is missing or neither text nor messages.")
        if isinstance(prompt, str):
            context = value.get("context")
            prompt = f"{prompt}\n\n{context}" if isinstance(context, str) and context else prompt
            return check_prompt([{"role": "user", "content": prompt}])
        while prompt and prompt[-1]["role"] == "assistant" and not prompt[-1]["content"].strip():
            prompt = prompt[:-1]  # the HH style leaves an open “Assistant:” at the end
        return check_prompt(prompt)

    def _answered(self, value: dict[str, Any]) -> tuple[list[Message], str]:
        if "answer" not in self.mapping:
            turns = conversation(value.get("prompt"))
            if not isinstance(turns, list) or not turns or turns[-1]["role"] != "assistant":
                raise _BadRow("The conversation does not end with an answer.")
            return check_prompt(turns[:-1]), check_text(turns[-1]["content"])
        prompt = self._prompt(value)
        return prompt, self._rest(prompt, value.get("answer"), "answer")

    def _pair(self, value: dict[str, Any]) -> tuple[list[Message], str, str]:
        if "prompt" in self.mapping and value["prompt"] not in (None, "", []):
            prompt = self._prompt(value)
            return (
                prompt,
                self._rest(prompt, value["chosen"], "chosen"),
                self._rest(prompt, value["rejected"], "rejected"),
            )
        sides = [conversation(value[side]) for side in ("chosen", "rejected")]
        for side, turns in zip(("chosen", "rejected"), sides, strict=True):
            if not isinstance(turns, list):
                raise _BadRow(
                    f"“{self.mapping[side]}” is no conversation, and the row has no prompt."
                )
        chosen, rejected = sides
        assert isinstance(chosen, list)
        assert isinstance(rejected, list)
        if chosen == rejected:
            raise _LeftOut("both answers are the same")
        same = 0
        while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
            same += 1
        # One may be the beginning of the other: the prompt ends with the user all the same.
        while (
            same
            and chosen[same - 1]["role"] == "assistant"
            and same == min(len(chosen), len(rejected))
        ):
            same -= 1
        return (
            check_prompt(chosen[:same]),
            _last_answer(chosen[same:]),
            _last_answer(rejected[same:]),
        )

    def _rest(self, prompt: list[Message], answer: Any, part: str) -> str:
        """Return what an answer adds to the prompt, which it may repeat at its beginning."""
        turns = conversation(answer)
        if turns is None:
            raise _BadRow(f"“{self.mapping[part]}” is missing or neither text nor messages.")
        if isinstance(turns, str):
            return check_text(turns.removeprefix(" ") if len(prompt) > 1 else turns)
        if turns[: len(prompt)] == prompt:
            turns = turns[len(prompt) :]
        return _last_answer(turns)


def _last_answer(turns: list[Message]) -> str:
    """Return the answer that is left after the prompt; several turns of the model are one."""
    if not turns:
        return ""
    if any(turn["role"] != "assistant" for turn in turns):
        raise _LeftOut("the conversations differ before the last answer")
    return check_text("\n\n".join(turn["content"] for turn in turns))


def _documents(value: Any) -> list[Document]:
    try:
        return read_documents(value)
    except ProductError as error:
        raise _BadRow(error.message) from None


def check_prompt(messages: list[Message]) -> list[Message]:
    """Return the messages if they can be asked, else raise _BadRow."""
    try:
        clean = check_messages(messages)
    except ProductError as error:
        raise _BadRow(error.message) from None
    for message in clean:
        check_text(message["content"])
    return clean


def check_text(text: str) -> str:
    """Return a text that PostgreSQL can keep, else raise _BadRow."""
    if "\x00" in text:
        raise _BadRow("A text has a NUL character. Remove it.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _BadRow("A text has half of a character (a lone surrogate).") from None
    return text


def _thumb(label: Any) -> int:
    said = str(label).strip().lower()
    if said in ("true", "1", "1.0", "good", "desirable", "up"):
        return 1
    if said in ("false", "0", "0.0", "-1", "bad", "undesirable", "down"):
        return -1
    raise _BadRow("“label” is neither true nor false.")


def _strength(value: Any) -> int | None:
    """Return a strength of 1 to 3; what is on another scale says nothing here."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number in (1.0, 2.0, 3.0) else None


def understand(
    file: IO[bytes],
    filename: str,
    mapping: Mapping[str, str] | None = None,
    *,
    most: int | None = None,
    watch: Watch = unwatched,
) -> Plan:
    """Read a file, or its first ``most`` rows, and say what would become of each row.

    Touches no database.
    """
    rows = read_rows(file, filename)
    first, sound = _first_rows(rows)
    if not sound:
        raise ProductError(
            f"Line {first[0].line}: {first[0].message}"
            if first and isinstance(first[0], Finding)
            else "The file has no rows."
        )
    columns = _columns(sound)
    parts = detect(columns, mapping)
    layout = layout_of(parts, sound[0].values)
    used = {*parts.values(), *ORIGINS}
    report = Report(
        layout=layout, mapping=parts, unused=[name for name in columns if name not in used]
    )
    reader = _Reader(layout, parts)
    entries: list[Entry] = []
    seen: set[str] = set()
    per_prompt: Counter[str] = Counter()
    held = 0
    for row in islice(chain(first, rows), most):
        report.rows += 1
        if report.rows % WATCHED_ROWS == 0:
            watch("read", report.rows, None)
        if isinstance(row, Finding):
            report.error(row.line, row.message)
            continue
        try:
            entry = reader.entry(row)
            if entry.said in seen:
                raise _LeftOut("the same row stands further up")
            prompt = entry.prompt_digest
            if entry.texts and per_prompt[prompt] == MOST_PER_PROMPT:
                raise _LeftOut(f"its prompt has {MOST_PER_PROMPT} rows already")
        except _BadRow as error:
            report.error(row.line, str(error))
            continue
        except _LeftOut as reason:
            report.leave_out(row.line, str(reason))
            continue
        held += len(entry.prompt_json) + sum(map(len, entry.texts))
        if held > MOST_BYTES:
            raise TooLarge("The file holds more than 1 GB of text. Split it.")
        seen.add(entry.said)
        per_prompt[prompt] += 1
        entries.append(entry)
    report.sample = entries[:SAMPLE_ROWS]
    return Plan(report=report, entries=entries)


def _first_rows(rows: Iterator[Row | Finding]) -> tuple[list[Row | Finding], list[Row]]:
    """Return what is read until the columns are known, and the sound rows of it."""
    first: list[Row | Finding] = []
    sound: list[Row] = []
    for row in rows:
        first.append(row)
        if isinstance(row, Row):
            sound.append(row)
        if len(sound) == COLUMN_ROWS:
            break
    return first, sound


def preview(
    *,
    project: Project,
    file: IO[bytes],
    filename: str,
    mapping: Mapping[str, str] | None = None,
    most: int | None = None,
) -> Plan:
    """Return what an import would add, knowing what the project has already."""
    plan = understand(file, filename, mapping, most=most)
    plan.report.known = len(plan.entries) - len(_unknown(project, plan))
    return plan


# Storing


@transaction.atomic
def import_file(
    *,
    project: Project,
    by: User | None,
    file: IO[bytes],
    filename: str,
    name: str = "",
    mapping: Mapping[str, str] | None = None,
    skip_errors: bool = False,
    patience: int = PATIENCE_SECONDS,
    watch: Watch = unwatched,
) -> tuple[Report, Campaign | None]:
    """Add what a file holds; return the report and the campaign that holds its judgements.

    A file that adds nothing is answered with the campaign that it made before. None for prompts.

    Rows in error refuse the whole file, unless they are to be left out. One transaction. Imports
    into a project take turns; Conflict where it does not come within ``patience`` seconds.
    """
    plan = understand(file, filename, mapping, watch=watch)
    report = plan.report
    if report.errors and not skip_errors:
        first = report.errors[0]
        raise ProductError(
            f"Line {first.line}: {first.message} {report.error_count:,} of {report.rows:,} rows "
            "have errors and nothing was added. Correct them, or have them left out.",
            **report.as_dict(),
        )
    if report.layout != Layout.PROMPTS and len(plan.entries) < FEWEST_ROWS:
        raise ProductError(
            f"The file has {len(plan.entries)} rows that can be used; {FEWEST_ROWS} are the fewest "
            "that say anything. Add more.",
            **report.as_dict(),
        )
    import_store.take_turn(project, seconds=patience)  # or two would both find a row new
    new = _unknown(project, plan)
    report.known = len(plan.entries) - len(new)
    report.added = len(new)
    campaign = None
    if new and report.layout == Layout.PROMPTS:
        import_store.store_prompts(project, [entry for _, entry in new])
    elif new:
        campaign = import_store.store_judged(
            project=project,
            by=by,
            name=name or filename,
            pairs=report.layout == Layout.COMPARISONS,
            judged=new,
            watch=watch,
        )
    elif report.layout != Layout.PROMPTS:
        campaign = import_store.campaign_of(project, plan.entries)
    audit(
        project=project,
        by=by,
        action="import",
        target=filename,
        layout=str(report.layout),
        rows=report.rows,
        added=report.added,
        known=report.known,
        left_out=sum(report.left_out.values()),
        errors=report.error_count,
    )
    return report, campaign


def _unknown(project: Project, plan: Plan) -> list[tuple[uuid.UUID, Entry]]:
    """Return the entries that the project has not yet, with the ids of their judgements."""
    if plan.report.layout == Layout.PROMPTS:
        digests = {entry.prompt_digest: entry for entry in plan.entries}
        there = import_store.known_prompts(project, list(digests))
        return [(uuid.uuid4(), entry) for digest, entry in digests.items() if digest not in there]
    ids = {import_store.judgement_id(project, entry.said): entry for entry in plan.entries}
    there_too = import_store.known_judgements(list(ids))
    return [(one, entry) for one, entry in ids.items() if one not in there_too]
