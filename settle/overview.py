"""What `settle` and `settle --help` show at once: what is on this machine, and the commands. It imports little."""

import errno
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from settle.base.files import home
from settle.base.registry import groups_of, module_of, part_names, summary
from settle.base.visible import visible_line

ASKED: tuple[list[str], ...] = ([], ["--help"], ["-h"], ["--help-all"])  # command lines that it answers
PURPOSE = "Train a model until it has settled, on your own machine, and know that it has."
OPTIONS = {
    "--completion": "Print a script that completes commands in a shell.",
    "--install-completion": "Install that script for your shell.",
    "--help (-h)": "Display this message and exit.",
    "--version": "Display application version.",
}
PLAIN = str.maketrans("╭╮╰╯─│", "++++-|")  # for a terminal without these
MOST_COLUMNS = 100
EMBEDDER = "minilm"  # what `settle index` pulls by itself: no base to tune on questions and answers
TEMPLATE = b"tokenizer.chat_template"  # the key in a GGUF file
TEMPLATE_FILES = (("chat_template.jinja", b""), ("tokenizer_config.json", b'"chat_template"'))  # of a folder
HEADER_BYTES = 24 << 20  # of a GGUF file; a vocabulary of 262,000 tokens takes half of that
DATED = re.compile(r"[\d-]{10}-[a-z_]+-(.*)-[0-9a-f]{6}")  # the folder of a run


def main() -> int:
    """Answer the command line of this process; the exit code."""
    return show(sys.argv[1:])


def show(asked: Sequence[str]) -> int:
    """Show what is on this machine, or the list of commands where help is asked for; the exit code."""
    columns = min(MOST_COLUMNS, shutil.get_terminal_size().columns)
    text = overview(columns) if asked else first_screen(columns)
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


def first_screen(columns: int) -> str:
    """Return what is on this machine, and the three doors with the names that are here."""
    runs, models, collections = ([*_newest(kind)] for kind in ("runs", "models", "collections"))
    done = [_run_name(path) for path in runs if (path / "result.json").exists()]
    stopped = [f"{_run_name(path)} (unfinished)" for path in runs if not (path / "result.json").exists()]
    known = [("models", [path.name for path in models]), ("runs", [*done, *stopped])]
    known.append(("collections", [path.name for path in collections]))
    bases = [path for path in models if path.name != EMBEDDER]
    talker = next((path.name for path in bases if _takes_turns(path)), "")
    base = talker or next((path.name for path in bases), "")
    tune = f"settle tune {base} examples.jsonl" if base else "settle pull smollm2"
    first = ("begin", "settle train stdlib --time 2m", "on Python's own library")
    if done:
        first = ("chat", f"settle chat {done[0]}", "with the newest run")
    elif talker:
        first = ("chat", f"settle chat {talker}", "with a model that answers")
    elif base:
        first = ("complete", f'settle chat {base} "Once upon a time"', "a base completes text")
    doors = [
        first,
        ("train", "settle train ~/notes --time 10m", "on your own text"),
        ("tune", tune, "on your questions and answers" if base else "gets a model to tune"),
        ("ask", f"settle ask {collections[0].name}" if collections else "settle index ~/docs", "your documents"),
    ]
    here = [f"  {kind:12} {_fitting(names, columns - 15)}" for kind, names in known]
    if not (runs or models or collections):
        where = f" in {home()}"
        here = ["  nothing yet: no model, run or collection"]
        here[0] += where * (len(here[0] + where) <= columns)
    width = max(len(line) for _, line, _ in doors)
    lines = [f"  {name:12} {line:{width}}  {what}" for name, line, what in doors]
    if max(map(len, lines)) > columns:
        lines = [f"  {name:12} {line}" for name, line, _ in doors]
    shown = ["On this machine:", *here, "", "Next:", *lines, "", "settle --help lists every command."]
    return "\n".join(map(visible_line, shown)) + "\n"


def _newest(kind: str) -> Iterator[Path]:
    """Yield the folders of a kind, the newest first; none where they cannot be read."""
    try:
        paths = [path for path in (home() / kind).iterdir() if path.is_dir() and not path.name.startswith(".")]
        yield from sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    except (OSError, RuntimeError):
        return


def _takes_turns(model: Path) -> bool:
    """Return whether a stored model's file has a chat template; False where that cannot be read.

    Its name is looked for in the file's first bytes: parsing them takes longer than a first screen may.
    """
    try:
        path = model / json.loads((model / "model.json").read_bytes())["path"]
        if path.is_dir():
            return any((path / name).exists() and key in (path / name).read_bytes() for name, key in TEMPLATE_FILES)
        with path.open("rb") as file:
            return TEMPLATE in file.read(HEADER_BYTES)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _run_name(path: Path) -> str:
    dated = DATED.fullmatch(path.name)
    return dated[1] if dated else path.name


def _fitting(names: Sequence[str], columns: int) -> str:
    """Return as many names as fit, and how many more there are."""
    shown = ", ".join(names) or "none yet"
    for number in range(len(names) - 1, 0, -1):
        if len(shown) <= columns:
            break
        shown = f"{', '.join(names[:number])} and {len(names) - number:,} more"
    return shown


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
