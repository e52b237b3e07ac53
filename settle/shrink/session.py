"""Smaller files of one model: made, compared with the model, and exported through the gate."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from settle.base.errors import no_room
from settle.base.event_log import Events
from settle.base.events import Progress, Say, Warn
from settle.base.files import home
from settle.data.likelihoods import Likelihoods, Windows
from settle.evaluate.divergence import Divergence, TextLoss, divergence, text_loss
from settle.evaluate.gate.behaviour import Figures
from settle.evaluate.gate.export import shrunk_through_gate
from settle.formats import Weights
from settle.formats.gguf import read_gguf
from settle.infer.scorer import Scorer
from settle.library.pretrained import open_pretrained
from settle.model.pretrained import Pretrained
from settle.model.source import hash_of
from settle.shrink.activations.importance import Inputs, curvature
from settle.shrink.calibration import CalibrationData
from settle.shrink.pruners.vocabulary import Vocabulary, VocabularyReport
from settle.shrink.types.budget import CostTable
from settle.shrink.types.imatrix import Importance, metadata_of, read_imatrix, write_imatrix
from settle.shrink.types.quantize_file import file_bytes, quantize_gguf
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


@dataclass(frozen=True)
class Session:
    """model: what files are made of. folder: where candidates are written.

    before_cut: the model as the person gave it and its texts, where `model` has only a part of its vocabulary;
    cut_report: what was removed. short_scales: as of `quantize_gguf`.
    """

    model: MeasuredModel
    folder: Path
    before_cut: tuple[Pretrained, CalibrationData] | None = None
    cut_report: VocabularyReport | None = None
    short_scales: bool = False

    @property
    def whole(self) -> Pretrained:
        """The model as the person gave it."""
        return self.before_cut[0] if self.before_cut else self.model.source

    @property
    def cut(self) -> tuple[int, int] | None:
        """Tokens before and after the vocabulary was cut; None when no token was removed."""
        return self.cut_report.tokens if self.cut_report else None

    def with_cut_vocabulary(self) -> "Session":
        """Return a session for the model with only the tokens that the text needs."""
        model = self.model
        path = self.folder / f"{model.source.name}-cut.gguf"
        report = Vocabulary.model_validate({}).cut_file(model.path, path, model.data.fitted).report
        if report.warning:
            model.events.emit(Warn(text=report.warning))
        before, after = report.tokens
        model.events.emit(Say(text=f"{after:,} of {before:,} tokens are kept"))
        source = Pretrained.open(path)
        cut_model = replace(model, source=source, data=model.data.in_tokens_of(source.tokenizer))
        before_cut = (model.source, model.data.in_tokens_of(model.source.tokenizer))
        return replace(self, model=cut_model, before_cut=before_cut, cut_report=report)

    def file_bytes(self, kinds: Mapping[str, str]) -> int:
        """Return the exact size of the file with these types."""
        return file_bytes(self.model.file, kinds)

    @contextlib.contextmanager
    def candidate_file(self, kinds: Mapping[str, str]) -> Iterator[Path]:
        """Write a file with these types, for as long as this lasts."""
        path = self.folder / f".candidate.{os.getpid()}.gguf"
        try:
            yield self._write(kinds, path)
        finally:
            path.unlink(missing_ok=True)

    def export(self, kinds: Mapping[str, str], path: Path, mix: str | None = None) -> Figures:
        """Write the file to its place if it passes the gate; the gate's figures. Raises GateError."""
        return shrunk_through_gate(
            self.model.source, path, lambda unproven: self._write(kinds, unproven, mix), self.model.data.texts
        )

    def text_loss(self, path: Path) -> TextLoss | None:
        """Return the loss of a file next to that of the model with the whole vocabulary, in bits per byte.

        None when no token was removed.
        """
        if self.before_cut is None:
            return None
        model, (whole, whole_data) = self.model, self.before_cut
        with Scorer(whole.source.path, whole_data.window, model.threads) as scorer:
            counter = model.token_counter("the whole model reads", whole_data.held_out.num_tokens)
            reference = scorer.logprobs(whole_data.held_out.ids, counter)
        with Scorer(path, model.data.window, model.threads) as scorer:
            counter = model.token_counter("the smaller one reads", model.data.held_out.num_tokens)
            logprobs = scorer.logprobs(model.data.held_out.ids, counter)
        return text_loss(reference, whole_data.held_out, logprobs, model.data.held_out)

    def _write(self, kinds: Mapping[str, str], path: Path, mix: str | None = None) -> Path:
        model = self.model

        def report(done: int, total: int) -> None:
            model.events.emit(Progress(what="quantizing", done=done, total=total, unit="bytes"))

        importance = model.importance if kinds else None
        source = model.importance_file.name if model.importance_file else ""
        metadata = None if importance is None else metadata_of(importance, source)
        return quantize_gguf(
            model.path,
            path,
            kinds,
            importance,
            mix,
            metadata,
            progress=report,
            requantize=True,
            short_scales=self.short_scales,
        )
