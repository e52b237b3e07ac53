"""The manual: a page for `man` of settle and of each command, made from the parser that reads the command line.

    python bench/manual.py

Writes man/*.1, which the wheel installs into share/man/man1. bench/site.py makes a page of each for the browser.
tests/test_docs.py compares them with the parser.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

from cyclopts.argument import Argument

from settle.base.registry import groups_of, module_of, part_names, summary
from settle.base.version import __version__
from settle.cli import build_app
from settle.commands import Command
from settle.overview import OPTIONS, PURPOSE

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "man"
CODE = re.compile(r"`([^`]+)`")
WIDTH = 78  # characters of a line
EXIT_CODE = re.compile(r"^\| (\d+) \| (.+) \|$", re.M)
HOME = "folder of runs, models, collections and settings; ~/.settle when it is not set"


@dataclass(frozen=True)
class Option:
    """What may be written on a command line, what it takes, and what it is for."""

    names: tuple[str, ...]
    value: str  # such as INT, or empty for a switch
    text: str


@dataclass(frozen=True)
class Page:
    """What the manual says of a command: paragraphs and options with code in backticks."""

    name: str
    usage: str
    summary: str
    paragraphs: list[str]
    groups: list[tuple[str, list[Option]]]


def main() -> None:
    for old in FOLDER.glob("*.1"):
        old.unlink()
    FOLDER.mkdir(exist_ok=True)
    for name, text in manual().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def manual() -> dict[str, str]:
    """Return the text of every page for `man`, by its file's name."""
    return {"settle.1": overview(), **{f"settle-{page.name}.1": roff(page) for page in pages()}}


def pages() -> Iterator[Page]:
    """Yield the page of every command, in the order of the overview."""
    yield from (page_of(name) for names in commands().values() for name in names)


def commands() -> dict[str, list[str]]:
    """Map each heading of the overview to its commands."""
    found: dict[str, list[str]] = {heading: [] for heading in groups_of("commands")}
    for name in part_names("commands"):
        if module_of("commands", name).startswith("settle."):  # not those of other packages
            found[module_of("commands", name).split(".")[-2]].append(name.replace("_", "-"))
    return found


def page_of(name: str) -> Page:
    """Return the page of one command, as its parser knows it."""
    command = Command.part(name.replace("-", "_"))
    arguments = build_app([name, "--help-all"])[name].assemble_argument_collection()
    groups: dict[str, list[Option]] = {}
    for argument in arguments:
        if argument.show:
            groups.setdefault(argument.parameter.group[0].name, []).append(option_of(argument))
    summary, *paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(str(command.__doc__)))
    texts = [" ".join(paragraph.split()) for paragraph in paragraphs]
    return Page(name, command.usage(), " ".join(summary.split()), texts, [*groups.items()])


def option_of(argument: Argument) -> Option:
    """Return an option of the parser: its names, what kind of value it takes, its help with choices and default."""
    shown, default = argument.parameter.show_default, argument.field_info.default
    kind = argument.hint
    while get_origin(kind) in (Union, UnionType, list):  # the first of several, or what a list holds
        kind = next(one for one in get_args(kind) if one is not NoneType)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    is_switch = kind is bool or not argument.names[0].startswith("-")
    value = "CHOICE" if choices else "" if is_switch else getattr(kind, "__name__", "str").upper()
    text = argument.parameter.help or ""
    if choices:
        text += f"; one of: {', '.join(map(str, choices))}"
    if shown is not False and default is not False and default not in (None, "", [], (), inspect.Parameter.empty):
        text += " [default: on]" if default is True else f" [default: {default}]"
    return Option(argument.names, value, text)


def roff(page: Page) -> str:
    """Return a command's page in the language of man(7)."""
    lines = [*head(f"settle-{page.name}", page.summary), ".SH SYNOPSIS", f".B {escaped(page.usage)}"]
    lines += [".SH DESCRIPTION", typeset(page.summary)]
    for paragraph in page.paragraphs:
        lines += [".PP", typeset(paragraph)]
    for title, options in page.groups:
        known = {"Arguments": ".SH ARGUMENTS", "Parameters": ".SH OPTIONS"}
        lines += [known.get(title, f'.SS "{escaped(title)}"'), *(line for option in options for line in item(option))]
    return "\n".join([*lines, ".SH SEE ALSO", ".BR settle (1)", ""])


def overview() -> str:
    """Return the page of settle itself: its commands, options, exit codes and environment."""
    lines = [*head("settle", PURPOSE), ".SH SYNOPSIS", ".B settle", ".I COMMAND", "[OPTIONS]", ".SH DESCRIPTION"]
    lines += [typeset(PURPOSE), "Without a command it shows what is on this machine.", ".SH COMMANDS"]
    for heading, names in commands().items():
        lines += [f".SS {heading.capitalize()}"]
        for name in names:
            text = summary("commands", name.replace("-", "_"))
            lines += [".TP", rf".BR settle\-{escaped(name)} (1)", typeset(text)]
    lines += [".SH OPTIONS", *(line for name, text in OPTIONS.items() for line in item(Option((name,), "", text)))]
    lines += item(Option(("--help-all",), "", "After a command: show every option, with the settings of each part."))
    lines += [".SH EXIT STATUS"]
    for code, meaning in EXIT_CODE.findall((ROOT / "docs/agents.md").read_text(encoding="utf-8")):
        lines += [".TP", f".B {code}", typeset(meaning)]
    lines += [".SH ENVIRONMENT", ".TP", ".B SETTLE_HOME", typeset(HOME)]
    return "\n".join([*lines, ""])


def head(name: str, summary: str) -> list[str]:
    title = f'.TH {escaped(name.upper())} 1 "" "settle {__version__}" "User Commands"'
    return [title, ".SH NAME", rf"{escaped(name)} \- {typeset(summary[:1].lower() + summary[1:].rstrip('.'))}"]


def item(option: Option) -> list[str]:
    value = rf" \fI{option.value}\fR" if option.value else ""
    return [".TP", ", ".join(rf"\fB{escaped(name)}\fR" for name in option.names) + value, typeset(option.text)]


def typeset(text: str) -> str:
    """Return a paragraph: code is bold, and no line is taken for a request."""
    parts = CODE.split(text)
    parts[::2] = [part.replace("\\", r"\e") for part in parts[::2]]
    parts[1::2] = [rf"\fB{escaped(part)}\fR" for part in parts[1::2]]
    lines = textwrap.wrap("".join(parts), WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(r"\&" + line if line[:1] in (".", "'") else line for line in lines)


def escaped(text: str) -> str:
    """Return words that are to be typed: a hyphen stays one when it is copied."""
    return text.replace("\\", r"\e").replace("-", r"\-")


if __name__ == "__main__":
    main()
