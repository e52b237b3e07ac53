"""How threads wait for each other, seen in the processor time that a waiting thread takes."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from settle.machine import openmp_wait
from settle.machine.openmp_wait import BUSY, INTERVAL, QUIET
from tests.fake_time import set_time

CODE = """
import os, sys, threading, time
import settle, torch
from settle.machine.openmp_wait import SleepingTeam, libraries

torch.set_num_threads(2)
x = torch.ones(200_000)
x.add_(1)
first = {int(t) for t in os.listdir("/proc/self/task")} - {os.getpid()}

def waited():
    spent = lambda: sum(int(open(f"/proc/self/task/{t}/schedstat").read().split()[0]) for t in first) / 1e3
    before = spent()
    for _ in range(100):
        x.add_(1)
        began = time.thread_time()
        while time.thread_time() - began < 300e-6: pass
    return (spent() - before) / 100

def products():
    torch.manual_seed(0)
    a, b = torch.randn(301, 517), torch.randn(517, 203)
    return (a @ b).sum().item(), torch.randn(100_003).sum().item()

free = waited()
bits = products()
teams = [SleepingTeam(library) for library in libraries()]
asleep = waited()
same = products() == bits
for team in teams: team.end()
print(len(teams), free, asleep, waited(), same, torch.get_num_threads())
"""


def test_threads_sleep_while_a_team_sleeps_and_spin_again_after():
    """Microseconds of the processor that the second thread takes for a small piece of work and the wait after it."""
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=_environment())
    number, free, asleep, after, same, threads = out.stdout.split()
    assert (number, same, threads) == ("1", "True", "2")
    assert float(asleep) < 0.5 * float(free) and float(asleep) < 0.5 * float(after)


def _environment():
    return {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}


class Enough(Exception):
    """Ends a watch, which else goes on for as long as the process."""


def test_threads_are_put_to_sleep_while_others_need_their_cores(monkeypatch):
    """By the cores that are missing: what begins above one bar ends below a lower one."""
    loads, log = [0.0, BUSY + 0.1, (BUSY + QUIET) / 2, QUIET - 0.1, (BUSY + QUIET) / 2], []
    read = iter(loads)

    def sleep(seconds):
        log.append(seconds)
        if len(log) - log.count("begin") - log.count("end") > len(loads):
            raise Enough

    class Team:
        def __init__(self, library):
            log.append("begin")

        def end(self):
            log.append("end")

    monkeypatch.setattr(openmp_wait, "OthersLoad", lambda: SimpleNamespace(read=lambda: next(read)))
    monkeypatch.setattr(openmp_wait, "SleepingTeam", Team)
    monkeypatch.setattr(openmp_wait, "libraries", lambda: ["one"])
    set_time(monkeypatch, openmp_wait, sleep=sleep)
    with pytest.raises(Enough):
        openmp_wait._watch(len(os.sched_getaffinity(0)))
    assert log == [INTERVAL, INTERVAL, "begin", INTERVAL, INTERVAL, "end", INTERVAL, INTERVAL]
