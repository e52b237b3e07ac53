"""A run as a picture: losses, learning rate, the evidence for settled, and the forecast beside what came.

Colours are from Okabe and Ito's palette, which colour-blind people can tell apart; each is also told by its shape.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from settle.base.event_log import read_events
from settle.base.events import Event
from settle.base.run import Run, write_atomic
from settle.base.statistics import LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREEN, VERMILION, PURPLE, GREY, INK = "#0072B2", "#009E73", "#D55E00", "#AA6F9E", "#8C8C8C", "#222222"
VERDICT_COLOURS = {"settled": GREEN, "diverged": VERMILION, "broken": VERMILION}
INCHES, DPI = (10.0, 7.6), 150
MOST_DOTS = 60
FEW_EVALUATIONS = 8
POINTS = 300  # a line of more points than the picture has room for is drawn as the mean of each stretch
STYLE = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "text.color": INK,
    "axes.axisbelow": True,
    "legend.facecolor": "white",
    "legend.edgecolor": "white",
    "legend.framealpha": 0.85,
    "legend.borderaxespad": 0.2,
}


@dataclass
class History:
    """What the events say about a run's course, steps that a rollback or a crash undid left out."""

    steps: list[Event] = field(default_factory=list)
    evals: list[Event] = field(default_factory=list)
    judged: list[Event] = field(default_factory=list)
    whole: Event | None = None  # the best weights, judged at the end on more of the held-out text
    decay_step: int | None = None
    rollbacks: list[Event] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Event]) -> "History":
        history = cls()
        lists = {"step": history.steps, "eval": history.evals, "settled": history.judged}
        for event in events:
            kind = event["kind"]
            if event.get("whole"):
                history.whole = event
            elif kind in lists:
                while lists[kind] and lists[kind][-1]["step"] >= event["step"]:
                    lists[kind].pop()
                lists[kind].append(event)
            elif kind == "decay":
                history.decay_step = event["step"]
            elif kind == "rollback":
                history.rollbacks.append(event)
                if history.decay_step is not None and history.decay_step >= event.get("to_step", 0):
                    history.decay_step = None
        return history

    def tokens_at(self, step: int) -> float:
        """Tokens seen at a step: those of the nearest event that tells them."""
        known = [*self.steps, *self.evals]
        nearest = min(known, key=lambda e: abs(e["step"] - step))
        return nearest["tokens"] * (step / nearest["step"]) if nearest["step"] else nearest["tokens"]


def draw_curves(run: Run, result: dict[str, Any] | None = None) -> Path | None:
    """Draw `out/curves.png` of a run from its events, forecast.json and the result (result.json when not given).

    Returns the picture's path, or None when the run has not been evaluated yet and there is nothing to see.
    """
    history = History.of(read_events(run.events))
    if len(history.evals) == 0:
        return None
    result = result if result is not None else run.read("result.json") or {}
    forecast = result.get("forecast") or run.read("forecast.json") or {}
    path = run.out / "curves.png"
    write_atomic(path, picture(history, result, forecast, run.name))
    return path


