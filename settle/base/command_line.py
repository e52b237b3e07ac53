"""What a form or a link holds as the arguments of a command, and the setting that a mistake is about."""

import re
import typing
from collections.abc import Collection, Iterable, Mapping

from settle.base.choice import family_of
from settle.base.described_settings import setting_types
from settle.base.errors import SettleError, UsageError
from settle.base.registry import Part
from settle.base.settings import leaves, resolve

Given = str | bool | list[str]


def positional(command: type[Part]) -> tuple[str, ...]:
    """Return the settings that a command line gives without their names."""
    names: tuple[str, ...] = getattr(command, "positional", ())
    return names


def arguments(command: type[Part], given: Mapping[str, Given]) -> list[str]:
    """`settle` followed by these does what the form says. given: dotted key → value, of those that were set."""
    line: list[str] = []
    places: list[str] = []
    for key in positional(command):
        value = given.get(key, [])
        places += value if isinstance(value, list) else [str(value)]
    is_choice = {key for key, info in leaves(command) if family_of(info)}
    for key, value in given.items():
        if key in positional(command):
            continue
        flag = key.removesuffix(".name") if key.removesuffix(".name") in is_choice else key
        flag = flag.replace("_", "-").rstrip("-")
        group, _, name = flag.rpartition(".")
        is_part = group.replace("-", "_") in is_choice
        if isinstance(value, bool):
            line.append(f"--{flag}" if value else f"--no-{flag}" if is_part or not group else f"--{group}.no-{name}")
            continue
        values = value if isinstance(value, list) else [value]
        for text in [",".join(values)] if is_part and values else values:  # the settings of parts are given once
            line += [f"--{flag}={text}"] if text.startswith("-") else [f"--{flag}", text]
    if any(text.startswith("-") and text != "-" for text in places):
        return [command.part_name(), *line, "--", *places]  # they are no options
    return [command.part_name(), *places, *line]


def asked_settings(command: type[Part], asked: Mapping[str, str], without: Collection[str] = ()) -> dict[str, Given]:
    """Return the settings of a command among the values of a link, by dotted key; others are ignored."""
    given: dict[str, Given] = {}
    for key, info in leaves(command):
        if (text := asked.get(key, "")) and key not in without:
            kinds = [typing.get_origin(kind) or kind for kind in setting_types(info.annotation)]
            given[key] = text.splitlines() if list in kinds else text in ("true", "yes") if kinds == [bool] else text
    return given


def check(command: type[Part], given: Mapping[str, Given]) -> None:
    """Raise the SettleError that the command would raise for these settings before it begins."""
    for key, info in leaves(command):
        if info.is_required() and not given.get(key):
            raise UsageError(f"{key} = nothing: it is needed", str(info.description))
    settings = resolve(command, [("asked", given)]).value
    require = getattr(settings, "check", None)
    if callable(require) and "dry" in type(settings).model_fields:
        require(command.part_name())


def blamed(error: SettleError, given: Mapping[str, Given], known: Iterable[str]) -> str | None:
    """Return the setting that an error is about: the one that it names, or whose value it shows; None without one."""
    keys = {re.escape(key.replace("_", "-")): key for key in known}
    keys |= {re.escape(key): key for key in known}
    names = "|".join(sorted(keys, key=len, reverse=True))
    for pattern in (rf"^({names}) = ", rf"--({names})(?![\w.-])", rf"^no ({names}) |^no (input) for"):
        if found := re.search(pattern, error.what):
            key = next(group for group in found.groups() if group)
            return keys.get(re.escape(key), "inputs" if key == "input" else None)
    shown = [
        key
        for key, value in given.items()
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str) and len(text) > 1 and text in error.what
    ]
    return shown[0] if len(set(shown)) == 1 else None
