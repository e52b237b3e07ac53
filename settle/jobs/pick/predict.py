"""What is expected of a model on this machine before it is measured, corrected by what was measured here before."""

from dataclasses import dataclass

from settle.base.statistics import Interval
from settle.jobs.pick import ledger
from settle.jobs.pick.measure import Taken
from settle.library.facts import Facts

OVERHEAD_BYTES = 0.15e9  # of a child beside weights and cache
MEMORY_STD = 0.08  # of the logarithm of memory ÷ its prediction


@dataclass(frozen=True)
class Prediction:
    """By figure (memory in bytes at the asked context, speed in tokens written a second, first_token in seconds) what
    the law says, and the same after what was measured on this machine. What nothing is known of is not there."""

    law: dict[str, float]
    figures: dict[str, Interval]

    def to_json(self) -> dict[str, object]:
        return {name: interval.to_json() for name, interval in self.figures.items()}


def predict(facts: Facts, context: int) -> Prediction:
    """What a model of these facts takes on this machine at `context` tokens."""
    law = {"memory": facts.bytes + context * facts.bytes_per_token + OVERHEAD_BYTES}
    return Prediction(law, {"memory": ledger.corrected("memory", law["memory"], MEMORY_STD)})


def note_measured(model: str, prediction: Prediction, taken: Taken) -> None:
    """Puts what was measured beside what was predicted. Raises ResourceError when the disk is full."""
    actual = {"memory": float(taken.peak_bytes), "speed": taken.speed.median, "first_token": taken.first_token.median}
    known = {f: (prediction.law[f], interval, actual[f]) for f, interval in prediction.figures.items()}
    ledger.note(model, known)
