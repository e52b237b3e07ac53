"""The result of a check: as tables, as a page with a picture, and as files in the folder of the collection."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from settle.base.event_log import Events
from settle.base.events import Listing, Say
from settle.base.files import write_atomic, write_json
from settle.base.statistics import Interval
from settle.evaluate.report.figure_style import BLUE, GREEN, INK, STYLE, VERMILION
from settle.infer.client import LlamaClient
from settle.retrieve.check.calibration import LEAST
from settle.retrieve.check.check import HIT, CheckResult, check
from settle.retrieve.index.collection import Collection

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SHOWN_K = (1, 5, 10)  # recall at these numbers of hits
PICTURE, PAGE, RESULT = "check.png", "check.md", "check.json"
EASIER = (
    "These questions use the documents' own words, so they are easier than people's: expect that the right passage is"
    " found less often, and that more is warned of. The figures compare one index with another."
)
INCHES, DPI = (10.0, 6.2), 150
BARS = 24  # of the histogram


def check_and_report(
    collection: Collection, events: Events, questions: int, model: LlamaClient | None
) -> tuple[CheckResult, Path]:
    """Check a collection, show the figures and store them with it; return the result and the path of its picture.

    Takes and raises what `check` does.
    """
    result = check(collection, events, questions, model)
    emit_tables(result, events)
    return result, write_files(result, collection.folder)


def emit_tables(result: CheckResult, events: Events) -> None:
    rows = [[what, _value(figure), _interval(figure)] for what, figure in figures(result)]
    events.emit(Listing(columns=(f"{result.questions} questions", "", "95 % interval"), rows=rows))
    if result.worst:
        rows = [[one.path, f"{one.missed} of {one.asked}", "; ".join(one.why)] for one in result.worst]
        events.emit(Listing(columns=("worst documents", "missed", "why"), rows=rows))
    events.emit(Say(text=EASIER))
    if not result.is_calibrated:
        events.emit(Say(text=_too_few(result)))


def write_files(result: CheckResult, folder: Path) -> Path:
    """Write the picture, the page and the result into a folder, and return the picture's path."""
    write_atomic(folder / PICTURE, picture(result))
    write_atomic(folder / PAGE, page(result))
    write_json(folder / RESULT, result.to_json())
    return folder / PICTURE


def figures(result: CheckResult) -> Iterator[tuple[str, Interval]]:
    """Yield each figure with its name."""
    for k in SHOWN_K:
        yield (f"right passage among the first {k}" if k > 1 else "right passage first", result.recall[k])
    yield "mean of 1 ÷ its rank", result.mrr
    yield "refused, its topic left out", result.refused
    yield "refused, its topic there", result.false_refusals
    if result.cited:
        yield "citations of a passage with the answer", result.cited
    if result.calibration:
        yield "calibration error (ECE) of the evidence", result.calibration.error.error


def page(result: CheckResult) -> str:
    """Return the report in Markdown, which shows the picture next to it."""
    lines = [f"# {result.name}: checked on {result.questions} questions made from its documents", "", EASIER, ""]
    lines += [f"![recall, refusals, kinds of questions]({PICTURE})", "", "| | | 95 % interval |", "|---|--:|---|"]
    lines += [f"| {what} | {_value(figure)} | {_interval(figure)} |" for what, figure in figures(result)]
    lines += ["", f"| made from | questions | passage among the first {HIT} | 95 % interval |", "|---|--:|--:|---|"]
    lines += [f"| {kind} | {n} | {_value(f)} | {_interval(f)} |" for kind, (n, f) in result.kinds.items()]
    if result.worst:
        lines += ["", "## Worst documents", "", "| document | missed | why |", "|---|--:|---|"]
        for one in result.worst:
            lines.append(f"| `{_cell(one.path)}` | {one.missed} of {one.asked} | {_cell('; '.join(one.why))} |")
    if result.calibration:
        lines += ["", "## The evidence as a probability", ""]
        lines += ["Each question with its topic in the index and without:", ""]
        lines += [f"- {line}" for line in result.calibration.lines() + result.calibration.refused_lines()]
    if not result.is_calibrated:
        lines += ["", _too_few(result)]
    return "\n".join(lines) + "\n"


