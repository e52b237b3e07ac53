"""A machine's figures from given files, counters and clocks: cores, memory, energy, measurements, devices."""

import dataclasses
import datetime
import importlib
import json
from types import SimpleNamespace

import pytest

from settle.base.errors import UsageError
from settle.machine import described_machine as described_module
from settle.machine import measurement_cache as cache
from settle.machine import speed
from settle.machine.cores import Accelerator, cores, processor_name
from settle.machine.described_machine import GIB, Hardware, described, roofline_problem
from settle.machine.memory import PeakMemory, disk_free, memory, resident
from settle.machine.power import EnergyMeter, power
from tests.fake_time import set_time

# the package has functions of these names
cores_module, memory_module, power_module = (
    importlib.import_module(f"settle.machine.{name}") for name in ("cores", "memory", "power")
)


def placed(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def four_threads(monkeypatch):
    """Hardware threads 0 to 3 of eight may be used."""
    monkeypatch.setattr(cores_module.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cores_module.os, "cpu_count", lambda: 8)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 3)


def test_threads_of_one_core_count_once_and_a_quota_is_rounded_up(tmp_path, four_threads, monkeypatch):
    for thread, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{thread}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    found = cores(tmp_path)
    assert (found.logical, found.physical, found.allowed, found.usable, found.quota) == (8, 3, 4, 2, None)
    for quota, usable in ((1.2, 2), (0.5, 1), (9.0, 2)):
        monkeypatch.setattr(cores_module, "limits", lambda root, quota=quota: SimpleNamespace(cpus=quota))
        assert cores(tmp_path).usable == usable and cores(tmp_path).quota == quota
    # where the kernel says nothing of siblings: real cores, or what is allowed
    monkeypatch.setattr(cores_module, "limits", lambda root: SimpleNamespace(cpus=None))
    assert cores(tmp_path / "none").usable == 3


def test_a_processor_has_a_name(tmp_path):
    assert (
        processor_name(placed(tmp_path, proc__cpuinfo="bogomips : 1\nmodel name\t: Some CPU @ 2 GHz\n"))
        == "Some CPU @ 2 GHz"
    )
    assert processor_name(placed(tmp_path / "arm", proc__cpuinfo="flags : x\nModel : A board\n")) == "A board"
    other = processor_name(tmp_path / "none")
    assert other and other == processor_name(placed(tmp_path / "bare", proc__cpuinfo="flags : x\n"))


def test_memory_is_what_the_group_leaves(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1000, available=600))

    def group(most, used):
        monkeypatch.setattr(memory_module, "limits", lambda root: SimpleNamespace(memory=most, memory_used=used))
        found = memory()
        return found.total, found.available, found.limit

    assert group(None, None) == (1000, 600, None)
    assert (
        group(500, 100) == (500, 400, 500) and group(500, 700) == (500, 0, 500) and group(500, None) == (500, 500, 500)
    )
    assert group(5000, 100) == (1000, 600, 5000)


def test_the_peak_is_the_mark_where_it_rose_and_else_what_is_held(monkeypatch):
    state = {"mark": 100, "held": 40}
    monkeypatch.setattr(memory_module, "_high_water_mark", lambda: state["mark"])
    monkeypatch.setattr(memory_module, "resident", lambda: state["held"])
    peak = PeakMemory()
    assert peak.read() == 40
    state["held"] = 60
    assert peak.read() == 60
    state["held"] = 10
    assert peak.read() == 40
    state["mark"] = 101
    assert peak.read() == 101


def test_a_process_that_is_gone_holds_nothing(tmp_path):
    assert resident(2**22 + 7) == 0 < resident()
    assert 0 < disk_free(tmp_path / "a" / "b") == pytest.approx(disk_free(tmp_path), rel=0.05)


class Clock:
    now, busy = 100.0, 7.0


@pytest.fixture
def clock(monkeypatch):
    """Seconds of the wall and of the processor, 2 GiB held, and no card."""
    made = Clock()
    set_time(monkeypatch, power_module, monotonic=lambda: made.now)
    monkeypatch.setattr(power_module, "_cpu_seconds", lambda: made.busy)
    monkeypatch.setattr(power_module, "resident", lambda: 2 << 30)
    return made


