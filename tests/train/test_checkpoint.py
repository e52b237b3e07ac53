"""Checkpoints: whole or passed over, never a moment without one, and a full disk that only makes the run wait."""

import hashlib
import json
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from settle.base.errors import CheckpointError
from settle.base.event_log import Events
from settle.base.events import Event
from settle.train import checkpoint as checkpoints
from settle.train.checkpoint import Checkpoint, load_newest, recover, save, save_or_wait, steps
from tests.records import into


def made(step: int, size: int = 40) -> Checkpoint:
    random = torch.Generator().manual_seed(step)
    model = {"w": torch.randn(size, 3, generator=random), "b": torch.randn(5, generator=random).to(torch.bfloat16)}
    optimizer = {"count": torch.tensor(float(step)), "empty": torch.zeros(0, 4), "t": torch.ones(3, 4).T}
    return Checkpoint(step, model, optimizer, {"w": model["w"] + 1} if step % 2 else None, {"step": step})


def same(a: Checkpoint, b: Checkpoint) -> bool:
    def equal(x: dict, y: dict) -> bool:
        return x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x)

    files = a.tensors.keys() == b.tensors.keys()
    return files and a.state == b.state and all(equal(a.tensors[f], b.tensors[f]) for f in a.tensors)


def names(folder: Path) -> list[int]:
    return [int(p.name) for p in steps(folder)]


def test_what_is_saved_is_what_is_loaded_and_any_reader_reads_it(tmp_path: Path) -> None:
    save(tmp_path, made(7), every=10)
    found = load_newest(tmp_path, Events())
    assert found is not None and same(found, made(7))
    assert torch.equal(
        safetensors.torch.load_file(tmp_path / "00000007" / "optimizer.safetensors")["t"], torch.ones(4, 3)
    )


def test_regular_ones_are_kept_whatever_interruptions_add(tmp_path: Path) -> None:
    for step in (0, 10, 20, 23, 27):
        save(tmp_path, made(step), every=10)
    assert names(tmp_path) == [10, 20, 27]
    found = load_newest(tmp_path, Events(), at_most=26, every=10)
    assert found is not None and found.step == 20
    save(tmp_path, made(30), every=10)
    assert names(tmp_path) == [20, 30] and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("file", ["model.safetensors", "best.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "removed", "emptied"])
def test_a_damaged_one_is_passed_over_and_named(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, made(10), every=10)
    save(tmp_path, made(21), every=10)
    path = tmp_path / "00000021" / file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 16
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes({"cut": raw[: len(raw) // 2], "flipped": raw, "emptied": b""}[damage])
    events: list[Event] = []
    found = load_newest(tmp_path, Events(listeners=[into(events)]))
    assert found is not None and same(found, made(10))
    assert "00000021 is passed over" in events[0]["text"]


@pytest.mark.parametrize(
    "header", [b'{"w":{"dtype":"F32","shape":[1000000000,1000000],"data_offsets":[0,8]}}', b"[" * 999, b"{}"]
)
def test_a_header_that_lies_under_a_right_hash_is_passed_over(tmp_path: Path, header: bytes) -> None:
    save(tmp_path, made(10), every=10)
    save(tmp_path, made(20), every=10)
    path = tmp_path / "00000020" / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest[path.name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    found = load_newest(tmp_path, Events())
    assert found is not None and found.step == 10


@pytest.mark.parametrize("name", ["/dev/zero", "../00000010/state.json", "."])
def test_a_manifest_that_names_no_file_of_its_own_is_passed_over(tmp_path: Path, name: str) -> None:
    """A device would be read for ever."""
    save(tmp_path, made(10), every=10)
    save(tmp_path, made(20), every=10)
    path = tmp_path / "00000020" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: {"sha256": "x", "bytes": 0}}))
    found = load_newest(tmp_path, Events())
    assert found is not None and found.step == 10


def test_when_none_is_whole_nothing_is_made_up(tmp_path: Path) -> None:
    save(tmp_path, made(10), every=10)
    (tmp_path / "00000010" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_newest(tmp_path, Events())
    assert load_newest(tmp_path / "nowhere", Events()) is None


def test_a_process_killed_while_replacing_one_leaves_it_whole(tmp_path: Path) -> None:
    save(tmp_path, made(10), every=10)
    (tmp_path / "00000010").rename(tmp_path / ".00000010.old")
    (tmp_path / ".00000010.part").mkdir()
    recover(tmp_path)
    found = load_newest(tmp_path, Events())
    assert found is not None and same(found, made(10)) and not list(tmp_path.glob(".*"))


def test_a_full_disk_makes_it_wait_and_room_lets_it_go_on(small_disk: Path) -> None:
    save(small_disk, made(10), every=10)
    (small_disk / "ballast").write_bytes(bytes(150_000))
    events: list[Event] = []
    results: list[bool] = []
    big = made(20, size=8000)  # 96 kB
    waiter = threading.Thread(
        target=lambda: results.append(
            save_or_wait(small_disk, big, 10, Events(listeners=[into(events)]), lambda: False)
        )
    )
    waiter.start()
    while not events:
        time.sleep(0.01)
    assert "the disk is full: a checkpoint needs 0.1 MB" in events[0]["text"]
    assert names(small_disk) == [10] and load_newest(small_disk, Events()) is not None
    assert not list(small_disk.glob(".*"))
    (small_disk / "ballast").unlink()
    waiter.join()
    assert results == [True] and names(small_disk) == [10, 20] and "room again" in events[1]["text"]


def test_a_wait_for_room_ends_when_asked_to_stop(small_disk: Path) -> None:
    assert not save_or_wait(small_disk, made(20, size=80_000), 10, Events(), lambda: True)
    assert list(small_disk.iterdir()) == [] and checkpoints.newest_state(small_disk) is None
