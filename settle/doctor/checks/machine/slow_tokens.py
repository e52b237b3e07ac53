"""Tokens come slowly since llama.cpp computes with more threads than there are cores, or with far fewer."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.resources import SHORT, ResourceCheck, ThreadedTime
from settle.doctor.subject import ModelFile
from settle.doctor.trial import Trial
from settle.machine.cores import cores

FEW_SHARE = 0.5  # of the cores: with so few threads or fewer, most of the processor has nothing to do


class SlowTokens(ResourceCheck[Details]):
    """A model should compute with one thread a core."""

    number: ClassVar[int] = 3
    symptom: ClassVar[str] = "tokens come slowly"
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: ModelFile) -> Iterator[Finding[Details]]:
        threads, usable = subject.running.threads, cores().usable
        if threads is None or threads == usable or FEW_SHARE * usable < threads < usable:
            return
        number = "more" if threads > usable else "far fewer"
        what = f"it computes with {threads} threads, {number} than there are cores"
        strength = 0.95 if threads > usable else 0.8
        yield self.finding(what, f"{usable} cores can work on it", strength=strength)

    def trial(self, finding: Finding[Details], subject: ModelFile, folder: Path) -> Trial | None:
        before, after = subject.running.threads, cores().usable
        if before is None:
            return None
        return self.speed_trial(
            f"{after} threads instead of {before}",
            ThreadedTime("as it is", subject.model, SHORT, threads=before),
            ThreadedTime("one thread a core", subject.model, SHORT, threads=after),
            seconds=max(0.6, subject.model.weights.stat().st_size / 2e8),
            preparing=4.0,
        )

    def fix(self, finding: Finding[Details], subject: ModelFile) -> Fix:
        return Fix("compute with one thread a core", f"settle serve --threads {cores().usable}")
