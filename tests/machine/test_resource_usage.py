"""What a run takes, now and then: samples that cost nothing between them."""

import subprocess
import sys
import time
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest

from settle.base.event_log import Events
from settle.machine import memory, resource_usage
from settle.machine.cores import OthersShare
from settle.machine.resource_usage import Spending, UsageSampler
from tests.fake_time import set_time


def test_samples_say_what_is_held_and_drawn(monkeypatch):
    monkeypatch.setattr(resource_usage, "SAMPLE_SECONDS", 0.05)
    spending, seen = Spending(), []
    spending.start("cpu", 50.0)  # watts, as a person states them
    sampler = UsageSampler(spending, Events(listeners=[seen.append]))
    steps = 0
    while len(seen) < 3:
        time.sleep(0.01)
        steps += 1
        sampler.sample(steps, 100 * steps)
    assert [event.kind for event in seen] == ["usage"] * 3 and steps > 6
    assert [event.tokens for event in seen] == [100 * event.step for event in seen]
    for event in seen:
        assert 0.9 * 50 < event.watts < 1.1 * 50 and 1e6 < event.memory < memory().total


def test_what_others_take_is_what_is_neither_idle_nor_ours(monkeypatch):
    """Of 20 seconds of processors: 8 idle, 2 waiting for a disk, 4 ours; guests are counted in user already."""
    times = [(50.0, 10.0, 20.0, 2.0, 4.0), (60.0, 10.0, 28.0, 4.0, 5.0)]
    fields = ("user", "system", "idle", "iowait", "guest")
    readings = iter([namedtuple("times", fields)(*t) for t in times])
    ours = iter([(3.0, 1.0, 9.0), (6.0, 2.0, 9.0)])
    monkeypatch.setattr("psutil.cpu_times", lambda: next(readings))
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(cpu_times=lambda: next(ours)))
    assert OthersShare().read() == pytest.approx((20 - 10 - 4) / 20)


def test_a_busy_process_is_seen():
    load = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        share = OthersShare()
        time.sleep(1.0)
        seen = share.read()
    finally:
        load.kill()
        load.wait()
    assert seen is not None and 0.5 / (psutil.cpu_count() or 1) * 0.2 < seen <= 1.0


def test_nothing_is_measured_between_two_samples(monkeypatch):
    calls, seen = [], []
    sampler = UsageSampler(lambda: calls.append(1) or {"joules": 1.0}, Events(listeners=[seen.append]))
    for step in range(10_000):
        sampler.sample(step, step)
    assert len(calls) == 1 + len(seen) and len(seen) <= 1


def test_the_longer_a_run_the_rarer_the_samples(monkeypatch):
    now = [0.0]
    set_time(monkeypatch, resource_usage, monotonic=lambda: now[0])
    seen = []
    sampler = UsageSampler(dict, Events(listeners=[seen.append]))
    for second in range(0, 7 * 86400, 10):
        now[0] = float(second)
        sampler.sample(second, second)
    assert 2000 < len(seen) < 6000 and seen[0].watts is None
