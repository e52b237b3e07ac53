"""How many cores there are, and how many of them this process may really use."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from settle.machine.cgroup import limits


@dataclass(frozen=True)
class Cores:
    """`usable` is the number of threads worth starting: real cores that we may run on, within the CPU quota."""

    logical: int  # hardware threads of the whole machine
    physical: int  # real cores of the whole machine
    allowed: int  # hardware threads in this process's affinity mask
    quota: float | None  # CPUs granted by the control group, None when unlimited
    usable: int


def cores(root: Path = Path("/")) -> Cores:
    """Count the cores. Two hardware threads of one core share its matrix units, so they count once.

    root: where proc and sys are mounted (another root only makes sense in tests).
    """
    import psutil

    logical = os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(logical))
    quota = limits(root).cpus
    real = _real_cores(allowed, root) or min(physical, len(allowed))
    usable = real if quota is None else min(real, math.ceil(quota))
    return Cores(logical, physical, len(allowed), quota, max(1, usable))


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process so far; 0 when there is none of that number."""
    import psutil

    try:
        return sum(psutil.Process(pid).cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


def processor_name(root: Path = Path("/")) -> str:
    """Return the processor's own name, such as "Intel(R) Xeon(R) Processor", or else the architecture.

    root: as in `cores`.
    """
    import platform

    try:
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _real_cores(allowed: set[int], root: Path) -> int:
    """Distinct cores behind the allowed hardware threads; 0 where the kernel does not report them."""
    siblings = set()
    for thread in allowed:
        try:
            topology = root / f"sys/devices/system/cpu/cpu{thread}/topology/thread_siblings_list"
            siblings.add(topology.read_text().strip())
        except OSError:
            return 0
    return len(siblings)
