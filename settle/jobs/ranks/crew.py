"""The ranks of one run: how they find each other, whether they are alike, and where they meet."""

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from settle.base.errors import ResourceError, RunError, SettleError
from settle.base.event_log import Events
from settle.base.events import Say
from settle.base.run import Run
from settle.base.run.launcher import Launch
from settle.data.prepare import prepared
from settle.data.rows.prepare import RowCorpus, prepared_rows
from settle.train.live_run import LiveRun
from settle.train.training_plan import TrainingPlan
from settle.train.world import World, single
from settle.train.world.process_group import ProcessGroup, Pulse
from settle.train.world.rank_costs import ONE, RankCosts, Ranks, rehearse

SEEN_SECONDS = 30.0  # in which a file that one host wrote has to be seen by the others
REHEARSAL = ".work-ranks"  # in a run's folder, for as long as the steps before the run last
SHARE = "set SETTLE_HOME to a folder that all hosts share"
JOIN_SECONDS = 300.0  # that the ranks wait for each other at the start
SAY_SECONDS = 10.0  # after which rank 0 says that it waits
PACKAGES = ("torch", "numpy")
SAMPLED = 1 << 20  # tokens of the data that are compared, evenly spread
NAMES = {
    "code": "settle's code", "recipe": "what was asked", "plan": "plan.json", "data": "the tokens",
    "model": "the model", "python": "Python", "of_host": "the number of ranks on the host",
}  # fmt: skip
LOOPBACK = {"Linux": "lo", "Darwin": "lo0"}


@dataclass
class Crew(Ranks):
    """What a rank knows of the others.

    path: of the run, once it is known here. place: of the run at rank 0, which knows it earlier.
    """

    launch: Launch
    store: Store
    pulse: Pulse
    events: Events
    asked: dict[str, object]
    path: Path | None = None
    place: Path | None = None
    group: ProcessGroup | None = field(default=None)
    orders: int = 0  # of rank 0 so far

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def size(self) -> int:
        return self.launch.size

    @property
    def hosts(self) -> int:
        return self.launch.hosts

    def wait_for_run(self) -> Run | None:
        """Return the run that rank 0 works on, when its loop is about to begin; None when it ended before.

        Until then this rank does what the forecast of rank 0 has measured.
        """
        while True:
            self.orders += 1
            order = json.loads(self.pulse.wait_for_leader(f"order/{self.orders}"))
            if "run" in order:
                break
            self._take_part(order)
        place = order["run"]
        if place is None:
            return None
        self.path = Path(place["path"])
        _see(self.path / "ranks" / str(place["token"]))
        return Run(self.path)

    def refuse(self, error: SettleError) -> None:
        """Report that this rank cannot take part, or not any longer."""
        self.fault(str(error))
        self.store.set(f"setup/{self.orders}/{self.rank}", json.dumps({"error": [error.what, error.fix]}))

    def gather(self, live: LiveRun, run: Run) -> World:
        """All ranks are here, and alike: from now on they share each step. Raises RunError."""
        if self.rank == 0:
            self._announce(run)
        group = self._alike(live, (run.path / "plan.json").read_bytes())
        if self.rank == 0:
            for token in run.path.glob("ranks/*"):
                if not token.suffix:
                    token.unlink(missing_ok=True)
        return group

    def rehearse(self, live: LiveRun, steps: int, watts: float | None) -> RankCosts:
        assert self.place is not None, "rank 0 knows its run"
        folder = self.place / REHEARSAL
        folder.mkdir()
        try:
            order = {
                "plan": live.plan.to_json(),
                "corpus": live.corpus.fingerprint,
                "is_rows": isinstance(live.corpus, RowCorpus),
                "folder": str(folder),
                "steps": steps,
                "watts": watts,
            }
            self._give(order)
            return self._rehearsed(live, order)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def dismiss(self) -> None:
        """Rank 0 has ended: whoever still waits for it ends too."""
        if self.rank == 0 and self.path is None:
            with contextlib.suppress(RuntimeError):  # the store has gone
                self._give({"run": None})

    def fault(self, text: str) -> None:
        """Add to this rank's file of faults in the run's folder."""
        if self.path is not None and text:
            folder = self.path / "ranks"
            folder.mkdir(exist_ok=True)
            with (folder / f"rank-{self.rank}.txt").open("a", encoding="utf-8") as f:
                f.write(f"{datetime.datetime.now().isoformat(timespec='seconds')} {text}\n")

    def _announce(self, run: Run) -> None:
        self.path = run.path
        folder, token = run.path / "ranks", secrets.token_hex(8)
        folder.mkdir(exist_ok=True)
        (folder / token).touch()
        self._give({"run": {"path": str(run.path), "token": token}})

    def _met(self, device: str) -> ProcessGroup:
        """Return the group of all ranks, which is made when it is first needed."""
        if self.group is None:
            self.group = ProcessGroup(
                self.store, self.rank, self.launch.size, device, self.pulse, self.launch.local_size
            )
        return self.group

    def _give(self, order: dict[str, object]) -> int:
        """Tell the other ranks what they do next; return the order's number."""
        self.orders += 1
        self.store.set(f"order/{self.orders}", json.dumps(order))
        return self.orders

    def _take_part(self, order: dict[str, Any]) -> None:
        """Build what rank 0 has planned, and rehearse it with all ranks."""
        _see(Path(order["folder"]))
        corpus = (prepared_rows if order["is_rows"] else prepared)(order["corpus"])
        if corpus is None:
            raise RunError(f"{platform.node()} does not see the tokens that rank 0 made", SHARE)
        self._rehearsed(LiveRun.build(TrainingPlan.from_json(order["plan"]), corpus), order)

    def _rehearsed(self, live: LiveRun, order: dict[str, Any]) -> RankCosts:
        world = self._alike(live, json.dumps(live.plan.to_json(), sort_keys=True).encode())
        costs = rehearse(live, world, Path(order["folder"]), order["steps"], order["watts"])
        self.pulse.restart()
        return costs

    def _alike(self, live: LiveRun, plan: bytes) -> ProcessGroup:
        """Return the group of all ranks once each is known to have the same. Raises RunError naming what differs."""
        own, key = setup_of(live, plan, self.asked), f"setup/{self.orders}"
        if live.plan.loop.is_hybrid:
            launch = self.launch
            own["of_host"] = launch.local_size if launch.rank % launch.local_size == launch.local_rank else 0
        self.store.set(f"{key}/{self.rank}", json.dumps(own))
        verdict = f"verdict/{self.orders}"
        if self.rank == 0:
            wrong = compare(self.store, key, self.size, own, self.events)
            self.store.set(verdict, json.dumps(wrong))
        else:
            wrong = json.loads(self.pulse.wait_for_leader(verdict))
        if wrong:
            raise RunError(*wrong)
        return self._met("cuda" if live.plan.device.startswith("cuda") else "cpu")


