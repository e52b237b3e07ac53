"""A model's next-token distributions in compact form: compared with another model's, and stored on disk.

Each position stores its K likeliest tokens, and S more that are drawn from all the others. What the others add to
a divergence is the mean over those drawn, so it is unbiased: a bare list of the likeliest would leave the tail out.
On disk, memory-mapped, a position takes less than a kilobyte:

    ids.bin        int32, the windows' ids one after the other
    starts.bin     int64 (W + 1,), where each window begins in them
    hashes.bin     uint8 (W, 32), sha256 of each window: its key
    FIELD.bin      one for each field of `Rows`, (N, …): ids uint16 (uint32 above 65,536 entries); log-probabilities of
                   stored tokens in 2,048ths below zero, uint16, which is finer than float16 where it matters; of the
                   rest and of the actual token float32
    likelihoods.json   counts, and what the model is; written last

Position i of a window is about its token i + 1, so a window of L ids has L − 1.
Legend: P positions, N of all windows, W windows, V vocabulary, K likeliest tokens, S drawn ones. Logarithms are
natural.
"""

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from settle.base.errors import DataError, ResourceError, RunError, cannot_write, no_room
from settle.base.files import read_json, write_json
from settle.base.tokenizer import Tokenizer

TOP, SAMPLED = 128, 32
LEAST = -80.0  # a log-probability below this one counts as this one: exp of it is next to nothing in float32
_GROUPS = 4096  # of a row; its sums and maxima go by whole groups, which numpy does many numbers at a time
_TINY = float(np.exp(LEAST))


@dataclass(frozen=True)
class Rows:
    """What is known of the next token at P positions.

    top_ids (P, K): likeliest first; top_logprobs (P, K) theirs. sampled_ids (P, S): drawn from all other tokens by
    their probability, one from each S-th of its mass; sampled_logprobs (P, S). rest_logmass (P,): of all tokens but the
    K, together. came_logprobs (P,): of the actual next token. S is 0 where K is the whole vocabulary.
    """

    top_ids: np.ndarray
    top_logprobs: np.ndarray
    sampled_ids: np.ndarray
    sampled_logprobs: np.ndarray
    rest_logmass: np.ndarray
    came_logprobs: np.ndarray

    def __len__(self) -> int:
        return len(self.came_logprobs)

    def __getitem__(self, which: slice | np.ndarray) -> "Rows":
        return Rows(*(getattr(self, f.name)[which] for f in fields(Rows)))

    @classmethod
    def joined(cls, parts: "list[Rows]") -> "Rows":
        """Join rows one after the other."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class Compared:
    """A model against a reference, position by position, each (P,).

    kl: KL(reference ‖ model) in nats. logprobs: of the actual next token, in the model. top_equal: whether the
    likeliest token is the same in both.
    """

    kl: np.ndarray
    logprobs: np.ndarray
    top_equal: np.ndarray

    @classmethod
    def joined(cls, parts: "list[Compared]") -> "Compared":
        """Join positions one after the other."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def sizes(num_vocab: int, top: int = TOP, sampled: int = SAMPLED) -> tuple[int, int]:
    """Return K and S for a vocabulary: one that is hardly larger than both together is stored whole."""
    return (num_vocab, 0) if num_vocab <= top + sampled else (top, sampled)


def window_hash(ids: np.ndarray) -> bytes:
    """Return the sha256 of a window's ids as int32, little-endian: the key that a window is looked up by."""
    return sha256(np.ascontiguousarray(ids, "<i4").tobytes()).digest()


def draws(ids: np.ndarray, sampled: int) -> np.ndarray:
    """Return numbers (len(ids) − 1, S) between 0 and 1 that decide what is drawn, one in each S-th.

    They are always the same for a window: a record does not depend on who made it, in what pieces, or on how many
    cores.
    """
    seed = int.from_bytes(window_hash(ids)[:8], "little")
    random = np.random.default_rng(seed).random((max(len(ids) - 1, 0), sampled))
    return (np.arange(sampled) + random) / max(sampled, 1)


