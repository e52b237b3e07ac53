"""Weights are damaged, or rounded further than the model bears."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from settle.doctor.checks import Check
from settle.doctor.edited_file import with_file
from settle.doctor.findings import Finding, Fix
from settle.doctor.known_answers import PARAGRAPHS
from settle.doctor.likelihood import LikelihoodSide, Reader, prose_trial, reader_of, strength_of, text_reading
from settle.doctor.same_model import other_files
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial
from settle.formats import LazyTensor, Weights, map_file
from settle.formats.gguf import read_gguf, rows
from settle.formats.gguf.header import read_header
from settle.formats.gguf.types import GGML

LOOKED = 1  # paragraphs that a look reads
SAMPLED = 8  # rows of a tensor
LEAST_NATS = 0.2  # per token
UNKNOWN_ERROR, TIMES = 0.1, 5.0  # share of a tensor's squares that a type loses, and how much more is damage
BLOCK = "blk.1."


class DamagedWeights(Check):
    """Another file of the same model says which tensors are not what they were, and what that costs."""

    number: ClassVar[int] = 11
    symptom: ClassVar[str] = "dull or wrong answers: weights are damaged, or rounded too far"
    about: ClassVar[tuple[str, ...]] = ("model",)
    seconds: ClassVar[float] = 6.0

    def detect(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert model is not None
        weights = read_gguf(model.weights)
        broken = [name for name, tensor in weights.tensors.items() if not np.isfinite(_sample(tensor)).all()]
        if broken:
            what = f"{broken[0]} holds values that are no numbers"
            yield Finding(self.part_name(), what, (f"{len(broken)} tensors do",), 1.0, {"other": None})
            return
        for path in other_files(model.weights, weights):
            errors = _errors(weights, read_gguf(path))
            worst = max(errors, key=errors.__getitem__)
            if errors[worst] < GGML["Q4_0"].error:  # type: ignore[operator]  # as good as the other
                continue
            reading = PARAGRAPHS[:LOOKED]
            with reader_of(model) as reader:
                own = sum(reader.nats(text_reading(reader.engine, text)) for text in reading) / LOOKED
            with Reader(model, path) as other:
                better = sum(other.nats(text_reading(other.engine, text)) for text in reading) / LOOKED
            if own - better > LEAST_NATS:
                damaged = [name for name in errors if errors[name] > TIMES * _expected(weights.tensors[name].dtype)]
                what = f"{len(damaged)} tensors are damaged" if damaged else "the weights are rounded too far"
                yield Finding(
                    check=self.part_name(),
                    what=f"{what}, as {path.name} shows, which is the same model",
                    evidence=(
                        f"prose costs {own:.2f} nats per token, {better:.2f} there",
                        f"{worst} ({weights.tensors[worst].dtype}) differs by {errors[worst]:.0%} of its squares",
                    ),
                    strength=strength_of(own - better),
                    details={"other": str(path)},
                )
                return

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        other = finding.details["other"]
        if other is None:
            return None
        assert subject.model is not None
        return prose_trial(
            knob=f"{other} in its place",
            before=LikelihoodSide("as it is", subject.model),
            after=LikelihoodSide("the other file", subject.model, Path(str(other))),
            looked=LOOKED,
            least=LEAST_NATS / 2,
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        assert subject.model is not None
        other = finding.details["other"]
        if other is None:
            return Fix(what="get the file again, or export it again", command=f"settle pull {subject.name}")
        return Fix(what="use the other file", command=f"settle chat {shlex.quote(str(other))}")

    def injected(self, healthy: Subject, folder: Path) -> Subject:
        """The rows of one block's matrices are in another order; the file as it was lies beside."""
        assert healthy.model is not None
        source, broken = healthy.model.weights, folder / "broken.gguf"
        shutil.copyfile(source, folder / "sound.gguf")
        header = read_header(map_file(source), source.name)
        shutil.copyfile(source, broken)
        with broken.open("r+b") as file:
            for tensor in header.tensors:
                if tensor.name.startswith(BLOCK) and len(tensor.shape) > 1:
                    file.seek(tensor.start)
                    data = file.read(tensor.num_bytes)
                    half = tensor.shape[0] // 2 * (tensor.num_bytes // tensor.shape[0])
                    file.seek(tensor.start)
                    file.write(data[half:] + data[:half])
        return with_file(healthy, broken)


def _errors(weights: Weights, other: Weights) -> dict[str, float]:
    """By tensor, the share of the other's squares that ours differ by, on some rows."""
    errors = {}
    for name, tensor in weights.tensors.items():
        ours, theirs = _sample(tensor), _sample(other.tensors[name])
        errors[name] = float(np.square(ours - theirs).sum() / max(np.square(theirs).sum(), 1e-30))
    return errors


def _sample(tensor: LazyTensor) -> np.ndarray:
    """Some rows of a matrix, spread over it; a vector whole."""
    if len(tensor.shape) != 2:
        return tensor.load() if len(tensor.shape) == 1 else np.zeros(0, np.float32)
    return rows(tensor, np.linspace(0, tensor.shape[0] - 1, min(SAMPLED, tensor.shape[0])).astype(int).tolist())


def _expected(dtype: str) -> float:
    """The share of its squares that a tensor of that type loses."""
    row = GGML.get(dtype)
    return (row.error if row and row.error is not None else UNKNOWN_ERROR) + 1e-3
