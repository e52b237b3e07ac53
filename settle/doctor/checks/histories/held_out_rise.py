"""The held-out loss rose after its best by more than its noise: the last checkpoint is not the one to take."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial


class HeldOutRise(Check):
    """A history should end about where its held-out loss is lowest, or keep the weights from there."""

    number: ClassVar[int] = 31
    symptom: ClassVar[str] = "the model got worse while its training loss fell"
    about: ClassVar[tuple[str, ...]] = ("history",)
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: Subject) -> Iterator[Finding]:
        history = subject.history
        assert history is not None
        best, rise = history.best(), history.rise()
        if best is None or rise is None or rise[0] <= rise[1]:
            return
        what = f"it overfitted from about step {best[0]:,} on"
        seen = [f"the held-out loss rose by {rise[0]:.3g} from {best[1]:.3g}; its noise could make {rise[1]:.2g}"]
        if history.keeps_best:
            seen.append("the trainer kept the best checkpoint, so its last weights may not be what you have")
        yield Finding(self.part_name(), what, tuple(seen), 0.8)

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        return None

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        assert subject.history is not None
        kept = subject.history.checkpoint()
        if kept is None:
            return Fix("train again and keep the best weights", "load_best_model_at_end=True, save_total_limit=2")
        return Fix(f"take the checkpoint of step {kept:,}", f"checkpoint-{kept}")