def test_energy_is_estimated_by_processor_time_and_memory(clock, tmp_path):
    meter = EnergyMeter(root=tmp_path)
    clock.now, clock.busy = 110.0, 12.0
    read = meter.read()
    assert read.joules == pytest.approx(5 * 7.0 + 10 * 2 * 0.3725) and read.seconds == 10 and read.source == "estimated"
    assert read.watts == pytest.approx(read.joules / 10)
    assert EnergyMeter(60.0).read().watts == 0.0, "no time has passed"
    assert power(3).watts == pytest.approx(3 * 7 + 2 * 0.3725) and power(3).source == "estimated"


def test_a_card_counts_beside_the_processor(clock, tmp_path, monkeypatch):
    card = {"joules": 1000.0}
    monkeypatch.setattr(power_module, "_of_card", lambda of: 300.0 if of == power_module.CARD_LIMIT else card["joules"])
    meter, alone = EnergyMeter(device="cuda", root=tmp_path), EnergyMeter(root=tmp_path)
    card["joules"], clock.busy = 1080.0, 8.0
    assert meter.read().joules == pytest.approx(7 + 80) and alone.read().joules == pytest.approx(7)
    assert meter.read().source == "estimated + measured (NVML)"
    card["joules"] = None
    assert meter.read().source == "estimated"
    zone = placed(tmp_path / "sys/class/powercap/intel-rapl:0", name="package-0", energy_uj="5000000")
    placed(tmp_path / "sys/class/powercap/intel-rapl:1", name="psys", energy_uj="1")
    card["joules"] = 10.0
    meter = EnergyMeter(device="cuda", root=tmp_path)
    placed(zone, energy_uj="9000000")
    card["joules"] = 11.5
    assert (meter.read().joules, meter.read().source) == (5.5, "measured (RAPL + NVML)")
    assert power(3, device="cuda").watts == pytest.approx(3 * 7 + 2 * 0.3725 + 300)
    assert "card limit" in power(3, device="cuda").source and power(3, 9.0, "cuda").watts == 9.0


def test_what_a_busy_machine_measured_is_measured_again_on_a_quiet_one(home, monkeypatch):
    busy, values = [True], iter(range(1, 9))
    monkeypatch.setattr(cache, "others_are_busy", lambda *since: busy[0])
    here = {"processor": "p"}
    assert cache.recalled(here, "x") is None and cache.recalled(here, "x", is_quiet=True) is None

    def measured():
        return cache.remembered(here, "x", lambda: next(values))

    assert (
        measured() == 1 == measured() == cache.recalled(here, "x") and cache.recalled(here, "x", is_quiet=True) is None
    )
    busy[0] = False
    assert measured() == 2 == measured() == cache.recalled(here, "x", is_quiet=True)
    busy[0] = True
    assert measured() == 2, "what was measured in quiet stays"
    cache.note(here, "y", 5)
    assert cache.recalled(here, "x", is_quiet=True) == 2 and cache.recalled(here, "y", is_quiet=True) == 5
    assert json.loads(cache.path_of(here).read_text())["key"] == here
    # what others take meanwhile counts, over a twentieth of a second where the measurement is shorter
    monkeypatch.undo()
    shares, slept, clock = iter([0.3, 0.2]), [], iter([0.0, 0.03, 1.0, 1.07])
    monkeypatch.setattr(cache, "OthersShare", lambda: SimpleNamespace(read=lambda: next(shares)))
    set_time(monkeypatch, cache, monotonic=lambda: next(clock), sleep=slept.append)
    monkeypatch.setattr(cache, "home", lambda: home)
    for name, is_quiet in (("z", False), ("quiet", True)):
        cache.remembered(here, name, lambda: 0)
        assert cache.recalled(here, name) == 0 and (cache.recalled(here, name, is_quiet=True) is not None) == is_quiet
    assert slept == [pytest.approx(0.02), 0.0]


def test_others_are_busy_above_a_quarter_of_the_processor(monkeypatch):
    def busy(of_all, idle, iowait, own):
        times = iter([(0.0, 0.0, 0.0), (of_all, idle, iowait)])
        ours = iter([(0.0, 0.0), (own, 0.0)])

        class Times(tuple):
            idle = property(lambda self: self[1])
            iowait = property(lambda self: self[2])

        monkeypatch.setattr("psutil.cpu_times", lambda: Times(next(times)))
        monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(cpu_times=lambda: next(ours)))
        monkeypatch.setattr("psutil.cpu_count", lambda: 4)
        set_time(monkeypatch, cache, sleep=lambda seconds: None)
        return cache.others_are_busy()

    assert busy(1.1, 2.0, 0.9, 0.0) and not busy(1.0, 2.0, 1.0, 0.0) and not busy(2.0, 2.0, 0.0, 1.0)
    assert busy(2.1, 2.0, 0.0, 1.0), "our own work is not others'"


