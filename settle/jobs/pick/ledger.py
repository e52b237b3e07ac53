"""Predictions beside measurements on this machine, which correct what is predicted next."""

import contextlib
import datetime
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady
from settle.base.files import append_lines, home, read_lines
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.machine import cores, memory, processor_name

COLUMNS = ("date", "model", "figure", "predicted", "80 % interval", "measured", "measured ÷ predicted")
UNITS = {"memory": "bytes", "speed": "tokens/s", "first_token": "s"}
PRIOR = 1.0  # measurements that the law counts as, against those of this machine
SPREAD_PRIOR = 3.0  # measurements that the law's own spread counts as


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
    """Keep figures of a model: by name what the law said, what was predicted, and what was measured.

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


def show(events: Events) -> None:
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
