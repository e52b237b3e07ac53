"""How many threads a run's step is fastest with, timed on the step itself: before the run, and while it goes on.

Where the result is to be the same to the last bit (float32), the number stays as the plan has it, since sums are made
in an order that depends on it. Then the run says what that costs.
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from settle.base.event_log import Events
from settle.base.events import Warn
from settle.machine.openmp_wait import OthersLoad
from settle.train.trainer import StepResult, Trainer

FEWER_PAYS = 0.95  # fewer threads are taken when a step then takes less than this part of its time
FEWER_PAYS_FOR_GOOD = 0.9  # the same where the number stays, though other programs may end
SECONDS, LONGEST, PAIRS = 1.5, 10.0, 3  # a comparison: how long about, how long at most, and at least so many pairs
ALIKE, CLEARLY = 2, 1.15  # or so many pairs where each is beyond the bar by this factor, all on one side
LOOK_SECONDS = 2.0  # from one look at the load of others to the next
PHASE_SECONDS, PHASES = 0.25, 4  # of a trial while the run goes on: the two numbers take turns
HOPELESS = 4.0  # times slower: the trial ends at once
FIRST_REST, LONGEST_REST = 20.0, 320.0  # seconds until a number that lost is tried again, doubled each time
WARN_REST, WARNINGS = 600.0, 3  # seconds between two warnings, and how many a session gives


def choose_threads(trainer: Trainer, most: int, longest: float = LONGEST) -> tuple[int, str]:
    """Choose the number of threads that the run's own step is fastest with, and say why.

    It halves the number as long as that pays. longest: seconds of a comparison. The rates are 0, and the optimizer's
    state changes: use a trainer that is not needed afterwards.
    """
    chosen, why = most, "every core"
    may_change = _may_change(trainer)
    while chosen > 1:
        fewer = chosen // 2
        bar = FEWER_PAYS if may_change else FEWER_PAYS_FOR_GOOD
        ratio = _compare(lambda: trainer.rehearse(updates=True), chosen, fewer, longest, bar)
        why = f"measured on the run's own step: with {fewer} it takes {ratio:.2f} times as long as with {chosen}"
        if ratio > bar:
            break
        chosen = fewer
    torch.set_num_threads(chosen)
    return chosen, why


def _compare(
    work: Callable[[], object], first: int, second: int, longest: float = LONGEST, bar: float | None = None
) -> float:
    """Time of `work` with `second` threads ÷ with `first`: the median of pairs, each in the other order.

    bar: what the ratio is asked for; it ends once the pairs are clearly above it or below.
    """
    began = time.perf_counter()
    for threads in (first, second):  # finds its memory and its kernels
        _timed(work, threads)
    ratios: list[float] = []
    began, warm = time.perf_counter(), time.perf_counter() - began
    while len(ratios) < PAIRS or time.perf_counter() - began < min(SECONDS, longest):
        order = (first, second) if len(ratios) % 2 else (second, first)
        times = {threads: _timed(work, threads) for threads in order}
        ratios.append(times[second] / times[first])
        if warm + time.perf_counter() - began > longest or (bar and _is_clear(ratios, bar)):
            break
    return statistics.median(ratios)


def _is_clear(ratios: list[float], bar: float) -> bool:
    return len(ratios) >= ALIKE and (min(ratios) > bar * CLEARLY or max(ratios) * CLEARLY < bar)


def _timed(work: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _may_change(trainer: Trainer) -> bool:
    """Return whether the type promises no identical bytes, so that the number of threads is free."""
    return trainer.model.compute_dtype != torch.float32


@dataclass
class Trial:
    """Steps of the run with two numbers of threads in turns.

    In each turn the first step is left out: it finds its memory. seconds, tokens: by number of threads.
    """

    current: int
    other: int
    phase: int = 0
    in_phase: float = 0.0
    steps: int = 0
    seconds: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        return self.current if self.phase % 2 else self.other

    def add(self, seconds: float, tokens: int) -> None:
        threads, self.steps = self.threads, self.steps + 1
        if self.steps > 1:
            self.in_phase += seconds
            self.seconds[threads] = self.seconds.get(threads, 0.0) + seconds
            self.tokens[threads] = self.tokens.get(threads, 0) + tokens
        if self.in_phase >= PHASE_SECONDS:
            self.phase, self.steps, self.in_phase = self.phase + 1, 0, 0.0

    @property
    def is_over(self) -> bool:
        return self.phase >= PHASES

    @property
    def ratio(self) -> float:
        """Time of a token with the other number ÷ with the current one."""
        other, current = (self.seconds[n] / max(1, self.tokens[n]) for n in (self.other, self.current))
        return other / current


class ThreadWatch:
    """Sets the number of threads of each step, and looks at the load of other programs every now and then.

    threads: to begin with. most: that may be used. is_free: the number may change while the run goes on.
    """

    def __init__(self, trainer: Trainer, events: Events, threads: int, most: int, is_free: bool) -> None:
        self.trainer, self.events, self.threads, self.most = trainer, events, threads, most
        self.is_free = is_free and _may_change(trainer)
        self.load = OthersLoad()
        self._trial: Trial | None = None
        self._pace = 0.0  # seconds of a token with the current number
        self._rest = FIRST_REST
        self._not_before = time.monotonic() + (0.0 if self.is_free else FIRST_REST)
        self._wanted = threads
        self._warnings = 0

    def take(self, step: Callable[[], StepResult]) -> StepResult:
        """Take a step with the number of threads whose turn it is."""
        threads = self._trial.threads if self._trial else self.threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        began = time.perf_counter()
        result = step()
        seconds = time.perf_counter() - began
        if self._trial:
            self._continue(self._trial, seconds, result.tokens)
        elif self.most > 1:
            self._pace = seconds / max(1, result.tokens)
            if time.monotonic() - self.load.read_at >= LOOK_SECONDS:
                self._look()
        return result

    def _look(self) -> None:
        others, cores = self.load.read(), _cores()
        before, self._wanted = self._wanted, max(1, min(self.most, math.floor(cores - others + 0.6)))
        if self._wanted == self.threads or self._wanted != before or time.monotonic() < self._not_before:
            return
        if self.is_free:
            self._trial = Trial(self.threads, self._wanted)
        elif not _may_change(self.trainer) and self._warnings < WARNINGS:
            self._say_cost(others)

    def _continue(self, trial: Trial, seconds: float, tokens: int) -> None:
        is_hopeless = trial.threads == trial.other and seconds > HOPELESS * self._pace * max(1, tokens)
        trial.add(seconds, tokens)
        if not is_hopeless and not trial.is_over:
            return
        self._trial = None
        if not is_hopeless and trial.ratio < FEWER_PAYS:
            self.threads, self._rest = trial.other, FIRST_REST
        else:
            self._not_before = time.monotonic() + self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)
        self.load.read()  # the trial's own load is no news

    def _say_cost(self, others: float) -> None:
        """Measures it on work that is thrown away: weights, optimizer and the order of data stay as they are."""
        self._not_before = time.monotonic() + WARN_REST
        ratio = _compare(lambda: self.trainer.rehearse(updates=False), self._wanted, self.threads)
        torch.set_num_threads(self.threads)
        self.load.read()
        if ratio < 1 / FEWER_PAYS:
            return
        self._warnings += 1
        used = f"other programs use {others:.1f} of {_cores()} cores"
        load = used if self._wanted < self.threads else "the other cores are free now"
        threads = f"{self.threads} thread" if self.threads == 1 else f"{self.threads} threads"
        self.events.emit(
            Warn(
                text=f"{load}: a step with {threads} takes {ratio:.1f} times as long as with "
                f"{self._wanted}; a run in float32 keeps its number, so that its result is the same to the last bit; "
                f"`settle resume NAME --threads {self._wanted}` after Ctrl-C gives that up"
            )
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
