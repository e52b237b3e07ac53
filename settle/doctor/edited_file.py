"""A GGUF file with other metadata: what a proof runs beside the file as it is, and what a fix leaves."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from settle.base.errors import UsageError
from settle.doctor.findings import Fix
from settle.doctor.subject import Subject
from settle.formats.gguf.edit import write_edited
from settle.library.reference import ModelRef
from settle.model.source import Source


def edited_file(model: ModelRef, out: Path, changes: Mapping[str, object]) -> Path:
    """The file of `model` with `changes` of its metadata (None leaves a key out), written to `out`; one that a proof
    wrote before is written anew. Raises what `write_edited` raises."""
    return write_edited(model.weights, out, changes)


def with_file(subject: Subject, path: Path) -> Subject:
    """The same subject, with another file in place of its model's."""
    source = Source(path, "gguf", path.stem)
    return replace(subject, name=str(path), model=ModelRef(path.stem, "model", source))


def fix_of(subject: Subject, number: int, changes: Mapping[str, object]) -> Fix:
    """A file in this folder with the right metadata; the model's own is never written to. number: of the check."""
    assert subject.model is not None
    weights = subject.model.weights
    out = Path.cwd() / f"{weights.stem}-fixed.gguf"

    def write() -> str:
        if out.exists():
            raise UsageError(f"{out.name} is there already", "move it away, or use it")
        write_edited(weights, out, changes)
        return f"wrote {out}, with {_changes_text(changes)}; the file that you have is as it was"

    return Fix(
        what=f"use a file with {_changes_text(changes)}",
        command=f"settle doctor {subject.name} --prove {number} --fix",
        write=write,
        mended=lambda: with_file(subject, out),
        undo=lambda: out.unlink(missing_ok=True),
    )


def _changes_text(changes: Mapping[str, object]) -> str:
    return ", ".join(f"no {key}" if value is None else f"{key} = {_short(value)}" for key, value in changes.items())


def _short(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= 60 else text[:57] + "…"
