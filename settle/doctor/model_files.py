"""Files of a model: a copy with other metadata, which proves and fixes a failure, and other files of the same model."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from settle.base.errors import SettleError
from settle.doctor.checks import Check
from settle.doctor.findings import D, Finding, Fix, check_free
from settle.doctor.subject import ModelFile
from settle.formats import LazyTensor, Weights
from settle.formats.gguf import read_gguf, rows, write_edited
from settle.formats.gguf.metadata import TOKENS
from settle.library.reference import ModelRef
from settle.library.resolve import all_refs
from settle.model.source import Source

Changes = Mapping[str, str | float | bool | Sequence[str] | None]  # of metadata, by key; None leaves it out
MOST_FILES = 12  # of a folder, and of the store
SAMPLED = 8  # rows of a tensor
# Share of squares that matrices differ by: 1 bit a weight loses a quarter, half the steps of one recipe leave 1.2.
TRAINED_APART = 0.5


class MetadataCheck(Check[ModelFile, D]):
    """A failure in a file's metadata: proven and fixed by a copy of the file with other values."""

    def changes(self, finding: Finding[D], subject: ModelFile) -> Changes:
        """Return the metadata that fixes a finding."""
        raise NotImplementedError

    def fixed_file(self, finding: Finding[D], subject: ModelFile, folder: Path) -> Path:
        """Write a copy with the right metadata to the folder of a proof, and return its path. Raises SettleError."""
        return write_edited(subject.model.weights, folder / "fixed.gguf", self.changes(finding, subject))

    def fix(self, finding: Finding[D], subject: ModelFile) -> Fix:
        """Return the fix that writes such a copy into this folder; the model's own file is never written to."""
        weights, changes = subject.model.weights, self.changes(finding, subject)
        out = Path.cwd() / f"{weights.stem}-fixed.gguf"

        def write() -> str:
            check_free(out)
            write_edited(weights, out, changes)
            return f"wrote {out}, with {_changes_text(changes)}; the file that you have is as it was"

        return Fix(
            what=f"use a file with {_changes_text(changes)}",
            command=f"settle doctor {subject.name} --prove {self.number} --fix",
            write=write,
            mended=lambda: with_file(subject, out),
            undo=lambda: out.unlink(missing_ok=True),
        )


def with_file(subject: ModelFile, path: Path) -> ModelFile:
    """Return the subject with another file in place of its model's."""
    return ModelFile(str(path), ModelRef(path.stem, "model", Source(path, "gguf", path.stem)), running=subject.running)


def other_files(path: Path, weights: Weights) -> Iterator[Path]:
    """Yield files in the folder of `path` and among all models that hold the same one.

    They have the same shapes and tokens, and weights that are alike: those of two runs of one recipe are not.
    """
    stored = [ref.path for ref in all_refs() if ref.kind == "model" and ref.source.kind == "gguf"]
    seen = {path.resolve()}
    for other in [*sorted(path.parent.glob("*.gguf"))[:MOST_FILES], *stored[:MOST_FILES]]:
        if other.resolve() in seen or not other.is_file():
            continue
        seen.add(other.resolve())
        try:
            theirs = read_gguf(other)
        except (SettleError, OSError):
            continue
        has_same_form = (_shapes(theirs), theirs.metadata.get(TOKENS)) == (
            _shapes(weights),
            weights.metadata.get(TOKENS),
        )
        if has_same_form and _are_alike(weights, theirs):
            yield other


def _are_alike(weights: Weights, other: Weights) -> bool:
    """Return whether most matrices differ by less than those of models that were trained apart."""
    errors = sampled_errors(weights, other)
    matrices = [errors[name] for name, tensor in weights.tensors.items() if len(tensor.shape) == 2]
    return not matrices or median(matrices) < TRAINED_APART


def sampled_errors(weights: Weights, other: Weights) -> dict[str, float]:
    """Return by tensor the share of the other's squares that ours differ by, on some rows."""
    errors = {}
    for name, tensor in weights.tensors.items():
        ours, theirs = some_rows(tensor), some_rows(other.tensors[name])
        errors[name] = float(np.square(ours - theirs).sum() / max(np.square(theirs).sum(), 1e-30))
    return errors


def some_rows(tensor: LazyTensor) -> np.ndarray:
    """Return some rows of a matrix, spread over it; a vector whole."""
    if len(tensor.shape) != 2:
        return tensor.load() if len(tensor.shape) == 1 else np.zeros(0, np.float32)
    return rows(tensor, np.linspace(0, tensor.shape[0] - 1, min(SAMPLED, tensor.shape[0])).astype(int).tolist())


def _shapes(weights: Weights) -> Mapping[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in weights.tensors.items()}


def _changes_text(changes: Changes) -> str:
    return ", ".join(f"no {key}" if value is None else f"{key} = {_short(value)}" for key, value in changes.items())


def _short(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= 60 else text[:57] + "…"
