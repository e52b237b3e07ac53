"""What computes here: the cores that this process may really use, and a CUDA card or Apple's GPU where there is one."""

import contextlib
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import UsageError
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
    """Return the processor time of all threads of a process so far; 0 when there is none of that number."""
    import psutil

    try:
        return sum(psutil.Process(pid).cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


def processor_name(root: Path = Path("/")) -> str:
    """Return the processor's own name, such as "Intel(R) Xeon(R) Processor", or else the architecture.

    root: as in `cores`.
    """
    with contextlib.suppress(OSError):  # not Linux
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
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


class OthersShare:
    """The share of this machine's processors that other programs take, from one reading to the next."""

    def __init__(self) -> None:
        import psutil

        self._process, self._cpu_times = psutil.Process(), psutil.cpu_times
        self._before = self._times()

    def read(self) -> float | None:
        """Since the reading before; None where no time has passed."""
        before, self._before = self._before, self._times()
        total, idle, own = (now - then for now, then in zip(self._before, before, strict=True))
        return min(1.0, max(0.0, (total - idle - own) / total)) if total > 0 else None

    def _times(self) -> tuple[float, float, float]:
        """(all, idle, ours) seconds of all processors."""
        times = self._cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user and nice, too
        return sum(times) - guest, idle, sum(self._process.cpu_times()[:2])


# --- the accelerator ---

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")  # a device offers the first and at most one more


@dataclass(frozen=True)
class Accelerator:
    """`kind` is torch's name of the device type: cuda, mps or cpu. Memory is in bytes, None when it is shared."""

    kind: str
    name: str
    memory_total: int | None = None
    memory_free: int | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16")  # what may be computed in; the first is always safe


def accelerator(kind: str | None = None) -> Accelerator:
    """Return the fastest device present, or the one of `kind`.

    Raises UsageError for a kind that torch cannot use here.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if kind == "cuda" and not cuda or kind == "mps" and not mps or kind not in (None, "cpu", "cuda", "mps"):
        there = ", ".join(["cpu"] + ["cuda"] * cuda + ["mps"] * mps)
        raise UsageError(f"device {kind!r} is not usable here", f"choose one of: {there}")
    if cuda and kind in (None, "cuda"):
        free, total = torch.cuda.mem_get_info()
        # Cards before Ampere run bfloat16 only by emulation; float16 is their fast half.
        half = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"
        return Accelerator("cuda", torch.cuda.get_device_name(), total, free, ("float32", half))
    if mps and kind in (None, "mps"):
        return Accelerator("mps", processor_name())
    return Accelerator("cpu", processor_name())


def apple_gpu_limit() -> int:
    """Bytes of the shared memory that Apple's GPU may use, as Metal says."""
    import torch

    return int(torch.mps.recommended_max_memory())
