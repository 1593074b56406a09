"""Small files that hold more than any memory are refused before they are unpacked."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from accounts.errors import ProductError, TooLarge
from feedback import importing, imports
from feedback.importing import understand

MEGABYTE = 1024 * 1024


def zeros(megabytes: int, around: tuple[bytes, bytes] = (b"", b"")) -> io.BytesIO:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as file:
        file.write(around[0])
        for _ in range(megabytes):
            file.write(b" " * MEGABYTE)
        file.write(around[1])
    packed.seek(0)
    return packed


def parquet(table: pa.Table) -> io.BytesIO:
    packed = io.BytesIO()
    pq.write_table(table, packed, compression="zstd")
    packed.seek(0)
    return packed


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.json.gz", "bomb.csv.gz"])
def test_one_endless_line_stays_packed(name: str) -> None:
    bomb = zeros(300)
    assert len(bomb.getvalue()) < MEGABYTE
    tracemalloc.start()
    with pytest.raises(TooLarge):
        understand(bomb, name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 250 * MEGABYTE


def test_a_packed_file_is_as_large_as_what_it_holds() -> None:
    bomb = zeros(20)
    assert len(bomb.getvalue()) * imports.COMPRESSION < imports.LARGE_BYTES
    assert imports.is_large(bomb, "many.jsonl.gz")
    assert bomb.tell() == 0
    assert not imports.is_large(zeros(1), "few.jsonl.gz")
    assert not imports.is_large(io.BytesIO(b"not gzip"), "few.jsonl.gz")


def test_a_value_kept_once_counts_for_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MOST_BYTES", 40 * MEGABYTE)
    monkeypatch.setattr(importing, "BATCH_BYTES", 10 * MEGABYTE)
    text = pa.array(["x" * MEGABYTE] * 200).dictionary_encode()
    number = pa.array([str(one) for one in range(200)])
    bomb = parquet(pa.table({"prompt": text, "completion": number}))
    assert len(bomb.getvalue()) < MEGABYTE
    with pytest.raises(TooLarge, match="1 GB"):
        understand(bomb, "bomb.parquet")


def test_rows_of_nothing_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MOST_ROWS", 1000)
    empty = parquet(pa.table({"prompt": pa.nulls(1001, pa.string())}))
    with pytest.raises(TooLarge, match="10 million rows"):
        understand(empty, "empty.parquet")


@pytest.mark.parametrize("name", ["a\x00b", "a\ud800b"])
def test_a_column_has_a_name_that_can_be_kept(name: str) -> None:
    rows = "".join(json.dumps({"prompt": "Hi?", name: 1}) + "\n" for _ in range(12))
    with pytest.raises(ProductError, match="name of a column"):
        understand(io.BytesIO(rows.encode()), "rows.jsonl")


@pytest.mark.parametrize("column", ["prompt", "documents"])
def test_nesting_without_end_is_no_crash(column: str) -> None:
    row: dict[str, Any] = {"prompt": "Hi?"} | {column: '[{"a":' * 50_000}
    found = understand(io.BytesIO(json.dumps(row).encode()), "rows.jsonl")
    assert found.report.rows == 1
