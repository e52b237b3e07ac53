"""Weights are damaged, or rounded further than the model bears."""

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.known_answers import PARAGRAPHS
from settle.doctor.likelihood import LikelihoodSide, Reader, Reading, prose_trial, reader_of, strength_of, text_reading
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial
from settle.doctor.weights.same_model import other_files
from settle.doctor.weights.without_block import oddest_blocks, written_without
from settle.formats import LazyTensor, Weights
from settle.formats.gguf import read_gguf, rows
from settle.formats.gguf.types import GGML
from settle.infer.scorer import AS_IT_IS, Scorer
from settle.library.reference import ModelRef
from settle.library.store import linked_model
from settle.model.source import hash_of

LOOKED = 1  # paragraphs that a look reads
SAMPLED = 8  # rows of a tensor
LEAST_NATS = 0.2  # per token
UNKNOWN_ERROR, TIMES = 0.1, 5.0  # share of a tensor's squares that a type loses, and how much more is damage
ALONE = 1 << 30  # bytes of a file that is looked at without another one of the same model
BAD_NATS = 0.8  # per byte of prose: models that are sound and have learned prose find it likelier
TRIED, HELPS = 4, 0.1  # blocks that are left out, and the share of the loss that goes where one of them is damaged


class DamagedWeights(Check):
    """Another file of the same model says which tensors are not what they were, and what that costs."""

    number: ClassVar[int] = 11
    symptom: ClassVar[str] = "dull or wrong answers: weights are damaged, or rounded too far"
    about: ClassVar[tuple[str, ...]] = ("model",)
    seconds: ClassVar[float] = 6.0
    is_vital: ClassVar[bool] = True

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
                number = "1 tensor is" if len(damaged) == 1 else f"{len(damaged)} tensors are"
                what = f"{number} damaged" if damaged else "the weights are rounded too far"
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
        if model.weights.stat().st_size <= ALONE:
            yield from self._alone(model, weights)

    def _alone(self, model: ModelRef, weights: Weights) -> Iterator[Finding]:
        """What shows without another file of the same model: its hash where one was recorded, and a block whose
        absence makes prose likelier."""
        changed = _changed(model.weights)
        with reader_of(model) as reader:
            readings = [text_reading(reader.engine, text) for text in PARAGRAPHS[:LOOKED]]
            own = sum(map(reader.nats, readings)) / LOOKED
        tokens = sum(len(reading.ids) for reading in readings)
        is_bad = own * tokens > BAD_NATS * sum(len(text.encode()) for text in PARAGRAPHS[:LOOKED])
        for block in oddest_blocks(weights)[:TRIED] if is_bad else ():
            with tempfile.TemporaryDirectory() as folder:
                path = written_without(model.weights, Path(folder) / "without.gguf", block)
                overrides = AS_IT_IS._replace(adapter=model.adapter)
                with Scorer(path, max(len(reading.ids) for reading in readings), overrides=overrides) as scorer:
                    better = sum(_nats(scorer, reading) for reading in readings) / LOOKED
            if own - better > max(LEAST_NATS, HELPS * own):
                seen = f"prose costs {own:.2f} nats per token, and {better:.2f} where block {block} adds nothing"
                yield Finding(
                    check=self.part_name(),
                    what=f"block {block} is damaged: the model is better without what it writes",
                    evidence=(seen, *filter(None, [changed])),
                    strength=strength_of(own - better),
                    details={"other": None, "block": block, "own": own},
                )
                return
        if changed:
            yield Finding(self.part_name(), changed, ("so it was changed or damaged since",), 0.97, {"other": None})

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        other, block = finding.details["other"], finding.details.get("block")
        assert subject.model is not None
        if isinstance(block, int):
            path = written_without(subject.model.weights, folder / "without.gguf", block)
            return prose_trial(
                knob=f"block {block} adds nothing",
                before=LikelihoodSide("as it is", subject.model),
                after=LikelihoodSide("without it", subject.model, path),
                looked=LOOKED,
                least=max(LEAST_NATS, HELPS * float(str(finding.details["own"]))) / 2,
            )
        if other is None:
            return None
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
            what = "get the file again, or export it again"
            if "block" in finding.details:
                what += ": without the block it is better than now, and not what it was"
            return Fix(what=what, command=f"settle pull {subject.name}")
        return Fix(what="use the other file", command=f"settle chat {shlex.quote(str(other))}")


def _changed(path: Path) -> str:
    """What is wrong with a file of the store by the hash that it was pulled with, or ""."""
    stored = linked_model(path)
    if stored is None or stored.kind != "gguf" or (sha256 := hash_of(path)) == stored.sha256:
        return ""
    return f"{path.name} is not the file that was pulled: its sha256 is {sha256[:12]}…, not {stored.sha256[:12]}…"


def _nats(scorer: Scorer, reading: Reading) -> float:
    """Mean over the ids of a reading from its first one on."""
    came = scorer.rows(list(reading.ids), top=1, sampled=1).came_logprobs
    return float(-np.mean(np.asarray(came, np.float64)[reading.first - 1 :]))


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
