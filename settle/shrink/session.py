"""A model on the bench: its file before it is made smaller, the text that decides, and what was measured of both.

What takes minutes is kept in the store under a name made of the model's and the text's hashes, and found again there:
by the next `settle shrink` of the model, and by one that was interrupted.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from settle.base.errors import ResourceError
from settle.base.event_log import Events
from settle.base.events import Progress, Say, Warn
from settle.base.run import home
from settle.data.likelihoods import Likelihoods
from settle.evaluate.divergence import Divergence, TextLoss, divergence, text_loss
from settle.evaluate.gate.quantized_gate import shrunk_through_gate
from settle.formats import Weights
from settle.formats.gguf import read_gguf
from settle.infer.scorer import Scorer
from settle.model.pretrained import Pretrained
from settle.model.source import hash_of
from settle.shrink.calibration_data import Material
from settle.shrink.measurements import Measured, measure
from settle.shrink.pruners.vocabulary import Vocabulary
from settle.shrink.types.imatrix import Importance, metadata_of, read_imatrix, write_imatrix
from settle.shrink.types.quantize_file import file_bytes, quantize_gguf
from settle.shrink.types.sensitivity import Sensitivity

VERSION = 2  # of what is kept: a change in how it is measured counts this up


@dataclass(frozen=True)
class Workbench:
    """source: what is made smaller, a GGUF file that is not quantized. folder: where candidates are written. given: an
    importance file of the person. before: the model whose vocabulary was cut, and its material; cut: what was removed.
    """

    source: Pretrained
    material: Material
    folder: Path
    events: Events
    threads: int
    given: Path | None = None
    before: tuple[Pretrained, Material] | None = None
    cut: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.source.source.path

    @property
    def whole(self) -> Pretrained:
        """The model as the person gave it."""
        return self.before[0] if self.before else self.source

    def with_vocabulary(self) -> "Workbench":
        """A workbench for the model with only the tokens that the text needs."""
        path = self.folder / f"{self.source.name}-cut.gguf"
        report = Vocabulary().cut_file(self.path, path, self.material.fitted).report
        if "warning" in report:
            self.events.emit(Warn(text=report["warning"]))
        there, left = report["tokens"]
        self.events.emit(Say(text=f"{left:,} of {there:,} tokens are kept"))
        source = Pretrained.open(path)
        before = (self.source, self.material.in_tokens_of(self.source.tokenizer))
        return replace(
            self, source=source, material=self.material.in_tokens_of(source.tokenizer), before=before, cut=report
        )

    def text_loss(self, path: Path) -> TextLoss | None:
        """Of a file against the model with the whole vocabulary, in bits per byte; None when no token was removed."""
        if self.before is None:
            return None
        model, material = self.before
        with Scorer(model.source.path, material.window, self.threads) as scorer:
            told = self._counting("the whole model reads", material.held_out.num_tokens)
            ours = scorer.logprobs(material.held_out.ids, told)
        with Scorer(path, self.material.window, self.threads) as scorer:
            told = self._counting("the smaller one reads", self.material.held_out.num_tokens)
            theirs = scorer.logprobs(self.material.held_out.ids, told)
        return text_loss(ours, material.held_out, theirs, self.material.held_out)

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
    def _beside(self) -> str:
        """In the names of what hangs on the person's importance file."""
        return "" if self.given is None else f"-{hash_of(self.given)[:12]}"

    @property
    def table(self) -> Path:
        """The file of the sensitivities, once they were measured."""
        return self.kept / f"sensitivity{self._beside}.json"

    @cached_property
    def _measured(self) -> Measured:
        """Importance and sensitivities, measured together; or of the person's importance file."""
        given = None if self.given is None else read_imatrix(self.given)
        importance, table = self.kept / f"imatrix{self._beside}.gguf", self.table
        if not (importance.exists() and table.exists()):
            found = measure(
                self.path, self.material.calibration, self.material.name, importance=given, progress=self._told
            )
            write_imatrix(importance, found.importance)
            found.table.save(table)
        return Measured(read_imatrix(importance), Sensitivity.open(table))

    @property
    def importance(self) -> Importance:
        """How much each input of each tensor matters."""
        return self._measured.importance

    @property
    def sensitivity(self) -> Sensitivity:
        """What each tensor costs in each type."""
        return self._measured.table

    @cached_property
    def likelihoods(self) -> Likelihoods:
        """What the unquantized file holds likely over the held-out text."""
        folder = self.kept / "likelihoods"
        if not folder.exists():
            windows = self.material.held_out
            self._require_room(windows.num_tokens * 1024, folder.parent)
            with Scorer(self.path, self.material.window, self.threads) as scorer:
                scorer.likelihoods(windows.ids, folder, on_tokens=self._counting("reference", windows.num_tokens))
        return Likelihoods(folder)

    def file_bytes(self, kinds: Mapping[str, str]) -> int:
        """The exact size of the file with these types."""
        return file_bytes(self.file, kinds)

    def write(self, kinds: Mapping[str, str], path: Path, file_type: str | None = None) -> Path:
        """The model in these types."""
        return quantize_gguf(
            self.path,
            path,
            kinds,
            self.importance if kinds else None,
            file_type,
            metadata_of(self.importance, self.given.name if self.given else "") if kinds else None,
            progress=lambda done, total: self._told("quantizing", done, total, "bytes"),
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

    def _told(self, what: str, done: int, total: int, unit: str = "parts") -> None:
        self.events.emit(Progress(what=what, done=done, total=total, unit=unit))

    def _counting(self, what: str, total: int) -> Callable[[int], None]:
        done = 0

        def told(number: int) -> None:
            nonlocal done
            done += number
            self._told(what, done, total, "tokens")

        return told
