"""What is expected of a model on this machine before it is measured, corrected by what was measured here before."""

import functools
import math
from dataclasses import dataclass, replace

from settle.base.errors import SettleError
from settle.base.statistics import Interval
from settle.jobs.pick import ledger
from settle.jobs.pick.exam import Taken
from settle.library.facts import read_facts
from settle.library.model_shape import ModelShape
from settle.library.reference import ModelRef
from settle.machine import Machine, machine_or_this
from settle.plan.fit.here import law_here, recalled_runs
from settle.plan.fit.model_shapes import shape_of_file
from settle.plan.fit.speed import Z80, Law, Rate, decode_rate, first_token_seconds, prefill_rate
from settle.plan.fit.weight_types import Matrices
from settle.plan.memory_model import need

MEMORY_STD = 0.1  # of the logarithm of memory ÷ its prediction, where nothing was measured yet
LETTERS = 4  # of a token of a prompt, where no tokenizer was asked yet


@dataclass(frozen=True)
class Prediction:
    """Figures of a model by name: memory in bytes, speed in tokens written a second, first_token in seconds.

    Attributes:
        figures: corrected by what was measured on this machine; what nothing is known of is not there.
    """

    shape: ModelShape
    law: dict[str, float]  # what the law says
    figures: dict[str, Interval]

    def to_json(self) -> dict[str, object]:
        return {name: interval.to_json() for name, interval in self.figures.items()}

    @property
    def summary(self) -> str:
        """The figures in a few words."""
        memory, speed = self.figures["memory"], self.figures.get("speed")
        text = f"{memory.value / 1e9:.1f} GB ({memory.low / 1e9:.1f} to {memory.high / 1e9:.1f})"
        return text if speed is None else f"{text}, {speed.value:.0f} tokens/s ({speed.low:.0f} to {speed.high:.0f})"

    @property
    def memory_alone(self) -> "Prediction":
        """Without figures of speed."""
        return replace(self, figures={"memory": self.figures["memory"]})


def predict_file(ref: ModelRef, context: int, letters: int) -> Prediction | None:
    """Predict what a model takes on this machine at `context` tokens, with a usual prompt of so many letters.

    None where its file does not say enough.
    """
    facts = read_facts(ref.weights)
    try:
        named = shape_of_file(ref.weights, ref.name)
    except SettleError:
        return None
    kind = facts.quantization.lower()
    return predict(named.shape, kind, facts.bytes, min(context, facts.context), letters, named.matrices)


def predict(
    shape: ModelShape, kind: str, num_bytes: int, context: int, letters: int, matrices: Matrices | None = None
) -> Prediction:
    """Predict it of a model of this shape, whose weights are of a kind such as q4_k_m and take so many bytes."""
    machine = _here()
    law, stds = {}, {"memory": MEMORY_STD}
    try:
        needed = need(shape, kind, machine, context)
        law["memory"] = num_bytes + needed.total - needed.weights
        prompt = max(8, letters // LETTERS)
        decode = decode_rate(shape, kind, machine, prompt, law=_law(), matrices=matrices)
        prefill = prefill_rate(shape, kind, machine, _law(), prompt, matrices)
        law["speed"], stds["speed"] = decode.value, _std(decode)
        law["first_token"], stds["first_token"] = first_token_seconds(prefill, decode, prompt), _std(prefill)
    except SettleError:  # a type of weights that the law does not know
        law.setdefault("memory", num_bytes + shape.kv_bytes(context))
    return Prediction(shape, law, {name: ledger.corrected(name, value, stds[name]) for name, value in law.items()})


def note_measured(model: str, prediction: Prediction, taken: Taken, busy: bool) -> None:
    """Put what was measured beside what was predicted.

    busy: other programs kept the machine busy. Raises ResourceError when the disk is full.
    """
    actual = {"memory": float(taken.peak_bytes), "speed": taken.speed.median, "first_token": taken.first_token.median}
    known = {f: (prediction.law[f], interval, actual[f]) for f, interval in prediction.figures.items()}
    ledger.note(model, known, busy)


@functools.cache
def _here() -> Machine:
    return machine_or_this(None)


@functools.cache
def _law() -> Law | None:
    """Return the law as runs of `settle models fit --measure` corrected it; None is the law that ships."""
    return law_here(recalled_runs(), _here()) if _here().kind == "cpu" else None


def _std(rate: Rate) -> float:
    """Return the standard deviation of the logarithm."""
    return math.log(rate.high / rate.low) / (2 * Z80)
