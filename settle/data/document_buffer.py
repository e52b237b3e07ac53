"""Cleaned documents on disk between reading and tokenizing, so that no corpus has to fit in memory.

Each document is UTF-8 followed by one zero byte, as `Tokenizer.encode_documents` wants it. Legend: D documents.
"""

from array import array
from collections.abc import Iterator
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np

_CHUNK = 1 << 20


class BufferWriter:
    """Appends documents; `close` gives the finished DocumentBuffer. As a context manager it closes its files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._text = (folder / "text.bin").open("wb", buffering=1 << 20)
        self._ends = (folder / "ends.bin").open("wb")
        self._origins = (folder / "origins.bin").open("wb")
        self._position = 0

    def append(self, text: str, file: int, row: int) -> None:
        """Append one document, from row `row` of file number `file`."""
        data = text.encode("utf-8", "replace")
        self._text.write(data)
        self._text.write(b"\0")
        self._position += len(data) + 1
        array("q", (self._position - 1,)).tofile(self._ends)
        array("i", (file, row)).tofile(self._origins)

    def close(self) -> "DocumentBuffer":
        self.__exit__()
        return DocumentBuffer(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._text, self._ends, self._origins):
            file.close()


class DocumentBuffer:
    """Cleaned documents on disk.

    ends: int64 (D,), where each document's zero byte lies. origins: int32 (D, 2), its file's number and its row.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.size = (folder / "text.bin").stat().st_size
        self.ends = _column(folder / "ends.bin", np.int64)
        self.origins = _column(folder / "origins.bin", np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def begins(self) -> np.ndarray:
        """Where each document begins: int64 (D,)."""
        return np.append(0, self.ends[:-1] + 1) if len(self) else np.zeros(0, np.int64)

    @property
    def sizes(self) -> np.ndarray:
        """UTF-8 bytes of each document: int64 (D,)."""
        sizes: np.ndarray = self.ends - self.begins
        return sizes

    @cached_property
    def hashes(self) -> np.ndarray:
        """A hash of each document's text: uint64 (D,)."""
        hashes = np.empty(len(self), np.uint64)
        for first, text, ends in self.chunks():
            begin = 0
            for number, end in enumerate(ends.tolist(), first):
                hashes[number] = int.from_bytes(blake2b(text[begin:end], digest_size=8).digest(), "little")
                begin = end + 1
        return hashes

    def chunks(self) -> Iterator[tuple[int, bytes, np.ndarray]]:
        """Yield the documents in order, about a megabyte at a time: number of the first, text, ends in that text."""
        with (self.folder / "text.bin").open("rb") as f:
            first, position = 0, 0
            while first < len(self):
                last = int(np.searchsorted(self.ends, position + _CHUNK, side="right"))
                last = max(last, first + 1)
                stop = int(self.ends[last - 1]) + 1
                yield first, f.read(stop - position), np.asarray(self.ends[first:last]) - position
                first, position = last, stop

    def read(self, document: int) -> str:
        """Return one document's text."""
        return self._text[self.begins[document] : self.ends[document]].tobytes().decode("utf-8")

    @cached_property
    def _text(self) -> np.ndarray:
        return np.memmap(self.folder / "text.bin", np.uint8, "r")


def _column(path: Path, dtype: type) -> np.ndarray:
    if not path.stat().st_size:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r")
