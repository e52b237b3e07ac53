"""A model whose weights, gradients and optimizer state are shared out among the ranks by rows (FSDP2, PyTorch's own).

Each rank owns the same number of rows of every tensor, the last ranks fewer; or each rank of a host, and every host has
all of them (HSDP). A layer's weights are whole at a rank for
as long as it computes with them; its gradient is summed over the ranks and each keeps its rows.
Letters: n matrices (O, I), W ranks, R = ⌈O / W⌉ rows of a rank, m matrices that a rank steps.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from settle.base.errors import FULL_DISK, CheckpointError, RunError, SettleError
from settle.base.event_log import Events
from settle.base.events import CheckpointSaved, Say
from settle.model.decoder import Decoder
from settle.model.layers.freezable import FreezableModule
from settle.model.layers.linear import keep_casts
from settle.train import checkpoint as checkpoints
from settle.train.checkpoint import Checkpoint, CheckpointStore, Manifest
from settle.train.world import World
from settle.train.world.row_share import rows_of_rank

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(model: Decoder, world: World, offloads: bool = False) -> None:
    """Keep this rank's rows of every weight of a model that is the same at all ranks, and give up the others.

    In a half type the ranks send each other weights in it, and sum gradients in float32. offloads: the rows, their
    gradients and the optimizer's state lie in the host's memory.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

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
    for module in _shared_out(model):
        module.set_gradient_divide_factor(1.0)  # a loss is divided by the count over all ranks already
        module.set_force_sum_reduction_for_comms(True)
    keep_casts(model, False)
    model.is_sharded, model.computes_on = True, device


def _shared_out(model: nn.Module) -> "list[FSDPModule]":
    return [cast("FSDPModule", module) for module in model.modules() if hasattr(module, "unshard")]


def rest(model: FreezableModule) -> None:
    """After a forward pass without a backward pass: no weight is whole any more."""
    if model.is_sharded:
        cast("FSDPModule", model).reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this rank owns only some of the tensor's rows."""
    return hasattr(tensor, "_local_tensor")


def num_shards(parameter: nn.Parameter) -> int:
    """Ranks that hold the rows of a shared-out parameter."""
    mesh = parameter.device_mesh  # type: ignore[attr-defined]  # it is a DTensor
    size: int = mesh.size(mesh.ndim - 1)
    return size


def local_part(tensor: Tensor) -> Tensor:
    """Return the rows of a tensor that this rank owns, sharing its memory; all of one that is not sharded."""
    own: Tensor | None = getattr(tensor, "_local_tensor", None)
    return tensor if own is None else own


def gather(world: World, parts: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the whole tensors at rank 0, of which `parts` are this rank's rows; at the others nothing.

    like: tensors of the whole shapes.
    """
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
    modules = _shared_out(model)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(module is not cast("FSDPModule", model), recurse=False)
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


class _Written(NamedTuple):
    """What came of a rank's part of a checkpoint: an error's number and words, bytes that it needs, and its files."""

    error: int | None = 0
    words: str = ""
    need: int = 0
    files: Manifest = {}


class ShardStore(CheckpointStore):
    """Safetensors in a folder that every rank sees and writes its rows to. It reads what a `CheckpointStore` wrote."""

    def __init__(self, folder: Path, every: int, events: Events, world: World) -> None:
        super().__init__(folder, every, events, world)
        self._writing: _Writing | None = None

    def save(self, checkpoint: Checkpoint, stopping: Callable[[], bool], wait: bool) -> bool:
        if not self.flush():
            wait = True  # the one before found the disk full
        if not wait:
            self._begin(checkpoint)
            self._writing = _Writing(self._write, _copied(checkpoint) if self.world.shards.copy == 0 else checkpoint)
            return True
        has_warned = False
        self._begin(checkpoint)
        while need := self._write(checkpoint):
            until_room = partial(checkpoints.wait_for_room, self.folder, need, self.events, stopping, has_warned)
            if not self.world.lead(until_room):
                return False
            has_warned = True
            self._begin(checkpoint)
        if has_warned:
            self.events.emit(Say(text="there is room again: the run continues"))
        self.events.emit(CheckpointSaved(step=checkpoint.step))
        return True

    def flush(self) -> bool:
        writing, self._writing = self._writing, None
        if writing is None:
            return True
        if writing.result():
            return False
        self.events.emit(CheckpointSaved(step=writing.step))
        return True

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        self.flush()
        return super().newest(at_most)

    def drop_after(self, step: int) -> None:
        self.flush()
        super().drop_after(step)

    def _begin(self, checkpoint: Checkpoint) -> None:
        self.world.lead(partial(checkpoints.begin, self.folder, checkpoint.step))

    def _write(self, checkpoint: Checkpoint) -> int:
        """Write it on all ranks: 0, or how many bytes it needs where a disk is full. Raises CheckpointError."""
        shards = self.world.shards
        need = checkpoint.num_bytes if shards.copy == 0 else 0

        def write() -> _Written:
            try:
                files = checkpoints.write(self.folder, checkpoint, shards.rank) if shards.copy == 0 else {}
            except OSError as e:
                return _Written(e.errno, str(e.strerror), need)
            return _Written(need=need, files=files)

        def finish() -> _Written:
            """Rank 0 gives it its name."""
            try:
                if self.world.rank == 0:
                    files = {name: entry for part in made for name, entry in part.files.items()}
                    checkpoints.finish(self.folder, checkpoint, files, self.every)
            except OSError as e:
                return _Written(e.errno, str(e.strerror))
            return _Written()

        made = [_Written(*each) for each in self.world.each(write)]
        bad = next((part for part in made if part.error), None) or _Written(*self.world.each(finish)[0])
        if bad.error and self.world.rank == 0:
            checkpoints.recover(self.folder)  # what was written of it takes room
        if bad.error in FULL_DISK:
            return max(1, sum(part.need for part in made))
        if bad.error:
            raise CheckpointError(
                f"cannot write a checkpoint to {self.folder}: {bad.words}", "check the disk and its permissions"
            )
        return 0

    @property
    def share(self) -> tuple[int, int]:
        return self.world.shards.rank, self.world.shards.size


class _Writing:
    """A checkpoint that is being written in a thread of its own."""

    def __init__(self, write: Callable[[Checkpoint], int], checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        self._missing, self._error = 0, list[SettleError]()

        def work() -> None:
            try:
                self._missing = write(checkpoint)
            except (CheckpointError, RunError) as e:
                self._error = [e]
            except RuntimeError as e:  # of the store in which the ranks leave word
                self._error = [RunError(f"the ranks lost each other while they saved step {checkpoint.step:,}: {e}")]

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def result(self) -> int:
        """Bytes that were missing, once it is over. Raises CheckpointError, RunError."""
        self._thread.join()
        for error in self._error:
            raise error
        return self._missing


def _copied(checkpoint: Checkpoint) -> Checkpoint:
    """With tensors of its own, which the training does not change. The best weights are nobody else's already."""
    return replace(checkpoint, model=_clones(checkpoint.model), optimizer=_clones(checkpoint.optimizer))


def _clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
