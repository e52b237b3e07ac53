"""The settings of a command as a form shows them, apart from what they are read from.

What can be chosen is read from parts, which import torch: 200 MB. A program that has no use for torch reads what this
prints:

    python -m settle.base.described_settings COMMAND
"""

import sys
import types
import typing
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from settle.base.choice import Choice, Family, family_of, named_family
from settle.base.registry import Part, part
from settle.base.settings import leaves

Kind = Literal["text", "lines", "choice", "switch"]


class Setting(BaseModel):
    """A setting of a command, as its form shows it.

    default: of a switch. options: (value, label). proposes: "models" or "paths", for what was typed. parts: the
    settings of each part that may be chosen; part: the one that is, where no other is.
    """

    key: str
    kind: Kind = "text"
    default: bool = False
    hint: str = ""
    help: str = ""
    options: list[tuple[str, str]] = []
    proposes: str = ""
    part: str = ""
    parts: dict[str, list["Setting"]] = {}


SETTINGS = TypeAdapter(list[Setting])


def describe(command: type[Part]) -> list[Setting]:
    """Return the settings, read in this process."""
    models = getattr(command, "models", ())
    return [
        _choice(key, info, family) if (family := family_of(info)) else _setting(key, info, key in models)
        for key, info in leaves(command)
    ]


def _choice(key: str, info: FieldInfo, family: Family) -> Setting:
    usual = f"{family.default} (default)" if family.default else "as the data decide"
    names = [(name, name.replace("_", "-")) for name in family.names() if name != family.default]
    parts = {
        name: [_setting(f"{key}.{setting}", inner) for setting, inner in each.model_fields.items()]
        for name, each in family.parts().items()
    }
    made = partial(Setting, key=key, help=str(info.description or ""))
    return made(kind="choice", options=[("", usual), *names], part=family.default or "", parts=parts)


def _setting(key: str, info: FieldInfo, is_model: bool = False) -> Setting:
    default = info.get_default(call_default_factory=True)
    if isinstance(default, Choice) or default is None or default == [] or info.is_required():
        default = ""
    hint = f"{default:g}" if isinstance(default, float) else str(default)
    made, kinds = partial(Setting, key=key, help=str(info.description or "")), list(setting_types(info.annotation))
    if kinds == [bool]:
        return made(kind="switch", default=bool(default))
    if names := [name for name in _names(kinds) if name != default]:
        usual = ("", f"{hint} (default)" if hint else "as settle decides")
        return made(kind="choice", options=[usual, *((name, name) for name in names)])
    if any(typing.get_origin(kind) is list for kind in kinds):
        return made(kind="lines", hint="one a line")
    family = named_family(info)  # that it may name a part of, among other things
    proposed = [(name, name) for name in family.names()] if family else []
    proposes = "models" if is_model else "paths" if Path in kinds else ""
    return made(hint=hint, options=proposed, proposes=proposes)


def setting_types(annotation: object) -> Iterator[object]:
    """Return the types of a setting, without None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            yield from setting_types(inner)
    elif annotation is not type(None):
        yield annotation


def _names(kinds: list[object]) -> list[str]:
    """Return what may be chosen, where the type says it."""
    if bool in kinds:
        return ["yes", "no"]
    return [str(name) for kind in kinds if typing.get_origin(kind) is Literal for name in typing.get_args(kind)]


if __name__ == "__main__":
    sys.stdout.write(SETTINGS.dump_json(describe(part("commands", sys.argv[1]))).decode())
