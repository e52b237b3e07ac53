"""Rows of parquet files, by a child with limits of its own."""

import datetime
import decimal
from dataclasses import replace
from itertools import islice

import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

from settle.base.errors import DataError
from settle.documents import parquet_rows as module
from settle.documents.blocks import Unreadable
from settle.documents.parquet_rows import OtherValue, parquet_rows


def _children():
    return [p for p in psutil.Process().children() if "settle.documents.parquet_rows" in p.cmdline()]


def test_values_come_as_they_are_and_what_json_has_no_kind_for_is_no_text(tmp_path):
    day, price = datetime.date(2026, 12, 1), decimal.Decimal("1.50")
    row = {"text": "a\x00b é", "n": 1 << 60, "x": 0.5, "day": day, "price": price, "raw": b"\xff"}
    row["turns"] = [{"role": "u"}]
    parquet.write_table(pa.Table.from_pylist([row | {"n": n} for n in range(1000)]), tmp_path / "a.parquet")
    rows = list(parquet_rows(str(tmp_path / "a.parquet"), None))
    assert [r["row"] for r in rows] == list(range(1, 1001)) and [r["value"]["n"] for r in rows] == list(range(1000))
    other = {"day": OtherValue(str(day)), "price": OtherValue(str(price)), "raw": OtherValue(str(b"\xff"))}
    assert rows[7]["value"] == row | {"n": 7} | other and str(rows[0]["value"]["day"]) == "2026-12-01"
    assert [r["value"] for r in islice(parquet_rows(str(tmp_path / "a.parquet"), "x"), 2)] == [{"x": 0.5}] * 2
    assert not _children()
    with pytest.raises(DataError, match="no column 'words' in the table"):
        next(parquet_rows(str(tmp_path / "a.parquet"), "words"))


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_and_takes_no_memory_here(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LIMITS", replace(module.LIMITS, memory=2 << 30))
    long = pa.array(["x" * (16 << 20)]).dictionary_encode()
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), long.dictionary)
    parquet.write_table(pa.table({"text": column}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1 << 20
    before = psutil.Process().memory_info().rss
    with pytest.raises(Unreadable, match="not a readable parquet file: it takes more than|cannot be read|too large"):
        list(parquet_rows(str(tmp_path / "bomb.parquet"), None))
    assert psutil.Process().memory_info().rss - before < 1 << 30 and not _children()


def test_a_damaged_file_is_unreadable(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no table")
    with pytest.raises(Unreadable, match="not a readable parquet file"):
        next(parquet_rows(str(tmp_path / "a.parquet"), None))