def picture(history: History, result: dict[str, Any], forecast: dict[str, Any], name: str) -> bytes:
    """The picture as the bytes of a PNG. `result` and `forecast` may be empty; what they lack is left out."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        has_evidence = bool(_finite(history.judged, "gain", "high"))
        expected = _interval(forecast, "loss")
        loss, rate, evidence, beside = _axes(figure, has_evidence, expected is not None)
        _draw_loss(loss, history, beside or loss, (result.get("best") or {}).get("step"))
        _draw_rate(rate, history)
        if evidence is not None:
            _draw_evidence(evidence, history)
        if beside is not None and expected is not None:
            _draw_forecast(beside, expected, _final_loss(history, result), "came" if result else "so far")
        _mark_decay([a for a in (loss, rate, evidence) if a is not None], history)
        (evidence or rate).set_xlabel("tokens seen")
        figure.align_ylabels([loss, evidence] if evidence is not None else [loss])
        _title(figure, loss, name, history, result)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _axes(figure: "Figure", has_evidence: bool, has_forecast: bool) -> tuple[Any, Any, Any, Any]:
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
    return loss, rate, evidence, beside


def _draw_loss(axes: "Axes", history: History, right: "Axes", best_step: int | None) -> None:
    """Training and held-out loss; the axis of bits per byte goes to the right of `right`."""
    steps = _finite(history.steps, "tokens", "loss")
    if steps:
        x, mean, low, high = _stretches(steps)
        axes.fill_between(x, low, high, color=GREY, alpha=0.15, linewidth=0)
        axes.plot(x, mean, color=GREY, linewidth=0.9, label="training batches")
    evals = _finite(history.evals, "tokens", "loss")
    x = [e["tokens"] for e in evals]
    y = [e["loss"] for e in evals]
    error = [e["stderr"] if _finite([e], "stderr") else 0.0 for e in evals]
    axes.fill_between(
        x, [a - b for a, b in zip(y, error, strict=True)], [a + b for a, b in zip(y, error, strict=True)],
        color=BLUE, alpha=0.16, linewidth=0,
    )  # fmt: skip
    axes.plot(
        x,
        y,
        color=BLUE,
        linewidth=1.8,
        marker=_dots(x),
        markersize=3.2,
        label="held-out ± standard error of the sample",
    )
    looked = next((e for e in evals if e["step"] == best_step), min(evals, key=lambda e: e["loss"]))
    best = history.whole or looked
    where = "judged at the end" if history.whole else f"at step {best['step']:,}"
    axes.plot(
        best["tokens"], best["loss"], marker="*", markersize=15, color="white", markeredgecolor=BLUE,
        markeredgewidth=1.4, linestyle="none", label=f"best weights: {best['loss']:.4f} {where}", zorder=5,
    )  # fmt: skip
    _set_loss_limits(axes, [*y, best["loss"]], [e["loss"] for e in steps])
    _mark_rollbacks(axes, history)
    axes.set_ylabel("loss, nats per token")
    axes.grid(axis="y", color="#E6E6E6")
    axes.legend(loc="upper right")
    if best.get("bits_per_byte") and best["loss"] > 0:
        ratio = best["bits_per_byte"] / best["loss"]
        bits = right.secondary_yaxis("right", functions=(lambda v: v * ratio, lambda v: v / ratio))
        bits.set_ylabel("bits per byte")
        bits.spines["right"].set_visible(True)


def _dots(x: Sequence[float]) -> str:
    """A mark for each point, unless there are so many that they would run together."""
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


def _mark_rollbacks(axes: "Axes", history: History) -> None:
    if not history.rollbacks:
        return
    x = [history.tokens_at(event["step"]) for event in history.rollbacks]
    axes.plot(
        x, [0.02] * len(x), transform=axes.get_xaxis_transform(), linestyle="none", marker="x", markersize=8,
        markeredgewidth=2.0, color=VERMILION, label="rolled back", clip_on=False,
    )  # fmt: skip


def _draw_rate(axes: "Axes", history: History) -> None:
    from matplotlib.ticker import EngFormatter

    steps = _finite(history.steps, "tokens", "lr")
    if steps:
        every = max(1, len(steps) // (4 * POINTS))
        shown = [*steps[::every], steps[-1]]
        axes.fill_between([e["tokens"] for e in shown], [e["lr"] for e in shown], color=PURPLE, alpha=0.45, linewidth=0)
        peak = max(e["lr"] for e in steps)
        axes.set_ylim(0, 1.15 * peak or 1.0)
        axes.set_yticks([0, peak], ["0", f"{peak:.2g}"])
    axes.text(0.008, 0.12, "learning rate", transform=axes.transAxes, color=INK)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _draw_evidence(axes: "Axes", history: History) -> None:
    """The gain still expected from 10 % more tokens, with its interval, against what matters; logarithmic."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    judged = _finite(history.judged, "gain", "high")
    x = [history.tokens_at(e["step"]) for e in judged]
    tolerance = next((float(e["tolerance"]) for e in reversed(judged) if e.get("tolerance")), 0.005)
    floor = min(tolerance, *(max(tolerance / 20, e["gain"]) for e in judged)) / 2
    gain, low, high = ([100 * max(floor, float(e.get(k) or 0.0)) for e in judged] for k in ("gain", "low", "high"))
    axes.fill_between(x, low, high, color=GREEN, alpha=0.22, linewidth=0, label=f"its {100 * LEVEL:.0f} % interval")
    axes.plot(x, high, color=GREEN, linewidth=1.0, linestyle=(0, (4, 2)), label="upper end")
    axes.plot(
        x, gain, color=GREEN, linewidth=1.8, marker=_dots(x), markersize=3.2, label="gain expected of 10 % more tokens"
    )
    axes.axhline(100 * tolerance, color=VERMILION, linewidth=1.4, label=f"what matters: {100 * tolerance:.3g} %")
    settled = next((i for i, e in enumerate(judged) if e.get("state") == "settled"), None)
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


