"""Smaller files of one model: made, compared with the model, and exported through the gate."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from settle.base.events import Progress, Say, Warn
from settle.evaluate.divergence import TextLoss, text_loss
from settle.evaluate.gate.export import shrunk_through_gate
from settle.infer.scorer import Scorer
from settle.model.pretrained import Pretrained
from settle.shrink.calibration import CalibrationData
from settle.shrink.measured_model import MeasuredModel
from settle.shrink.pruners.vocabulary import Vocabulary, VocabularyReport
from settle.shrink.types.imatrix import metadata_of
from settle.shrink.types.quantize_file import file_bytes, quantize_gguf


@dataclass(frozen=True)
class Session:
    """model: what files are made of. folder: where candidates are written.

    before_cut: the model as the person gave it and its texts, where `model` has only a part of its vocabulary;
    cut_report: what was removed.
    """

    model: MeasuredModel
    folder: Path
    before_cut: tuple[Pretrained, CalibrationData] | None = None
    cut_report: VocabularyReport | None = None

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

    def export(self, kinds: Mapping[str, str], path: Path, mix: str | None = None) -> dict[str, object]:
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
        return quantize_gguf(model.path, path, kinds, importance, mix, metadata, progress=report, requantize=True)
