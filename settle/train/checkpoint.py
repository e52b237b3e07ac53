"""Checkpoints: written beside, fsynced, renamed, with a manifest of hashes. No pickle.

checkpoints/00000120/
├── model.safetensors       weights at step 120
├── optimizer.safetensors   optimizer state, flat
├── best.safetensors        weights of the best evaluation, when that was an earlier step
├── state.json              everything else: step, position, schedule, history
└── manifest.json           sha256 and size of each file, written last

Where the ranks of a run share out its tensors, each writes its rows: model.0.safetensors, model.1.safetensors, and so
on. Any number of ranks reads either form.

A name without a leading dot is a whole checkpoint at every moment. `.00000120.part` is one being written or removed,
`.00000120.old` one that another of the same step is about to replace: a killed process may leave either.
"""

import contextlib
import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from settle.base.errors import FULL_DISK, CheckpointError, FormatError
from settle.base.event_log import Events
from settle.base.events import CheckpointSaved, Say, Warn
from settle.base.files import fsync_folder
from settle.formats.safetensors import read_safetensors
from settle.train.world import World
from settle.train.world.row_share import rows_of_rank

Weights = dict[str, Tensor]
State = dict[str, object]  # of the loop (`LoopState`) and the identity of its run, as JSON
Manifest = dict[str, dict[str, str | int]]  # sha256 and size by the name of a file
KEEP = 2  # the newest, and the one before it in case the newest is damaged
CHUNK = 1 << 20
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to resume: tensors, which may be live and on any device, and a JSON-able state."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    best: Mapping[str, Tensor] | None
    state: State

    @property
    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Tensors by file name."""
        files = {"model.safetensors": self.model, "optimizer.safetensors": self.optimizer}
        return files if self.best is None else {**files, "best.safetensors": self.best}

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for tensors in self.tensors.values() for t in tensors.values())


def save(folder: Path, checkpoint: Checkpoint, every: int) -> None:
    """Write `checkpoint` into `folder/<step>`; the name appears only when all of it is on disk.

    One tensor at a time goes through memory. every: steps from one regular checkpoint to the next; see `_drop_old`.
    Raises OSError (ENOSPC when the disk is full) with nothing left behind and all older ones whole.
    """
    try:
        begin(folder, checkpoint.step)
        finish(folder, checkpoint, write(folder, checkpoint), every)
    except BaseException:
        recover(folder)
        raise


def begin(folder: Path, step: int) -> None:
    """Make room beside the checkpoints for that of a step."""
    beside = _beside(folder, step)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()


def write(folder: Path, checkpoint: Checkpoint, rank: int | None = None) -> Manifest:
    """Write the tensors into files next to the checkpoints; return what the manifest will say of them.

    rank: whose rows they are.
    """
    beside, part = _beside(folder, checkpoint.step), "" if rank is None else f".{rank}"
    names = {name: name.replace(".", f"{part}.", 1) for name in checkpoint.tensors}
    return {names[name]: _write(beside / names[name], _safetensors(t)) for name, t in checkpoint.tensors.items()}


def finish(folder: Path, checkpoint: Checkpoint, files: Manifest, every: int) -> None:
    """Give what was written its name, and drop the checkpoints that are not needed any more."""
    beside, final = _beside(folder, checkpoint.step), folder / f"{checkpoint.step:08d}"
    aside = folder / f".{final.name}.old"
    state = _write(beside / "state.json", [json.dumps(checkpoint.state).encode()])
    _write(beside / "manifest.json", [json.dumps({**files, "state.json": state}).encode()])
    fsync_folder(beside)
    if final.exists():  # the same step again after a roll-back
        final.rename(aside)
    beside.rename(final)
    fsync_folder(folder)
    shutil.rmtree(aside, ignore_errors=True)
    _drop_old(folder, every)


def _beside(folder: Path, step: int) -> Path:
    return folder / f".{step:08d}.part"


def recover(folder: Path) -> None:
    """Put the folder in order after a process was killed in it: leftovers go, a half-replaced checkpoint comes back."""
    for path in folder.glob(".*.old"):
        final = folder / path.name[1:].removesuffix(".old")
        if not final.exists():
            path.rename(final)
    for path in [*folder.glob(".*.old"), *folder.glob(".*.part")]:
        shutil.rmtree(path, ignore_errors=True)


def save_or_wait(
    folder: Path, checkpoint: Checkpoint, every: int, events: Events, stopping: Callable[[], bool]
) -> bool:
    """Save; when the disk is full, warn once and wait for room. False: not saved, as `stopping` ended the wait."""
    has_warned = False
    while True:
        try:
            save(folder, checkpoint, every)
        except OSError as e:
            if e.errno not in FULL_DISK:
                raise CheckpointError(
                    f"cannot write a checkpoint to {folder}: {e.strerror}", "check the disk and its permissions"
                ) from None
        else:
            if has_warned:
                events.emit(Say(text="there is room again: the run continues"))
            return True
        if not wait_for_room(folder, checkpoint.num_bytes, events, stopping, has_warned):
            return False
        has_warned = True


def wait_for_room(folder: Path, need: int, events: Events, stopping: Callable[[], bool], has_warned: bool) -> bool:
    """Wait until the disk has room for `need` bytes. False: `stopping` ended the wait."""
    if not has_warned:
        events.emit(
            Warn(
                text=f"the disk is full: a checkpoint needs {need / 1e6:,.1f} MB in {folder}. "
                "The run waits, and continues by itself when there is room.",
            )
        )
    while not stopping():
        time.sleep(0.2)
        # a quota does not show in the free space: then every check is a try
        if shutil.disk_usage(folder).free >= need:
            return True
    return False


def load_newest(
    folder: Path, events: Events, at_most: int | None = None, every: int | None = None, rank: int = 0, size: int = 1
) -> Checkpoint | None:
    """Load the newest checkpoint whose manifest matches; damaged ones are skipped with a warning.

    at_most: no later step than this. every: regular checkpoints only, those at a multiple of it. rank, size: only the
    rows of a rank. Returns None when there is no checkpoint at all. Raises CheckpointError when none can be believed.
    """
    paths = [
        p
        for p in steps(folder)
        if (at_most is None or int(p.name) <= at_most) and (every is None or int(p.name) % every == 0)
    ]
    for path in reversed(paths):
        try:
            _check(path)
            return _load(path, rank, size)
        except _Damaged as e:
            events.emit(Warn(text=f"checkpoint {path.name} is passed over: {e}"))
    if paths:
        raise CheckpointError(f"no checkpoint in {folder} is whole", "start the run again under another --name")
    return None


def load(folder: Path, step: int, rank: int = 0, size: int = 1) -> Checkpoint:
    """Load a step's checkpoint, or a rank's rows of it. Raises CheckpointError when its manifest does not match."""
    path = folder / f"{step:08d}"
    try:
        _check(path)
        return _load(path, rank, size)
    except _Damaged as e:
        raise CheckpointError(
            f"checkpoint {path.name} in {folder} cannot be used: {e}", "see that every rank sees the same folder"
        ) from None


def newest_state(folder: Path) -> State | None:
    """Read the state of the newest checkpoint whose state.json is intact; tensors are not read."""
    for path in reversed(steps(folder)):
        try:
            _check(path, only="state.json")
            return _state(path)
        except _Damaged:
            continue
    return None


def steps(folder: Path) -> list[Path]:
    """List the checkpoints, oldest first, whole or not."""
    return sorted(p for p in folder.iterdir() if p.name.isdigit() and p.name.isascii()) if folder.is_dir() else []


def drop_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps: the run has gone back behind them."""
    for path in steps(folder):
        if int(path.name) > step:
            _remove(path)


