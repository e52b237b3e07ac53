"""Size, speed and loss of several files of one model, as rows and as a picture with the frontier marked."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from settle.base.files import write_atomic
from settle.evaluate.report.figure_style import BLUE, GREEN, GREY, INK, STYLE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes


T = TypeVar("T")


def frontier(things: Sequence[T], figures: Callable[[T], Sequence[float | None]]) -> list[T]:
    """Those that no other one beats, in their order: none is at least as good in every figure, and better in one.

    figures: of one of them, each the better the larger. Where one is None it decides nothing.
    """
    known = [figures(thing) for thing in things]
    return [thing for thing, own in zip(things, known, strict=True) if not any(_beats(other, own) for other in known)]


def _beats(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


INCHES, DPI = (10.0, 5.4), 150
LEAST = 1e-6  # nats: the axis is logarithmic
NAME_PIXELS = (150, 22)  # two names nearer to each other than this would lie over one another
COLUMNS = ("", "size, MB", "KL, nats per token", "same first token", "loss rises by", "tokens/s", "memory, MB")


@dataclass(frozen=True)
class Point:
    """One file, or the reference itself (whose KL is 0).

    kl: nats per token, low to high its interval (None: not known). speed: tokens made a second; same_top: share; rise:
    of the loss, as a share. None: not measured. predicted: whether kl and speed are. chosen: the one that is exported.
    """

    name: str
    num_bytes: int
    kl: float
    low: float | None = None
    high: float | None = None
    speed: float | None = None
    same_top: float | None = None
    rise: float | None = None
    peak_bytes: int | None = None
    predicted: bool = False
    chosen: bool = False


def best_points(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in size, loss and speed, smallest first.

    Where a speed was not measured it decides nothing.
    """
    best = frontier(points, lambda p: (-p.num_bytes, -p.kl, p.speed))
    return sorted(best, key=lambda p: (p.num_bytes, p.kl))


def pareto_rows(points: Sequence[Point]) -> list[list[str]]:
    """Return a row of `COLUMNS` for each, largest first; ● marks the frontier, and → what was chosen."""
    best = {p.name for p in best_points(points)}

    def row(p: Point) -> list[str]:
        mark = "→" if p.chosen else "●" if p.name in best else " "
        interval = f" ({p.low:.2g}–{p.high:.2g})" if p.low is not None and p.high is not None else ""
        return [
            f"{mark} {p.name}",
            f"{p.num_bytes / 1e6:.1f}",
            ("≈ " if p.predicted else "") + (f"{p.kl:.3g}{interval}" if p.kl else "0"),
            "–" if p.same_top is None else f"{p.same_top:.1%}",
            "–" if p.rise is None else f"{p.rise:+.2%}",
            "–" if p.speed is None else ("≈ " if p.predicted else "") + f"{p.speed:.1f}",
            "–" if p.peak_bytes is None else f"{p.peak_bytes / 1e6:.0f}",
        ]

    return [row(p) for p in sorted(points, key=lambda p: (-p.num_bytes, p.kl))]


def draw_pareto(points: Sequence[Point], path: Path, title: str = "") -> Path:
    """Write the picture as a PNG; the path."""
    write_atomic(path, picture(points, title))
    return path


def picture(points: Sequence[Point], title: str = "") -> bytes:
    """Size × loss, and speed × loss where speeds are known, as the bytes of a PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("file size, MB", [p.num_bytes / 1e6 for p in points], False)]
    if sum(p.speed is not None and p.kl > 0 for p in points) > 1:
        panels.append(("tokens a second", [math.nan if p.speed is None else p.speed for p in points], True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, x, more_is_better) in zip(all_axes, panels, strict=True):
            _draw(axes, points, x, more_is_better)
            axes.set_xlabel(label)
        all_axes[0].set_ylabel("KL from the reference, nats per token")
        _explain(all_axes[0], points)
        figure.suptitle(title, x=0.02, ha="left", fontsize=14, fontweight="bold", color=INK)
        figure.tight_layout()
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _explain(axes: "Axes", points: Sequence[Point]) -> None:
    """Draw the legend, with the marks that are there."""
    if any(p.chosen for p in points):
        axes.plot([], [], "D", color=VERMILION, markersize=8, label="chosen")
    if any(p.predicted for p in points):
        axes.plot([], [], "o", color="white", markeredgecolor=GREY, markeredgewidth=1.5, label="predicted")
    if any(p.kl for p in points):
        axes.legend(loc="best")


def _draw(axes: "Axes", points: Sequence[Point], x: Sequence[float], more_is_better: bool) -> None:
    """One panel; the frontier is that of its own two axes."""
    shown = [(p, at) for p, at in zip(points, x, strict=True) if math.isfinite(at)]
    for p, at in shown:
        if not p.kl:  # the reference loses nothing, which a logarithmic axis has no place for
            axes.axvline(at, color=GREY, linewidth=1.2, linestyle=(0, (1, 1.5)))
            axes.annotate(
                p.name, (at, 1.0), (4 if more_is_better else -4, -10), xycoords=("data", "axes fraction"),
                textcoords="offset points", fontsize=8, color=GREY, ha="left" if more_is_better else "right",
            )  # fmt: skip
    shown = [(p, at) for p, at in shown if p.kl]
    y = {p.name: max(p.kl, LEAST) for p, _ in shown}
    sign = 1 if more_is_better else -1
    edge = sorted(frontier([(at, y[p.name]) for p, at in shown], lambda place: (sign * place[0], -place[1])))
    if edge:
        where: Literal["pre", "post"] = "pre" if more_is_better else "post"
        axes.step(*zip(*edge, strict=True), where=where, color=GREEN, linewidth=1.4, alpha=0.8, label="frontier")
    on_edge = set(edge)
    axes.set_yscale("log")
    for p, at in shown:
        colour = _colour(p, (at, y[p.name]) in on_edge)
        if p.low is not None and p.high is not None and p.kl > 0:
            axes.plot([at, at], [max(p.low, LEAST), max(p.high, LEAST)], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(
            at, y[p.name], linestyle="none", marker="D" if p.chosen else "o", markersize=8 if p.chosen else 6,
            color="white" if p.predicted else colour, markeredgecolor=colour, markeredgewidth=1.5,
        )  # fmt: skip
    axes.autoscale_view()
    named: list[tuple[float, float]] = []
    for p, at in sorted(shown, key=lambda pair: (not pair[0].chosen, (pair[1], y[pair[0].name]) not in on_edge)):
        place = axes.transData.transform((at, y[p.name]))
        if any(abs(place[0] - x) < NAME_PIXELS[0] and abs(place[1] - z) < NAME_PIXELS[1] for x, z in named):
            continue  # the table has all names
        named.append((place[0], place[1]))
        colour = _colour(p, (at, y[p.name]) in on_edge)
        axes.annotate(
            p.name, (at, y[p.name]), (5, 4), textcoords="offset points", fontsize=8, color=colour, annotation_clip=False
        )
    axes.grid(axis="y", color="#E6E6E6")


def _colour(point: Point, is_on_edge: bool) -> str:
    return VERMILION if point.chosen else BLUE if is_on_edge else GREY
