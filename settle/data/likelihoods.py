"""A model's next-token distributions on disk, memory-mapped: less than a kilobyte a position.

    ids.bin        int32, the windows' ids one after the other
    starts.bin     int64 (W + 1,), where each window begins in them
    hashes.bin     uint8 (W, 32), sha256 of each window: its key
    FIELD.bin      one for each field of `Rows`, (N, …): ids uint16 (uint32 above 65,536 entries); log-probabilities of
                   stored tokens in 2,048ths below zero, uint16, which is finer than float16 where it matters; of the
                   rest and of the actual token float32
    likelihoods.json   counts, and what the model is; written last

Position i of a window is about its token i + 1, so a window of L ids has L − 1. Legend: W windows, N positions of all.
"""

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from settle.base.errors import DataError, ResourceError, RunError, cannot_write, no_room
from settle.base.files import read_json, write_json
from settle.data.distributions import SAMPLED, TOP, Rows, sizes, window_hash

_ABOUT = "likelihoods.json"
_STEPPED, _STEPS = ("top_logprobs", "sampled_logprobs"), np.float32(2048)


class Likelihoods:
    """Read access to a record of likelihoods.

    about: the writer's description of the model. num_vocab: V. top, sampled: K and S.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder. Raises DataError when it holds no whole record."""
        self.folder = folder
        try:
            stored = read_json(folder / _ABOUT)
            self.num_vocab: int = stored["num_vocab"]
            self.top: int = stored["top"]
            self.sampled: int = stored["sampled"]
            self.about: dict[str, Any] = stored["about"]
            self.starts = np.fromfile(folder / "starts.bin", "<i8")
            if len(self.starts) != stored["num_windows"] + 1:
                raise ValueError("starts.bin is shorter or longer than it should be")
            self._ids = _mapped(folder / "ids.bin", "<i4", (int(self.starts[-1]),))
            self._rows = Rows(
                *(
                    _mapped(folder / f"{name}.bin", dtype, (self.num_positions, *shape))
                    for name, (dtype, shape) in _fields(self.num_vocab, self.top, self.sampled).items()
                )
            )
        except (OSError, KeyError, TypeError, ValueError, IndexError, RunError) as e:
            raise DataError(
                f"the likelihoods in {folder} are damaged: {e!r}", "delete the folder, and measure again"
            ) from None

    @property
    def num_windows(self) -> int:
        return len(self.starts) - 1

    @property
    def num_positions(self) -> int:
        """N."""
        return int(self.starts[-1]) - self.num_windows

    @property
    def positions(self) -> np.ndarray:
        """(W + 1,), where each window's positions begin among all of them."""
        return self.starts - np.arange(len(self.starts))

    def window(self, index: int) -> np.ndarray:
        """Return the ids of one window, int32 (L,)."""
        return self._ids[self.starts[index] : self.starts[index + 1]]

    def rows(self, index: int) -> Rows:
        """Return the L − 1 positions of one window, in memory."""
        first, last = self.positions[index : index + 2]
        return self._read(slice(first, last))

    def at(self, positions: np.ndarray) -> Rows:
        """Return any positions among all of them, (P,), in memory."""
        return self._read(positions)

    def _read(self, which: slice | np.ndarray) -> Rows:
        stored = Rows(*(getattr(self._rows, field.name)[which] for field in dataclasses.fields(Rows)))
        steps = {name: getattr(stored, name).astype(np.float32) / -_STEPS for name in _STEPPED}
        return dataclasses.replace(stored, **steps)

    @property
    def came_logprobs(self) -> np.ndarray:
        """(N,), of the actual next tokens."""
        return self._rows.came_logprobs

    def find(self, ids: Sequence[int] | np.ndarray) -> int | None:
        """Return which window has just these ids; None when there is none."""
        return self._places.get(window_hash(np.asarray(ids)))

    @cached_property
    def _places(self) -> dict[bytes, int]:
        raw = (self.folder / "hashes.bin").read_bytes()
        return {raw[32 * i : 32 * i + 32]: i for i in range(self.num_windows)}


