"""The list of commands, shown at once by `settle` and `settle --help`: only the registry is imported for it."""

import errno
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

from settle.base.registry import groups_of, module_of, part_names, summary

ASKED: tuple[list[str], ...] = ([], ["--help"], ["-h"], ["--help-all"])  # command lines that it answers
PURPOSE = "Train a model until it has settled, on your own machine, and know that it has."
OPTIONS = {
    "--completion": "Print a script that completes commands in a shell.",
    "--help (-h)": "Display this message and exit.",
    "--version": "Display application version.",
}
PLAIN = str.maketrans("╭╮╰╯─│", "++++-|")  # for a terminal without these
MOST_COLUMNS = 100


def main() -> int:
    """Show the list; the exit code."""
    text = overview(min(MOST_COLUMNS, shutil.get_terminal_size().columns))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(PLAIN).encode("ascii", "replace").decode()
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # silences the interpreter's flush at exit
        if e.errno != errno.EPIPE:  # who read our output has gone, which is no news to anyone
            sys.stderr.write(f"error: the output: {e.strerror}\n")
        return 1
    return 0


def overview(columns: int) -> str:
    """Return every command with the first paragraph of its docstring, by heading, in boxes of so many columns."""
    rows: dict[str, dict[str, str]] = {heading: {} for heading in (*groups_of("commands"), "others")}
    for name in part_names("commands"):
        folder = module_of("commands", name).split(".")[-2]
        rows[folder if folder in rows else "others"][name.replace("_", "-")] = summary("commands", name)
    boxes = [_box(heading, of_heading, columns) for heading, of_heading in rows.items() if of_heading]
    lines = ["Usage: settle COMMAND", "", *textwrap.wrap(PURPOSE, columns), ""]
    return "\n".join([*lines, *(line for box in [*boxes, _box("options", OPTIONS, columns)] for line in box)]) + "\n"


def _box(heading: str, rows: dict[str, str], columns: int) -> Iterator[str]:
    names, inside = max(map(len, rows)), columns - 4
    yield f"╭─ {heading.capitalize()} " + "─" * (inside - len(heading) - 1) + "╮"
    for name, text in rows.items():
        lines: Sequence[str] = textwrap.wrap(" ".join(text.split()), max(20, inside - names - 2)) or [""]
        for at, line in enumerate(lines):
            row = f"{'' if at else name:{names}}  {line}"
            yield f"│ {row:{inside}} │"
    yield "╰" + "─" * (columns - 2) + "╯"
