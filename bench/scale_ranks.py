"""Ranks for bench/scale.py: forked processes, each with the loop of a run, perhaps in network namespaces."""

import contextlib
import ctypes
import multiprocessing
import os
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed.fsdp  # noqa: F401  # before ranks are forked
from torch.distributed import FileStore

from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.run.launcher import launched
from settle.data.prepare import prepared
from settle.jobs.ranks.crew import gather, joined
from settle.machine import resident
from settle.train.live_run import LiveRun
from settle.train.loop import Loop
from settle.train.training_plan import TrainingPlan

HOSTS = ("settle-a", "settle-b")  # network namespaces
PATIENCE = 600.0  # seconds after which ranks count as hung


@dataclass
class Ranks:
    """Processes that train one run to a step. hear: called in each of them before the loop begins."""

    run: Run
    size: int
    until: int
    threads: int = 1
    hosts: Sequence[str] = ()
    hear: Callable[[Loop, int], None] = lambda loop, rank: None
    processes: list[multiprocessing.process.BaseProcess] = field(default_factory=list)

    def start(self) -> "Ranks":
        store = self.run.path / f"store-{time.monotonic_ns()}"
        fork = multiprocessing.get_context("fork")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.processes = [fork.Process(target=self._rank, args=(rank, store)) for rank in range(self.size)]
            for process in self.processes:
                process.start()
        return self

    def wait(self) -> list[int | None]:
        """Return the exit codes. What still runs once one rank has failed is ended, as torchrun does."""
        until = time.monotonic() + PATIENCE
        while any(p.is_alive() for p in self.processes) and time.monotonic() < until:
            if any(p.exitcode for p in self.processes):
                until = min(until, time.monotonic() + 5)
            time.sleep(0.01)
        for process in self.processes:
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]

    def _rank(self, rank: int, store: Path) -> None:
        local = 1 if self.hosts else self.size
        values = {"RANK": rank, "WORLD_SIZE": self.size, "LOCAL_RANK": 0 if self.hosts else rank, "MASTER_PORT": 1,
                  "LOCAL_WORLD_SIZE": local, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": self.threads}  # fmt: skip
        os.environ.update({name: str(value) for name, value in values.items()})
        if self.hosts:
            host = self.hosts[rank % len(self.hosts)]
            with open(f"/var/run/netns/{host}") as f:
                if ctypes.CDLL(None, use_errno=True).setns(f.fileno(), 0x40000000):
                    os._exit(9)
            os.environ["GLOO_SOCKET_IFNAME"] = f"v-{host}"
        launched.cache_clear()
        with (self.run.path / f"log-{rank}.txt").open("a") as log:
            os.dup2(log.fileno(), 2)
        try:
            self._train(rank, store)
        except BaseException as e:  # noqa: BLE001  # the exit code is what counts, and the log
            os.write(2, f"{type(e).__name__}: {e}\n".encode())
            os._exit(1)
        os._exit(0)

    def _train(self, rank: int, store: Path) -> None:
        """Run the loop of `settle.jobs.ranks.prove_scale`."""
        launch, record = launched(), self.run.read("plan.json")
        corpus = prepared(str(record["corpus"]))
        with contextlib.ExitStack() as closing:
            if self.size > 1:
                crew = closing.enter_context(joined(launch, {}, Events(), FileStore(str(store), self.size)))
                if rank:
                    crew.wait_for_run()
            before = resident()
            live = LiveRun.build(TrainingPlan.from_json(record), corpus)
            live.join(gather(live, self.run))
            events = Events(self.run.events if rank == 0 else None)
            loop = live.loop(self.run, events, lambda: loop.state.step >= self.until)
            loop.before = before
            self.hear(loop, rank)
            loop.train()


@contextlib.contextmanager
def namespaces() -> Iterator[Sequence[str]]:
    """Two network namespaces that are joined by a wire, as two hosts are."""
    first, second = HOSTS
    commands = [f"ip netns add {host}" for host in HOSTS] + [f"ip link add v-{first} type veth peer name v-{second}"]
    for number, host in enumerate(HOSTS, 1):
        commands += [f"ip link set v-{host} netns {host}", f"ip -n {host} addr add 10.77.0.{number}/24 dev v-{host}",
                     f"ip -n {host} link set lo up", f"ip -n {host} link set v-{host} up"]  # fmt: skip
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield HOSTS
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], check=False, capture_output=True)