def _see(path: Path) -> None:
    """Wait for what rank 0 wrote. Raises RunError where this host does not see it."""
    until = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise RunError(f"{platform.node()} does not see {path.parent}, which rank 0 wrote", SHARE)
        time.sleep(0.1)


_crew: list[Crew] = []  # of this process


def ranks(run: Run) -> Ranks:
    """Return the processes that share the run of this one."""
    if not _crew:
        return ONE
    _crew[-1].place = run.path
    return _crew[-1]


def gather(live: LiveRun, run: Run) -> World:
    """Return the processes that share the loop that is about to begin."""
    return _crew[-1].gather(live, run) if _crew else single()


@contextlib.contextmanager
def joined(launch: Launch, asked: dict[str, object], events: Events, place: Store | None = None) -> Iterator[Crew]:
    """Make this process one of the ranks for as long as the block lasts.

    asked: what was asked of this rank. place: where the ranks find each other; what torchrun says if not given. Raises
    ResourceError when they do not find each other.
    """
    if launch.is_local and platform.system() in LOOPBACK:  # nothing needs to leave this host
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[platform.system()])
    store = PrefixStore(f"settle/{launch.restarts}", place or _meeting_place(launch, events))

    def report(text: str) -> None:
        crew.fault(text)
        if text:
            sys.stderr.write(f"{text}\n")

    pulse = Pulse(store, launch.rank, launch.size, report)
    crew = Crew(launch, store, pulse, events, asked)
    _crew.append(crew)
    try:
        yield crew
    finally:
        _crew.pop()
        crew.dismiss()
        if crew.group is not None:
            crew.group.close()
        pulse.close()