# --- writing ---


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, str | int]:
    """Write and fsync a file; its entry in the manifest."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=CHUNK) as f:
        for piece in pieces:
            f.write(piece)
            digest.update(piece)
            size += len(piece)
        f.flush()
        os.fsync(f.fileno())
    return {"sha256": digest.hexdigest(), "bytes": size}


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file piece by piece. The library's own writer needs all of it in memory, and hides ENOSPC.

    Format: https://huggingface.co/docs/safetensors.
    """
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes],
        }  # fmt: skip
        at += tensor.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    yield struct.pack("<Q", len(raw)) + raw
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data


def _drop_old(folder: Path, every: int) -> None:
    """Keep the newest regular checkpoints, and the newest of all.

    An irregular one comes of an interruption. It never pushes a regular one out, so that a roll-back goes to the
    same step whether the run was interrupted or not.
    """
    paths = steps(folder)
    regular = [p for p in paths if int(p.name) % every == 0]
    for path in set(paths) - {*regular[-KEEP:], *paths[-1:]}:
        _remove(path)


def _remove(path: Path) -> None:
    """Rename first: what still bears its name is whole."""
    doomed = path.with_name(f".{path.name}.part")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        path.rename(doomed)
    except OSError:
        return  # an old checkpoint too many harms nobody
    shutil.rmtree(doomed, ignore_errors=True)


# --- reading ---


class _Damaged(Exception):
    """Why a checkpoint cannot be used."""


