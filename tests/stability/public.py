"""The public names of settle, one a line, as `public.txt` keeps them: `python tests/stability/public.py` rewrites it.

docs/stability.md says what is promised of them. A name that is new or gone needs a line in the CHANGELOG first.
"""

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

import settle
from settle import api
from settle.base import events
from settle.base.errors import SettleError, UsageError
from settle.base.registry import part_names
from settle.base.run.result import NOT_BETTER, Evaluated, Result
from settle.base.settings import group_of
from settle.cli import _choices, _dashed, _is_list
from settle.commands import Command
from settle.commands.manage.runs import ACTIONS as ACTIONS_OF_RUNS
from settle.evaluate.compare.verdict_file import VerdictFile
from settle.jobs.job import INTERRUPTED
from settle.jobs.lab import UNDECIDED
from settle.library.catalogue import CatalogueFile

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).parent / "public.txt"
COMMAND = "python tests/stability/public.py"
GONE = ("Changed", "Renamed", "Removed")  # the sections of a version that may name what is gone
# of a run's folder; test_old_versions.py finds each of them in the run of an archive
RUN_FILES = ("recipe.toml", "plan.json", "forecast.json", "events.jsonl", "result.json", "checkpoints", "out", "audit")
EVENTS = (events.Opened, events.PhaseStarted, events.Step, events.Eval, events.Sample, events.Usage, events.RunFailed)
CLASSES = (api.FinishedRun, api.Conversation, api.ServerProcess, api.Report, SettleError)
# words that the first argument may be, where it may also be a name
ACTIONS = {"runs": ACTIONS_OF_RUNS, "models": ("show", "fit", "update", "remove")}
EVERYWHERE = ("json", "offline", "verbose", "help", "help-all")


def names() -> list[str]:
    """Every public name, sorted: what it is a name in, then the name."""
    every = [*_commands(), *_files(), *_python(), *(f"option of every command --{name}" for name in EVERYWHERE)]
    every += [f"exit code {code}" for code in (0, SettleError.exit_code, UsageError.exit_code, NOT_BETTER, UNDECIDED)]
    every += [f"exit code {INTERRUPTED}"]
    every += [f"environment {name}" for name in _environment()]
    return sorted(set(every))


def _commands() -> Iterator[str]:
    for name in part_names("commands"):
        command, shown = Command.part(name), f"settle {_dashed(name)}"
        yield shown
        for place in command.positional:
            yield f"{shown} {_dashed(place).upper()}{' …' if _is_list(command, place) else ''}"
            yield from (f"{shown} {word}" for word in _values(command.model_fields[place].annotation))
        yield from (f"{shown} {action}" for action in ACTIONS.get(name, ()))
        yield from (f"{shown} --raw" for _ in range(command.writes_answer))
        for setting, annotation in _settings(command):
            if setting not in command.positional:
                yield from _option(f"{shown} --{_dashed(setting)}", annotation)
        for choice, family in _choices(command).items():
            for part_name, part in family.parts().items():
                if part.__module__.startswith("settle."):
                    yield f"{shown} --{_dashed(choice)} {_dashed(part_name)}"
                    for setting, annotation in _settings(part):
                        yield from _option(f"{shown} --{_dashed(choice)}.{_dashed(setting)}", annotation)


def _option(option: str, annotation: object) -> Iterator[str]:
    yield option
    yield from (f"{option} {value}" for value in _values(annotation))


def _values(annotation: object) -> Iterator[object]:
    """Yield the words that an option takes, where it takes no others."""
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, list, tuple, typing.Annotated):
        for inner in typing.get_args(annotation):
            yield from _values(inner)


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, field in model.model_fields.items():
        group = group_of(field.annotation)
        if group:
            yield from _settings(group, f"{prefix}{name}.")
        else:
            yield prefix + name, field.annotation


