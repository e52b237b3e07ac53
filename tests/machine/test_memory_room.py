"""A process that keeps itself within some memory, and what is known of memory that ran out."""

import mmap
import os
import sys

import pytest

from settle.base.out_of_memory import kernel_kills, missing_bytes
from settle.machine import resident
from settle.machine.memory_room import MemoryRoom

SIZE = 24 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot take single pages")
def test_pages_of_a_file_go_and_are_read_again(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    before = sum(mapped[:: mmap.PAGESIZE])
    held = resident()
    room = MemoryRoom(held - SIZE // 2, str(path))
    room.keep()
    assert resident() < held - SIZE // 3
    assert sum(mapped[:: mmap.PAGESIZE]) == before, "they are the same when they come back"
    MemoryRoom(1 << 50, str(path)).keep()
    assert resident() > held - SIZE // 3, "nothing goes while there is room"


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (MemoryError(), 0),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."), 4096),
        (RuntimeError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has"), 3 << 29),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 10 bytes."), 10),
        (RuntimeError("shapes (2, 3) and (4, 5) do not fit"), None),
        (OSError(12, "Cannot allocate memory"), 0),
        (OSError(2, "No such file"), None),
        (ValueError("out of memory"), None),
    ],
)  # fmt: skip
def test_errors_of_allocators(error, missing):
    assert missing_bytes(error) == missing


def test_the_kernels_log_says_when_it_ended_a_process(tmp_path):
    log = tmp_path / "kmsg"
    log.write_text(
        "6,100,5000000,-;usb 1-1: new device\n"
        "3,101,7000000,-;Out of memory: Killed process 4242 (python) total-vm:123kB, anon-rss:1kB\n"
        "3,102,9000000,-;Memory cgroup out of memory: Killed process 77 (python)\n"
    )
    first, second = kernel_kills(log)
    assert second - first == pytest.approx(2.0)
    assert kernel_kills(tmp_path / "none") == []