def _meeting_place(launch: Launch, events: Events) -> Store:
    """Return the store through which the ranks find each other; rank 0's host keeps it, unless torchrun does."""
    missing = f"the ranks have not all come: they wait for each other, {JOIN_SECONDS:.0f} s at most"
    saying = threading.Timer(SAY_SECONDS, lambda: events.emit(Say(text=missing)))
    saying.daemon = True
    saying.start()
    place = f"{launch.address}, port {launch.port}"
    timeout = datetime.timedelta(seconds=JOIN_SECONDS)
    try:
        store: Store = next(rendezvous("env://", launch.rank, launch.size, timeout=timeout))[0]
        return store
    except (RuntimeError, ValueError) as e:
        reason = str(e).splitlines()[0][:300]
        if "EADDRINUSE" in str(e) or "already in use" in str(e):
            raise ResourceError(
                f"{place} is in use by another program", "give torchrun another --master-port, or --standalone"
            ) from None
        raise ResourceError(
            f"rank {launch.rank} of {launch.size} cannot meet the others at {place}: {reason}",
            "see that every host was started with the same number of ranks and reaches that address",
        ) from None
    finally:
        saying.cancel()


# --- what must be the same at every rank ---


def setup_of(live: LiveRun, plan: bytes, asked: Mapping[str, object]) -> dict[str, object]:
    """Return what this rank has, each as a version or a hash. plan: as plan.json has it, or will have it."""
    trained = [[name, list(p.shape), str(p.dtype)] for name, p in live.model.trainable().items()]
    return {
        "host": platform.node(),
        "code": _code(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "recipe": asked,
        "plan": _hash(plan),
        "data": _tokens(live),
        "model": _hash(json.dumps(trained).encode()),
    }


def compare(store: Store, key: str, size: int, own: Mapping[str, object], events: Events) -> list[str]:
    """Return what is wrong with one of the `size` ranks and how to fix it; empty when all have the same.

    Called at rank 0. key: below which each rank states what it has.
    """
    began, has_said = time.monotonic(), False
    for rank in range(1, size):
        while not store.check([f"{key}/{rank}"]):
            waited = time.monotonic() - began
            if waited > JOIN_SECONDS:
                return [f"rank {rank} did not come within {JOIN_SECONDS:.0f} s", "see its host"]
            if waited > SAY_SECONDS and not has_said:
                has_said = True
                text = f"rank {rank} is not ready: the others wait for it, {JOIN_SECONDS:.0f} s at most"
                events.emit(Say(text=text))
            time.sleep(0.02)
        wrong = differences(rank, own, json.loads(store.get(f"{key}/{rank}")))
        if wrong:
            return wrong
    return []


def differences(rank: int, own: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """Return what is wrong with a rank, and how to fix it; empty when it is as rank 0."""
    error = theirs.get("error")
    if isinstance(error, list):
        return [f"rank {rank}: {error[0]}", str(error[1])]
    for key, value in own.items():
        other = theirs.get(key)
        if key != "host" and other != value:
            name = NAMES.get(key, key)
            where = f"rank {rank} on {theirs.get('host')}"
            if key == "recipe" and isinstance(value, dict) and isinstance(other, dict):
                changed = [k for k in {**value, **other} if value.get(k) != other.get(k)]
                detail = ", ".join(f"{k} is {other.get(k)!r}, rank 0 has {value.get(k)!r}" for k in sorted(changed))
                return [f"{where} was asked for something else: {detail}", "start every rank with the same command"]
            fix = "give every rank the same version and files"
            if key == "of_host":
                fix = "--sharding hybrid needs as many ranks on every host: start torchrun with the same numbers"
            return [f"{name} of {where} differs: {str(other)[:16]}, rank 0 has {str(value)[:16]}", fix]
    return []


@functools.cache
def _code() -> str:
    """Return a hash of every file of the package."""
    top = Path(__file__).parents[2]
    files = sorted(top.rglob("*.py"))
    return _hash(b"".join(str(path.relative_to(top)).encode() + path.read_bytes() for path in files))


def _tokens(live: LiveRun) -> str:
    """Return a hash of the number of tokens and of some of them, in what trains and in what is evaluated."""
    stores = (live.corpus.train, live.corpus.selection)
    parts = []
    for store in stores:
        tokens = store.tokens
        parts.append(str(len(tokens)).encode())
        parts.append(np.asarray(tokens[:: max(1, len(tokens) // SAMPLED)]).tobytes())
    return _hash(b"".join(parts))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