def summarise(
    logits: np.ndarray, actual: np.ndarray, drawn: np.ndarray, top: int, pool: ThreadPoolExecutor | None = None
) -> Rows:
    """Return the rows of some positions.

    logits: (P, V) float32, not changed. actual: (P,) ids of the next tokens. drawn: (P, S) of `draws`. top: K. pool:
    its threads share the rows. Raises ValueError where a logit is NaN or infinite upwards.
    """
    (positions, num_vocab), sampled = logits.shape, drawn.shape[1]
    rows = Rows(
        np.zeros((positions, top), np.int32),
        np.zeros((positions, top), np.float32),
        np.zeros((positions, sampled), np.int32),
        np.full((positions, sampled), LEAST, np.float32),
        np.full(positions, LEAST, np.float32),
        np.zeros(positions, np.float32),
    )

    def work(first: int, last: int) -> None:
        exponentials = _buffer(num_vocab)
        for at in range(first, last):
            row = logits[at]
            ids = _likeliest(row, top)
            norm, rest = _normalised(row, ids, exponentials)
            rows.top_ids[at] = ids
            rows.top_logprobs[at] = np.maximum(row[ids] - norm, LEAST)
            rows.came_logprobs[at] = max(row[actual[at]] - norm, LEAST)
            if rest.sum() > 0:
                rows.rest_logmass[at] = max(np.log(rest.sum()) + row[ids[0]] - norm, LEAST)
                chosen = _drawn(exponentials, rest, drawn[at])
                rows.sampled_ids[at] = chosen
                rows.sampled_logprobs[at] = np.maximum(row[chosen] - norm, LEAST)

    _shared(work, positions, pool)
    return rows


def compare(rows: Rows, logits: np.ndarray, actual: np.ndarray, pool: ThreadPoolExecutor | None = None) -> Compared:
    """Compare another model's logits (P, V), float32, on the same positions, with the reference's rows.

    With p of the reference and q of the model, every token adds q − p − p·log(q/p), which is never negative, and whose
    sum over all tokens is the divergence. It also tolerates that a record holds rounded logarithms: their error counts
    only as far as p and q differ. What is not among the likeliest is taken as one outcome, and inside of it the drawn
    tokens represent the others. Raises ValueError as `summarise`.
    """
    positions, num_vocab = logits.shape
    kl, logprobs = np.zeros(positions), np.zeros(positions, np.float32)
    top_equal = np.zeros(positions, bool)

    def work(first: int, last: int) -> None:
        exponentials = _buffer(num_vocab)
        for at in range(first, last):
            row, ids = logits[at], rows.top_ids[at]
            norm, rest = _normalised(row, ids, exponentials)
            logprobs[at] = max(row[actual[at]] - norm, LEAST)
            top_equal[at] = row.max() <= row[ids[0]]
            kl[at] = _divergence(rows, at, row, norm, float(rest.sum()) * np.exp(float(row.max()) - norm))

    _shared(work, positions, pool)
    return Compared(kl, logprobs, top_equal)


def _divergence(rows: Rows, at: int, row: np.ndarray, norm: float, rest_mass: float) -> float:
    """Return the KL of one position; rest_mass: what the model gives to all but the reference's likeliest."""
    ours = rows.top_logprobs[at].astype(float)
    mass, theirs = float(rows.rest_logmass[at]), float(np.log(max(rest_mass, _TINY)))
    total = _gap(ours, np.maximum(row[rows.top_ids[at]] - norm, LEAST)).sum() + _gap(mass, theirs)
    if not rows.sampled_ids.shape[1]:
        return float(total)
    # probabilities among the others alone, in both models
    inside = np.maximum(row[rows.sampled_ids[at]] - norm, LEAST) - theirs
    ratio = inside - (rows.sampled_logprobs[at].astype(float) - mass)
    return float(total + np.exp(mass) * (np.expm1(ratio) - ratio).mean())


def _gap(ours: np.ndarray | float, theirs: np.ndarray | float) -> np.ndarray:
    """Return q − p − p·log(q/p) from the logarithms of p and of q."""
    ratio = np.asarray(theirs) - ours
    return np.exp(ours) * (np.expm1(ratio) - ratio)