def _check(path: Path, only: str | None = None) -> None:
    """Hold the files of a checkpoint against its manifest. Raises _Damaged."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        known = {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise _Damaged(f"its manifest cannot be read ({type(e).__name__})") from None
    if not any(
        {f"model{n}.safetensors", f"optimizer{n}.safetensors", "state.json"} <= known.keys() for n in ("", ".0")
    ):
        raise _Damaged("its manifest does not name every file")
    for name, (sha256, size) in known.items():
        if only in (None, name):
            try:
                if Path(name).name != name or not (path / name).is_file():
                    raise _Damaged(f"{name} is no file of it")
                actual = (path / name).stat().st_size
                if actual != size:
                    raise _Damaged(f"{name} has {actual} bytes, {size} were written")
                with (path / name).open("rb") as f:
                    if hashlib.file_digest(f, "sha256").hexdigest() != sha256:
                        raise _Damaged(f"{name} is not what was written")
            except OSError as e:
                raise _Damaged(f"{name} cannot be read: {e.strerror}") from None


def _load(path: Path, rank: int, size: int) -> Checkpoint:
    model, optimizer, best = (_files(path, name) for name in ("model", "optimizer", "best"))
    return Checkpoint(
        step=int(path.name),
        model=_rows(model, rank, size),
        optimizer=_rows(optimizer, rank, size),
        best=_rows(best, rank, size) if best else None,
        state=_state(path),
    )


def _files(path: Path, name: str) -> list[Path]:
    """List the files of that name, in the order of the ranks that wrote them."""
    whole, parts = path / f"{name}.safetensors", list(path.glob(f"{name}.*.safetensors"))
    return [whole] if whole.exists() else sorted(parts, key=lambda part: int(part.name.split(".")[1]))


def _rows(files: Sequence[Path], rank: int, size: int) -> Weights:
    """Read a rank's rows of every tensor in those files, concatenated; a number without rows is the same in all."""
    if size == 1 and len(files) == 1:
        return _tensors(files[0])
    pieces: dict[str, list[tuple[int, Any]]] = {}  # rows (-1: a number without), and what reads them
    with contextlib.ExitStack() as opened:
        for file in files:
            try:
                read_safetensors(file)
                part = opened.enter_context(safetensors.safe_open(file, framework="pt"))
                for name in part.keys():  # noqa: SIM118  # it is no dict
                    shape = part.get_slice(name).get_shape()
                    piece = part.get_slice(name) if shape else part.get_tensor(name)
                    pieces.setdefault(name, []).append((shape[0] if shape else -1, piece))
            except (FormatError, safetensors.SafetensorError, OSError) as e:
                raise _Damaged(f"{file.name} cannot be read ({e})") from None
        return {name: _joined(own, rank, size) for name, own in pieces.items()}


def _joined(pieces: Sequence[tuple[int, Any]], rank: int, size: int) -> Tensor:
    """Join a rank's rows of one tensor."""
    if pieces[0][0] < 0:
        whole: Tensor = pieces[0][1]
        return whole
    start, stop = rows_of_rank(sum(rows for rows, _ in pieces), rank, size)
    found, first = [], 0
    for rows, piece in pieces:
        found.append(piece[max(0, start - first) : max(0, min(rows, stop - first))])
        first += rows
    return torch.cat(found)


def _state(path: Path) -> State:
    try:
        state = json.loads((path / "state.json").read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise _Damaged(f"state.json cannot be read ({type(e).__name__})") from None
    if not isinstance(state, dict) or state.get("step") != int(path.name):
        raise _Damaged("state.json is of another step")
    return state


def _tensors(path: Path) -> Weights:
    """Read one file's tensors, its header checked by our reader first: a hash does not stop a deliberate change."""
    try:
        read_safetensors(path)
        return safetensors.torch.load_file(path)
    except (FormatError, safetensors.SafetensorError, OSError, KeyError, ValueError) as e:
        raise _Damaged(f"{path.name} cannot be read ({e})") from None


class CheckpointStore:
    """The checkpoints of one run, by step: safetensors in a folder, which every rank sees and rank 0 writes.

    Every rank calls every method. No method leaves a checkpoint that is half written under its name.
    every: steps from one regular checkpoint to the next.
    """

    def __init__(self, folder: Path, every: int, events: Events, world: World) -> None:
        self.folder, self.every, self.events, self.world = folder, every, events, world

    @property
    def share(self) -> tuple[int, int]:
        """Which rows this rank loads: a rank, and of how many."""
        return 0, 1

    def save(self, checkpoint: Checkpoint, stopping: Callable[[], bool], wait: bool) -> bool:
        """Keep a checkpoint, and drop those that are no longer needed.

        On a full disk it waits for room; False: not saved, as `stopping` ended the wait. wait: until it is kept;
        otherwise `flush` does that. Raises CheckpointError.
        """
        if not self.world.lead(lambda: save_or_wait(self.folder, checkpoint, self.every, self.events, stopping)):
            return False
        self.events.emit(CheckpointSaved(step=checkpoint.step))
        return True

    def flush(self) -> bool:
        """Wait for a checkpoint that is still being kept; False: the disk was full. Raises CheckpointError."""
        return True

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        """Load the newest checkpoint that is whole, after leftovers of a killed process are put in order.

        Returns None when there is none at all. at_most: a regular one, of no later step. Raises CheckpointError when
        none can be believed.
        """
        found: list[Checkpoint] = []

        def find() -> int | None:
            recover(self.folder)
            every = None if at_most is None else self.every
            newest = load_newest(self.folder, self.events, at_most, every, *self.share)
            found.extend([] if newest is None else [newest])
            return None if newest is None else newest.step

        step = self.world.lead(find)
        return None if step is None else found[0] if found else load(self.folder, step, *self.share)

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        self.world.lead(lambda: drop_after(self.folder, step))
