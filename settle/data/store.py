"""Tokens on disk, memory-mapped: written once from front to back, then only read.

    tokens.bin       bos, then each document's ids closed by eos; uint16 (uint32 above 65,536 entries), little-endian
    documents.bin    int64: where each document begins, and one past the last
    origins.bin      int32 (D, 3): the file each document comes from, by its place in ../files.json, its row there, and
                     the number of its family, which documents that are nearly the same share
    store.json       counts and the dtype; written last

The token before a document's first is always bos (= eos), so every token of a document can be predicted, its first
too. Legend: D documents, M tokens of all documents.
"""

import os
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from settle.base.errors import DataError
from settle.base.files import read_json, write_json


class TokenStore:
    """Read access. tokens: memmap (M + 1,); document_starts: memmap int64 (D + 1,), the first is 1.

    num_tokens: M, eos included, the leading bos not. num_bytes: UTF-8 bytes of the text.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            about = read_json(folder / "store.json")
            self.num_tokens: int = about["num_tokens"]
            self.num_documents: int = about["num_documents"]
            self.num_bytes: int = about["num_bytes"]
            self.tokens: np.ndarray = np.memmap(folder / "tokens.bin", np.dtype(about["dtype"]), "r")
            self.document_starts: np.ndarray = np.memmap(folder / "documents.bin", "<i8", "r")
            self._origins: np.ndarray = np.memmap(folder / "origins.bin", "<i4", "r").reshape(-1, 3)
        except (OSError, KeyError, TypeError, ValueError) as e:
            raise _damaged(folder, repr(e)) from None
        sizes = (len(self.tokens) - 1, len(self.document_starts) - 1, len(self._origins))
        if sizes != (self.num_tokens, self.num_documents, self.num_documents):
            raise _damaged(folder, "its files are shorter or longer than store.json says")

    def document(self, index: int) -> np.ndarray:
        """Ids of one document, eos included."""
        return self.tokens[self.document_starts[index] : self.document_starts[index + 1]]

    def origin(self, index: int) -> str:
        """Where a document comes from, as `file:row`."""
        file, row, _ = self._origins[index].tolist()
        return f"{self._files[file]}:{row}"

    @property
    def families(self) -> np.ndarray:
        """The family of each document: int32 (D,)."""
        return self._origins[:, 2]

    @cached_property
    def _files(self) -> list[str]:
        files: list[str] = read_json(self.folder.parent / "files.json")
        return files


class StoreWriter:
    """Appends documents to a new store in `folder`; the store exists once `close` has returned."""

    def __init__(self, folder: Path, bos_id: int, dtype: type) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._tokens = (folder / "tokens.bin").open("wb")
        self._documents = (folder / "documents.bin").open("wb")
        self._origins = (folder / "origins.bin").open("wb")
        self._all: tuple[BinaryIO, ...] = (self._tokens, self._documents, self._origins)
        self._position = 1
        self.num_documents = 0
        self.num_bytes = 0
        self._tokens.write(np.array([bos_id], self._dtype).data)
        self._documents.write(np.array([1], "<i8").data)

    def append(self, ids: np.ndarray, after: np.ndarray, origins: np.ndarray, num_bytes: int) -> None:
        """Documents whose ids lie one after the other in `ids`; `after` (D,) is the position after each one's eos.

        origins: (D, 3), the number of each document's file, its row, and its family. num_bytes: of them all, UTF-8.
        """
        self._tokens.write(np.ascontiguousarray(ids, self._dtype).data)
        self._documents.write((after + self._position).astype("<i8").data)
        self._origins.write(np.ascontiguousarray(origins, "<i4").data)
        self._position += len(ids)
        self.num_documents += len(after)
        self.num_bytes += num_bytes

    def close(self) -> TokenStore:
        """Flushes the store to the disk and opens it."""
        for file in self._all:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        about = {
            "num_tokens": self._position - 1,
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
            "dtype": self._dtype.str,
        }
        write_json(self.folder / "store.json", about)
        return TokenStore(self.folder)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._all:
            file.close()


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"the token store {folder} is damaged: {why}", f"delete {folder.parent} and start again")
