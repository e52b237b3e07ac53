"""Many processes that train one model, through torch.distributed: sums over ranks, and what rank 0 decides."""

import contextlib
import datetime
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from settle.base.errors import RunError, SettleError
from settle.train.world import World

BEAT = 1.0  # seconds between two signs of life
LEAST_LIMIT, FIRST_LIMIT = 60.0, 600.0  # seconds that a rank waits for the others: at least, and before the first step
MANY_STEPS = 10.0  # times the longest step so far that the others are waited for
ANSWER = 3.0  # seconds that a rank has to show its stack


@dataclass(frozen=True)
class Sign:
    """What a rank says of itself.

    beats: signs so far. meeting: number of the last meeting of all ranks that it came to. what: it does there. joules:
    that it has used.
    """

    beats: int
    step: int
    meeting: int
    what: str
    joules: float


class Pulse:
    """The pulse of a rank: every second it reports that it lives and where it is, and ends what waits for a hung rank.

    A rank that another one waits for longer than `limit` is named with its step and its stack, and the waiting ranks
    end, so that torchrun starts all of them again. Before the first step, which may be the slowest, the limit is
    FIRST_LIMIT.

    report: called with a text when the ranks end because one hangs. settle_seconds: between the loss of a rank and the
    error about it, in which the system delivers what killed it.
    """

    settle_seconds = 0.5

    def __init__(
        self, store: Store, rank: int, size: int, report: Callable[[str], None], limit: float = LEAST_LIMIT
    ) -> None:
        self.store, self.rank, self.size, self.report, self.limit = store, rank, size, report, limit
        self.step, self._first, self._longest = 0, True, 0.0
        self._meeting, self._what, self._since, self._step_began = 0, "", 0.0, 0.0
        self._main = threading.main_thread().ident or 0
        self._over = threading.Event()
        self._beats = 0
        self._joules: Callable[[], float] = lambda: 0.0
        self._say()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):  # the store has gone
            self._say()

    def count(self, joules: Callable[[], float]) -> None:
        """Count what this rank uses, which it reports with every sign."""
        self._joules = joules

    def joules_elsewhere(self) -> float:
        """Joules of the other ranks, by their last signs."""
        keys = [f"sign/{rank}" for rank in range(self.size) if rank != self.rank]
        return sum(Sign(*json.loads(raw)).joules for raw in self.store.multi_get(keys))

    # --- what the main thread says ---

    def at_step(self, step: int) -> None:
        now = time.monotonic()
        if self._step_began:
            self._longest = max(self._longest, now - self._step_began)
            self._first = False
        self.step, self._step_began = step, now

    def restart(self) -> None:
        """Forget the steps until now, which were of another run: the next one may be slow again."""
        self.step, self._first, self._longest, self._step_began = 0, True, 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """All ranks meet here."""
        self._meeting, self._what, self._since = self._meeting + 1, what, time.monotonic()
        try:
            yield
        finally:
            self._what, self._since = "", 0.0

    def wait_for_leader(self, key: str) -> bytes:
        """`wait_for` rank 0."""
        return self.wait_for(0, key)

    def wait_for(self, rank: int, key: str) -> bytes:
        """Wait for what a rank leaves under `key`, however long. Raises RunError when it shows no sign of life."""
        pause, seen, heard = 0.001, -1, time.monotonic()
        while not self.store.check([key]):
            time.sleep(pause)
            pause = min(0.1, 2 * pause)
            if time.monotonic() - heard > 2 * BEAT:
                sign = self._sign(rank)
                if sign is not None and sign.beats != seen:
                    seen, heard = sign.beats, time.monotonic()
                elif time.monotonic() - heard > self.limit:
                    raise RunError(f"rank {rank} has shown no sign of life for {self.limit:.0f} s", "see its host")
        raw: bytes = self.store.get(key)
        return raw

    @property
    def patience(self) -> float:
        """Seconds that a rank waits for the others now."""
        return FIRST_LIMIT if self._first else max(self.limit, MANY_STEPS * self._longest)

    # --- its own thread ---

    def _run(self) -> None:
        try:
            while not self._over.wait(BEAT):
                self._say()
                if self.store.check([f"show/{self.rank}"]) and not self.store.check([f"stack/{self.rank}"]):
                    self.store.set(f"stack/{self.rank}", self._stack())
                since = self._since
                if since and time.monotonic() - since > self.patience:
                    self._end(time.monotonic() - since)
        except RuntimeError:
            return  # the store has gone, with whoever kept it: the main thread meets that too

    def _say(self) -> None:
        self._beats += 1
        self.store.set(
            f"sign/{self.rank}", json.dumps([self._beats, self.step, self._meeting, self._what, self._joules()])
        )

    def _sign(self, rank: int) -> Sign | None:
        key = f"sign/{rank}"
        return Sign(*json.loads(self.store.get(key))) if self.store.check([key]) else None

    def _stack(self) -> str:
        """Where the main thread is."""
        frame = sys._current_frames().get(self._main)
        return "".join(traceback.format_stack(frame)) if frame is not None else "no stack"

    def _end(self, waited: float) -> None:
        """Names the ranks that have not come, with their stacks, and ends this process."""
        self.store.set(f"stack/{self.rank}", self._stack())  # this thread answers nobody from now on
        before = {rank: self._sign(rank) for rank in range(self.size) if rank != self.rank}
        late = [rank for rank, sign in before.items() if sign is None or sign.meeting < self._meeting]
        has_met, late = not late, late or list(before)  # within a sharded step every rank may wait for every other
        for rank in late:
            self.store.set(f"show/{rank}", "1")
        time.sleep(ANSWER)
        lines = [f"rank {self.rank} waited {waited:.0f} s in step {self.step:,} ({self._what})"]
        for rank in late:
            sign, key = self._sign(rank), f"stack/{rank}"
            step = "before its first step" if sign is None else f"in step {sign.step:,}"
            if self.store.check([key]):
                lines.append(
                    f"rank {rank} {'is' if has_met else 'hangs'} {step}, here:\n{self.store.get(key).decode()}"
                )
            else:
                lines.append(f"rank {rank} hangs {step} and does not answer: it is stopped, or cut off")
        if has_met:
            lines.append("every rank came: one of them hangs there, or the network between them does not deliver")
        is_first = has_met or self.rank == min({*before, self.rank} - set(late), default=self.rank)
        self.report("\n".join(lines) if is_first else "")
        os._exit(1)


T = TypeVar("T")

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
COLLECTIVE_LIMIT = datetime.timedelta(days=1)  # the pulse ends a rank that waits long before that


class ProcessGroup(World):
    """The ranks of one job.

    store: what they leave messages for each other in; device: "cpu" or "cuda". host_size: ranks of a host, all of them
    if not given.
    """

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
        """Part from the other ranks."""
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
    """Return what rank 0 returned, or raise what it raised."""
    result = json.loads(raw)
    if "error" in result:
        raise RunError(*result["error"])
    return result["value"]
