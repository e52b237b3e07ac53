"""Tokens come slowly since llama.cpp computes with more threads than there are cores, or with far fewer."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.resources.writing_speed import TokenTime, openings
from settle.doctor.subject import Subject
from settle.doctor.trial import LEAST_RATIO, Trial
from settle.machine.cores import cores

PAIRS = 12
FEW_SHARE = 0.5  # of the cores: with so few threads or fewer, most of the processor has nothing to do


class SlowTokens(Check):
    """A model should compute with one thread a core."""

    number: ClassVar[int] = 3
    symptom: ClassVar[str] = "tokens come slowly"
    about: ClassVar[tuple[str, ...]] = ("model",)
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: Subject) -> Iterator[Finding]:
        threads, usable = subject.running.threads, cores().usable
        if threads is None or threads == usable or FEW_SHARE * usable < threads < usable:
            return
        number = "more" if threads > usable else "far fewer"
        what = f"it computes with {threads} threads, {number} than there are cores"
        yield Finding(self.part_name(), what, (f"{usable} cores can work on it",), 0.95 if threads > usable else 0.8)

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial:
        assert subject.model is not None and subject.running.threads is not None
        before, after = subject.running.threads, cores().usable
        return Trial(
            knob=f"{after} threads instead of {before}",
            before=TokenTime("as it is", subject.model, before),
            after=TokenTime("one thread a core", subject.model, after),
            measure="seconds for a token",
            unit="s",
            items=openings(0, PAIRS),
            others=openings(PAIRS, PAIRS),
            least=LEAST_RATIO,
            timed=True,
            seconds=max(0.6, subject.model.weights.stat().st_size / 2e8),
            preparing=4.0,
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        return Fix("compute with one thread a core", f"settle serve --threads {cores().usable}")
