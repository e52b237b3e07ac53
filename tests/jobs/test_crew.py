"""Ranks that cannot work together: each case is a clear error or a stated wait, and never a hang."""

import errno
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]  # it is there

from settle.base.errors import ResourceError, RunError
from settle.base.event_log import Events
from settle.base.run.launcher import Launch
from settle.jobs.ranks import crew
from settle.jobs.ranks.crew import compare, differences, joined
from settle.train import checkpoint as checkpoints
from settle.train.world import World
from settle.train.world.weight_shards import ShardStore
from tests.records import into
from tests.train.ranks import on_ranks
from tests.train.test_weight_shards import made


def launch(rank: int, port: int) -> Launch:
    return Launch(rank, 2, rank, 2, "127.0.0.1", port, 0, "job")


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What torch's own rendezvous reads."""

    def say(rank: int, port: int) -> None:
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)

    monkeypatch.setattr(crew, "JOIN_SECONDS", 1.5)
    monkeypatch.setattr(crew, "SAY_SECONDS", 0.3)
    return say


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def test_a_port_in_use_is_named(torchrun: Any) -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        other.bind(("::", 0))
        other.listen()
        port = other.getsockname()[1]
        torchrun(0, port)
        with (
            pytest.raises(ResourceError, match=f"port {port} is in use") as error,
            joined(launch(0, port), {}, Events()),
        ):
            pass
    assert "--master-port" in str(error.value.fix)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_never_joins_is_waited_for_a_while(rank: int, torchrun: Any) -> None:
    port, said, began = free_port(), list[Any](), time.monotonic()
    torchrun(rank, port)
    with (
        pytest.raises(ResourceError, match="cannot meet the others") as error,
        joined(launch(rank, port), {}, Events(listeners=[into(said)])),
    ):
        pass
    assert "same number of ranks" in str(error.value.fix) and time.monotonic() - began < 60
    assert "they wait for each other" in said[0]["text"]


def test_a_rank_that_is_late_is_named_and_one_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "JOIN_SECONDS", 0.5)
    monkeypatch.setattr(crew, "SAY_SECONDS", 0.1)
    store, said, own = HashStore(), list[Any](), {"host": "a", "torch": "2.13", "of_host": 2}
    store.set("setup/1/1", json.dumps(own))
    late = compare(store, "setup/1", 3, own, Events(listeners=[into(said)]))
    assert "rank 2 did not come" in late[0] and "rank 2 is not ready" in said[0]["text"]
    threading.Timer(0.2, lambda: store.set("setup/1/2", json.dumps(own))).start()
    assert compare(store, "setup/1", 3, own, Events()) == []
    store.set("setup/2/1", json.dumps({**own, "torch": "2.12"}))
    assert "torch of rank 1 on a differs: 2.12" in compare(store, "setup/2", 2, own, Events())[0]
    what, fix = differences(2, own, {**own, "of_host": 4})
    assert "number of ranks on the host of rank 2" in what and "as many ranks on every host" in fix


def test_a_folder_that_is_not_shared_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "SEEN_SECONDS", 0.2)
    with pytest.raises(RunError, match="does not see") as error:
        crew._see(tmp_path / "ranks" / "token")
    assert "SETTLE_HOME" in str(error.value.fix)
    threading.Timer(0.05, (tmp_path / "token").touch).start()  # a shared disk may be late
    crew._see(tmp_path / "token")


def test_one_rank_without_space_makes_all_wait(tmp_path: Path) -> None:
    """Until it has some: no checkpoint is half of the rows."""

    def work(world: World) -> list[object]:
        texts: list[str] = []
        written, tries = checkpoints.write, [0]

        def full(*args: Any) -> Any:
            tries[0] += 1
            if world.rank == 1 and tries[0] <= 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return written(*args)

        checkpoints.write = full
        events = Events(listeners=[lambda event: texts.append(str(event.model_dump().get("text", "")))])
        store = ShardStore(tmp_path, 10, events, world)
        saved = store.save(made(10, world.rank), lambda: False, wait=True)
        return [saved, tries[0], sum("the disk is full" in text for text in texts)]

    assert on_ranks(2, tmp_path / "ranks", work) == [[True, 3, 1], [True, 3, 0]]
    assert len(checkpoints.load(tmp_path, 10).model["w"]) == 40