def test_the_rate_is_operations_over_the_best_times(home, monkeypatch):
    monkeypatch.setattr(cache, "others_are_busy", lambda *since: False)
    monkeypatch.setattr(speed, "_best_times", lambda rounds, seconds: [0.5, 0.25][: len(rounds)])
    # two of the first shape and one of the second: 2 m k n operations each
    shapes = [(2, 3, 4), (2, 3, 4), (2, 2, 2)]
    assert speed.ceiling(shapes) == pytest.approx((48 + 48 + 16) / (0.5 + 0.5 + 0.25))
    rates = speed._rates([(2, 3, 4), (4, 3, 4)], ("float32", "bfloat16"), "cpu", 0.0)
    assert rates == {"float32": pytest.approx((144 + 288) / 1.0), "bfloat16": pytest.approx((144 + 288) / 0.5)}


def test_the_first_turn_warms_up_and_the_others_count(monkeypatch):
    clock = {"now": 0.0}
    set_time(monkeypatch, speed, perf_counter=lambda: clock["now"])

    def rounds(*spent):
        left = iter(spent)

        def once():
            clock["now"] += 1.0
            return next(left)

        return once

    assert speed._best_times([rounds(0.1, 3.0), rounds(0.2, 4.0)], 0.0) == [3.0, 4.0]
    assert speed._best_times([rounds(0.1, 3.0, 2.0, 2.5)], 3.5) == [2.0], "as long as there is time"


def test_float32_unless_another_is_clearly_faster(home, monkeypatch):
    monkeypatch.setattr(cache, "others_are_busy", lambda *since: False)
    asked, rates = [], {"float32": 100.0, "bfloat16": 114.0, "float16": 20.0}

    def measured(shapes, dtypes, device, seconds):
        asked.append((shapes, tuple(dtypes)))
        return {dtype: rates[dtype] for dtype in dtypes}

    monkeypatch.setattr(speed, "_rates", measured)
    device = Accelerator("cpu", "x", dtypes=("float32", "bfloat16", "float16"))
    assert speed.probe_dtype([(64, 8, 8)], device).dtype == "float32"
    rates["bfloat16"] = 115.0
    assert speed.probe_dtype([(65, 8, 8)], device).dtype == "bfloat16"
    # float16 is five times slower on a small product, and not tried on a large one
    assert asked[-1][1] == ("float32", "bfloat16") and asked[-2][1] == ("float32", "bfloat16", "float16")
    rates["float16"] = 25.1
    speed.probe_dtype([(66, 8, 8)], device)
    assert asked[-1][1] == ("float32", "bfloat16", "float16")


def test_no_device_is_built_like_that():
    flops = {"float32": 50e12, "bfloat16": 100e12}
    assert roofline_problem([24 * GIB], 1e12, flops) is None
    assert "24" not in str(roofline_problem([24 * GIB], 1e15, flops)) and roofline_problem([24 * GIB], 1e15, flops)
    assert "would take" in roofline_problem([24 * GIB], 1e9, flops)
    assert "would take 25.8 s" in roofline_problem([GIB, 24 * GIB], 1e9, flops)
    assert "operations for a byte" in roofline_problem([24 * GIB], 1e12, {"float32": 0.9e12})
    assert "operations for a byte" in roofline_problem([24 * GIB], 1e12, {"float32": 6001e12})
    assert "beyond what is built" in roofline_problem([500 * GIB], 41e12, {"float32": 1e15})
    assert "beyond what is built" in roofline_problem([24 * GIB], 1e12, {"float32": 1e13, "int8": 0.0})
    slower = "half precision slower"
    assert slower in roofline_problem([24 * GIB], 1e12, {"float32": 50e12, "bfloat16": 49e12})
    assert roofline_problem([24 * GIB], 1e12, {"float32": 50e12, "float16": 50e12, "float8": 50e12}) is None
    assert slower in roofline_problem([24 * GIB], 1e12, {"float32": 50e12, "float16": 60e12, "float8": 59e12})


