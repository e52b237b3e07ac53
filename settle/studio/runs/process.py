"""The process that works on a run: found by the ledger that it keeps there, measured, and stopped as Ctrl-C does."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass

import psutil

from settle.audit import LEDGER_FOLDER
from settle.base.errors import RunError
from settle.base.files import parse_json
from settle.base.run import Run
from settle.machine.power import WATTS_PER_CORE, WATTS_PER_GIB

CLOCK_SECONDS = 2.0  # that two readings of a time may differ: ids of processes are used again


@dataclass
class WorkMeter:
    """Memory and power of a run's process and its children, between one call and the next."""

    run: Run
    _before: tuple[float, float] | None = None  # clock and processor time of the last call, in seconds

    def read(self) -> tuple[int, float | None] | None:
        """Bytes in memory, and the estimated watts; None where no process works on the run."""
        worker = worker_of(self.run)
        if worker is None:
            self._before = None
            return None
        resident, spent = 0, 0.0
        with contextlib.suppress(psutil.Error):
            for process in (worker, *worker.children(recursive=True)):
                resident += process.memory_info().rss
                spent += sum(process.cpu_times()[:2])
        now, before = time.monotonic(), self._before
        self._before = now, spent
        if before is None or spent < before[1] or now <= before[0]:
            return resident, None
        return resident, (spent - before[1]) / (now - before[0]) * WATTS_PER_CORE + resident / 2**30 * WATTS_PER_GIB


def worker_of(run: Run) -> psutil.Process | None:
    """The process that opened the latest ledger of the run, while it lives."""
    folder = run.path / LEDGER_FOLDER
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    for path in reversed(files):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, psutil.Error), path.open("rb") as f:
            opened = parse_json(f.readline())
            process = psutil.Process(int(opened["pid"]))
            if process.create_time() <= float(opened["time"]) + CLOCK_SECONDS and process.is_running():
                return process
    return None


def stop(run: Run) -> None:
    """Ask it to stop: in the loop it saves a checkpoint first. Raises RunError."""
    worker = worker_of(run) if run.status == "running" else None
    if worker is None or os.name == "nt":
        raise RunError(f"the process that works on {run.name!r} is not known", "press Ctrl-C in its terminal")
    worker.send_signal(signal.SIGINT)
