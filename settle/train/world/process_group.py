"""Many processes that train one model, through torch.distributed: sums over ranks, and what rank 0 decides."""

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from settle.base.errors import RunError, SettleError
from settle.train.world import World
from settle.train.world.pulse import Pulse

T = TypeVar("T")

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
COLLECTIVE_LIMIT = datetime.timedelta(days=1)  # the pulse ends a rank that waits long before that


class ProcessGroup(World):
    """The ranks of one job. store: what they leave word for each other in; device: "cpu" or "cuda". host_size: ranks of
    a host, all of them if not given."""

    def __init__(
        self, store: Store, rank: int, size: int, device: str, pulse: Pulse, host_size: int | None = None
    ) -> None:
        self.rank, self.size, self.store, self.pulse = rank, size, store, pulse
        self.host_size = host_size or size
        self._led = self._collected = 0
        dist.init_process_group(
            BACKENDS[device],
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_LIMIT,
        )

    def close(self) -> None:
        """The ranks part."""
        with contextlib.suppress(RuntimeError):  # another one has gone already
            dist.destroy_process_group()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        with self.together("sum"):
            for tensor in tensors:
                dist.all_reduce(tensor)

    def copy(self, tensors: Sequence[Tensor]) -> None:
        with self.together("copy"), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, number: float) -> float:
        value = torch.tensor([number], dtype=torch.float64)
        with self.together("agree"):
            dist.broadcast(value, 0)
        return float(value)

    def any(self, flag: bool) -> bool:
        value = torch.tensor([flag], dtype=torch.float64)
        self.sum([value])
        return bool(value > 0)

    def lead(self, work: Callable[[], T]) -> T:
        self._led += 1
        key = f"led/{self._led}"
        if self.rank:
            made: T = _read(self.pulse.wait_for(0, key))  # type: ignore[assignment]  # what rank 0 returned
            return made
        try:
            value = work()
        except SettleError as e:
            self.store.set(key, json.dumps({"error": [e.what, e.fix]}))
            raise
        self.store.set(key, json.dumps({"value": value}))
        return value

    def each(self, work: Callable[[], T]) -> list[T]:
        self._collected += 1
        key = f"each/{self._collected}"
        self.store.set(f"{key}/{self.rank}", json.dumps({"value": work()}))
        made: list[T] = [_read(self.pulse.wait_for(rank, f"{key}/{rank}")) for rank in range(self.size)]  # type: ignore[misc]
        return made

    def at_step(self, step: int) -> None:
        self.pulse.at_step(step)

    def spending(self, own: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
        self.pulse.count(lambda: own().get("joules", 0.0))
        if self.rank:
            return own

        def of_all() -> dict[str, float]:
            used = own()
            return used | {"joules": used["joules"] + self.pulse.joules_elsewhere()} if "joules" in used else used

        return of_all

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Around what every rank has to come to. Raises RunError when one is lost."""
        try:
            with self.pulse.waiting(what):
                yield
        except RuntimeError as e:
            time.sleep(self.pulse.settle_seconds)  # whoever began to fall has said so by then
            raise RunError(
                f"rank {self.rank} lost the others at step {self.pulse.step:,}: {str(e).splitlines()[0][:200]}",
                "torchrun --max-restarts 10 starts the ranks again from the last checkpoint",
            ) from None


def _read(raw: bytes) -> object:
    """What rank 0 returned or raised."""
    result = json.loads(raw)
    if "error" in result:
        raise RunError(*result["error"])
    return result["value"]