def _draw_forecast(axes: "Axes", expected: tuple[float, float, float], came: float, label: str) -> None:
    value, low, high = expected
    axes.plot([0, 0], [low, high], color=VERMILION, linewidth=7, alpha=0.35, solid_capstyle="butt")
    axes.plot([-0.32, 0.32], [value, value], color=VERMILION, linewidth=2)
    axes.plot(1, came, marker="o", markersize=7, color=BLUE)
    axes.set_xlim(-0.7, 1.7)
    axes.set_xticks([0, 1], ["forecast", label], rotation=90)
    axes.tick_params(left=False, labelleft=False)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6")
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, low - 0.03 * (top - bottom)), max(top, min(high, value + (top - bottom)) * 1.01))


def _mark_decay(all_axes: Sequence["Axes"], history: History) -> None:
    if history.decay_step is None:
        return
    start = history.tokens_at(history.decay_step)
    end = max(e["tokens"] for e in [*history.steps, *history.evals])
    for axes in all_axes:
        axes.axvspan(start, max(start, end), color=PURPLE, alpha=0.10, linewidth=0)
        axes.axvline(start, color=PURPLE, linewidth=1.2, linestyle=(0, (1, 1.5)))
    is_early = start < 0.25 * all_axes[0].get_xlim()[1]
    all_axes[0].annotate(
        "decay begins", (start, 0.0), (4 if is_early else -4, 6), xycoords=("data", "axes fraction"),
        textcoords="offset points", color="#7D4B72", ha="left" if is_early else "right", va="bottom",
    )  # fmt: skip


def _title(figure: "Figure", axes: "Axes", name: str, history: History, result: dict[str, Any]) -> None:
    verdict = str(result.get("verdict") or "not finished")
    colour = VERDICT_COLOURS.get(verdict, INK)
    left = axes.get_position().x0
    title = figure.text(left, 0.945, f"{name}: {verdict}", fontsize=17, fontweight="bold", color=colour, va="center")
    why = str(result.get("why") or f"{len(history.evals)} evaluations so far")
    reason = figure.text(left, 0.907, _shortened(why, 160), fontsize=10.5, color="#555555", va="center")
    room = (0.985 - left) * INCHES[0] * DPI
    for text in (title, reason):
        text.set_fontsize(text.get_fontsize() * min(1.0, room / text.get_window_extent().width))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rsplit(" ", 1)[0] + " …"


def _final_loss(history: History, result: dict[str, Any]) -> float:
    """What the forecast is held against: the actual loss of the result, else the last evaluation's."""
    actual = (result.get("actual") or {}).get("loss")
    actual = actual.get("value") if isinstance(actual, dict) else actual
    return float(actual if actual is not None else history.evals[-1]["loss"])


def _interval(forecast: dict[str, Any], name: str) -> tuple[float, float, float] | None:
    item = forecast.get(name)
    if not isinstance(item, dict) or any(item.get(k) is None for k in ("value", "low", "high")):
        return None
    return float(item["value"]), float(item["low"]), float(item["high"])


def _finite(events: Sequence[Event], *names: str) -> list[Event]:
    """The events whose named fields are all finite numbers (a loss that was no number is written as text)."""
    return [
        e for e in events if all(isinstance(e.get(n), int | float) and math.isfinite(e[n]) for n in names)
    ]  # fmt: skip


def _stretches(steps: Sequence[Event]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Tokens, and the mean, least and greatest loss of each stretch of steps; at most POINTS stretches."""
    size = max(1, math.ceil(len(steps) / POINTS))
    out: tuple[list[float], list[float], list[float], list[float]] = ([], [], [], [])
    for i in range(0, len(steps), size):
        losses = [e["loss"] for e in steps[i : i + size]]
        stretch = (steps[min(i + size, len(steps)) - 1]["tokens"], sum(losses) / len(losses), min(losses), max(losses))
        for values, value in zip(out, stretch, strict=True):
            values.append(value)
    return out
