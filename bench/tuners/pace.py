"""How a side of bench/tune_speed.py runs in step with the other: one line in lets it make one step, one line out tells.

Standard library only: it is imported by every side, each in its own environment. Lines out are JSON on what was the
process's standard output; whatever a library prints goes to standard error instead.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def arguments() -> argparse.Namespace:
    """Return the arguments of every side: the work, and settings of its own as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8, help="rows in a step")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--warmup", type=int, default=3, help="steps in which the rate rises to --lr")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True, help="a folder that may be filled")
    parser.add_argument("--settings", type=json.loads, default={})
    return parser.parse_args()


def peak_bytes() -> int:
    """Return the most resident bytes since the start or the last `forget_peak`; 0 if the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not permitted: the peak is then that of the whole process
        pass


class Pace:
    """`ready`, then `begin` and `end` for each step, then `done`."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.started = time.perf_counter()
        self.before = self.steps = 0
        self.seconds = self.cpu = 0.0

    def tell(self, kind: str, **facts: Any) -> None:
        print(json.dumps({"kind": kind, **facts}), file=self.out, flush=True)

    def ready(self, **facts: Any) -> None:
        """Everything is loaded; the next thing is the first step."""
        self.before = peak_bytes()
        self.tell("ready", seconds=time.perf_counter() - self.started, **facts)

    def begin(self) -> None:
        """Wait for leave to make a step."""
        if not sys.stdin.readline():
            raise SystemExit("the bench has gone")
        if self.steps == 0:
            forget_peak()
        self.steps += 1
        self.seconds, self.cpu = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Stop the clock of a step."""
        self.seconds = time.perf_counter() - self.seconds
        self.cpu = time.process_time() - self.cpu

    def report(self, loss: float, tokens: int, supervised: int) -> None:
        facts = {"seconds": self.seconds, "cpu_seconds": self.cpu, "loss": loss}
        self.tell("step", step=self.steps, tokens=tokens, supervised=supervised, **facts)

    def done(self) -> None:
        now = peak_bytes()
        self.tell("done", peak_loading=self.before, peak_steps=now)
