"""The result of a check: as tables, as a page, and as files beside the collection."""

from collections.abc import Iterator
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Listing, Say
from settle.base.files import write_atomic, write_json
from settle.base.statistics import Interval
from settle.infer.client import LlamaClient
from settle.retrieve.check.calibration import LEAST
from settle.retrieve.check.check import CheckResult, check
from settle.retrieve.check.picture import picture
from settle.retrieve.check.worst_documents import HIT
from settle.retrieve.index.collection import Collection

SHOWN_K = (1, 5, 10)  # recall at these numbers of hits
PICTURE, PAGE, RESULT = "check.png", "check.md", "check.json"
EASIER = (
    "These questions use the documents' own words, so they are easier than people's: expect that the right passage is"
    " found less often, and that more is warned of. The figures compare one index with another."
)


def check_and_report(
    collection: Collection, events: Events, questions: int, model: LlamaClient | None
) -> tuple[CheckResult, Path]:
    """Checks a collection, shows the figures and keeps them beside it; the result, and the path of its picture. Takes
    and raises what `check` does."""
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
    """Writes the picture, the page and the result into a folder; the picture's path."""
    write_atomic(folder / PICTURE, picture(result))
    write_atomic(folder / PAGE, page(result))
    write_json(folder / RESULT, result.to_json())
    return folder / PICTURE


def figures(result: CheckResult) -> Iterator[tuple[str, Interval]]:
    """Each figure with its name."""
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
    """The report in Markdown, which shows the picture beside it."""
    lines = [f"# {result.name}: checked on {result.questions} questions made from its documents", "", EASIER, ""]
    lines += [f"![recall, refusals, kinds of questions]({PICTURE})", "", "| | | 95 % interval |", "|---|--:|---|"]
    lines += [f"| {what} | {_value(figure)} | {_interval(figure)} |" for what, figure in figures(result)]
    lines += ["", f"| made from | questions | passage among the first {HIT} | 95 % interval |", "|---|--:|--:|---|"]
    lines += [f"| {kind} | {n} | {_value(f)} | {_interval(f)} |" for kind, (n, f) in result.kinds.items()]
    if result.worst:
        lines += ["", "## Worst documents", "", "| document | missed | why |", "|---|--:|---|"]
        lines += [
            f"| `{_cell(one.path)}` | {one.missed} of {one.asked} | {_cell('; '.join(one.why))} |"
            for one in result.worst
        ]
    if result.calibration:
        lines += [
            "",
            "## The evidence as a probability",
            "",
            "Each question with its topic in the index and without:",
            "",
        ]
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
