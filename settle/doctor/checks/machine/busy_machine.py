"""Other programs keep the processor busy: everything takes longer than its forecast."""

import time
from collections.abc import Iterator
from typing import ClassVar

import psutil

from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import ThisMachine
from settle.machine.cores import cores

BUSY = 2.0  # programs for each core that want to compute: each then has half of it at most
WATCHED_SECONDS = 0.5  # in which it is seen which programs compute
MOST_NAMED = 3
SHOWN_SHARE = 0.02  # of a core, from which a program is named: on a busy machine nobody has much


class BusyMachine(Check[ThisMachine, Details]):
    """Fewer programs should want to compute than would leave each half of a core."""

    number: ClassVar[int] = 35
    symptom: ClassVar[str] = "training and answers are several times slower than forecast"
    seconds: ClassVar[float] = 0.6

    def detect(self, subject: ThisMachine) -> Iterator[Finding[Details]]:
        load, usable = subject.running.load, cores().usable
        load = psutil.getloadavg()[0] if load is None else load
        if load < BUSY * usable:
            return
        seen = f"about {load:.0f} programs or threads want to compute (load average of a minute), on {usable} cores"
        names = ", ".join(_computing())
        evidence = (seen, f"the busiest: {names}") if names else (seen,)
        what = f"the machine is busy with other programs: a run gets about 1/{load / usable:.0f} of it"
        yield self.finding(what, *evidence, strength=0.5)

    def fix(self, finding: Finding[Details], subject: ThisMachine) -> Fix:
        return Fix("end or pause those programs, or wait for them; then times hold again", "settle doctor --only 35")


def _computing() -> Iterator[str]:
    """Yield the programs that compute the most just now, by name."""
    processes = list(psutil.process_iter(["name"]))
    shares: dict[psutil.Process, float] = {}
    for is_second in (False, True):
        for process in processes:
            try:
                shares[process] = process.cpu_percent() / 100
            except psutil.Error:
                continue
        if not is_second:
            time.sleep(WATCHED_SECONDS)
    for process in sorted(shares, key=lambda process: -shares[process])[:MOST_NAMED]:
        if shares[process] >= SHOWN_SHARE:
            yield f"{process.info['name']} {process.pid} ({shares[process]:.0%} of a core)"
