"""The parts of a snapshot: rows to Parquet, column by column, with flat memory.

One schema serves every kind but ratings: a pair has both answers, a good one only ``chosen``, a bad
one only ``rejected``. A rated answer is its ``response``, with a column of its scores. A part's
digest is SHA-256 over one line of ASCII for each row, in canonical order:

    prompt TAB judgements TAB margin TAB weight TAB probability TAB chosen TAB rejected LF

A rated answer's line goes on after its ``rejected``: TAB annotators, and for each scale in the
order of their names TAB name=score.

``prompt``, ``chosen`` and ``rejected`` are the digests of the messages and of the texts as they are
written (nothing where there is no such answer), ``judgements`` their ids with commas between.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.lengths import Lengths
from training.rows import Row

Message = dict[str, str]
# A row group ends after so many rows, or so many characters where texts are long.
ROWS_PER_GROUP = 12_000
CHARACTERS_PER_GROUP = 24_000_000

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("prompt", _MESSAGES),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("prompt_id", pa.string()),
        ("margin", pa.float64()),
        ("weight", pa.float64()),
        ("probability", pa.float64()),
        ("judgement_id", pa.string()),
        ("judgement_ids", pa.list_(pa.string())),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
    ]
)


def ratings_schema(scales: Sequence[str]) -> pa.Schema:
    """Return the schema of answers that are rated on these scales."""
    return pa.schema(
        [
            ("prompt", _MESSAGES),
            ("response", _MESSAGES),
            ("ratings", pa.struct([(name, pa.float64()) for name in scales])),
            ("annotators", pa.int64()),
            ("prompt_id", pa.string()),
            ("judgement_id", pa.string()),
            ("judgement_ids", pa.list_(pa.string())),
            ("response_id", pa.string()),
        ]
    )


class Part:
    """One Parquet file in the making: columns are gathered by reference, then spread by ``take``.

    A prompt, a text, a judgement id is held once however many rows name it. ``scales`` are those of
    ratings, None where the rows are of another kind.
    """

    def __init__(self, path: Path, scales: Sequence[str] | None = None) -> None:
        self.scales = scales
        self.schema = SCHEMA if scales is None else ratings_schema(scales)
        self.writer = pq.ParquetWriter(path, self.schema, compression="zstd", write_statistics=True)
        self.digest = hashlib.sha256()
        self.rows = 0
        self.prompts = 0
        self.lengths = Lengths()
        self._clear()

    def _clear(self) -> None:
        self.lines: list[str] = []
        self.characters = 0
        self.sizes: list[int] = []  # of each new prompt, in characters
        self.prompt_ids: list[str] = []
        self.messages: list[Sequence[Message]] = []
        self.counts: list[int] = []  # rows of each prompt
        self.places: dict[str, int] = {}  # of each text, by its digest
        self.texts: list[str] = []
        self.voices: dict[tuple[str, ...], int] = {}
        self.found: list[Row] = []

    def add(
        self,
        prompt_id: str,
        messages: Sequence[Message],
        written: str,
        rows: Sequence[Row],
        texts: Mapping[str, str],
    ) -> None:
        """Take in a prompt's rows; ``written`` is the digest of its messages as they stand here."""
        self.prompts += 1
        size = sum(len(message["content"]) for message in messages)
        self.sizes.append(size)
        for first in range(0, len(rows), ROWS_PER_GROUP):
            some = rows[first : first + ROWS_PER_GROUP]
            self.prompt_ids.append(prompt_id)
            self.messages.append(messages)
            self.counts.append(len(some))
            self.found.extend(some)
            longest = 0
            for ids, chosen, rejected, margin, weight, probability, ratings, annotators in some:
                for answer in (chosen, rejected):
                    if answer and answer not in self.places:
                        self.places[answer] = len(self.texts)
                        self.texts.append(texts[answer])
                        longest = max(longest, len(texts[answer]))
                rated = _rated(ratings, annotators) if ratings else ""
                self.lines.append(
                    f"{written}\t{','.join(ids)}\t{margin}\t{weight}\t{probability}"
                    f"\t{chosen}\t{rejected}{rated}\n"
                )
            self.characters += len(some) * (size + 2 * longest)
            if len(self.lines) >= ROWS_PER_GROUP or self.characters >= CHARACTERS_PER_GROUP:
                self.flush()

    def flush(self) -> None:
        """Write what was gathered as one row group."""
        count = len(self.lines)
        if count == 0:
            return
        self.digest.update("".join(self.lines).encode())
        ids, chosen, rejected, margins, weights, probabilities, ratings, annotators = zip(
            *self.found, strict=True
        )
        prompts = pa.array(np.repeat(np.arange(len(self.counts)), self.counts))
        places = {side: self._places(named) for side, named in (("c", chosen), ("r", rejected))}
        texts = pa.array(self.texts, pa.string())
        digests = pa.array(list(self.places), pa.string())
        lengths = pc.utf8_length(texts)
        self.lengths.add_prompts(self.sizes)
        self.lengths.add_answers(lengths.take(places["c"]), lengths.take(places["r"]))
        voices = {one: place for place, one in enumerate(dict.fromkeys(ids))}
        voice = pa.array([voices[one] for one in ids])
        columns = {
            "prompt": pa.array(self.messages, _MESSAGES).take(prompts),
            "prompt_id": pa.array(self.prompt_ids, pa.string()).take(prompts),
            "judgement_id": pa.array([one[0] for one in voices], pa.string()).take(voice),
            "judgement_ids": pa.array(list(voices), pa.list_(pa.string())).take(voice),
        }
        if self.scales is None:
            columns |= {
                "chosen": _answers(texts.take(places["c"])),
                "rejected": _answers(texts.take(places["r"])),
                "margin": pa.array(margins, pa.float64()),
                "weight": pa.array(weights, pa.float64()),
                "probability": pa.array(probabilities, pa.float64()),
                "chosen_id": digests.take(places["c"]),
                "rejected_id": digests.take(places["r"]),
            }
        else:
            columns |= {
                "response": _answers(texts.take(places["c"])),
                "ratings": self._ratings(ratings),
                "annotators": pa.array(annotators, pa.int64()),
                "response_id": digests.take(places["c"]),
            }
        arrays = [columns[name] for name in self.schema.names]
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        self.writer.write_table(table, row_group_size=count)
        self.rows += count
        self._clear()

    def _places(self, named: Sequence[str]) -> pa.Array:
        return pa.array([self.places[one] if one else None for one in named], pa.int64())

    def _ratings(self, ratings: Sequence[tuple[tuple[str, float], ...]]) -> pa.Array:
        scores = [dict(one) for one in ratings]
        # Arrow drops what has no field.
        if unknown := {name for one in scores for name in one} - set(self.scales or ()):
            raise AssertionError(f"No campaign of this snapshot asks for {sorted(unknown)[0]}.")
        return pa.array(scores, self.schema.field("ratings").type)

    def close(self) -> None:
        """Write what is left and the file's end."""
        self.flush()
        self.writer.close()

    def abandon(self) -> None:
        """Let go of the file; whatever its end could not be written is of no interest."""
        with contextlib.suppress(Exception):
            self.writer.close()


def _rated(ratings: Sequence[tuple[str, float]], annotators: int) -> str:
    return f"\t{annotators}" + "".join(f"\t{name}={score}" for name, score in ratings)


def _answers(texts: pa.Array) -> pa.Array:
    """Return lists of one message of the assistant each; null where there is no text."""
    roles = pa.repeat(pa.scalar("assistant"), len(texts))
    offsets = pa.array(np.arange(len(texts) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(
        offsets,
        pa.StructArray.from_arrays([roles, texts], fields=list(_MESSAGES.value_type)),
        mask=texts.is_null() if texts.null_count else None,
    )
