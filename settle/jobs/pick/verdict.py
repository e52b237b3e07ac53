"""What the measurements say: which model to take, how sure that is, and the table and picture that show it."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from settle.base.files import write_atomic
from settle.base.statistics import Interval, share_interval
from settle.evaluate.report.figure_style import BLUE, GREEN, GREY, INK, STYLE, VERMILION
from settle.experiment.race import (
    ComparedPair,
    Outcome,
    difference_text,
    may_be_ahead,
    pairs_json,
    range_text,
    value_text,
)
from settle.jobs.kept_work import KeptResult
from settle.jobs.pick.candidates import Candidate
from settle.jobs.pick.exam import Taken
from settle.shrink.pareto import frontier

COLUMNS = ("model", "score", "prompts", "first token, s", "tokens/s", "memory", "size", "licence", "where")
INCHES, DPI = (7.6, 5.0), 150
MARGIN = 0.05  # of a share, or of another score's value: a smaller model that scores this much less is as good


@dataclass(frozen=True)
class Measured:
    """A candidate with what was measured of it.

    Attributes:
        score: on the `asked` prompts that it was asked; None where nothing says what a right answer is.
    """

    candidate: Candidate
    taken: Taken  # time, speed and memory
    score: float | None = None
    asked: int = 0
    cut: int = 0  # answers that were stopped for their length

    @property
    def name(self) -> str:
        return self.candidate.name


@dataclass(frozen=True)
class Verdict:
    """The model to take.

    Attributes:
        is_better: it is shown to be better than all others that were asked; otherwise it is the smallest of those that
            score within MARGIN of the best and that none was shown to be better than.
    """

    chosen: Measured | None  # if any
    is_better: bool
    sentence: str  # for the user
    notes: Sequence[str] = field(default_factory=list)  # how sure, and what would change it


def decide(measured: Sequence[Measured], outcome: Outcome | None, measure: str, is_share: bool) -> Verdict:
    """Decide on candidates in the outcome's order.

    outcome: None where nothing says what a right answer is: then none is recommended.
    """
    if not measured:
        return Verdict(None, False, "no model is left that could be measured")
    if outcome is None:
        fastest = max(measured, key=lambda m: m.taken.speed.median)
        sentence = (
            "no model is recommended: no right answers were given, so how well they answer was not measured; "
            f"{fastest.name} is the fastest"
        )
        return Verdict(None, False, sentence, ["give the wanted answers beside the prompts, or --score FILE.py"])
    best = outcome.means[outcome.leader]
    near = [k for k in outcome.left if best - outcome.means[k] <= MARGIN * (1.0 if is_share else abs(best))]
    chosen = min(near, key=lambda k: (measured[k].taken.peak_bytes, -measured[k].taken.speed.median))
    if len(measured) > 1 and not any(outcome.means):
        sentence = f"none of the {len(measured)} models got any of the prompts right, so nothing tells them apart"
        return Verdict(None, False, sentence, ["look at the wanted answers, or choose another score with --score"])
    if len(outcome.left) == 1:
        sentence = _best(measured, outcome, chosen, measure, is_share)
        return Verdict(measured[chosen], len(measured) > 1, sentence)
    sentence, notes = _undecided(outcome, chosen, near, measure, is_share)
    return Verdict(measured[chosen], False, sentence, notes)


def _best(measured: Sequence[Measured], outcome: Outcome, chosen: int, measure: str, is_share: bool) -> str:
    value = value_text(outcome.means[chosen], is_share)
    if len(measured) == 1:
        return f"{measured[0].name} is the only one that could be measured: {measure} {value}"
    nearest = max((k for k in range(len(measured)) if k != chosen), key=lambda k: outcome.means[k])
    ahead = range_text(outcome.pair(chosen, nearest).difference, is_share)
    return (
        f"take {measured[chosen].name}: {measure} {value} on {outcome.asked[chosen]} prompts, better than all others; "
        f"than {measured[nearest].name} by {ahead}"
    )


def _undecided(
    outcome: Outcome, chosen: int, near: Sequence[int], measure: str, is_share: bool
) -> tuple[str, list[str]]:
    names, means = outcome.names, outcome.means
    others = [k for k in outcome.left if k != chosen]
    rivals, scores = " and ".join(names[k] for k in others), ", ".join(value_text(means[k], is_share) for k in others)
    beside = f"{measure} {value_text(means[chosen], is_share)}, beside {rivals} with {scores}"
    if len(near) > 1:
        sentence = f"take {names[chosen]}, the smallest of {len(near)} that are not shown to differ: {beside}"
    else:
        sentence = f"take {names[chosen]} for now, though nothing is decided: {beside}"
    sentence += f"; {may_be_ahead(outcome, chosen, others, is_share, 'prompts')}"
    by_score = sorted(others, key=lambda k: -means[k])
    notes = [
        _maybe_ahead(names[k], outcome.pair(k, chosen), is_share)
        if k in near
        else _behind(names[k], outcome.pair(chosen, k), is_share)
        for k in by_score
    ]
    return sentence, notes


def _maybe_ahead(name: str, pair: ComparedPair, is_share: bool) -> str:
    """Say how far one that is about as good may be ahead."""
    value, high = pair.difference.value, pair.difference.high
    ahead = f"{name} may be ahead by {difference_text(high, is_share)} at most"
    if high <= 0:
        return f"{name} is rather behind: by {range_text(pair.difference, is_share)}"
    if value <= 0:
        return f"{ahead}; on these prompts it was not"
    if pair.more is None:
        return f"{ahead}; more prompts would hardly decide it"
    return (
        f"{ahead} ({difference_text(value, is_share)} measured): about {pair.more} more prompts would decide, were the "
        "difference as large as it looks"
    )


def _behind(name: str, pair: ComparedPair, is_share: bool) -> str:
    """Say how far one is behind that is not shown to be worse."""
    text = f"{name} is not shown to be worse: {range_text(pair.difference, is_share)} less was measured"
    return f"{text}; about {pair.more} more prompts would decide it" if pair.more else text


# --- the result, its table and its picture ---


class MeasuredModel(BaseModel):
    """What result.json has of a model."""

    name: str
    where: str
    license: str
    bytes: int
    score: float | None
    asked: int
    cut: int
    measured: Taken
    predicted: Mapping[str, Mapping[str, float | None]] | None

    @classmethod
    def of(cls, m: Measured) -> "MeasuredModel":
        prediction = m.candidate.prediction
        return cls(
            name=m.name,
            where=m.candidate.where,
            license=m.candidate.license,
            bytes=m.candidate.num_bytes,
            score=m.score,
            asked=m.asked,
            cut=m.cut,
            measured=m.taken,
            predicted={name: figure.to_json() for name, figure in prediction.figures.items()} if prediction else None,
        )


class PickResult(KeptResult):
    """What result.json has of a pick."""

    chosen: str | None
    saved: float  # share of the answers that nobody had to write
    models: Sequence[MeasuredModel]
    task: str = ""

    @classmethod
    def of(cls, measured: Sequence[Measured], outcome: Outcome | None, verdict: Verdict, measure: str) -> "PickResult":
        return cls(
            chosen=verdict.chosen.name if verdict.chosen else None,
            verdict="better" if verdict.is_better else "not shown to differ" if outcome else "not measured",
            why=verdict.sentence,
            notes=verdict.notes,
            measure=measure,
            saved=outcome.saved if outcome else 0.0,
            models=[MeasuredModel.of(m) for m in measured],
            pairs=pairs_json(outcome, "prompts") if outcome else [],
        )


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


def draw(
    measured: Sequence[Measured], verdict: Verdict, measure: str, is_share: bool, path: Path, of: str = "tokens"
) -> bool:
    """Draw speed against score as a PNG, with the frontier; return whether any score was measured.

    of: what a second brings.
    """
    shown = [m for m in measured if m.score is not None]
    if not shown:
        return False
    write_atomic(path, _picture(shown, verdict, measure, is_share, of))
    return True


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
        x, y = [m.taken.speed.median for m in edge], [m.score or 0.0 for m in edge]
        axes.step(x, y, where="pre", color=GREEN, linewidth=1.4, alpha=0.8, label="frontier")
        for number, m in enumerate(measured):
            colour = VERMILION if m is verdict.chosen else BLUE if m in edge else GREY
            speed, at = m.taken.speed, m.score or 0.0
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


def _spread(measured: Measured) -> Interval:
    """Return the interval as of so many answers that are right or wrong, which is widest."""
    right = round((measured.score or 0.0) * measured.asked)
    return share_interval([True] * right + [False] * (measured.asked - right))
