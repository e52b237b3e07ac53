"""The process that works on a run: found by the ledger that it keeps there, and stopped as Ctrl-C does."""

import contextlib
import os
import signal

import psutil

from settle.audit import LEDGER_FOLDER
from settle.base.errors import RunError
from settle.base.files import parse_json
from settle.base.run import Run

CLOCK_SECONDS = 2.0  # that two readings of a time may differ: ids of processes are used again


def worker_of(run: Run) -> psutil.Process | None:
    """Return the process that opened the latest ledger of the run, while it lives."""
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
