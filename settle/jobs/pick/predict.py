"""What is expected of a model on this machine, corrected by the ledger: what was predicted and measured here before."""

import contextlib
import datetime
import functools
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady
from settle.base.files import append_lines, home, read_lines
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.jobs.pick.exam import Taken
from settle.library.facts import read_facts
from settle.library.model_shape import ModelShape
from settle.library.reference import ModelRef
from settle.machine import Machine, cores, machine_or_this, memory
from settle.machine.cores import processor_name
from settle.plan.fit.here import law_here, recalled_runs
from settle.plan.fit.model_shapes import shape_of_file
from settle.plan.fit.speed import Z80, Law, Rate, decode_rate, first_token_seconds, prefill_rate
from settle.plan.fit.weight_types import Matrices
from settle.plan.memory_model import need

COLUMNS = ("date", "model", "figure", "predicted", "80 % interval", "measured", "measured ÷ predicted")
UNITS = {"memory": "bytes", "speed": "tokens/s", "first_token": "s"}
PRIOR = 1.0  # measurements that the law counts as, against those of this machine
SPREAD_PRIOR = 3.0  # measurements that the law's own spread counts as
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
    return Prediction(shape, law, {name: corrected(name, value, stds[name]) for name, value in law.items()})


def note_measured(model: str, prediction: Prediction, taken: Taken, busy: bool) -> None:
    """Put what was measured beside what was predicted.

    busy: other programs kept the machine busy. Raises ResourceError when the disk is full.
    """
    actual = {"memory": float(taken.peak_bytes), "speed": taken.speed.median, "first_token": taken.first_token.median}
    known = {f: (prediction.law[f], interval, actual[f]) for f, interval in prediction.figures.items()}
    note(model, known, busy)


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


# --- the ledger ---


@dataclass(frozen=True)
class Entry:
    """One figure of one model."""

    date: str
    machine: str
    model: str
    figure: str
    law: float  # predicted by the law alone
    predicted: float  # predicted, low, high: corrected by what was measured here before
    low: float
    high: float
    measured: float
    busy: bool = False  # other programs kept the machine busy, so times say little of it


def machine_name() -> str:
    """Return the name of this machine, by what the figures depend on."""
    return f"{processor_name()}, {cores().usable} cores, {round(memory().total / 2**30)} GiB"


def note(model: str, figures: Mapping[str, tuple[float, Interval, float]], busy: bool = False) -> None:
    """Put figures of a model into the ledger: by name what the law said, what was predicted, and what was measured.

    busy: as in `Entry`. Raises ResourceError when the disk is full.
    """
    today, machine = datetime.date.today().isoformat(), machine_name()
    entries = [
        Entry(today, machine, model, f, law, *p.ends, measured, busy) for f, (law, p, measured) in figures.items()
    ]
    append_lines(_path(), map(asdict, entries))


def corrected(figure: str, law: float, log_std: float) -> Interval:
    """Correct a prediction of the law by what was measured on this machine.

    The mean error of the models measured here is taken off, as far as they are many, and their spread takes the place
    of the law's. Times that were measured on a busy machine correct nothing. log_std: of the law's logarithm.
    """
    mine = [e for e in entries() if e.figure == figure and e.machine == machine_name()]
    latest = {e.model: e for e in mine if figure == "memory" or not e.busy}
    errors = [math.log(e.measured / e.law) for e in latest.values() if e.measured > 0 and e.law > 0]
    shift = sum(errors) / (len(errors) + PRIOR)
    squares = sum((error - shift) ** 2 for error in errors) + SPREAD_PRIOR * log_std**2
    return Interval.log_normal(law * math.exp(shift), math.sqrt(squares / (len(errors) + SPREAD_PRIOR)), FORECAST_LEVEL)


def entries() -> list[Entry]:
    """Return all that was kept, oldest first."""
    return list(_read(_path()))


def show_ledger(events: Events) -> None:
    """Show every figure that was predicted on this machine and then measured, and how near the predictions were."""
    known = [e for e in entries() if e.machine == machine_name()]
    rows = [
        [
            e.date,
            e.model,
            e.figure.replace("_", " "),
            _shown(e.figure, e.predicted),
            f"{_shown(e.figure, e.low)} to {_shown(e.figure, e.high)}",
            _shown(e.figure, e.measured),
            f"{e.measured / e.predicted:.2f}" + (" (busy)" if e.busy and e.figure != "memory" else ""),
        ]
        for e in known
    ]
    summary = "; ".join(_summary(figure, known) for figure in UNITS if any(e.figure == figure for e in known))
    note = summary or "nothing was measured yet: `settle pick` predicts and measures"
    events.emit(Listing(title=machine_name(), columns=COLUMNS, rows=rows, note=note))
    events.emit(ResultReady(result={"machine": machine_name(), "entries": [asdict(e) for e in known]}))


def _summary(figure: str, known: list[Entry]) -> str:
    mine = [e for e in known if e.figure == figure and (figure == "memory" or not e.busy)]
    if not mine:
        return f"{figure.replace('_', ' ')}: measured on a busy machine alone"
    error = statistics.median(abs(e.measured / e.predicted - 1) for e in mine)
    inside = sum(e.low <= e.measured <= e.high for e in mine)
    return f"{figure.replace('_', ' ')}: median error {error:.0%}, {inside} of {len(mine)} inside the interval"


def _shown(figure: str, value: float) -> str:
    if figure == "memory":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.2f} {UNITS[figure]}"


def _path() -> Path:
    return home() / "picks" / "ledger.jsonl"


def _read(path: Path) -> Iterator[Entry]:
    for line in read_lines(path):
        with contextlib.suppress(ValueError, TypeError):
            entry = Entry(**line)  # what is no number fails below
            if entry.figure in UNITS and min(entry.law, entry.predicted, entry.measured) > 0:
                yield entry