def _shared(work: Callable[[int, int], None], positions: int, pool: ThreadPoolExecutor | None) -> None:
    """Give each thread an equal run of the rows."""
    number = min(pool._max_workers, positions) if pool else 1
    if pool is None or number < 2:
        work(0, positions)
        return
    bounds = [positions * i // number for i in range(number + 1)]
    for done in [pool.submit(work, *pair) for pair in zip(bounds, bounds[1:], strict=False)]:
        done.result()


def _groups(num_vocab: int) -> int:
    """Return how many groups a row is cut into: token i belongs to group i modulo this."""
    return min(_GROUPS, max(1, num_vocab // 8))


def _buffer(num_vocab: int) -> np.ndarray:
    """Return room (tokens of a group, groups) for one row, zero after its end."""
    groups = _groups(num_vocab)
    return np.zeros((-(-num_vocab // groups), groups), np.float32)


def _likeliest(row: np.ndarray, top: int) -> np.ndarray:
    """Return the `top` tokens with the largest logits, largest first, equal ones by their id. row: (V,).

    Only what is no smaller than the K-th largest of the groups' maxima can be among them: that leaves few to sort.
    """
    groups = _groups(len(row))
    candidates = np.arange(len(row))
    if groups > top:
        maxima = row[: len(row) // groups * groups].reshape(-1, groups).max(0)
        candidates = np.flatnonzero(row >= np.partition(maxima, groups - top)[groups - top])
    order = np.argsort(-row[candidates], kind="stable")[:top]
    if len(order) < top:
        raise ValueError("a logit is not a number")
    return candidates[order]


def _normalised(row: np.ndarray, top_ids: np.ndarray, exponentials: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the log normaliser, and exp(logit − largest) of all tokens but `top_ids`, summed in groups.

    exponentials: see `_buffer`; left with those of all tokens but `top_ids`.
    """
    largest = row.max()
    flat = exponentials.reshape(-1)
    values = flat[: len(row)]
    with np.errstate(invalid="ignore"):
        np.subtract(row, largest, out=values)
        np.exp(values, out=values)
    likely = values[top_ids].sum(dtype=float)
    values[top_ids] = 0.0
    rest = exponentials.sum(0).astype(float)
    norm = float(largest) + np.log(likely + rest.sum())
    if not np.isfinite(norm):
        raise ValueError("a logit is not a number")
    return norm, rest


def _drawn(exponentials: np.ndarray, rest: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the tokens at the places `drawn` (S,) of the mass in `exponentials`, whose groups sum to `rest`."""
    upto = np.cumsum(rest)
    target = drawn * upto[-1]
    group = np.minimum(np.searchsorted(upto, target, "right"), len(rest) - 1)
    inside = exponentials[:, group].astype(float)
    above = np.cumsum(inside, 0) <= target - np.where(group > 0, upto[group - 1], 0.0)
    member = np.minimum(above.sum(0), len(inside) - 1)
    # rounding may point behind the last token that has any mass
    nothing = inside[member, np.arange(len(member))] <= 0
    member = np.where(nothing, inside.argmax(0), member)
    places: np.ndarray = member * exponentials.shape[1] + group
    return places


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
        return self.at(slice(first, last))

    def at(self, positions: slice | np.ndarray) -> Rows:
        """Return any positions among all of them, (P,), in memory."""
        stored = self._rows[positions]
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


@dataclass(frozen=True)
class Windows:
    """Windows, each opened by a token that is given and not predicted.

    ids: of each window. texts: which text each is of, counted from 0. num_bytes: UTF-8 bytes of each text.
    """

    ids: list[list[int]]
    texts: np.ndarray
    num_bytes: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted."""
        return sum(len(ids) - 1 for ids in self.ids)

    @property
    def total_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return int(self.num_bytes.sum())


def first_texts(tokenizer: Tokenizer, texts: Iterable[str], most_tokens: int) -> list[str]:
    """Return texts from the first on, about `most_tokens` of them in all: the last one is cut at a character."""
    chosen: list[str] = []
    left = most_tokens
    for text in texts:
        number = len(tokenizer.encode(text))
        if number > left:
            text = text[: len(text) * left // number]
        left -= number
        chosen += [text] if text else []
        if left <= 0:
            break
    return chosen


def text_windows(tokenizer: Tokenizer, texts: Iterable[str], length: int) -> Windows:
    """Return windows of at most `length` ids (2 at least), a text after the other.

    Two models with different vocabularies are given different ids for the same texts, and bits per byte over these are
    comparable all the same.
    """
    first = opening_id(tokenizer)
    windows: list[list[int]] = []
    origins: list[int] = []
    num_bytes: list[int] = []
    for text in texts:
        ids = tokenizer.encode(text).tolist()
        for at in range(0, len(ids), length - 1):
            windows.append([first, *ids[at : at + length - 1]])
            origins.append(len(num_bytes))
        num_bytes.append(len(text.encode("utf-8", "replace")))
    return Windows(windows, np.array(origins, int), np.array(num_bytes, int))


def opening_id(tokenizer: Tokenizer) -> int:
    """Return the token that opens a text: the one made for it, or the one that ended the text before."""
    return int(tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id)
