"""What a check found, told: as tables, as a page, and as files beside the collection."""

from collections.abc import Iterator
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Listing, Say
from settle.base.run import write_atomic, write_json
from settle.base.statistics import Interval
from settle.retrieve.check.calibration import LEAST
from settle.retrieve.check.check import Checked
from settle.retrieve.check.picture import picture
from settle.retrieve.check.worst_documents import HIT

AT = (1, 5, 10)  # hits among which the passage is, in tables
PICTURE, PAGE, RESULT = "check.png", "check.md", "check.json"


def tell(checked: Checked, events: Events) -> None:
    rows = [[what, _value(figure), _interval(figure)] for what, figure in figures(checked)]
    events.emit(Listing(columns=(f"{checked.questions} questions", "", "95 % interval"), rows=rows))
    if checked.worst:
        rows = [[one.path, f"{one.missed} of {one.asked}", "; ".join(one.why)] for one in checked.worst]
        events.emit(Listing(columns=("worst documents", "missed", "why"), rows=rows))
    if not checked.is_calibrated:
        events.emit(Say(text=_too_few(checked)))


def keep(checked: Checked, folder: Path) -> Path:
    """Writes the picture, the page and the result into a folder; the picture's path."""
    write_atomic(folder / PICTURE, picture(checked))
    write_atomic(folder / PAGE, page(checked))
    write_json(folder / RESULT, checked.to_json())
    return folder / PICTURE


def figures(checked: Checked) -> Iterator[tuple[str, Interval]]:
    """Each figure under its name."""
    for k in AT:
        yield (f"right passage among the first {k}" if k > 1 else "right passage first", checked.recall[k])
    yield "mean of 1 ÷ its rank", checked.mrr
    yield "refused, its topic left out", checked.refused
    yield "refused, its topic there", checked.false_refusals
    if checked.cited:
        yield "citations of a passage with the answer", checked.cited


def page(checked: Checked) -> str:
    """In Markdown, with the picture beside it."""
    lines = [f"# {checked.name}: checked on {checked.questions} questions made from its documents", ""]
    lines += [f"![recall, refusals, kinds of questions]({PICTURE})", "", "| | | 95 % interval |", "|---|--:|---|"]
    lines += [f"| {what} | {_value(figure)} | {_interval(figure)} |" for what, figure in figures(checked)]
    lines += ["", f"| made from | questions | passage among the first {HIT} | 95 % interval |", "|---|--:|--:|---|"]
    lines += [f"| {kind} | {n} | {_value(f)} | {_interval(f)} |" for kind, (n, f) in checked.kinds.items()]
    if checked.worst:
        lines += ["", "## Worst documents", "", "| document | missed | why |", "|---|--:|---|"]
        lines += [
            f"| `{_cell(one.path)}` | {one.missed} of {one.asked} | {_cell('; '.join(one.why))} |"
            for one in checked.worst
        ]
    if not checked.is_calibrated:
        lines += ["", _too_few(checked)]
    return "\n".join(lines) + "\n"


def _too_few(checked: Checked) -> str:
    return (
        f"{checked.questions} questions are too few to calibrate refusals on these documents, which takes {LEAST}:"
        " what was fitted on others counts."
    )


def _value(figure: Interval) -> str:
    return f"{figure.value:.3f}"


def _interval(figure: Interval) -> str:
    return f"{figure.low:.3f} – {figure.high:.3f}" if figure.is_bounded else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")
