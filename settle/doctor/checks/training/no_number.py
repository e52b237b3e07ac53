"""A loss that was logged is no number, or exactly zero: what was trained after it is lost."""

import math
from collections.abc import Iterator
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import LoggedHistory

ZEROS = 3  # training losses of exactly zero, one after the other, that are no learning


class LostStep(Details):
    """The first step whose loss is no number, or zero."""

    step: int | None


class NoNumber(Check[LoggedHistory, LostStep]):
    """Every loss that a trainer logs should be a positive number."""

    number: ClassVar[int] = 32
    symptom: ClassVar[str] = "the loss became no number, or zero"
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: LoggedHistory) -> Iterator[Finding[LostStep]]:
        history = subject.history
        points = sorted([*history.train, *history.evaluations])
        first = next((step for step, loss in points if not math.isfinite(loss)), None)
        what = f"the loss is no number at step {first:,}" if first is not None else ""
        train = list(history.train)
        runs = (train[n : n + ZEROS] for n in range(len(train) - ZEROS + 1))
        zero = next((points[0][0] for points in runs if not any(loss for _, loss in points)), None)
        if first is None and zero is not None:
            what = f"the training loss is exactly zero from step {zero:,} on"
        if what:
            seen = "transformers writes the recent average or zero in the place of a loss that is no number, by default"
            step = first if first is not None else zero
            yield self.finding(what, seen, strength=1.0, details=LostStep(step=step))

    def fix(self, finding: Finding[LostStep], subject: LoggedHistory) -> Fix:
        what = f"go back to a checkpoint before step {finding.details.step}, with a lower learning rate"
        return Fix(what, "bf16=True instead of fp16, max_grad_norm=1.0, logging_nan_inf_filter=False")