ROW = {"name": "a", "kind": "cuda", "generation": "g", "memory_gb": [24], "bandwidth_gbs": 1000.0}
ROW |= {"tflops": {"float32": 50.0}, "source": "s"}
TABLE = {"date": "2026-06-01", "devices": [ROW], "fabric": {}, "sources": {"s": {"text": "t", "date": "2026-06-01"}}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"aliases": {"b": "a"}}, ""),
        ({"aliases": {"b": "c"}}, "an alias names 'c'"),
        ({"date": "2026-05-31"}, "dated after the file"),
        ({"devices": [ROW | {"source": "x"}]}, "source 'x' is not listed"),
        ({"devices": [ROW | {"bandwidth_gbs": 1.0}]}, "would take"),
    ],
)
def test_a_table_of_devices_is_checked(change, says):
    if not says:
        assert Hardware.model_validate(TABLE | change).devices[0].name == "a"
        return
    with pytest.raises(ValueError, match=says):
        Hardware.model_validate(TABLE | change)


@pytest.mark.parametrize(
    ("text", "count"),
    [("8x h100", 8), ("8 x h100", 8), ("h100 x8", 8), ("h100 * 8", 8), ("8 * h100", 8), ("1000000x h100", 10**6)],
)
def test_how_many_there_are(text, count):
    machine = described(text)
    assert machine.count == count and machine.name == "NVIDIA H100 SXM" and machine.memory == 80 * GIB
    assert machine.label == f"{count}x NVIDIA H100 SXM 80 GB"


def test_numbers_by_hand_are_in_their_units():
    machine = described("memory=24gb bandwidth=936gb/s tflops=71 watts=350 link=50gb/s")
    assert (machine.memory, machine.bandwidth, machine.flops) == (24 * GIB, 936e9, {"float32": 71e12})
    assert (machine.watts, machine.interconnect, machine.label) == (350, 50e9, "by hand 24 GB")
    assert machine.date == datetime.date.today()
    for wrong in ("1000001x h100", "0 x h100"):
        with pytest.raises(UsageError, match="devices"):
            described(wrong)
    with pytest.raises(UsageError, match="nearest: NVIDIA GeForce RTX 3090"):
        described("rtx 3091")


def test_links_are_of_those_that_have_one():
    linked, alone = described("8x h100 sxm"), described("2x rtx 4090")
    assert linked.node >= 8 and linked.network and linked.interconnect > 1e11
    assert alone.network is None and alone.node == 2 and described("16x rtx 4090").node == 8
    assert described("rtx 4090").node == 1


def test_this_machine_says_what_was_measured(monkeypatch):
    measured = []
    fakes = {
        "accelerator": lambda: Accelerator("mps", "Apple M9", dtypes=("float32", "bfloat16")),
        "memory": lambda: SimpleNamespace(total=32 << 30, available=20 << 30),
        "others_are_busy": lambda: True,
        "ceiling": lambda shapes, dtype, device, seconds: measured.append((dtype, seconds)) or 7e12,
        "bandwidth": lambda device, seconds: 1e11,
        "apple_gpu_limit": lambda: 24 << 30,
        "power": lambda threads, watts, kind: SimpleNamespace(watts=33.0),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(described_module, name, fake)
    found = described_module.this_machine()
    assert (found.memory, found.free, found.count, found.watts) == (24 << 30, 20 << 30, 1, 33.0)
    assert found.is_unified and found.measured and "kept it busy" in found.source and found.bandwidth == 1e11
    assert measured == [("float32", 0.25), ("bfloat16", 0.25)] and found.matrix_flops == 7e12
    card = Accelerator("cuda", "A card", 80 << 30, 70 << 30)
    monkeypatch.setattr(described_module, "accelerator", lambda: card)
    monkeypatch.setattr(described_module, "others_are_busy", lambda: False)
    found = described_module.this_machine()
    assert (found.memory, found.free, found.is_unified) == (80 << 30, 70 << 30, False) and "busy" not in found.source
    monkeypatch.setattr(described_module, "accelerator", lambda: Accelerator("cpu", "A CPU"))
    found = described_module.this_machine()
    assert (found.memory, found.free, found.is_unified) == (32 << 30, 20 << 30, True)
    assert dataclasses.replace(found, free=0) == found, "what is free now is no part of what it is"
