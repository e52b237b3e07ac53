"""A training run without evaluations, or with so few that nobody can say which checkpoint is best."""

from collections.abc import Iterator
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.history import FEW
from settle.doctor.subject import LoggedHistory


class NeverEvaluated(Check[LoggedHistory, Details]):
    """A history should have evaluations on text that was held out."""

    number: ClassVar[int] = 30
    symptom: ClassVar[str] = "nobody knows whether the training helped"
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: LoggedHistory) -> Iterator[Finding[Details]]:
        history = subject.history
        count = len(history.evaluations)
        if count >= FEW or not history.train:
            return
        what = f"it was evaluated {count} times: too few to choose a checkpoint" if count else "it was never evaluated"
        seen = f"{len(history.train):,} training losses up to step {history.train[-1][0]:,}"
        yield self.finding(what, seen, strength=0.9 if not count else 0.7)

    def fix(self, finding: Finding[Details], subject: LoggedHistory) -> Fix:
        last = subject.history.train[-1][0]
        every = max(1, last // 20)
        return Fix("hold out text and evaluate on it", f'eval_strategy="steps", eval_steps={every}')
