"""How threads wait for each other, seen in the processor time that a waiting thread takes."""

import os
import subprocess
import sys

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
