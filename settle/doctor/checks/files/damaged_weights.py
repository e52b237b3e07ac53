"""Weights are damaged, or rounded further than the model bears.

Without another file of the same model, blocks are left out one after the other. A block adds to what flows through a
model; with the matrices that write there set to zero it adds nothing, and the rest computes as before. Leaving out a
sound block costs, and leaving out a damaged one helps. Which block to leave out first is guessed: what the matrices of
neighbouring blocks write is large and small in the same channels, and damage seldom leaves it so.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from settle.base.python_command import shell_line
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.known_answers import PARAGRAPHS
from settle.doctor.likelihood import Reader, losses_of, prose_trial, reader_of, strength_of, text_reading
from settle.doctor.model_files import other_files, sampled_errors, some_rows
from settle.doctor.subject import ModelFile
from settle.doctor.trial import Trial
from settle.formats import LazyTensor, Weights, map_file
from settle.formats.gguf import read_gguf, rows
from settle.formats.gguf.header import read_header
from settle.formats.gguf.types import GGML
from settle.infer.scorer import AS_IT_IS, Scorer
from settle.library.reference import ModelRef
from settle.library.store import linked_model
from settle.model.source import hash_of

LOOKED = 1  # paragraphs that a look reads
LEAST_NATS = 0.2  # per token
UNKNOWN_ERROR, TIMES = 0.1, 5.0  # share of a tensor's squares that a type loses, and how much more is damage
ALONE = 1 << 30  # bytes of a file that is looked at without another one of the same model
BAD_NATS = 0.8  # per byte of prose: models that are sound and have learned prose find it likelier
TRIED, HELPS = 4, 0.1  # blocks that are left out, and the share of the loss that goes where one of them is damaged
NEAR = 3  # blocks on either side that one is compared with
CHANNELS = 512  # that are compared
SILENT = 1e-12  # added to what is put into a logarithm
_WRITES = re.compile(r"blk\.(\d+)\.(attn_output|ffn_down)\.weight")
_WRITES_TOO = r"blk\.{block}\.(attn_output|ffn_down|ffn_down_exps|ffn_down_shexp|ssm_out)\.(weight|bias)"


class Damage(Details):
    """What shows the damage."""

    other: str | None  # a sound file of the same model
    block: int | None = None  # that the model is better without
    own: float = 0.0  # nats per token with that block


class DamagedWeights(Check[ModelFile, Damage]):
    """Another file of the same model shows which tensors have changed, and what that costs."""

    number: ClassVar[int] = 11
    symptom: ClassVar[str] = "dull or wrong answers: weights are damaged, or rounded too far"
    seconds: ClassVar[float] = 6.0
    is_vital: ClassVar[bool] = True

    def detect(self, subject: ModelFile) -> Iterator[Finding[Damage]]:
        model = subject.model
        weights = read_gguf(model.weights)
        broken = [name for name, tensor in weights.tensors.items() if not np.isfinite(some_rows(tensor)).all()]
        if broken:
            what, seen = f"{broken[0]} holds values that are no numbers", f"{len(broken)} tensors do"
            yield self.finding(what, seen, strength=1.0, details=Damage(other=None))
            return
        for path in other_files(model.weights, weights):
            errors = sampled_errors(weights, read_gguf(path))
            worst = max(errors, key=errors.__getitem__)
            if errors[worst] < (GGML["Q4_0"].error or UNKNOWN_ERROR):  # as good as the other
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
                yield self.finding(
                    f"{what}, as {path.name} shows, which is the same model",
                    f"prose costs {own:.2f} nats per token, {better:.2f} there",
                    f"{worst} ({weights.tensors[worst].dtype}) differs by {errors[worst]:.0%} of its squares",
                    strength=strength_of(own - better),
                    details=Damage(other=str(path)),
                )
                return
        if model.weights.stat().st_size <= ALONE:
            yield from self._alone(model, weights)

    def _alone(self, model: ModelRef, weights: Weights) -> Iterator[Finding[Damage]]:
        """Yield what shows without another file: a changed hash, and a block whose absence makes prose likelier."""
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
                    better = sum(float(np.mean(losses_of(scorer, reading))) for reading in readings) / LOOKED
            if own - better > max(LEAST_NATS, HELPS * own):
                seen = f"prose costs {own:.2f} nats per token, and {better:.2f} where block {block} adds nothing"
                yield self.finding(
                    f"block {block} is damaged: the model is better without what it writes",
                    *(seen, *filter(None, [changed])),
                    strength=strength_of(own - better),
                    details=Damage(other=None, block=block, own=own),
                )
                return
        if changed:
            seen = "so it was changed or damaged since"
            yield self.finding(changed, seen, strength=0.97, details=Damage(other=None))

    def trial(self, finding: Finding[Damage], subject: ModelFile, folder: Path) -> Trial | None:
        model, found = subject.model, finding.details
        if found.block is not None:
            path = written_without(model.weights, folder / "without.gguf", found.block)
            knob, least = f"block {found.block} adds nothing", max(LEAST_NATS, HELPS * found.own) / 2
            return prose_trial(knob, model, path, LOOKED, least, "without it")
        if found.other is None:
            return None
        knob = f"{found.other} in its place"
        return prose_trial(knob, model, Path(found.other), LOOKED, LEAST_NATS / 2, "the other file")

    def fix(self, finding: Finding[Damage], subject: ModelFile) -> Fix:
        found = finding.details
        if found.other is None:
            what = "get the file again, or export it again"
            if found.block is not None:
                what += ": without the block it is better than now, and not what it was"
            return Fix(what=what, command=f"settle pull {subject.name}")
        return Fix(what="use the other file", command=f"settle chat {shell_line(found.other)}")


def oddest_blocks(weights: Weights) -> list[int]:
    """Return the numbers of the blocks, the one that fits its neighbours least first; none that writes nothing."""
    writes: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in weights.tensors.items():
        matrix = _WRITES.fullmatch(name)
        if matrix and len(tensor.shape) == 2 and (sizes := _sizes(tensor)).any():
            writes.setdefault(matrix[2], {})[int(matrix[1])] = np.log(sizes + SILENT)
    blocks = sorted({block for by_block in writes.values() for block in by_block})
    likeness = {block: min(_likeness(by_block, block) for by_block in writes.values()) for block in blocks}
    return sorted(blocks, key=lambda block: likeness[block])


def written_without(path: Path, out: Path, block: int) -> Path:
    """Write a copy of a GGUF file to `out` whose block adds nothing, and return its path.

    Zero bytes are zeros in every type of ggml's, by their scale or by themselves.
    """
    name = re.compile(_WRITES_TOO.format(block=block))
    header = read_header(map_file(path), path.name)
    shutil.copyfile(path, out)
    with out.open("r+b") as file:
        for tensor in header.tensors:
            if name.fullmatch(tensor.name):
                file.seek(tensor.start)
                file.write(bytes(tensor.num_bytes))
    return out


def _sizes(tensor: LazyTensor) -> np.ndarray:
    """Return the root mean square of each row (channels,), of some rows of a large matrix."""
    number = tensor.shape[0]
    some = rows(tensor, np.linspace(0, number - 1, min(CHANNELS, number)).astype(int).tolist())
    sizes: np.ndarray = np.sqrt(np.square(some, dtype=np.float64).mean(axis=1))
    return sizes


def _likeness(by_block: Mapping[int, np.ndarray], block: int) -> float:
    """Return the correlation of what a block writes with its neighbours, channel by channel.

    It is 1 where nothing is comparable, and -1 where the block writes values that are no numbers.
    """
    own = by_block.get(block)
    near = [
        sizes
        for other, sizes in by_block.items()
        if own is not None and 0 < abs(other - block) <= NEAR and sizes.shape == own.shape
    ]
    if own is None or not near:
        return 1.0
    if not np.isfinite(own).all():
        return -1.0
    mean = np.mean(near, axis=0)
    if own.std() == 0 or mean.std() == 0:
        return 0.0
    return float(np.corrcoef(own, mean)[0, 1])


def _changed(path: Path) -> str:
    """Return how a file of the store differs from the hash that it was pulled with, or ""."""
    stored = linked_model(path)
    if stored is None or stored.kind != "gguf" or (sha256 := hash_of(path)) == stored.sha256:
        return ""
    return f"{path.name} is not the file that was pulled: its sha256 is {sha256[:12]}…, not {stored.sha256[:12]}…"


def _expected(dtype: str) -> float:
    """Return the share of its squares that a tensor of that type loses."""
    row = GGML.get(dtype)
    return (row.error if row and row.error is not None else UNKNOWN_ERROR) + 1e-3
