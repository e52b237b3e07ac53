"""A run as a picture: losses, learning rate, the evidence for settled, and the forecast beside the actual loss.

Each line differs from the others by its shape too, not only by its colour.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from settle.base.events import Eval, SettledEvidence, Step
from settle.base.files import JsonObject, write_atomic
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.base.run.result import Result, figures_of, loss_unit
from settle.base.statistics import LEVEL
from settle.evaluate.report.figure_style import BLUE, GREEN, GREY, INK, PURPLE, STYLE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

E = TypeVar("E", Step, Eval, SettledEvidence)
VERDICT_COLOURS = {"settled": GREEN, "learned": GREEN, "diverged": VERMILION, "broken": VERMILION}
INCHES, DPI = (10.0, 7.6), 150
MOST_DOTS = 60
FEW_EVALUATIONS = 8
POINTS = 300  # a line of more points than the picture has room for is drawn as the mean of each stretch


def load_drawing() -> None:
    """Load what draws, which takes seconds when it is new on a machine, and of a run with a budget its time."""
    import matplotlib.backends.backend_agg  # noqa: F401
    import matplotlib.figure  # noqa: F401


def draw_curves(run: Run, result: Result | None = None) -> Path | None:
    """Draw `out/curves.png` of a run from its events, forecast.json and the result (result.json when not given).

    Returns the picture's path, or None when the run has not been evaluated yet and there is nothing to see.
    """
    course = RunCourse.read(run.events)
    if not course.evals:
        return None
    result = result or run.result()
    forecast = (result.forecast if result else {}) or run.read("forecast.json") or {}
    path = run.out / "curves.png"
    unit = loss_unit((run.read("plan.json") or {}).get("objective"))
    write_atomic(path, picture(course, result, forecast, run.name, unit))
    return path


def picture(
    course: RunCourse, result: Result | None, forecast: JsonObject, name: str, unit: str = "nats per token"
) -> bytes:
    """Return the picture as the bytes of a PNG; what `result` and `forecast` lack is left out. unit: of the losses."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        has_evidence = bool(finite(course.judgements, "gain", "high"))
        expected = _interval(forecast, "loss")
        axes = _axes(figure, has_evidence, expected is not None)
        loss, rate, evidence, beside = axes
        _draw_loss(loss, course, beside or loss, result.best.step if result and result.best else None)
        loss.set_ylabel(f"loss, {unit}")
        _draw_rate(rate, course)
        if evidence is not None:
            _draw_evidence(evidence, course)
        if beside is not None and expected is not None:
            _draw_forecast(beside, expected, _final_loss(course, result), "actual" if result else "so far")
        _mark_decay([a for a in (loss, rate, evidence) if a is not None], course)
        (evidence or rate).set_xlabel("tokens seen")
        figure.align_ylabels([loss, evidence] if evidence is not None else [loss])
        _title(figure, loss, name, course, result)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


class AllAxes(NamedTuple):
    loss: "Axes"
    rate: "Axes"
    evidence: "Axes | None"
    forecast: "Axes | None"


def _axes(figure: "Figure", has_evidence: bool, has_forecast: bool) -> AllAxes:
    """Loss above, learning rate as a strip, evidence below; the forecast as a narrow column beside the loss."""
    heights = [6.0, 0.9] + [2.6] * has_evidence
    widths = [1.0] + [0.085] * has_forecast
    grid = figure.add_gridspec(
        len(heights), len(widths), height_ratios=heights, width_ratios=widths,
        left=0.085, right=0.915, top=0.875, bottom=0.075, hspace=0.2, wspace=0.03,
    )  # fmt: skip
    loss = figure.add_subplot(grid[0, 0])
    rate = figure.add_subplot(grid[1, 0], sharex=loss)
    evidence = figure.add_subplot(grid[2, 0], sharex=loss) if has_evidence else None
    beside = figure.add_subplot(grid[0, 1], sharey=loss) if has_forecast else None
    for above in (loss, rate) if evidence is not None else (loss,):
        above.tick_params(labelbottom=False)
    return AllAxes(loss, rate, evidence, beside)


