"""Tables, values and pictures of plans."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from settle.base.events import Listing
from settle.base.files import write_atomic
from settle.base.statistics import Interval
from settle.evaluate.report.figure_style import BLUE, GREEN, GREY, INK, PURPLE, STYLE, VERMILION
from settle.machine.described_machine import Machine
from settle.plan.cluster.whole_run import RunForecast
from settle.plan.cost import ASKED, Cost, PayOff

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Rows = dict[str, tuple[Interval, str, str]]  # of a forecast: name → interval, unit, and where the number is from


def energy_rows(money: Cost, machine: Machine) -> Rows:
    """Return the rows of energy and rent; no rent of this machine, which is there already, unless it was asked for."""
    rows: Rows = {
        "energy": (money.energy.scaled(3.6e6), "J", f"{machine.watts or 0:.0f} W"),
        "electricity": (money.electricity, "USD", money.electricity_source),
    }
    if not machine.measured or money.rent_source == ASKED:
        rows["rent"] = (money.rent, "USD", money.rent_source)
    return rows


def forecast_table(title: str, rows: Rows, note: str = "") -> Listing:
    """Return the table of a forecast."""
    cells = [
        [name, {"value": value.value, "unit": unit}, *(_ends(value, unit)), source]
        for name, (value, unit, source) in rows.items()
    ]
    return Listing(title=title, columns=["forecast", "expected", "from", "to", "based on"], rows=cells, note=note)


def _ends(value: Interval, unit: str) -> list[object]:
    if value.low == value.high:
        return ["", ""]
    return [{"value": value.low, "unit": unit}, {"value": value.high, "unit": unit}]


def values(rows: Rows) -> dict[str, dict[str, float | str]]:
    """Return the rows of `forecast_table` for a result."""
    names = ("value", "low", "high", "unit", "source")
    return {
        re.sub(r"\W+", "_", name): dict(zip(names, (*value.ends, unit, source), strict=True))
        for name, (value, unit, source) in rows.items()
    }


INCHES, DPI = (8.0, 4.5), 150
LINE_POINTS = 200


@contextmanager
def _figure(path: Path, panels: int) -> Iterator[list["Axes"]]:
    """Axes beside each other; the picture is written, whole or not at all, when the block ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, dpi=DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        yield list(figure.subplots(1, panels, squeeze=False)[0])
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    write_atomic(path, out.getvalue())


def draw_run(run: RunForecast, path: Path) -> None:
    """Chance to have finished, day by day, and what the time goes into."""
    with _figure(path, 2) as (when, where):
        most = run.days.high * 1.3
        days = [most * (i + 1) / LINE_POINTS for i in range(LINE_POINTS)]
        when.plot(days, [100 * run.chance_within(day) for day in days], color=BLUE)
        when.axvspan(run.days.low, run.days.high, color=BLUE, alpha=0.12, label="80 % of such runs")
        when.axvline(run.clean_hours / run.devices / 24, color=GREY, linestyle=":", label="steady steps alone")
        when.set(xlabel="days", ylabel="chance to have finished, %", xlim=(0, most), ylim=(0, 101))
        when.legend(loc="lower right")
        fail = run.failures
        parts = {"work": fail.share.value, **fail.lost}
        names = list(parts)
        where.barh(names, [100 * parts[name] for name in names], color=[BLUE] + [VERMILION] * len(fail.lost))
        for place, name in enumerate(names):
            where.text(100 * parts[name] + 1, place, f"{100 * parts[name]:.1f} %", va="center")
        where.set(xlabel="% of the time", xlim=(0, 115), title=f"{fail.failures.value:,.0f} failures expected")
        where.invert_yaxis()


def draw_tuning(parts: Mapping[str, Mapping[str, float]], most: float, path: Path) -> None:
    """Memory of each method by what it is, beside what there is. parts: method → name → bytes; most: bytes."""
    with _figure(path, 1) as (axes,):
        left = dict.fromkeys(parts, 0.0)
        for name, color in zip(next(iter(parts.values())), (BLUE, VERMILION, GREEN, PURPLE, GREY), strict=False):
            sizes = [parts[method][name] / 1e9 for method in parts]
            axes.barh(list(parts), sizes, left=list(left.values()), color=color, label=name)
            left = {method: start + size for (method, start), size in zip(left.items(), sizes, strict=True)}
        axes.axvline(most / 1e9, color=INK, linestyle=":", label="room")
        axes.set(xlabel="GB of a device", xlim=(0, 1.15 * max(most / 1e9, *left.values())))
        axes.invert_yaxis()
        axes.legend(loc="best")


def draw_pay_off(plan: PayOff, purchase: float, path: Path, years: float) -> None:
    """Dollars spent over time on either side, with the day on which they cross."""
    with _figure(path, 1) as (axes,):
        life = years * 365
        end = min(life, 2 * plan.days.value) if plan.days else life
        days = [end * i / LINE_POINTS for i in range(LINE_POINTS + 1)]
        axes.plot(days, [plan.api * day for day in days], color=VERMILION, label="API")
        axes.plot(days, [purchase + plan.here.value * day for day in days], color=BLUE, label="here")
        axes.fill_between(
            days,
            [purchase + plan.here.low * day for day in days],
            [purchase + plan.here.high * day for day in days],
            color=BLUE,
            alpha=0.15,
        )
        if plan.days and 0 < plan.days.value < end:
            axes.axvline(plan.days.value, color=GREY, linestyle=":")
            axes.annotate(f"day {plan.days.value:,.0f}", (plan.days.value, plan.api * plan.days.value), ha="right")
        axes.set(xlabel="days", ylabel="dollars", xlim=(0, end), ylim=(0, None))
        axes.legend(loc="best")
