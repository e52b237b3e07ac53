"""A training run without evaluations, or with so few that nobody can say which checkpoint is best."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.histories.history import FEW
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial


class NeverEvaluated(Check):
    """A history should have evaluations on text that was held out."""

    number: ClassVar[int] = 30
    symptom: ClassVar[str] = "nobody knows whether the training helped"
    about: ClassVar[tuple[str, ...]] = ("history",)
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: Subject) -> Iterator[Finding]:
        history = subject.history
        assert history is not None
        count = len(history.evaluations)
        if count >= FEW or not history.train:
            return
        what = f"it was evaluated {count} times: too few to choose a checkpoint" if count else "it was never evaluated"
        seen = f"{len(history.train):,} training losses up to step {history.train[-1][0]:,}"
        yield Finding(self.part_name(), what, (seen,), 0.9 if not count else 0.7)

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        return None

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        assert subject.history is not None
        last = subject.history.train[-1][0]
        every = max(1, last // 20)
        return Fix("hold out text and evaluate on it", f'eval_strategy="steps", eval_steps={every}')
