"""The gate of a file with smaller types: everything but the rounding is proven.

The model that the file is held against is the source's architecture, tokenizer and template with the *file's own*
weights as numbers, so llama.cpp must compute the same to within the rounding of its activations; and each tensor must
be the source's to within what its type may round. What the rounding costs is measured, see `divergence.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from settle.base.errors import FormatError, GateError
from settle.evaluate.gate.behaviour import BRIEF, Effort, Figures
from settle.evaluate.gate.diagnose import Origin
from settle.evaluate.gate.export import unproven_place
from settle.evaluate.gate.gate import SAME_BLOCKS, Reference, require, run_gate
from settle.formats.gguf.types import GGML, is_float
from settle.machine import memory
from settle.model.pretrained import Pretrained


def shrunk_through_gate(
    source: Pretrained,
    path: Path,
    write: Callable[[Path], object],
    held_out_texts: Sequence[str],
    effort: Effort = BRIEF,
) -> Figures:
    """Have `write` make a GGUF file, which becomes `path` only if it passes; the gate's figures.

    source: what the file was made from: its architecture, tokenizer and weights. Raises GateError, and then nothing
    lies at `path` that was not there before.
    """
    with unproven_place(path) as unproven:
        write(unproven)
        figures = shrunk_gate(source, unproven, held_out_texts, effort)
        fix = "nothing was written; this is worth a bug report"
        require(figures, path, f"{source.name} with its weights", fix)
    return figures


def shrunk_gate(
    source: Pretrained,
    path: Path,
    held_out_texts: Sequence[str],
    effort: Effort = BRIEF,
) -> Figures:
    """Return the figures of `run_gate` for a file that was made from `source`.

    Raises GateError for a file with other tensors than the source has, FormatError for one that is not sound.
    """
    file = Pretrained.open(path)
    if file.part.parameters() != source.part.parameters():
        raise GateError(
            f"{path.name} has other tensors than {source.name}", "nothing was written; this is worth a bug report"
        )
    _require_header(source, file, path.name)
    # the source's architecture, so that a header that says something else shows
    there = replace(file, part=source.part)
    # turning blocks into numbers once is quicker than at every use, where there is room for the numbers
    live = there.load(quantize=None if 4 * source.part.num_parameters < memory().available // 2 else "as-is")
    origin = Origin(source.part, source.weights, foreign=source.source.kind == "gguf", is_own=False)
    dtype = bars_of(file)
    return run_gate(Reference(live, source.tokenizer, held_out_texts), path, dtype, effort, origin=origin)


def _require_header(source: Pretrained, file: Pretrained, name: str) -> None:
    """Check that the metadata match the source file, except file-specific keys."""
    if source.source.kind != "gguf":
        return
    for key, value in source.metadata.items():
        if not key.startswith("general.") and file.metadata.get(key) != value:
            raise GateError(f"{name} does not say the same as {source.name} in {key}", "this is worth a bug report")


def bars_of(file: Pretrained) -> str:
    """Return the type whose bars a file is held to.

    The coarsest float, or `SAME_BLOCKS` as soon as a matrix is quantized. Raises FormatError when it has no matrix at
    all.
    """
    kinds = {stored.tensor.dtype for stored in file.stored.values() if len(stored.shape) > 1}
    if not kinds:
        raise FormatError(f"{file.name} holds no matrix", "it is not a whole model")
    if not all(map(is_float, kinds)):
        return SAME_BLOCKS
    return max(kinds, key=list(GGML).index).lower()
