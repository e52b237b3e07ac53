"""Machines as data: what people write becomes the device that they mean, and a row that cannot be is refused."""

import pytest

from settle.base.errors import UsageError
from settle.machine.described_machine import GIB, described, hardware, this_machine


@pytest.mark.parametrize(
    ("text", "name", "count", "gib", "gbs"),
    [
        ("mac m4 pro 24gb", "Apple M4 Pro", 1, 24, 273),
        ("MacBook Pro M4 Pro 48 GB", "Apple M4 Pro", 1, 48, 273),
        ("macbook air m2 16gb", "Apple M2", 1, 16, 100),
        ("m3 max 30-core 36gb", "Apple M3 Max", 1, 36, 300),
        ("Apple M3 Max (40c) 64GB", "Apple M3 Max", 1, 64, 400),
        ("2x rtx 3090", "NVIDIA GeForce RTX 3090", 2, 24, 936.2),
        ("4090 24GB * 2", "NVIDIA GeForce RTX 4090", 2, 24, 1010),
        ("NVIDIA GeForce RTX 4090 Laptop", "NVIDIA GeForce RTX 4090 Mobile", 1, 16, 576),
        ("8x h100 sxm", "NVIDIA H100 SXM", 8, 80, 3350),
        ("16384x h100", "NVIDIA H100 SXM", 16384, 80, 3350),
        ("h100 pcie", "NVIDIA H100 PCIe", 1, 80, 2000),
        ("a100 40gb", "NVIDIA A100 SXM", 1, 40, 1560),
        ("rtx 4060 ti 16gb", "NVIDIA GeForce RTX 4060 Ti", 1, 16, 288),
        ("dgx spark", "NVIDIA GB10", 1, 128, 273.2),
        ("strix halo 128gb", "AMD Ryzen AI Max+ 395", 1, 128, 256),
        ("mi300x", "AMD MI300X", 1, 192, 5300),
    ],
)
def test_words_name_a_machine(text, name, count, gib, gbs):
    machine = described(text)
    assert (machine.name, machine.count) == (name, count)
    assert machine.memory == gib * GIB and machine.bandwidth == pytest.approx(gbs * 1e9)
    assert machine.source and machine.date <= hardware().date


def test_every_name_of_the_table_names_itself():
    for row in hardware().devices:
        assert described(row.name).name == row.name


def test_what_was_not_said_is_noted():
    assert any("8, 16 or 24 GB" in note for note in described("m2").notes)
    assert not described("m2 16gb 10 core").notes
    assert described("m1 max 24 core 32gb").matrix_flops == pytest.approx(
        0.75 * described("m1 max 32 core").matrix_flops
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rtx 3099", "NVIDIA GeForce RTX 3090"),
        ("mac m4 pro 20gb", "24, 48 or 64 GB"),
        ("m4 max 7 core", "32 or 40"),
        ("0x h100", "one or more"),
        ("toaster", "give its numbers"),
        ("", "names no device"),
        ("memory=24gb", "names no device"),
        ("memory=24gb bandwidth=1gb/s tflops=70", "check the units"),
        ("rtx 3090 bandwidth=0", "positive number"),
        ("rtx 3090 ram=3gb", "memory, bandwidth"),
    ],
)
def test_an_unknown_or_contradictory_machine_says_what_to_do(text, says):
    with pytest.raises(UsageError) as e:
        described(text)
    assert says in str(e.value)


def test_the_usual_size_is_meant_where_none_is_said():
    for name, gib in (("rtx 3060", 12), ("rtx 3080", 10), ("p100 pcie", 16), ("a100 sxm", 80), ("m4 max", 36)):
        assert described(name).memory == gib * GIB, name


def test_numbers_by_hand_have_priority():
    assert described("rtx 3090 memory=48gb").memory == 48 * GIB
    machine = described("2x memory=24gb bandwidth=936gb/s tflops=71 watts=350")
    assert (machine.count, machine.memory, machine.watts) == (2, 24 * GIB, 350) and "by hand" in machine.notes[0]


def test_this_machine_is_measured():
    machine = this_machine()
    assert machine.measured and machine.count == 1
    assert machine.bandwidth > 1e8 and machine.matrix_flops > 1e8 and machine.free is not None
