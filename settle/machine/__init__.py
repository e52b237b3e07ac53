"""What this computer is and can do: cores, memory, accelerator, speed, energy. Measured here, remembered.

Importing it loads no torch; what needs torch imports it when called.
"""

import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from settle.base.files import home
from settle.machine.cores import Accelerator, accelerator, cores, cpu_seconds, processor_name
from settle.machine.described_machine import Machine, described, machine_or_this
from settle.machine.memory import (
    FreedMemory,
    PeakMemory,
    disk_free,
    keep_freed_memory,
    memory,
    read_from_disk,
    resident,
)
from settle.machine.power import EnergyMeter, power
from settle.machine.speed import DtypeProbe, bandwidth, ceiling, probe_dtype
from settle.machine.threads import commanded, is_asked, num_threads, use_torch_threads

__all__ = [
    "Accelerator",
    "DtypeProbe",
    "EnergyMeter",
    "Machine",
    "PeakMemory",
    "accelerator",
    "bandwidth",
    "ceiling",
    "commanded",
    "cores",
    "cpu_seconds",
    "describe",
    "described",
    "disk_free",
    "FreedMemory",
    "is_asked",
    "keep_freed_memory",
    "machine_or_this",
    "memory",
    "num_threads",
    "power",
    "probe_dtype",
    "read_from_disk",
    "resident",
    "use_torch_threads",
]


def describe(folder: Path | None = None) -> dict[str, object]:
    """Describe this machine as plain JSON values, for plan.json, without measuring what takes time.

    folder: where disk space is counted, SETTLE_HOME by default. Sizes in bytes.
    """
    count = cores()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor_name(),
        "cores": asdict(count),
        "memory": asdict(memory()),
        "disk_free": disk_free(folder or home()),
        "accelerator": asdict(accelerator()),
        "power": asdict(power(count.usable)),
        "python": platform.python_version(),
        "torch": version("torch"),
    }
