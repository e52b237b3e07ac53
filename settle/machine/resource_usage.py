"""What a session uses: seconds, joules, and the most memory; and, every few seconds, what it uses now."""

import time
from collections.abc import Callable, Mapping

import psutil

from settle.base.event_log import Events
from settle.base.events import Usage
from settle.base.run import launcher
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

        watts: power of the machine, when the person gave it.
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


class OthersShare:
    """The share of this machine's processors that other programs take, from one reading to the next."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._times()

    def read(self) -> float | None:
        """Since the reading before; None where no time has passed."""
        before, self._before = self._before, self._times()
        total, idle, own = (now - then for now, then in zip(self._before, before, strict=True))
        return min(1.0, max(0.0, (total - idle - own) / total)) if total > 0 else None

    def _times(self) -> tuple[float, float, float]:
        """(all, idle, ours) seconds of all processors."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user and nice, too
        return sum(times) - guest, idle, sum(self._process.cpu_times()[:2])
