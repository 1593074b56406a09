"""The parts of a snapshot: rows to Parquet, column by column, with flat memory.

One schema serves every kind: a pair has both answers, a good one only ``chosen``, a bad one only
``rejected``. A part's digest is SHA-256 over one line of ASCII for each row, in canonical order:

    prompt TAB judgements TAB margin TAB weight TAB probability TAB chosen TAB rejected LF

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


class Part:
    """One Parquet file in the making: columns are gathered by reference, then spread by ``take``.

    A prompt, a text, a judgement id is held once however many rows name it.
    """

    def __init__(self, path: Path) -> None:
        self.writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", write_statistics=True)
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
            for ids, chosen, rejected, margin, weight, probability in some:
                for answer in (chosen, rejected):
                    if answer and answer not in self.places:
                        self.places[answer] = len(self.texts)
                        self.texts.append(texts[answer])
                        longest = max(longest, len(texts[answer]))
                self.lines.append(
                    f"{written}\t{','.join(ids)}\t{margin}\t{weight}\t{probability}"
                    f"\t{chosen}\t{rejected}\n"
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
        ids, chosen, rejected, margins, weights, probabilities = zip(*self.found, strict=True)
        prompts = pa.array(np.repeat(np.arange(len(self.counts)), self.counts))
        places = {side: self._places(named) for side, named in (("c", chosen), ("r", rejected))}
        texts = pa.array(self.texts, pa.string())
        digests = pa.array(list(self.places), pa.string())
        lengths = pc.utf8_length(texts)
        self.lengths.add_prompts(self.sizes)
        self.lengths.add_answers(lengths.take(places["c"]), lengths.take(places["r"]))
        voices = {one: place for place, one in enumerate(dict.fromkeys(ids))}
        voice = pa.array([voices[one] for one in ids])
        columns = [
            pa.array(self.messages, _MESSAGES).take(prompts),
            _answers(texts.take(places["c"])),
            _answers(texts.take(places["r"])),
            pa.array(self.prompt_ids, pa.string()).take(prompts),
            pa.array(margins, pa.float64()),
            pa.array(weights, pa.float64()),
            pa.array(probabilities, pa.float64()),
            pa.array([one[0] for one in voices], pa.string()).take(voice),
            pa.array(list(voices), pa.list_(pa.string())).take(voice),
            digests.take(places["c"]),
            digests.take(places["r"]),
        ]
        self.writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=count)
        self.rows += count
        self._clear()

    def _places(self, named: Sequence[str]) -> pa.Array:
        return pa.array([self.places[one] if one else None for one in named], pa.int64())

    def close(self) -> None:
        """Write what is left and the file's end."""
        self.flush()
        self.writer.close()

    def abandon(self) -> None:
        """Let go of the file; whatever its end could not be written is of no interest."""
        with contextlib.suppress(Exception):
            self.writer.close()


def _answers(texts: pa.Array) -> pa.Array:
    """Return lists of one message of the assistant each; null where there is no text."""
    roles = pa.repeat(pa.scalar("assistant"), len(texts))
    offsets = pa.array(np.arange(len(texts) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(
        offsets,
        pa.StructArray.from_arrays([roles, texts], fields=list(_MESSAGES.value_type)),
        mask=texts.is_null() if texts.null_count else None,
    )