def _draw_loss(axes: "Axes", course: RunCourse, right: "Axes", best_step: int | None) -> None:
    """Training and held-out loss; the axis of bits per byte goes to the right of `right`."""
    steps = finite(course.steps, "tokens", "loss")
    if steps:
        x, mean, low, high = stretches(steps)
        axes.fill_between(x, low, high, color=GREY, alpha=0.15, linewidth=0)
        axes.plot(x, mean, color=GREY, linewidth=0.9, label="training batches")
    evals = finite(course.evals, "tokens", "loss")
    tokens: list[float] = [e.tokens for e in evals]
    y = [e.loss for e in evals]
    error = [e.stderr if finite([e], "stderr") else 0.0 for e in evals]
    axes.fill_between(
        tokens, [a - b for a, b in zip(y, error, strict=True)], [a + b for a, b in zip(y, error, strict=True)],
        color=BLUE, alpha=0.16, linewidth=0,
    )  # fmt: skip
    label = "held-out ± standard error of the sample"
    axes.plot(tokens, y, color=BLUE, linewidth=1.8, marker=_dots(tokens), markersize=3.2, label=label)
    sampled = next((e for e in evals if e.step == best_step), min(evals, key=lambda e: e.loss))
    best = course.whole or sampled
    where = "evaluated at the end" if course.whole else f"at step {best.step:,}"
    axes.plot(
        best.tokens, best.loss, marker="*", markersize=15, color="white", markeredgecolor=BLUE,
        markeredgewidth=1.4, linestyle="none", label=f"best weights: {best.loss:.4f} {where}", zorder=5,
    )  # fmt: skip
    _draw_outlook(axes, course)
    _set_loss_limits(axes, [*y, best.loss], [e.loss for e in steps])
    _mark_rollbacks(axes, course)
    axes.grid(axis="y", color="#E6E6E6")
    axes.legend(loc="upper right")
    if best.bits_per_byte and best.loss > 0:
        ratio = best.bits_per_byte / best.loss
        scales = (lambda v: np.asarray(v) * ratio, lambda v: np.asarray(v) / ratio)
        bits = right.secondary_yaxis("right", functions=scales)
        bits.set_ylabel("bits per byte")
        bits.spines["right"].set_visible(True)


def _draw_outlook(axes: "Axes", course: RunCourse) -> None:
    """Draw the final loss as it was forecast after so many tokens, ever more narrowly."""
    expected = course.forecasts
    if len(expected) > 1:
        x = [e.tokens for e in expected]
        axes.fill_between(
            x, [e.low for e in expected], [e.high for e in expected], color=VERMILION, alpha=0.12, linewidth=0
        )
        label = "final loss as forecast then, with its 80 % interval"
        axes.plot(x, [e.loss for e in expected], color=VERMILION, linewidth=1.2, linestyle=(0, (4, 2)), label=label)


def _dots(x: Sequence[float]) -> str:
    """Return a mark for each point, unless there are so many that they would run together."""
    return "o" if len(x) <= MOST_DOTS else ""


