"""A pick as a table, as a picture of speed against quality, and as JSON for scripts and the studio."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

from settle.base.files import write_atomic
from settle.base.statistics import Interval, share_interval
from settle.evaluate.report.figure_style import BLUE, GREEN, GREY, INK, STYLE, VERMILION
from settle.evaluate.report.frontier import frontier
from settle.experiment.race import Outcome
from settle.experiment.report import pairs_json
from settle.jobs.pick.verdict import Measured, Verdict

COLUMNS = ("model", "score", "prompts", "first token, s", "tokens/s", "memory", "size", "licence", "where")
INCHES, DPI = (7.6, 5.0), 150


def rows(measured: Sequence[Measured], verdict: Verdict, is_share: bool) -> list[list[object]]:
    """Return a row of COLUMNS for each, the best score first; → marks the one to take."""
    ordered = sorted(measured, key=lambda m: -(m.score if m.score is not None else -math.inf))
    return [
        [
            f"{'→' if m is verdict.chosen else ' '} {m.name}",
            "–" if m.score is None else f"{100 * m.score:.1f} %" if is_share else f"{m.score:.3f}",
            m.asked,
            f"{m.taken.first_token.median:.2g}",
            f"{m.taken.speed.median:.1f} ({m.taken.speed.least:.1f}–{m.taken.speed.most:.1f})",
            {"value": m.taken.peak_bytes, "unit": "bytes"},
            {"value": m.candidate.num_bytes, "unit": "bytes"},
            m.candidate.license or "not known",
            m.candidate.where,
        ]
        for m in ordered
    ]


def to_json(measured: Sequence[Measured], outcome: Outcome | None, verdict: Verdict, measure: str) -> dict[str, object]:
    """Return all figures, for result.json."""
    return {
        "chosen": verdict.chosen.name if verdict.chosen else None,
        "verdict": "better" if verdict.is_better else "not shown to differ" if outcome else "not measured",
        "why": verdict.sentence,
        "notes": list(verdict.notes),
        "measure": measure,
        "saved": outcome.saved if outcome else 0.0,
        "models": [
            {
                "name": m.name,
                "where": m.candidate.where,
                "license": m.candidate.license,
                "bytes": m.candidate.num_bytes,
                "score": m.score,
                "asked": m.asked,
                "cut": m.cut,
                "measured": m.taken.to_json(),
                "predicted": m.candidate.prediction.to_json() if m.candidate.prediction else None,
            }
            for m in measured
        ],
        "pairs": pairs_json(outcome, "prompts") if outcome else [],
    }


def draw(
    measured: Sequence[Measured], verdict: Verdict, measure: str, is_share: bool, path: Path, of: str = "tokens"
) -> Path | None:
    """Draw speed against score as a PNG, with the frontier; return None where no score was measured.

    of: what a second brings.
    """
    shown = [m for m in measured if m.score is not None]
    if not shown:
        return None
    write_atomic(path, _picture(shown, verdict, measure, is_share, of))
    return path


def best_models(measured: Sequence[Measured]) -> list[Measured]:
    """Return those that no other one beats in both speed and score, slowest first."""
    best = frontier(measured, lambda m: (m.taken.speed.median, m.score or 0.0))
    return sorted(best, key=lambda m: m.taken.speed.median)


def _picture(measured: Sequence[Measured], verdict: Verdict, measure: str, is_share: bool, of: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        edge = best_models(measured)
        x, y = [m.taken.speed.median for m in edge], [_of(m) for m in edge]
        axes.step(x, y, where="pre", color=GREEN, linewidth=1.4, alpha=0.8, label="frontier")
        for number, m in enumerate(measured):
            colour = VERMILION if m is verdict.chosen else BLUE if m in edge else GREY
            speed, at = m.taken.speed, _of(m)
            low, high = _spread(m).low, _spread(m).high
            axes.plot([speed.least, speed.most], [at, at], color=colour, linewidth=1.2, alpha=0.6)
            if is_share:
                axes.plot([speed.median] * 2, [low, high], color=colour, linewidth=1.2, alpha=0.6)
            marker, size = ("D", 8) if m is verdict.chosen else ("o", 6)
            axes.plot(speed.median, at, marker, color=colour, markersize=size)
            label = f"{m.name}, {m.taken.peak_bytes / 1e9:.1f} GB"
            axes.annotate(
                label, (speed.median, at), (6, 6 + 11 * number), textcoords="offset points", fontsize=8, color=colour
            )
        axes.set_xlabel(f"{of} per second")
        axes.set_ylabel(measure + (", 95 % interval" if is_share else ""))
        axes.set_xlim(left=0)
        axes.margins(x=0.18)
        if is_share:
            axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="y", color="#E6E6E6")
        figure.suptitle("Speed against quality", x=0.02, ha="left", fontsize=14, fontweight="bold", color=INK)
        figure.tight_layout()
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _of(measured: Measured) -> float:
    assert measured.score is not None
    return measured.score


def _spread(measured: Measured) -> Interval:
    """Return the interval as of so many answers that are right or wrong, which is widest."""
    right = round(_of(measured) * measured.asked)
    return share_interval([True] * right + [False] * (measured.asked - right))
