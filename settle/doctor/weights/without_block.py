"""A model without what one of its blocks writes: of a sound block that costs, of a damaged one it helps.

A block adds to what flows through a model. With the matrices that write there set to zero it adds nothing, and the rest
computes as before. Which block to leave out first is guessed: what the matrices of neighbouring blocks write is large
and small in the same channels, and damage seldom leaves it so.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from settle.formats import LazyTensor, Weights, map_file
from settle.formats.gguf import rows
from settle.formats.gguf.header import read_header

NEAR = 3  # blocks on either side that one is compared with
CHANNELS = 512  # that are compared
SILENT = 1e-12  # added to what is put into a logarithm
_WRITES = re.compile(r"blk\.(\d+)\.(attn_output|ffn_down)\.weight")
_WRITES_TOO = r"blk\.{block}\.(attn_output|ffn_down|ffn_down_exps|ffn_down_shexp|ssm_out)\.(weight|bias)"


def oddest_blocks(weights: Weights) -> list[int]:
    """The numbers of the blocks, the one that fits its neighbours least first; none that writes nothing."""
    writes: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in weights.tensors.items():
        matrix = _WRITES.fullmatch(name)
        if matrix and len(tensor.shape) == 2 and (sizes := _sizes(tensor)).any():
            writes.setdefault(matrix[2], {})[int(matrix[1])] = np.log(sizes + SILENT)
    blocks = sorted({block for by_block in writes.values() for block in by_block})
    likeness = {block: min(_likeness(by_block, block) for by_block in writes.values()) for block in blocks}
    return sorted(blocks, key=lambda block: likeness[block])


def written_without(path: Path, out: Path, block: int) -> Path:
    """A copy of a GGUF file, written to `out`, whose block adds nothing. Zero bytes are zeros in every type of ggml's,
    by their scale or by themselves."""
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
    """The root mean square of each row (channels,), of some rows of a large matrix."""
    number = tensor.shape[0]
    some = rows(tensor, np.linspace(0, number - 1, min(CHANNELS, number)).astype(int).tolist())
    sizes: np.ndarray = np.sqrt(np.square(some, dtype=np.float64).mean(axis=1))
    return sizes


def _likeness(by_block: Mapping[int, np.ndarray], block: int) -> float:
    """The correlation of what a block writes with its neighbours, channel by channel; 1 where nothing is comparable,
    -1 where it writes values that are no numbers."""
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
