"""Checkpoints: written beside, fsynced, renamed, with a manifest of hashes. No pickle.

checkpoints/00000120/
├── model.safetensors       weights at step 120
├── optimizer.safetensors   optimizer state, flat
├── best.safetensors        weights of the best evaluation, when that was an earlier step
├── state.json              everything else: step, position, schedule, history
└── manifest.json           sha256 and size of each file, written last
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from settle.base.errors import CheckpointError
from settle.base.events import Events
from settle.base.run import fsync_folder

Weights = dict[str, Tensor]
KEEP = 2  # the newest, and the one before it in case the newest is damaged


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: tensors on the CPU and a JSON-able state."""

    step: int
    model: Weights
    optimizer: Weights
    best: Weights | None
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` into `folder/<step>`; the name appears only when all of it is on disk.

    Raises OSError (ENOSPC when the disk is full) with nothing left behind.
    """
    final = folder / f"{checkpoint.step:08d}"
    beside = folder / f".{checkpoint.step:08d}.part"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        files: dict[str, bytes] = {
            "model.safetensors": safetensors.torch.save(checkpoint.model),
            "optimizer.safetensors": safetensors.torch.save(checkpoint.optimizer),
            "state.json": json.dumps(checkpoint.state).encode(),
        }
        if checkpoint.best is not None:
            files["best.safetensors"] = safetensors.torch.save(checkpoint.best)
        manifest = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
        }
        for name, data in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            with (beside / name).open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        fsync_folder(beside)
        if final.exists():  # the same step again after a roll-back
            shutil.rmtree(final)
        beside.rename(final)
        fsync_folder(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _drop_old(folder)


def save_or_wait(folder: Path, checkpoint: Checkpoint, events: Events, stopping: Callable[[], bool]) -> None:
    """Save; when the disk is full say so once, wait for room, and go on. Returns unsaved only when `stopping`."""
    told = False
    while True:
        try:
            save(folder, checkpoint)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise CheckpointError(
                    f"cannot write a checkpoint to {folder}: {e.strerror}", "check the disk"
                ) from None
            if not told:
                need = sum(t.nbytes for t in [*checkpoint.model.values(), *checkpoint.optimizer.values()])
                events.emit(
                    "warn",
                    text=f"the disk is full: a checkpoint needs {need / 1e6:,.0f} MB in {folder}. "
                    "The run waits and goes on by itself when there is room.",
                )
                told = True
            if stopping():
                return
            time.sleep(0.5)
        else:
            if told:
                events.emit("say", text="there is room again: the run goes on")
            return


def load_newest(folder: Path, events: Events) -> Checkpoint | None:
    """The newest checkpoint whose manifest matches; damaged ones are passed over, and the run says so.

    Returns None when there is no checkpoint at all. Raises CheckpointError when none can be believed.
    """
    paths = steps(folder)
    for path in reversed(paths):
        fault = _fault(path)
        if fault is None:
            return _load(path)
        events.emit("warn", text=f"checkpoint {path.name} is passed over: {fault}")
    if paths:
        raise CheckpointError(f"no checkpoint in {folder} is whole", "start the run again under another --name")
    return None


def steps(folder: Path) -> list[Path]:
    """The checkpoints there are, oldest first, whole or not."""
    return sorted(p for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        for name, known in manifest.items():
            data = (path / name).read_bytes()
            if len(data) != known["bytes"]:
                return f"{name} has {len(data)} bytes, {known['bytes']} were written"
            if hashlib.sha256(data).hexdigest() != known["sha256"]:
                return f"{name} is not what was written"
        if not {"model.safetensors", "optimizer.safetensors", "state.json"} <= manifest.keys():
            return "its manifest does not name every file"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return f"its manifest cannot be read ({type(e).__name__})"
    return None


def _load(path: Path) -> Checkpoint:
    best = path / "best.safetensors"
    return Checkpoint(
        step=int(path.name),
        model=safetensors.torch.load_file(path / "model.safetensors"),
        optimizer=safetensors.torch.load_file(path / "optimizer.safetensors"),
        best=safetensors.torch.load_file(best) if best.exists() else None,
        state=json.loads((path / "state.json").read_bytes()),
    )


def _drop_old(folder: Path) -> None:
    """Keep the newest whole checkpoints; one that is damaged does not count as kept."""
    kept = 0
    for path in reversed(steps(folder)):
        if kept >= KEEP:
            shutil.rmtree(path, ignore_errors=True)
        elif (path / "manifest.json").exists():
            kept += 1