class LikelihoodsWriter:
    """Writer of windows; the record exists, whole, once `close` has returned.

    As a context manager it leaves nothing behind when it was not closed. positions: how many are going to be written,
    so that a disk too small is known before the first. Raises ResourceError for that, and when the disk fills up all
    the same; DataError when `folder` is something else.
    """

    def __init__(
        self,
        folder: Path,
        num_vocab: int,
        about: Mapping[str, object],
        positions: int = 0,
        top: int = TOP,
        sampled: int = SAMPLED,
    ) -> None:
        self.folder = Path(folder)
        self.num_vocab = num_vocab
        self.top, self.sampled = sizes(num_vocab, top, sampled)
        self._about = dict(about)
        self._dtypes = {name: dtype for name, (dtype, _) in _fields(num_vocab, self.top, self.sampled).items()}
        self._starts = [0]
        self._part = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.part")
        if self.folder.exists() and not (self.folder / _ABOUT).exists() and any(self.folder.iterdir()):
            raise DataError(f"{self.folder} holds something else", "choose another folder")
        try:
            self._part.mkdir(parents=True, exist_ok=True)
            needed = positions * bytes_per_position(num_vocab, self.top, self.sampled)
            free = shutil.disk_usage(self._part).free
            if free < needed:
                self._part.rmdir()
                what = f"the likelihoods of {positions:,} tokens"
                raise no_room(what, needed, free, self.folder.parent, "or measure on fewer tokens")
            names = ("ids", "hashes", *self._dtypes)
            self._files: dict[str, BinaryIO] = {name: (self._part / f"{name}.bin").open("wb") for name in names}
        except OSError as e:
            raise self._failed(e) from None

    def append(self, ids: Sequence[int] | np.ndarray, rows: Rows) -> None:
        """Append one window (L,) and its L − 1 rows."""
        window = np.asarray(ids, "<i4")
        assert len(rows) == len(window) - 1, "a window has a row for each of its tokens but the first"
        try:
            self._files["ids"].write(window.tobytes())
            self._files["hashes"].write(window_hash(window))
            for name, dtype in self._dtypes.items():
                values = getattr(rows, name)
                if name in _STEPPED:
                    values = np.minimum(np.rint(values * -_STEPS), 65535)
                self._files[name].write(np.ascontiguousarray(values, dtype).tobytes())
        except OSError as e:
            raise self._failed(e) from None
        self._starts.append(self._starts[-1] + len(window))

    def close(self) -> Likelihoods:
        """Flush the record to the disk, replace an older one by it, and open it."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            (self._part / "starts.bin").write_bytes(np.array(self._starts, "<i8").tobytes())
            counts = {"num_windows": len(self._starts) - 1, "num_vocab": self.num_vocab}
            details = {"top": self.top, "sampled": self.sampled, "about": self._about}
            write_json(self._part / _ABOUT, counts | details)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._part.rename(self.folder)
        except OSError as e:
            raise self._failed(e) from None
        return Likelihoods(self.folder)

    def __enter__(self) -> "LikelihoodsWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self._part, ignore_errors=True)

    def _failed(self, e: OSError) -> ResourceError:
        return cannot_write(self.folder, e, "or choose another place")


def bytes_per_position(num_vocab: int, top: int = TOP, sampled: int = SAMPLED) -> int:
    """Return the number of bytes that one token takes on disk."""
    stored = _fields(num_vocab, *sizes(num_vocab, top, sampled)).values()
    return 4 + sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in stored)


def _fields(num_vocab: int, top: int, sampled: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the fields of `Rows`, each with its dtype and the shape of one position."""
    ids = "<u2" if num_vocab <= 1 << 16 else "<u4"
    return {
        "top_ids": (ids, (top,)),
        "top_logprobs": ("<u2", (top,)),
        "sampled_ids": (ids, (sampled,)),
        "sampled_logprobs": ("<u2", (sampled,)),
        "rest_logmass": ("<f4", ()),
        "came_logprobs": ("<f4", ()),
    }


def _mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Map a file's numbers, which must be just as many as the shape says."""
    if path.stat().st_size != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"{path.name} is shorter or longer than it should be")
    # an empty file cannot be mapped
    return np.memmap(path, dtype, "r", shape=shape) if math.prod(shape) else np.zeros(shape, dtype)
