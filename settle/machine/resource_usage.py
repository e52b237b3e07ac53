"""What a session uses: seconds, joules, and the most memory."""

import time

from settle.base.run import command_start
from settle.machine.memory import PeakMemory
from settle.machine.power import EnergyMeter


class Spending:
    """Counts seconds from its creation, or from where a command began, and energy and memory from `start` on.

    earlier: seconds of the run's earlier sessions, as its newest checkpoint has them.
    """

    def __init__(self) -> None:
        self._began = command_start.take() or time.monotonic()
        self.earlier = 0.0

    def start(self, device: str, watts: float | None) -> None:
        """Begin to count energy and to watch memory, now that the device is known.

        watts: power of the machine, when the person gave it.
        """
        self._meter, self._peak = EnergyMeter(watts, device).start(), PeakMemory().start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def total(self) -> float:
        """Seconds of all sessions: what a time budget counts."""
        return self.earlier + self.seconds

    def __call__(self) -> dict[str, float]:
        """seconds, joules and peak_memory (bytes) of this session so far."""
        return {"seconds": self.seconds, "joules": self._meter.read().joules, "peak_memory": self._peak.read()}