def _too_few(result: CheckResult) -> str:
    return (
        f"{result.questions} questions are too few to fit refusals to these documents, which takes {LEAST};"
        " the weights that settle ships are used."
    )


def _value(figure: Interval) -> str:
    return f"{figure.value:.3f}"


def _interval(figure: Interval) -> str:
    return f"{figure.low:.3f} – {figure.high:.3f}" if figure.is_bounded else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")


def picture(result: CheckResult) -> bytes:
    """Return the bytes of a PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=INCHES, dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        margins = {"left": 0.085, "right": 0.965, "top": 0.83, "bottom": 0.09, "hspace": 0.45, "wspace": 0.3}
        grid = figure.add_gridspec(2, 2, **margins)
        _draw_recall(figure.add_subplot(grid[0, 0]), result)
        _draw_kinds(figure.add_subplot(grid[0, 1]), result)
        _draw_evidence(figure.add_subplot(grid[1, :]), result)
        figure.text(0.085, 0.945, result.name, fontsize=17, fontweight="bold", color=INK, va="center")
        headline = (
            f"{result.questions} questions made from its documents · passage among the first {HIT}: "
            f"{result.recall[HIT].value:.0%} · refused when left out: {result.refused.value:.0%}, "
            f"when there: {result.false_refusals.value:.0%}"
        )
        figure.text(0.085, 0.9, headline, fontsize=10.5, color="#555555", va="center")
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw_recall(axes: "Axes", result: CheckResult) -> None:
    ks = list(result.recall)
    values = [result.recall[k].value for k in ks]
    low, high = zip(*(_ends(result.recall[k]) for k in ks), strict=True)
    axes.fill_between(ks, low, high, color=BLUE, alpha=0.16, linewidth=0, label="95 % interval")
    axes.plot(ks, values, color=BLUE, linewidth=1.8, marker="o", markersize=4)
    for k in (1, 5, 10):
        axes.annotate(
            f"{result.recall[k].value:.0%}", (k, result.recall[k].value), (0, -14), textcoords="offset points",
            ha="center", color=BLUE, fontsize=9,
        )  # fmt: skip
    axes.set_ylim(min(0.5, min(low) - 0.1), 1.02)
    axes.set_xticks(ks)
    axes.set_xlabel("hits that are examined")
    axes.set_title("right passage among them", loc="left", fontsize=10.5)
    axes.grid(axis="y", color="#E6E6E6")
    axes.legend(loc="lower right")


def _draw_kinds(axes: "Axes", result: CheckResult) -> None:
    kinds = list(reversed(result.kinds.items()))
    for y, (_, (_, figure)) in enumerate(kinds):
        low, high = _ends(figure)
        axes.barh(y, figure.value, height=0.6, color=GREEN, alpha=0.55)
        axes.plot([low, high], [y, y], color=INK, linewidth=1.2)
    axes.set_yticks(range(len(kinds)), [f"{kind} ({n})" for kind, (n, _) in kinds])
    axes.set_xlim(0, 1.02)
    axes.set_title(f"among the first {HIT}, by kind of question", loc="left", fontsize=10.5)
    axes.grid(axis="x", color="#E6E6E6")


def _draw_evidence(axes: "Axes", result: CheckResult) -> None:
    there, gone = result.scores
    edges = [i / BARS for i in range(BARS + 1)]
    axes.hist(there, edges, color=BLUE, alpha=0.7, edgecolor="white", label="its topic in the index")
    below = [-1.0] * len(gone)
    axes.hist(gone, edges, weights=below, color=VERMILION, alpha=0.7, edgecolor="white", label="its topic left out")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axvline(result.threshold, color=INK, linewidth=1.4, linestyle=(0, (3, 2)), label="refused to the left of it")
    most = max(abs(end) for end in axes.get_ylim())
    axes.set_ylim(-most, most)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    axes.set_xlim(0, 1)
    axes.set_xlabel("evidence for an answer")
    axes.set_ylabel("questions")
    axes.set_title("every question asked twice", loc="left", fontsize=10.5)
    axes.legend(loc="lower right", ncols=3)


def _ends(figure: Interval) -> tuple[float, float]:
    return (figure.low, figure.high) if figure.is_bounded else (figure.value, figure.value)
