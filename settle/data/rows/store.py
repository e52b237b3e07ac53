"""Rows on disk: a TokenStore whose documents are rows, and which of their tokens are supervised.

    supervised.bin   uint8, one for each entry of tokens.bin: 1 where the token is a target

    shares.bin       of decisions only: float32 (D, K), the share of each label that is right, -1 beyond a row's options

The other files are TokenStore's. A row's first token is never a target: nothing stands before it. Of a preference two
documents follow each other, the chosen answer and the rejected one. Legend: M tokens of all rows, R rows.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from settle.base.errors import DataError
from settle.base.files import read_json, write_json
from settle.data.store import StoreWriter, TokenStore

SHARES = "shares.bin"


class RowStore(TokenStore):
    """Read access. supervised: memmap uint8 (M + 1,), beside `tokens`. num_supervised: targets of all rows.

    segments_per_row: 2 for preferences, otherwise 1. variants: documents that follow each other and are one row written
    in several ways, of which an epoch shows one; num_rows = num_documents ÷ segments_per_row ÷ variants.
    shares: float32 (D, K) of decisions, else None.
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
        """Which tokens of one document are supervised: uint8, as long as `document(index)`."""
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
        """One document: ids (N,) and which of them are supervised, uint8 (N,); origin: file, row and family."""
        self._supervised.write(np.ascontiguousarray(mask, np.uint8).data)
        self.append(ids, np.array([len(ids)]), np.array([origin]), num_bytes)

    def close(self) -> RowStore:
        super().close()
        if self._variants > 1:
            about = self.folder / "store.json"
            write_json(about, read_json(about) | {"variants": self._variants})
        return RowStore(self.folder, self._segments_per_row)
