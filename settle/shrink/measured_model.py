"""A model and what was measured of it on a text.

What takes minutes is kept in the store under a name made of the model's and the text's hashes, and read from there
again: by the next `settle shrink` of the model, and by one that was interrupted.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from settle.base.errors import no_room
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.files import home
from settle.data.likelihoods import Likelihoods, Windows
from settle.evaluate.divergence import Divergence, divergence
from settle.formats import Weights
from settle.formats.gguf import read_gguf
from settle.infer.scorer import Scorer
from settle.library.pretrained import open_pretrained
from settle.model.pretrained import Pretrained
from settle.model.source import hash_of
from settle.shrink.activations.importance import Inputs, curvature
from settle.shrink.calibration import CalibrationData
from settle.shrink.types.budget import CostTable
from settle.shrink.types.imatrix import Importance, read_imatrix, write_imatrix
from settle.shrink.types.sensitivity import TYPES, measure_costs

STORE_VERSION = 3  # increase it when the way of measuring changes
BYTES_PER_TOKEN = 1024  # size of the reference's likelihoods on disk


BATCH = 512  # tokens of one backward pass
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measurements:
    """importance: of every matrix's inputs. costs: what each tensor costs in each type."""

    importance: Importance
    costs: CostTable


def measure(
    source: Path,
    windows: Sequence[np.ndarray],
    dataset: str = "",
    types: Sequence[str] = TYPES,
    importance: Importance | None = None,
    seed: int = 0,
    on_progress: Report | None = None,
) -> Measurements:
    """Measure the model of a GGUF file on `windows` of ids.

    importance: taken instead of the one that is measured on the way. on_progress: called with (what is
    done, steps done, steps in all). The same model, windows and seed give the same table.
    """
    report = on_progress or (lambda what, done, total: None)
    opened = open_pretrained(source)
    file = read_gguf(Path(source))
    model = opened.load(trainable=True)
    inputs = Inputs(model)
    grouped = batches(windows, BATCH)
    blocks = curvature(model, grouped, seed, inputs, lambda done, total: report("sensitivity", done, total))
    importance = importance or inputs.importance(opened.part, dataset)
    table = measure_costs(
        file, opened.part, blocks, importance, types, seed, lambda done, total: report("types", done, total)
    )
    about = {"dataset": dataset, "tokens": int(sum(map(len, windows))), "seed": seed, "types": list(types)}
    return Measurements(importance, replace(table, about=about))


def batches(windows: Sequence[np.ndarray], num_tokens: int) -> list[list[np.ndarray]]:
    """Windows in groups of about `num_tokens` tokens."""
    groups: list[list[np.ndarray]] = [[]]
    for window in windows:
        if groups[-1] and sum(map(len, groups[-1])) + len(window) > num_tokens:
            groups.append([])
        groups[-1].append(window)
    return groups


@dataclass(frozen=True)
class MeasuredModel:
    """source: the model, a GGUF file that is not quantized. importance_file: llama.cpp's, instead of measuring one."""

    source: Pretrained
    data: CalibrationData
    threads: int
    events: Events
    importance_file: Path | None = None

    @property
    def path(self) -> Path:
        return self.source.source.path

    @cached_property
    def file(self) -> Weights:
        return read_gguf(self.path)

    @cached_property
    def store(self) -> Path:
        """The folder for what is measured of this model on this text."""
        name = f"{STORE_VERSION} {self.source.source.sha256} {self.data.fingerprint}"
        folder = home() / "measured" / sha256(name.encode()).hexdigest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def _measurements(self) -> Measurements:
        """Importance and costs, measured together; costs alone with an importance file."""
        suffix = "" if self.importance_file is None else f"-{hash_of(self.importance_file)[:12]}"
        importance, costs = self.store / f"imatrix{suffix}.gguf", self.store / f"sensitivity{suffix}.json"
        if not (importance.exists() and costs.exists()):
            matrix = None if self.importance_file is None else read_imatrix(self.importance_file)
            measured = measure(
                self.path, self.data.calibration, self.data.name, importance=matrix, on_progress=self._report
            )
            write_imatrix(importance, measured.importance)
            measured.costs.save(costs)
        return Measurements(read_imatrix(importance), CostTable.open(costs))

    @property
    def importance(self) -> Importance:
        """How much each input of each tensor matters."""
        return self._measurements.importance

    @property
    def costs(self) -> CostTable:
        """What each tensor costs in each type."""
        return self._measurements.costs

    @cached_property
    def likelihoods(self) -> Likelihoods:
        """The model's own distributions over the selection text, which files are compared with."""
        return self._likelihoods("likelihoods", self.data.selection)

    def _likelihoods(self, name: str, windows: Windows) -> Likelihoods:
        folder = self.store / name
        if not folder.exists():
            require_room(windows.num_tokens * BYTES_PER_TOKEN, folder.parent)
            with Scorer(self.path, self.data.window, self.threads) as scorer:
                scorer.likelihoods(windows.ids, folder, on_tokens=self.token_counter("reference", windows.num_tokens))
        return Likelihoods(folder)

    def divergence(self, path: Path) -> Divergence:
        """How far a file is from this model, on the text that files are chosen by."""
        return self._divergence(path, self.likelihoods, self.data.selection)

    def judge(self, path: Path) -> Divergence:
        """How far the chosen file is from this model, on text that chose nothing."""
        windows = self.data.held_out
        return self._divergence(path, self._likelihoods("judgement", windows), windows)

    def _divergence(self, path: Path, reference: Likelihoods, windows: Windows) -> Divergence:
        with Scorer(path, self.data.window, self.threads) as scorer:
            compared = scorer.compare(reference, self.token_counter("comparing", windows.num_tokens))
        return divergence(reference, compared, windows.total_bytes, np.asarray(windows.texts))

    def token_counter(self, what: str, total: int) -> Callable[[int], None]:
        """Return a function that reports progress by the number of tokens that were just done."""
        done = 0

        def count(number: int) -> None:
            nonlocal done
            done += number
            self._report(what, done, total, "tokens")

        return count

    def _report(self, what: str, done: int, total: int, unit: str = "parts") -> None:
        self.events.emit(Progress(what=what, done=done, total=total, unit=unit))


def require_room(num_bytes: float, folder: Path) -> None:
    """Raise ResourceError when the disk of a folder has not that many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise no_room("this work", num_bytes, free, folder, "or set SETTLE_HOME to a folder that has it")
