"""The settings of runs side by side, and the power that a run takes on average."""

from collections.abc import Mapping, Sequence

from settle.base.errors import SettleError
from settle.base.run import Run
from settle.base.words.amounts import amount, number
from settle.base.words.figures import flat

# what differs in any two runs, and says nothing about why one is better
INCIDENTAL = ("origin.", "why.", "versions.", "machine.", "proof", "asked.name", "loop.seconds_", "loop.step_seconds",
              "loop.evaluation_cost")  # fmt: skip
MOST_VALUE = 200  # characters of a value that are shown


def differing_settings(runs: Sequence[Run]) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the settings that differ between the runs, and of those that do not: the key, then the value of each."""
    plans = [_plan(run) for run in runs]
    keys = list(dict.fromkeys(key for plan in plans for key in plan if not key.startswith(INCIDENTAL)))
    rows = [[key, *(_text(plan[key]) if key in plan else "–" for plan in plans)] for key in keys]
    return [row for row in rows if len({*row[1:]}) > 1], [row for row in rows if len({*row[1:]}) == 1]


def average_watts(run: Run) -> float | None:
    """Energy by time: the actual ones, or those of the forecast before the end; None where they are not known."""
    for file, part in (("result.json", "actual"), ("forecast.json", None)):
        values = _read(run, file)
        figures = values.get(part) if part else values
        if isinstance(figures, Mapping):
            energy, seconds = (number(_value(figures.get(name))) for name in ("energy", "time"))
            if energy is not None and seconds:
                return energy / seconds
    return None


def _plan(run: Run) -> dict[str, object]:
    return flat(_read(run, "plan.json"))


def _read(run: Run, file: str) -> Mapping[str, object]:
    try:
        values = run.read(file)
    except SettleError:  # it is compared by what can be read
        return {}
    return values if isinstance(values, Mapping) else {}


def _value(figure: object) -> object:
    return figure.get("value") if isinstance(figure, Mapping) else figure


def _text(value: object) -> str:
    text = amount(value)
    return text if len(text) <= MOST_VALUE else text[: MOST_VALUE - 1] + "…"