def _files() -> Iterator[str]:
    yield from (f"run folder {name}" for name in RUN_FILES)
    for event in EVENTS:
        kind = event.model_fields["kind"].default
        yield from (f"events.jsonl {kind} {field}" for field in event.model_fields)
    yield from (f"result.json {name}" for name in Result.model_fields)
    yield from (f"result.json best.{name}" for name in Evaluated.model_fields)
    yield "recipe version"
    for file, model in (("verdict.json", VerdictFile), ("catalogue", CatalogueFile)):
        yield from (f"{file} {name}" for name in _fields(model))


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models(field.annotation):
            yield from _fields(inner, f"{prefix}{name}.")


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def _python() -> Iterator[str]:
    for name in settle.__all__:
        yield f"settle.{name}"
        if inspect.isfunction(function := getattr(settle, name)):
            yield from (f"settle.{name}({parameter})" for parameter in _parameters(function))
    for kind in CLASSES:
        for name, member in inspect.getmembers(kind):
            if name.startswith("_") or name in dir(Exception):
                continue
            yield f"{kind.__name__}.{name}"
            if callable(member):
                yield from (f"{kind.__name__}.{name}({parameter})" for parameter in _parameters(member))
        if kind.__init__ is not object.__init__:
            body = inspect.getsource(kind.__init__)
            yield from (f"{kind.__name__}.{name}" for name in re.findall(r"self\.([a-z]\w*)(?:,| =|:)", body))


def _parameters(function: typing.Callable[..., object]) -> list[str]:
    every = inspect.signature(function).parameters.values()
    return [p.name for p in every if p.kind is not p.VAR_KEYWORD and p.name not in ("self", "cls")]


def _environment() -> set[str]:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "settle").rglob("*.py"))
    return {name for text in sources for name in re.findall(r'"(SETTLE_[A-Z_]+)"', text)}


def topmost(changelog: str) -> dict[str, str]:
    """Return the sections of the changelog's newest version, by the first word of their heading."""
    version = re.split(r"^## ", changelog, flags=re.M)[1]
    sections: dict[str, str] = {}
    for section in re.split(r"^### ", version, flags=re.M)[1:]:
        heading = re.match(r"\w+", section)
        assert heading
        sections[heading[0]] = sections.get(heading[0], "") + section
    return sections


def unmentioned(kept: set[str], present: set[str], changelog: str) -> list[str]:
    """Return a sentence for each name that is new or gone, and that the changelog's newest version does not name."""
    sections = topmost(changelog)
    gone, anywhere = "".join(sections.get(name, "") for name in GONE), "".join(sections.values())
    return [
        *(f"gone: {name} (name it under {', '.join(GONE)})" for name in _unnamed(kept - present, gone)),
        *(f"new: {name}" for name in _unnamed(present - kept, anywhere)),
    ]


def _unnamed(names: set[str], text: str) -> list[str]:
    """Return the names that no code in a text has; what belongs to a name that it has, is named with it."""
    codes = re.findall(r"`([^`]+)`", text)
    named = {name for name in names if any(_has(code, name) for code in codes)}
    return sorted(n for n in names - named if not any(re.match(rf"{re.escape(owner)}[ .(]", n) for owner in named))


def _has(code: str, name: str) -> bool:
    """Whether code has a name: an option with its word, a command, or the last part of any other."""
    words = name.removesuffix(" …").split(" ")
    option = next((place for place, word in enumerate(words) if word.startswith("--")), None)
    if option is not None:
        wanted = " ".join(words[option:])
    elif words[0] == "settle" and words[-1].islower():
        wanted = " ".join(words[1:])
        return re.search(rf"(^|settle ){re.escape(wanted)}(?![\w-])", code) is not None
    else:
        wanted = re.findall(r"[\w-]+", words[-1])[-1]
    return re.search(rf"(?<![\w-]){re.escape(wanted)}(?![\w.-])", code) is not None


if __name__ == "__main__":
    before = set(SNAPSHOT.read_text(encoding="utf-8").splitlines()) if SNAPSHOT.exists() else set(names())
    now = names()
    if wrong := unmentioned(before, set(now), (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")):
        sys.exit("\n".join(["CHANGELOG.md does not say", *wrong]))
    SNAPSHOT.write_text("\n".join(now) + "\n", encoding="utf-8")
