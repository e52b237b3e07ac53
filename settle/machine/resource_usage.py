"""What a session uses: seconds, joules, and the most memory; and, every few seconds, what it uses now."""

import time
from collections.abc import Callable, Mapping

from settle.base.event_log import Events
from settle.base.events import Usage
from settle.base.run import launcher
from settle.machine.cores import OthersShare
from settle.machine.memory import PeakMemory, resident
from settle.machine.power import EnergyMeter


class Spending:
    """Counts seconds from its creation, or from where a command began, and energy and memory from `start` on.

    earlier: seconds of the run's earlier sessions, as its newest checkpoint has them.
    """

    def __init__(self) -> None:
        self._began = launcher.take_start() or time.monotonic()
        self.earlier = 0.0

    def start(self, device: str, watts: float | None) -> None:
        """Begin to count energy and to watch memory, now that the device is known.

        watts: power of the machine, when the user gave it.
        """
        self._meter, self._peak = EnergyMeter(watts, device), PeakMemory()

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


SAMPLE_SECONDS = 2.0  # between two samples, in the first minutes
SAMPLE_SHARE = 1 / 500  # of the time so far: a run of a week has some thousand samples


class UsageSampler:
    """A sampler that emits what the process holds and draws, from its creation on.

    spending: joules of the session so far, by that name, where they are counted. Between two samples a call costs one
    look at the clock.
    """

    def __init__(self, spending: Callable[[], Mapping[str, float]], events: Events) -> None:
        self._spending, self._events = spending, events
        self._began = self._at = time.monotonic()
        self._joules = spending().get("joules")
        self._others = OthersShare()

    def sample(self, step: int, tokens: int) -> None:
        """One event, where it is time for one."""
        now = time.monotonic()
        if now - self._at < max(SAMPLE_SECONDS, SAMPLE_SHARE * (now - self._began)):
            return
        joules, watts = self._spending().get("joules"), None
        if joules is not None and self._joules is not None:
            watts = max(0.0, joules - self._joules) / (now - self._at)
        self._at, self._joules = now, joules
        self._events.emit(Usage(step=step, tokens=tokens, memory=resident(), watts=watts, others=self._others.read()))
