"""Adapters of experts as PEFT stores them for models whose experts are parameters: `target_parameters`.

It wraps a module once for each of its parameters, so that their tensors are those of the module, and of its
`base_layer`. Letters: E experts, n linears of an expert in one parameter, r rank of one of them, I inputs, O outputs.
"""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from settle.base.errors import FormatError

ORDER = ("gate_up_proj", "down_proj")  # of the parameters of a module: the last one is wrapped outermost
ONE = re.compile(rf"\.\d+(\.(?:{'|'.join(ORDER)}))$")  # number of an expert, in the name of `apart`


def wrappers(parameters: Collection[str]) -> dict[str, str]:
    """Map the names of a model's adapted parameters to the modules that PEFT makes of them."""
    found = {}
    for parameter in parameters:
        module, _, own = parameter.rpartition(".")
        outer = [other for other in ORDER[ORDER.index(own) + 1 :] if f"{module}.{other}" in parameters]
        found[parameter] = module + ".base_layer" * len(outer)
    return found


def stacked(downs: Sequence[Sequence[np.ndarray]], ups: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Join A (r, I) and B (O, r) of each expert's linears to the parameter's A (E·n·r, I) and B (n·O, n·r·E)."""
    of_experts = np.stack([block_diagonal(blocks) for blocks in ups])
    whole = of_experts.transpose(1, 2, 0)
    return [np.concatenate([down for linears in downs for down in linears]), whole.reshape(len(whole), -1)]


def apart(
    tensors: Mapping[str, np.ndarray], ranks: Mapping[str, int], prefix: str, endings: tuple[str, str]
) -> dict[str, np.ndarray]:
    """Invert `stacked`: return the tensors with a pair for each expert, `….experts.3.gate_up_proj`, of rank n · r.

    ranks: parameter → its rank n · r. endings: of the names of A and B. Raises FormatError for tensors that the rank
    does not divide.
    """
    state = dict(tensors)
    for parameter, module in wrappers(ranks).items():
        rank, own = ranks[parameter], parameter.rpartition(".")[2]
        pair = [state.pop(f"{prefix}{module}{ending}", None) for ending in endings]
        down, up = pair
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != len(down) or len(down) % rank:
            raise FormatError(f"the adapter's pair for {parameter} does not fit its rank {rank}", "save it again")
        container = parameter.removesuffix(f".{own}")
        of_experts = up.reshape(len(up), rank, -1).transpose(2, 0, 1)
        for expert, rows in enumerate(down.reshape(-1, rank, down.shape[1])):
            name = f"{prefix}{container}.{expert}.{own}"
            state |= {name + endings[0]: rows, name + endings[1]: np.ascontiguousarray(of_experts[expert])}
    return state


def block_diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Join B (O, r) of several linears, which read one A each, to one of all their outputs and ranks."""
    whole = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)), blocks[0].dtype)
    row = column = 0
    for block in blocks:
        whole[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return whole
