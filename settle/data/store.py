"""Tokens on disk, memory-mapped: written once from front to back, then only read.

    tokens.bin       bos, then each document's ids closed by eos; uint16 (uint32 above 65,536 entries), little-endian
    documents.bin    int64: where each document begins, and one past the last
    origins.bin      int32 (D, 3): the file each document comes from, by its place in ../files.json, its row there, and
                     the number of its family, which documents that are nearly the same share
    store.json       counts and the dtype; written last

The token before a document's first is always bos (= eos), so every token of a document can be predicted, its first
too. A row store is a token store whose documents are rows, with two more files:

    supervised.bin   uint8, one for each entry of tokens.bin: 1 where the token is a target
    shares.bin       of decisions only: float32 (D, K), the share of each label that is right, -1 beyond a row's options

A row's first token is never a target: nothing comes before it. Of a preference two documents follow each other, the
chosen answer and the rejected one. Legend: D documents, M tokens of all documents, R rows.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from settle.base.errors import DataError
from settle.base.files import read_json, write_json

SHARES = "shares.bin"


class TokenStore:
    """Read access to tokens.

    tokens: memmap (M + 1,). document_starts: memmap int64 (D + 1,), the first is 1. num_tokens: M, eos included, the
    leading bos not. num_bytes: UTF-8 bytes of the text. origins: int32 (D, 3), as in origins.bin.
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
            self.origins: np.ndarray = np.memmap(folder / "origins.bin", "<i4", "r").reshape(-1, 3)
        except (OSError, KeyError, TypeError, ValueError) as e:
            raise _damaged(folder, repr(e)) from None
        sizes = (len(self.tokens) - 1, len(self.document_starts) - 1, len(self.origins))
        if sizes != (self.num_tokens, self.num_documents, self.num_documents):
            raise _damaged(folder, "its files are shorter or longer than store.json says")

    def document(self, index: int) -> np.ndarray:
        """Return the ids of one document, eos included."""
        return self.tokens[self.document_starts[index] : self.document_starts[index + 1]]

    def origin(self, index: int) -> str:
        """Return where a document comes from, as `file:row`."""
        file, row, _ = self.origins[index].tolist()
        return f"{self._files[file]}:{row}"

    @property
    def families(self) -> np.ndarray:
        """The family of each document: int32 (D,)."""
        return self.origins[:, 2]

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
        """Append documents whose ids lie one after the other in `ids`.

        after: (D,), the position after each one's eos. origins: (D, 3), the number of each document's file, its row,
        and its family. num_bytes: of them all, UTF-8.
        """
        self._tokens.write(np.ascontiguousarray(ids, self._dtype).data)
        self._documents.write((after + self._position).astype("<i8").data)
        self._origins.write(np.ascontiguousarray(origins, "<i4").data)
        self._position += len(ids)
        self.num_documents += len(after)
        self.num_bytes += num_bytes

    def extend(self, store: TokenStore) -> None:
        """Append all documents of another store."""
        self.append(store.tokens[1:], store.document_starts[1:] - 1, store.origins, store.num_bytes)

    def close(self) -> TokenStore:
        """Flush the store to the disk and open it."""
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._all:
            file.close()


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"the token store {folder} is damaged: {why}", f"delete {folder.parent} and start again")


class RowStore(TokenStore):
    """Read access to rows.

    supervised: memmap uint8 (M + 1,), parallel to `tokens`. num_supervised: targets of all rows. segments_per_row: 2
    for preferences, otherwise 1. variants: documents that follow each other and are one row written in several ways, of
    which an epoch shows one; num_rows = num_documents ÷ segments_per_row ÷ variants. shares: float32 (D, K) of
    decisions, else None.
    """

    def __init__(self, folder: Path, segments_per_row: int = 1) -> None:
        super().__init__(folder)
        try:
            self.supervised: np.ndarray = np.memmap(folder / "supervised.bin", np.uint8, "r")
        except (OSError, ValueError) as e:
            raise DataError(f"the rows in {folder} are damaged: {e!r}", "delete that folder") from None
        if len(self.supervised) != len(self.tokens) or self.num_documents % segments_per_row:
            raise DataError(f"the rows in {folder} are damaged", "delete that folder; it is made again")
        about = read_json(folder / "store.json")
        self.variants: int = about.get("variants", 1)
        self.segments_per_row = segments_per_row
        self.num_rows: int = self.num_documents // segments_per_row // self.variants
        self.num_supervised = int(np.count_nonzero(self.supervised))
        # of one epoch; a row's last token is only predicted
        self.num_inputs: int = (self.num_tokens - self.num_documents) // self.variants
        path = folder / SHARES
        self.shares: np.ndarray | None = None
        if path.exists():
            self.shares = np.fromfile(path, "<f4").reshape(self.num_documents, -1)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document: int64."""
        return np.diff(self.document_starts)

    def mask(self, index: int) -> np.ndarray:
        """Return which tokens of one document are supervised: uint8, as long as `document(index)`."""
        return self.supervised[self.document_starts[index] : self.document_starts[index + 1]]


class RowWriter(StoreWriter):
    """Appends rows to a new store in `folder`; the store exists once `close` has returned."""

    def __init__(self, folder: Path, bos_id: int, dtype: type, segments_per_row: int = 1, variants: int = 1) -> None:
        super().__init__(folder, bos_id, dtype)
        self._variants = variants
        self._segments_per_row = segments_per_row
        self._supervised = (folder / "supervised.bin").open("wb")
        self._all = (*self._all, self._supervised)
        self._supervised.write(b"\0")

    def add(self, ids: np.ndarray, mask: np.ndarray, origin: Sequence[int], num_bytes: int) -> None:
        """Add one document: ids (N,) and which of them are supervised, uint8 (N,). origin: file, row and family."""
        self._supervised.write(np.ascontiguousarray(mask, np.uint8).data)
        self.append(ids, np.array([len(ids)]), np.array([origin]), num_bytes)

    def close(self) -> RowStore:
        super().close()
        if self._variants > 1:
            about = self.folder / "store.json"
            write_json(about, read_json(about) | {"variants": self._variants})
        return RowStore(self.folder, self._segments_per_row)
