"""A model on the bench: its file before it is made smaller, the text that decides, and what was measured of both.

What takes minutes is kept in the store under a name made of the model's and the text's hashes, and found again there:
by the next `settle shrink` of the model, and by one that was interrupted.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.errors import ResourceError
from settle.base.events import Events
from settle.base.run import home
from settle.data.likelihoods import Likelihoods
from settle.evaluate.divergence import Divergence, divergence
from settle.evaluate.shrunk import shrunk_through_gate
from settle.formats import Weights
from settle.formats.gguf import read_gguf
from settle.infer.scoring import Scorer
from settle.model.pretrained import Pretrained
from settle.shrink.curvature import curvature
from settle.shrink.imatrix import Importance, read_imatrix, write_imatrix
from settle.shrink.importance import importance_of
from settle.shrink.material import Material
from settle.shrink.quantizing import file_bytes, quantize_gguf
from settle.shrink.sensitivity import Sensitivity, sensitivity

VERSION = 1  # of what is kept: a change in how it is measured counts this up
BATCH_TOKENS = 2048  # of a step of the curvature


@dataclass(frozen=True)
class Workbench:
    """source: the model, a GGUF file. folder: where candidates are written. given: an importance file of the person."""

    source: Pretrained
    material: Material
    folder: Path
    events: Events
    threads: int
    given: Path | None = None

    @property
    def path(self) -> Path:
        return self.source.source.path

    @cached_property
    def file(self) -> Weights:
        return read_gguf(self.path)

    @cached_property
    def kept(self) -> Path:
        """The folder in the store for what is measured of this model on this text."""
        name = f"{VERSION} {self.source.source.sha256} {self.material.fingerprint}"
        folder = home() / "measured" / sha256(name.encode()).hexdigest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def importance(self) -> Importance:
        """How much each input matters: as the person's file says, or measured on the calibration text."""
        if self.given is not None:
            return read_imatrix(self.given)
        path = self.kept / "imatrix.gguf"
        if not path.exists():
            model = self.source.load(dtype=_float32()).eval()
            found = importance_of(
                model, self.source.part, self.material.calibration, self.material.name, self._told("importance")
            )
            write_imatrix(path, found)
        return read_imatrix(path)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """What each tensor costs in each type."""
        path = self.kept / ("sensitivity.json" if self.given is None else f"sensitivity-{_short(self.given)}.json")
        if not path.exists():
            model = self.source.load(trainable=True)
            batches = list(_batches(self.material.calibration))
            bends = curvature(model, batches, progress=self._told("curvature"))
            del model
            table = sensitivity(self.file, self.source.part, bends, self.importance, progress=self._told("sensitivity"))
            table.save(path)
        return Sensitivity.open(path)

    @cached_property
    def likelihoods(self) -> Likelihoods:
        """What the unquantized file holds likely over the held-out text."""
        folder = self.kept / "likelihoods"
        if not folder.exists():
            windows = self.material.held_out
            self._require_room(windows.num_tokens * 1024, folder.parent)
            with Scorer(self.path, self.material.window, self.threads) as scorer:
                scorer.likelihoods(windows.ids, folder, told=self._counting("reference", windows.num_tokens))
        return Likelihoods(folder)

    def file_bytes(self, kinds: Mapping[str, str]) -> int:
        """The exact size of the file with these types."""
        return file_bytes(self.file, kinds)

    def write(self, kinds: Mapping[str, str], path: Path, file_type: str | None = None, **metadata: Any) -> Path:
        """The model in these types."""
        return quantize_gguf(
            self.path,
            path,
            kinds,
            self.importance,
            file_type,
            metadata or None,
            progress=self._told("quantizing", "bytes"),
            requantize=True,
        )

    def measure(self, path: Path) -> Divergence:
        """How far a file is from the unquantized one, on the held-out text."""
        reference, windows = self.likelihoods, self.material.held_out
        with Scorer(path, self.material.window, self.threads) as scorer:
            compared = scorer.compare(reference, self._counting("comparing", windows.num_tokens))
        return divergence(reference, compared, windows.total_bytes)

    @contextlib.contextmanager
    def candidate(self, kinds: Mapping[str, str], name: str) -> Iterator[Path]:
        """A file with these types, for as long as this lasts."""
        path = self.folder / f".{name}.{os.getpid()}.gguf"
        try:
            yield self.write(kinds, path)
        finally:
            path.unlink(missing_ok=True)

    def hand_over(self, kinds: Mapping[str, str], path: Path, file_type: str | None = None) -> dict[str, Any]:
        """Write the file at its place if it passes the gate; the gate's figures. Raises GateError."""
        return shrunk_through_gate(
            self.source, path, lambda unproven: self.write(kinds, unproven, file_type), self.material.texts
        )

    def _require_room(self, needed: int, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ResourceError(
                f"no room to work in: {needed / 1e6:,.0f} MB are needed in {folder}, {free / 1e6:,.0f} MB are free",
                "make room there, or set SETTLE_HOME to a folder that has it",
            )

    def _told(self, what: str, unit: str = "parts"):  # type: ignore[no-untyped-def]
        def told(done: int, total: int) -> None:
            self.events.emit("progress", what=what, done=done, total=total, unit=unit)

        return told

    def _counting(self, what: str, total: int):  # type: ignore[no-untyped-def]
        done = 0

        def told(number: int) -> None:
            nonlocal done
            done += number
            self.events.emit("progress", what=what, done=done, total=total, unit="tokens")

        return told


def _batches(windows: "list[np.ndarray] | tuple[np.ndarray, ...] | Any") -> Iterator[list[np.ndarray]]:
    """Windows, about BATCH_TOKENS at a time."""
    batch: list[np.ndarray] = []
    for window in windows:
        batch.append(window)
        if sum(map(len, batch)) >= BATCH_TOKENS:
            yield batch
            batch = []
    if batch:
        yield batch


def _short(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()[:12]


def _float32() -> Any:
    import torch

    return torch.float32
