"""Energy: counted where the machine counts it, otherwise estimated and called so.

Counters: RAPL through /sys/class/powercap (Linux, Intel and AMD; usually readable by root only) for the processor,
NVML for NVIDIA cards. Estimate: processor time × a constant per core + memory held × a constant per GiB.
"""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from settle.base.run.launcher import launched
from settle.machine.memory import resident

# Design power per core of current processors lies between 4 W (laptops) and 12 W (desktops and servers).
WATTS_PER_CORE = 7.0
# Lannelongue, Grealey, Inouye: Green Algorithms, Advanced Science 2021.
WATTS_PER_GIB = 0.3725
CARD_ENERGY, CARD_LIMIT = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetEnforcedPowerLimit"  # in thousandths


@dataclass(frozen=True)
class Energy:
    """`source` is one of: asked, measured (RAPL), measured (RAPL + NVML), estimated, estimated + measured (NVML)."""

    joules: float
    seconds: float
    source: str

    @property
    def watts(self) -> float:
        return self.joules / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Power:
    watts: float
    source: str


class EnergyMeter:
    """Joules from its creation to `read()`, which any thread may call.

    RAPL counts the whole processor, whoever uses it: of torchrun's ranks on a host the first counts it, and each adds
    its own card.

    watts: the machine's power as the user states it; then nothing is measured. device: torch's device type; for `cuda`
    the card's counter is added.
    """

    def __init__(self, watts: float | None = None, device: str = "cpu", root: Path = Path("/")) -> None:
        launch = launched()
        self._counts_host = launch is None or launch.local_rank == 0
        self._lock = threading.Lock()
        self._asked, self._device = watts, device
        self._began, self._cpu_seconds = time.monotonic(), _cpu_seconds()
        self._zones = {zone: _joules(zone) for zone in _rapl_zones(root)}
        self._counted = dict.fromkeys(self._zones, 0.0)
        self._card = _of_card(CARD_ENERGY) if device == "cuda" else None

    def read(self) -> Energy:
        """Return the energy so far. Read it at least once an hour: RAPL's counters wrap around, one is corrected."""
        with self._lock:
            seconds = time.monotonic() - self._began
            if self._asked is not None:
                return Energy(self._asked * seconds * self._counts_host, seconds, "asked")
            joules, source = self._processor(seconds)
            card = _of_card(CARD_ENERGY) if self._device == "cuda" else None
            if card is not None and self._card is not None:
                joules += card - self._card
                source = "measured (RAPL + NVML)" if self._zones else "estimated + measured (NVML)"
            return Energy(joules, seconds, source)

    def _processor(self, seconds: float) -> tuple[float, str]:
        if not self._zones:
            busy = _cpu_seconds() - self._cpu_seconds
            return busy * WATTS_PER_CORE + seconds * (resident() / 2**30) * WATTS_PER_GIB, "estimated"
        for zone, before in self._zones.items():
            now = _joules(zone)
            if now < before:
                before -= int((zone / "max_energy_range_uj").read_text()) / 1e6
            self._counted[zone] += now - before
            self._zones[zone] = now
        return sum(self._counted.values()) * self._counts_host, "measured (RAPL)"


def power(threads: int, watts: float | None = None, device: str = "cpu") -> Power:
    """Return the watts to expect while `threads` cores work, for a forecast; `watts`, stated by the user, has priority.

    A card is expected at its enforced limit, which full training load reaches.
    """
    if watts is not None:
        return Power(watts, "asked")
    expected = threads * WATTS_PER_CORE + resident() / 2**30 * WATTS_PER_GIB
    if device == "cuda":
        limit = _of_card(CARD_LIMIT)
        if limit is not None:
            return Power(expected + limit, "estimated + card limit (NVML)")
    return Power(expected, "estimated")


def _cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended, all cores added up."""
    return sum(os.times()[:4])


def _rapl_zones(root: Path) -> Iterator[Path]:
    """Processor packages and memory; cores and graphics lie within the package, psys around all of it."""
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            _joules(zone)
        except (OSError, ValueError):
            continue  # readable by root only
        if name.startswith("package") or name == "dram":
            yield zone


def _joules(zone: Path) -> float:
    return int((zone / "energy_uj").read_text()) / 1e6


def _of_card(function: str) -> float | None:
    """Return what NVML says of the card that torch uses, joules or watts; None where it says nothing.

    The card is found by its identity, since the two number cards differently; cards before Volta count no energy.
    """
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        identity = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        return float(getattr(pynvml, function)(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}"))) / 1e3
    except (pynvml.NVMLError, RuntimeError, AttributeError):
        return None
