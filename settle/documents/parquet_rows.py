"""Rows of parquet files, read in a fenced child: a file of some kilobytes may unpack to gigabytes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from settle.base.errors import DataError
from settle.base.line_child import ChildEnded, FencedChild, Limits, answer_requests
from settle.documents.blocks import Unreadable
from settle.documents.confine import confine
from settle.documents.rows import Record

LIMITS = Limits(memory=4 << 30, cpu=60.0, wall=120.0)  # of one batch of rows
_BATCH = 256  # rows
_ANSWER = 4 << 20  # bytes of the rows that are handed over together
_OTHER = "\0"  # key of a value that JSON has no kind for


@dataclass(frozen=True)
class OtherValue:
    """A date, a time, a decimal number or bytes, as text."""

    text: str

    def __str__(self) -> str:
        return self.text


def parquet_rows(path: str, field: str | None) -> Iterator[Record]:
    """Yield the rows of a file with their values. field: the only column that is read.

    Raises Unreadable for a file that is damaged, or takes more than the child may; DataError for a column that is not
    there.
    """
    child = FencedChild("settle.documents.parquet_rows", LIMITS)
    number = 0
    try:
        answer: Any = child.ask({"path": path, "field": field})
        while answer is not None:
            match answer:
                case {"error": error, "fix": None}:
                    raise Unreadable(error)
                case {"error": error, "fix": fix}:
                    raise DataError(error, fix)
            for value in answer:
                number += 1
                yield {"row": number, "value": _restored(value)}
            answer = child.ask(None)
    except ChildEnded as e:
        raise Unreadable(f"not a readable parquet file: {e}") from None
    finally:
        child.close()


def _restored(value: Any) -> Any:
    match value:
        case dict() if value.keys() == {_OTHER}:
            return OtherValue(value[_OTHER])
        case dict():
            return {key: _restored(inner) for key, inner in value.items()}
        case list():
            return [_restored(inner) for inner in value]
    return value


def batches(path: str, field: str | None) -> Iterator[list[Any]]:
    """Yield the values of a file's rows, some at a time. Raises as `parquet_rows` does."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, pre_buffer=False) as table:
            names = table.schema_arrow.names
            if field is not None and field not in names:
                raise DataError(f"there is no column {field!r} in the table", f"use one of {', '.join(names)}")
            for batch in table.iter_batches(batch_size=_BATCH, columns=[field] if field else names):
                some = max(1, min(_BATCH, _BATCH * _ANSWER // max(1, batch.nbytes)))
                for first in range(0, batch.num_rows, some):
                    yield batch.slice(first, some).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
        raise Unreadable(f"not a readable parquet file: {str(e).splitlines()[0]}") from None


class _Reading:
    """The child's side: the file that was last asked for."""

    def __init__(self) -> None:
        self._batches: Iterator[list[Any]] = iter(())

    def answer(self, request: Any) -> object:
        """Return the next rows, None after the last, or why there are none. request: a file to begin with, or None."""
        try:
            if request is not None:
                confine([request["path"]])
                self._batches = batches(request["path"], request["field"])
            rows = next(self._batches, None)
        except Unreadable as e:
            return {"error": e.what, "fix": None}
        except DataError as e:
            return {"error": e.what, "fix": e.fix}
        except OSError as e:
            return {"error": f"cannot be read: {e.strerror or e}", "fix": None}
        return None if rows is None else json.loads(json.dumps(rows, default=lambda value: {_OTHER: str(value)}))


if __name__ == "__main__":
    answer_requests(_Reading().answer)
