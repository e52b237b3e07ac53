import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from settle.base.errors import UsageError
from settle.machine import DtypeProbe, EnergyMeter, accelerator, bandwidth, ceiling, cores, describe, power, probe_dtype
from settle.machine.measurement_cache import key, path_of, remembered
from settle.machine.power import WATTS_PER_CORE
from settle.machine.speed import FEW_OPERATIONS, _cut

SHAPES = [(256, 128, 256), (256, 256, 128)]


def test_importing_loads_no_torch():
    code = "import settle.machine, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_describe_is_json_and_sane(home):
    told = json.loads(json.dumps(describe()))
    assert 1 <= told["cores"]["usable"] <= told["cores"]["allowed"] <= told["cores"]["logical"]
    assert 0 < told["memory"]["available"] <= told["memory"]["total"]
    assert told["disk_free"] > 0 and told["accelerator"]["kind"] in ("cpu", "cuda", "mps")
    assert told["power"] == {"watts": pytest.approx(told["power"]["watts"]), "source": "estimated"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity mask on this system")
def test_cores_respect_the_affinity_mask():
    code = "import os; os.sched_setaffinity(0, {0}); from settle.machine import cores; print(cores().usable)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "1"


def test_peak_memory_sees_what_was_freed_again():
    """In a process of its own: one that has trained keeps what it freed, and takes from that first."""
    code = (
        "from pathlib import Path\n"
        "from settle.machine import PeakMemory, resident\n"
        "peak, before = PeakMemory(), resident()\n"
        "block = bytearray(64 << 20)\n"
        "block[::4096] = b'x' * len(block[::4096])\n"
        "del block\n"
        "assert 60 << 20 < peak.read() - before < 90 << 20\n"
        "if Path('/proc/self/clear_refs').exists():\n"
        "    assert PeakMemory().read() - before < 30 << 20\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_accelerator_that_is_not_there_is_named():
    assert accelerator("cpu").kind == "cpu"
    with pytest.raises(UsageError, match="'tpu' is not usable") as e:
        accelerator("tpu")
    assert "cpu" in e.value.fix


def test_ceiling_and_bandwidth_are_measured_and_remembered(home):
    first = ceiling(SHAPES, "float32", seconds=0.02)
    assert first > 1e8
    assert bandwidth(seconds=0.02) > 1e8
    (path,) = (home / "machine").iterdir()
    kept = json.loads(path.read_text())
    assert kept["key"]["cores"] == cores().usable
    kept["measured"]["ceiling float32 256x128x256 256x256x128"] = {"value": 7.0, "busy": False}
    path.write_text(json.dumps(kept))
    assert ceiling(SHAPES, "float32", seconds=0.02) == 7.0


def test_probe_chooses_the_faster_dtype_and_says_why(home):
    probe = probe_dtype(SHAPES, accelerator("cpu"), seconds=0.05)
    assert set(probe.rates) == {"float32", "bfloat16"} and probe.dtype in probe.rates
    assert "GFLOP/s" in probe.why
    path = path_of(key("cpu", torch.get_num_threads()))
    kept = json.loads(path.read_text())
    (entry,) = kept["measured"].values()
    entry["busy"] = False
    for rates, chosen in (
        (probe.rates, probe.dtype),
        ({"float32": 100.0, "bfloat16": 105.0}, "float32"),
        ({"float32": 1.0, "bfloat16": 2.0}, "bfloat16"),
    ):
        entry["value"] = rates
        path.write_text(json.dumps(kept))
        assert probe_dtype(SHAPES, accelerator("cpu")) == DtypeProbe(chosen, rates)


def test_a_slow_dtype_is_not_chosen_and_is_first_tried_on_few_rows(home):
    slow = replace(accelerator("cpu"), dtypes=("float32", "float64"))
    probe = probe_dtype([(512, 256, 256)], slow, seconds=0.3)
    assert probe.dtype == "float32" and set(probe.rates) == {"float32", "float64"}
    assert _cut((8192, 256, 256), FEW_OPERATIONS) == (64, 256, 256) and _cut((8, 9, 9), 1.0) == (8, 9, 9)


def test_another_machine_or_a_damaged_memory_is_measured_again(home):
    here, there = {"processor": "a"}, {"processor": "b"}
    values = iter([1, 2, 3, 4])
    assert remembered(here, "x", lambda: next(values)) == 1
    path_of(here).write_text(path_of(here).read_text().replace('"busy": true', '"busy": false'))
    assert remembered(here, "x", lambda: next(values)) == 1
    assert remembered(there, "x", lambda: next(values)) == 2
    for damage in ("{", "[]", '{"key": {"processor": "a"}, "measured": {"x": 1}}'):
        path_of(here).write_text(damage)
        assert remembered(here, "x", lambda: next(values, 9)) in (3, 4, 9)


def test_a_home_that_cannot_be_written_still_measures(home):
    (home / "machine").write_text("a file in the way")
    assert remembered({"processor": "a"}, "x", lambda: 5) == 5


def test_energy_asked_and_estimated():
    asked = EnergyMeter(watts=50.0)
    estimated = EnergyMeter(root=Path("/nowhere"))
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    told = asked.read()
    assert told.source == "asked" and told.watts == pytest.approx(50.0)
    told = estimated.read()
    assert told.source == "estimated" and told.joules > 0.09 * WATTS_PER_CORE
    assert power(4, watts=9.0).watts == 9.0 and power(4).watts > 4 * WATTS_PER_CORE
    assert power(40).watts - power(4).watts == pytest.approx(36 * WATTS_PER_CORE, abs=1.0) and 4 < WATTS_PER_CORE < 12


def test_energy_from_counters_that_wrap_around(tmp_path):
    zones = tmp_path / "sys/class/powercap"
    for zone, name, joules in (
        ("intel-rapl:0", "package-0", 90),
        ("intel-rapl:0:0", "core", 5),
        ("intel-rapl:0:1", "dram", 1),
    ):
        (zones / zone).mkdir(parents=True)
        (zones / zone / "name").write_text(f"{name}\n")
        (zones / zone / "energy_uj").write_text(f"{joules * 1_000_000}\n")
        (zones / zone / "max_energy_range_uj").write_text("100000000\n")
    meter = EnergyMeter(root=tmp_path)
    (zones / "intel-rapl:0/energy_uj").write_text("95000000")
    (zones / "intel-rapl:0:0/energy_uj").write_text("9000000")  # lies within the package: not counted twice
    assert meter.read().joules == pytest.approx(5.0)
    (zones / "intel-rapl:0/energy_uj").write_text("3000000")
    (zones / "intel-rapl:0:1/energy_uj").write_text("3000000")
    told = meter.read()
    assert told.joules == pytest.approx(5.0 + 8.0 + 2.0) and told.source == "measured (RAPL)"
