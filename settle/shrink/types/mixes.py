"""Which type each tensor of a model gets in llama.cpp's mixed file types, as llama.cpp itself answers.

A mix gives more bits to the tensors that hurt most: values of attention, down projections, the table of
tokens. Its rules are code inside llama.cpp's quantizer and change with it. So the quantizer is asked: it is given a
miniature of the file, with the same metadata and names and at most two rows of at most 256 values in each tensor, and
the types of what it writes are read back. No rule depends on more than that; a test compares with whole files.

A row must be a whole number of blocks. K-quants have blocks of 256: where a row is no multiple, the tensor falls back
to a type with blocks of 32, which is larger.
"""

import json
import math
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from settle.base.errors import FormatError, UsageError
from settle.base.python_command import script_command
from settle.formats import Weights
from settle.formats.gguf.header import read_header
from settle.formats.gguf.layout import Entry, layout
from settle.formats.gguf.types import GGML, block_of, ggml_type

# The name of each mix → its number in llama.cpp (`llama_ftype`), which files carry as general.file_type.
MIXES = {name: number for row in GGML.values() for name, number in row.mixes.items()}
QUANTIZED_MIXES = tuple(name for row in GGML.values() if row.quantized for name in row.mixes)
_MINIATURE_ROWS, _MINIATURE_ROW = 2, 256
_QUANTIZER_SECONDS = 300  # for all mixes of one file; it takes about one


@dataclass(frozen=True)
class TypeChoice:
    """The type of one tensor. wanted: what the mix gives it where rows fit, another one where they do not."""

    kind: str
    wanted: str
    num_bytes: int

    @property
    def fell_back(self) -> bool:
        return self.kind != self.wanted


@dataclass(frozen=True)
class _Answer:
    """What llama.cpp makes of a mix."""

    kinds: Mapping[str, str | None]  # tensor → type, None where it stays as it is
    refusal: str = ""  # why it refuses


def mix_types(file: Weights, mix: str, has_importance: bool = False) -> dict[str, TypeChoice]:
    """Return the type of every tensor of a GGUF file, in the order that llama.cpp writes them.

    has_importance: whether an importance will be given; some mixes spend their bits differently then. Raises UsageError
    for an unknown mix, FormatError for a file that llama.cpp refuses.
    """
    if mix not in MIXES:
        raise UsageError(f"there is no mix {mix!r}", f"choose one of: {', '.join(MIXES)}")
    answer = _answers(_miniature(file), has_importance)[mix]
    fitting: Mapping[str, str | None] = {}
    if any(tensor.shape[-1] % _MINIATURE_ROW for tensor in file.tensors.values()):
        fitting = _answers(_miniature(file, fitting_rows=True), has_importance)[mix].kinds
    if answer.refusal:
        why = f"llama.cpp cannot quantize this model to {mix}: {answer.refusal}"
        raise FormatError(why, "choose another type, or a size")
    choices = {}
    for name, kind in answer.kinds.items():
        tensor = file.tensors[name]
        kind = kind or tensor.dtype
        wanted = fitting.get(name) or kind
        size = tensor.num_bytes if kind == tensor.dtype else ggml_type(kind).num_bytes(tensor.shape)
        choices[name] = TypeChoice(kind, wanted, size)
    return choices


def quantizable(file: Weights) -> frozenset[str]:
    """Return the names of the tensors that llama.cpp quantizes.

    Matrices of weights, but for those that are tiny or that a small error ruins (norms, routers, positions). Raises
    FormatError for a file that llama.cpp refuses.
    """
    answer = _answers(_miniature(file), False)["F16"]
    if answer.refusal:
        raise FormatError(f"llama.cpp cannot quantize this model: {answer.refusal}", "update settle's extra `shrink`")
    return frozenset(name for name, kind in answer.kinds.items() if kind)


def _miniature(file: Weights, fitting_rows: bool = False) -> bytes:
    """Make a GGUF file with the metadata and the tensor names of `file`, small and all zeros, in F32.

    fitting_rows: with rows that every block divides, instead of the same remainder as the file's.
    """
    entries = []
    for tensor in file.tensors.values():
        *outer, row = tensor.shape
        row = _MINIATURE_ROW if fitting_rows else row % _MINIATURE_ROW or _MINIATURE_ROW
        shape = (*(min(size, _MINIATURE_ROWS) for size in outer), row)
        entries.append(Entry(tensor.name, shape, "F32", 4 * math.prod(shape)))
    unread = [key for key in file.metadata if key.startswith(("tokenizer.", "split.", "general.alignment"))]
    planned = layout(Weights({}, {}, {k: p for k, p in file.places.items() if k not in unread}), entries, {})
    return planned.header.ljust(planned.total, b"\0")


@lru_cache(maxsize=16)
def _answers(miniature: bytes, has_importance: bool) -> dict[str, _Answer]:
    answers: dict[str, _Answer] = {}
    with tempfile.TemporaryDirectory(prefix="settle-mixes-") as folder:
        source = Path(folder) / "miniature.gguf"
        source.write_bytes(miniature)
        targets = {mix: Path(folder) / f"{mix}.gguf" for mix in MIXES if mix != "F32"}
        errors = _quantized(source, {str(target): MIXES[mix] for mix, target in targets.items()}, has_importance)
        for mix, target in targets.items():
            if error := errors.get(str(target)):
                answers[mix] = _Answer({}, error)
                continue
            tensors = read_header(target.read_bytes(), target.name).tensors
            blocks = {tensor.name: block_of(tensor.dtype) for tensor in tensors}
            # the miniature's own type is F32
            answers[mix] = _Answer({n: b[0] if b and b[0] != "F32" else None for n, b in blocks.items()})
    whole = answers["F16"]
    answers["F32"] = _Answer({name: kind and "F32" for name, kind in whole.kinds.items()}, whole.refusal)
    return answers


def _quantized(source: Path, targets: Mapping[str, int], has_importance: bool) -> dict[str, str]:
    """Have llama.cpp quantize a file in a process of its own, which may crash; returns target → what it complains of.

    targets: path → number of the mix.
    """
    job = json.dumps({"source": str(source), "targets": targets, "has_importance": has_importance})
    command = script_command(Path(__file__).with_name("mix_child.py"))
    try:
        done = subprocess.run(
            command, input=job, capture_output=True, encoding="utf-8", timeout=_QUANTIZER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(targets, "it did not answer in time")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
        return dict.fromkeys(targets, lines[-1])
    errors: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return errors
