"""Append-only files of JSON lines: what was cut off costs one line, and a disk that cannot be written says so."""

import pytest

from settle.base.errors import ResourceError
from settle.base.files import append_lines, read_lines


def test_a_torn_line_costs_no_other(tmp_path):
    path = tmp_path / "made" / "lines.jsonl"
    assert list(read_lines(path)) == []
    append_lines(path, [{"text": "é\u2028\udc80"}], sync=True)
    with path.open("ab") as f:
        f.write(b'[1]\n{"text": "cut')
    append_lines(path, [{"n": 1}, {"n": 2}])
    assert list(read_lines(path)) == [{"text": "é\u2028\udc80"}, {"n": 1}, {"n": 2}]


def test_what_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="make room or permission there, and run it again"):
        append_lines(tmp_path / "file" / "lines.jsonl", [{"n": 1}], then="and run it again")
