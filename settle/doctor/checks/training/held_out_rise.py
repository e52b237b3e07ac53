"""The held-out loss rose after its best by more than its noise: the last checkpoint is not the one to take."""

from collections.abc import Iterator
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import LoggedHistory


class HeldOutRise(Check[LoggedHistory, Details]):
    """A history should end about where its held-out loss is lowest, or keep the weights from there."""

    number: ClassVar[int] = 31
    symptom: ClassVar[str] = "the model got worse while its training loss fell"
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: LoggedHistory) -> Iterator[Finding[Details]]:
        history = subject.history
        best, rise = history.best(), history.rise()
        if best is None or rise is None or rise[0] <= rise[1]:
            return
        what = f"it overfitted from about step {best[0]:,} on"
        seen = [f"the held-out loss rose by {rise[0]:.3g} from {best[1]:.3g}; its noise could make {rise[1]:.2g}"]
        if history.keeps_best:
            seen.append("the trainer kept the best checkpoint, so its last weights may not be what you have")
        yield self.finding(what, *seen, strength=0.8)

    def fix(self, finding: Finding[Details], subject: LoggedHistory) -> Fix:
        kept = subject.history.checkpoint()
        if kept is None:
            return Fix("train again and keep the best weights", "load_best_model_at_end=True, save_total_limit=2")
        return Fix(f"take the checkpoint of step {kept:,}", f"checkpoint-{kept}")
