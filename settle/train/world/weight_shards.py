"""A model whose weights, gradients and optimizer state are shared out among the ranks by rows (FSDP2, PyTorch's own).

Each rank owns the same number of rows of every tensor, the last ranks fewer; or each rank of a host, and every host has
all of them (HSDP). A layer's weights are whole at a rank for
as long as it computes with them; its gradient is summed over the ranks and each keeps its rows.
Letters: n matrices (O, I), W ranks, R = ⌈O / W⌉ rows of a rank, m matrices that a rank steps.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from settle.model.decoder import Decoder
from settle.model.layers.freezable import FreezableModule
from settle.model.layers.linear import keep_casts
from settle.train.world import World
from settle.train.world.row_share import rows_of_rank


def shard(model: Decoder, world: World, offloads: bool = False) -> None:
    """Keep this rank's rows of every weight of a model that is the same at all ranks, and give up the others.

    In a half type the ranks send each other weights in it, and sum gradients in float32. offloads: the rows, their
    gradients and the optimizer's state lie in the host's memory.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    device, shards = model.device, world.shards
    if shards.copies > 1:  # rows are fetched within a group; gradients are then summed over the groups
        mesh = init_device_mesh(device.type, (shards.copies, shards.size), mesh_dim_names=("copies", "rows"))
    else:
        mesh = init_device_mesh(device.type, (shards.size,))
    half = None if model.compute_dtype == torch.float32 else model.compute_dtype
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    place = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offloads else OffloadPolicy()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=place)
    # the loss reads the output table
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=place, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a loss is divided by the count over all ranks already
            module.set_force_sum_reduction_for_comms(True)
    keep_casts(model, False)
    model.is_sharded, model.computes_on = True, device


def rest(model: FreezableModule) -> None:
    """After a forward pass without a backward pass: no weight is whole any more."""
    if model.is_sharded:
        cast("_Sharded", model).reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank owns only some of its rows."""
    return hasattr(tensor, "_local_tensor")


def num_shards(parameter: nn.Parameter) -> int:
    """Ranks that hold the rows of a shared-out parameter."""
    mesh = parameter.device_mesh  # type: ignore[attr-defined]  # it is a DTensor
    size: int = mesh.size(mesh.ndim - 1)
    return size


def local_part(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this rank owns, sharing its memory; all of one that is not shared out."""
    own: Tensor | None = getattr(tensor, "_local_tensor", None)
    return tensor if own is None else own


def gather(world: World, parts: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """At rank 0 the whole tensors, of which `parts` are this rank's rows; at the others nothing. like: tensors of the
    whole shapes."""
    whole: dict[str, Tensor] = {}
    for name, part in parts.items():
        rows = torch.zeros(like[name].shape, dtype=part.dtype, device=like[name].device)
        if world.shards.copy == 0:
            start, stop = rows_of_rank(len(rows), world.shards.rank, world.shards.size)
            rows[start:stop] = part
        world.sum([rows])
        if world.rank == 0:
            whole[name] = rows.cpu()
    return whole


@contextlib.contextmanager
def whole(model: FreezableModule) -> Iterator[None]:
    """Every weight is whole at every rank for as long as it lasts, so that one of them can use the model alone."""
    if not model.is_sharded:
        yield
        return
    modules = [cast("_Sharded", module) for module in model.modules() if hasattr(module, "set_reshard_after_forward")]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(module is not cast("_Sharded", model), recurse=False)
            module.reshard()


def on_whole(parts: Tensor, rows: int, parameter: nn.Parameter, work: Callable[[Tensor], Tensor]) -> Tensor:
    """`work` on matrices (n, O, I) of which each rank has its rows, (n, ≤R, I); the result's rows, likewise.

    Each matrix goes to one rank, round robin, which works on its m of them and sends the rows back. parameter: one that
    is shared out among the same ranks; rows: O.
    """
    import torch.distributed as dist

    mesh = parameter.device_mesh  # type: ignore[attr-defined]  # it is a DTensor
    group = mesh.get_group(mesh.ndim - 1)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    number, own, width = parts.shape
    share = math.ceil(rows / size)
    turn = [n for owner in range(size) for n in range(owner, number, size)]
    sent = [len(range(owner, number, size)) * share * width for owner in range(size)]
    mine = len(range(rank, number, size))
    padded = parts.new_zeros(number, share, width)
    padded[:, :own] = parts[turn]
    received = parts.new_empty(size * mine * share * width)
    dist.all_to_all_single(received, padded.view(-1), [mine * share * width] * size, sent, group=group)
    matrices = received.view(size, mine, share, width).transpose(0, 1).reshape(mine, size * share, width)
    result = matrices.new_zeros(mine, size * share, width)
    if mine:
        result[:, :rows] = work(matrices[:, :rows])
    back = result.view(mine, size, share, width).transpose(0, 1).contiguous()
    dist.all_to_all_single(padded.view(-1), back.view(-1), sent, [mine * share * width] * size, group=group)
    out = torch.empty_like(parts)
    out[turn] = padded[:, :own]
    return out


class _Sharded(nn.Module):
    """What FSDP2 adds to a module, as this file uses it."""

    def reshard(self) -> None: ...

    def unshard(self) -> None: ...

    def set_reshard_after_forward(self, reshard_after_forward: bool, recurse: bool) -> None: ...