def _set_loss_limits(axes: "Axes", held_out: Sequence[float], training: Sequence[float]) -> None:
    """Room for what matters: the first fall from ln(vocabulary) would press the rest into a line."""
    end = min(held_out)
    share = 0.7 if len(held_out) >= FEW_EVALUATIONS else 1.0
    later = sorted(held_out)[: max(2, math.ceil(share * len(held_out)))]
    top = max(later[-1], end * 1.05)
    bottom = min(end, *sorted(training)[len(training) // 50 :][:1]) if training else end
    margin = 0.08 * (top - bottom)
    axes.set_ylim(bottom - margin, top + 2 * margin)


def _mark_rollbacks(axes: "Axes", course: RunCourse) -> None:
    if not course.rollbacks:
        return
    x = [course.tokens_at(event.step) for event in course.rollbacks]
    axes.plot(
        x, [0.02] * len(x), transform=axes.get_xaxis_transform(), linestyle="none", marker="x", markersize=8,
        markeredgewidth=2.0, color=VERMILION, label="rolled back", clip_on=False,
    )  # fmt: skip


def _draw_rate(axes: "Axes", course: RunCourse) -> None:
    from matplotlib.ticker import EngFormatter

    steps = finite(course.steps, "tokens", "lr")
    if steps:
        every = max(1, len(steps) // (4 * POINTS))
        shown = [*steps[::every], steps[-1]]
        axes.fill_between([e.tokens for e in shown], [e.lr for e in shown], color=PURPLE, alpha=0.45, linewidth=0)
        peak = max(e.lr for e in steps)
        axes.set_ylim(0, 1.15 * peak or 1.0)
        axes.set_yticks([0, peak], ["0", f"{peak:.2g}"])
    axes.text(0.008, 0.12, "learning rate", transform=axes.transAxes, color=INK)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _draw_evidence(axes: "Axes", course: RunCourse) -> None:
    """Draw the gain still expected from 10 % more tokens, with its interval, against what matters; logarithmic."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    judged = finite(course.judgements, "gain", "high")
    x = [course.tokens_at(e.step) for e in judged]
    tolerance = next((e.tolerance for e in reversed(judged) if e.tolerance), 0.005)
    floor = min(tolerance, *(max(tolerance / 20, e.gain) for e in judged)) / 2
    gain, low, high = ([100 * max(floor, float(getattr(e, k))) for e in judged] for k in ("gain", "low", "high"))
    axes.fill_between(x, low, high, color=GREEN, alpha=0.22, linewidth=0, label=f"its {100 * LEVEL:.0f} % interval")
    axes.plot(x, high, color=GREEN, linewidth=1.0, linestyle=(0, (4, 2)), label="upper end")
    axes.plot(
        x, gain, color=GREEN, linewidth=1.8, marker=_dots(x), markersize=3.2, label="gain expected of 10 % more tokens"
    )
    axes.axhline(100 * tolerance, color=VERMILION, linewidth=1.4, label=f"what matters: {100 * tolerance:.3g} %")
    settled = next((i for i, e in enumerate(judged) if e.state == "settled"), None)
    if settled is not None:
        axes.plot(
            x[settled], high[settled], marker="D", markersize=8, color="white", markeredgecolor=GREEN,
            markeredgewidth=1.6, linestyle="none", label="settled", zorder=5,
        )  # fmt: skip
    axes.set_yscale("log")
    top = max(200 * tolerance, 1.3 * sorted(high)[max(0, math.ceil(0.9 * len(high)) - 1)])
    axes.set_ylim(100 * floor, top)
    axes.yaxis.set_major_locator(FixedLocator(_round_numbers(100 * floor, top)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} %"))
    axes.set_ylabel("still to gain")
    axes.grid(axis="y", color="#E6E6E6")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=5, fontsize=8.5, columnspacing=1.2, frameon=False)


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5 of every power of ten between two ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def _draw_forecast(axes: "Axes", expected: tuple[float, float, float], actual: float, label: str) -> None:
    value, low, high = expected
    axes.plot([0, 0], [low, high], color=VERMILION, linewidth=7, alpha=0.35, solid_capstyle="butt")
    axes.plot([-0.32, 0.32], [value, value], color=VERMILION, linewidth=2)
    axes.plot(1, actual, marker="o", markersize=7, color=BLUE)
    axes.set_xlim(-0.7, 1.7)
    axes.set_xticks([0, 1], ["forecast", label], rotation=90)
    axes.tick_params(left=False, labelleft=False)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6")
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, low - 0.03 * (top - bottom)), max(top, min(high, value + (top - bottom)) * 1.01))


def _mark_decay(all_axes: Sequence["Axes"], course: RunCourse) -> None:
    if course.decay is None:
        return
    start = course.tokens_at(course.decay.step)
    end = max([e.tokens for e in course.steps] + [e.tokens for e in course.evals])
    for axes in all_axes:
        axes.axvspan(start, max(start, end), color=PURPLE, alpha=0.10, linewidth=0)
        axes.axvline(start, color=PURPLE, linewidth=1.2, linestyle=(0, (1, 1.5)))
    is_early = start < 0.25 * all_axes[0].get_xlim()[1]
    all_axes[0].annotate(
        "decay begins", (start, 0.0), (4 if is_early else -4, 6), xycoords=("data", "axes fraction"),
        textcoords="offset points", color="#7D4B72", ha="left" if is_early else "right", va="bottom",
    )  # fmt: skip


def _title(figure: "Figure", axes: "Axes", name: str, course: RunCourse, result: Result | None) -> None:
    verdict = result.verdict if result else "not finished"
    colour = VERDICT_COLOURS.get(verdict, INK)
    left = axes.get_position().x0
    title = figure.text(left, 0.945, f"{name}: {verdict}", fontsize=17, fontweight="bold", color=colour, va="center")
    why = (result.why if result else "") or f"{len(course.evals)} evaluations so far"
    reason = figure.text(left, 0.907, _shortened(why, 160), fontsize=10.5, color="#555555", va="center")
    room = (0.985 - left) * INCHES[0] * DPI
    for text in (title, reason):
        text.set_fontsize(text.get_fontsize() * min(1.0, room / text.get_window_extent().width))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rsplit(" ", 1)[0] + " …"


def _final_loss(course: RunCourse, result: Result | None) -> float:
    """Return what the forecast is compared with: the actual loss of the result, else the last evaluation's."""
    actual = result.actual.get("loss") if result else None
    actual = actual.get("value") if isinstance(actual, Mapping) else actual
    return float(actual) if isinstance(actual, int | float) else course.evals[-1].loss


def _interval(forecast: JsonObject, name: str) -> tuple[float, float, float] | None:
    figure = figures_of(forecast).get(name)
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return None
    return figure.value, figure.low, figure.high


def finite(events: Sequence[E], *names: str) -> list[E]:
    """Return the events whose named fields are all finite numbers."""
    return [e for e in events if all(math.isfinite(getattr(e, name)) for name in names)]


def stretches(steps: Sequence[Step | Eval]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Tokens, and the mean, least and greatest loss of each stretch of steps; at most POINTS stretches."""
    size = max(1, math.ceil(len(steps) / POINTS))
    out: tuple[list[float], list[float], list[float], list[float]] = ([], [], [], [])
    for i in range(0, len(steps), size):
        losses = [e.loss for e in steps[i : i + size]]
        stretch = (steps[min(i + size, len(steps)) - 1].tokens, sum(losses) / len(losses), min(losses), max(losses))
        for values, value in zip(out, stretch, strict=True):
            values.append(value)
    return out
