"""The form of a command: a field for every setting, the essential ones first, and those of chosen parts."""

import types
import typing
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from nicegui import ui
from pydantic.fields import FieldInfo

from settle.base.choice import Choice, Family, family_of, named_family
from settle.base.errors import SettleError
from settle.base.registry import Part
from settle.base.settings import leaves
from settle.library.resolve import all_refs
from settle.studio.field import Field
from settle.studio.forms.arguments import Given, blamed, positional
from settle.studio.layout import words

MOST_PROPOSED = 30


class Form:
    """on_change: called when a value is another. first: settings that are not folded, the essential ones if empty;
    without: those that the page asks for itself."""

    def __init__(
        self,
        command: type[Part],
        on_change: Callable[[], Awaitable[None]],
        first: Sequence[str] = (),
        without: Sequence[str] = ("dry",),  # the button `Forecast`
    ) -> None:
        self.command, self._on_change = command, on_change
        self.fields: dict[str, Field] = {}
        self._defaults: dict[str, object] = {}
        self._models = {key for key in getattr(command, "models", ()) if key in command.model_fields}
        settings = {key: info for key, info in leaves(command) if key not in without}
        essential = first or [*positional(command), *(getattr(command, "essential", ()) or settings)]
        for key in dict.fromkeys(key for key in essential if key in settings):
            self._add(key, settings[key])
        groups: dict[str, dict[str, FieldInfo]] = {}
        for key, info in settings.items():
            if key not in self.fields:
                groups.setdefault(key.rpartition(".")[0], {})[key] = info
        for group, members in groups.items():
            title = f"Settings of {group.replace('.', ' ')}" if group else "More settings"
            with ui.element("details"):
                words(f"{title} ({len(members)})", "summary")
                for key, info in members.items():
                    self._add(key, info)

    def given(self) -> dict[str, Given]:
        """The settings that differ from their defaults, by dotted key."""
        given: dict[str, Given] = {}
        for key, field in self.fields.items():
            value: Given = field.value if isinstance(field.value, bool) else field.text
            if field.props["kind"] == "lines":
                value = [line.strip() for line in field.text.splitlines() if line.strip()]
            elif _is_optional_switch(field):
                value = {"yes": True, "no": False}.get(field.text, "")
            if value not in ("", []) and value != self._defaults[key]:
                given[key] = value
        return given

    def show_error(self, error: SettleError | None) -> bool:
        """Says at its field what is wrong with it. Whether there is such a field."""
        key = blamed(error, self.given(), self.fields) if error else None
        for name, field in self.fields.items():
            text = f"{error.what}. {error.fix[:1].upper()}{error.fix[1:]}" if error and name == key else ""
            field.show_error(text)
        return key is not None

    def _add(self, key: str, info: FieldInfo) -> None:
        family = family_of(info)
        if family is None:
            self.fields[key] = self._field(key, info)
            return
        field = self.fields[key] = self._choice(key, info, family)
        settings = ui.element("div").classes("part")

        async def chosen() -> None:
            self._show_part(key, family, str(field.value) or family.default, settings)
            await self._on_change()

        field.on_set = chosen
        self._show_part(key, family, family.default, settings)

    def _show_part(self, key: str, family: Family, name: str | None, settings: ui.element) -> None:
        """The settings of the part that is chosen, in place of those of the one before."""
        for old in [old for old in self.fields if old.startswith(f"{key}.")]:
            del self.fields[old]
        settings.clear()
        part = family.parts().get(name) if name else None
        if part and part.model_fields:
            with settings, ui.element("details"):
                words(f"Settings of {name} ({len(part.model_fields)})", "summary")
                for setting, info in part.model_fields.items():
                    self.fields[f"{key}.{setting}"] = self._field(f"{key}.{setting}", info)

    def _choice(self, key: str, info: FieldInfo, family: Family) -> Field:
        self._defaults[key] = ""
        usual = f"{family.default} (default)" if family.default else "as the data decide"
        names = [(name, name.replace("_", "-")) for name in family.names() if name != family.default]
        return Field(_label(key), "choice", options=[("", usual), *names], help=str(info.description or ""))

    def _field(self, key: str, info: FieldInfo) -> Field:
        default = info.get_default(call_default_factory=True)
        if isinstance(default, Choice) or default is None or info.is_required():
            default = ""
        shown = default if isinstance(default, str) else f"{default:g}" if isinstance(default, float) else str(default)
        self._defaults[key] = default if isinstance(default, bool) else ""
        help, hint, more = str(info.description or ""), shown if default != [] else "", self._on_change
        kinds = list(_types(info.annotation))
        if kinds == [bool]:
            return Field(_label(key), "switch", value=bool(default), help=help, on_set=more)
        if options := [name for name in _names(kinds) if name != default]:
            usual = ("", f"{hint} (default)" if hint else "as settle decides")
            return Field(_label(key), "choice", options=[usual, *options], help=help, on_set=more)
        if any(typing.get_origin(kind) is list for kind in kinds):
            return Field(_label(key), "lines", hint="one a line", help=help, on_set=more)
        suggest = _models if key in self._models else proposed_paths if Path in kinds else None
        family = named_family(info)  # that it may name a part of, among other things
        proposed = family.names() if family else ()
        return Field(_label(key), options=proposed, hint=hint, help=help, on_set=more, suggest=suggest)


def _label(key: str) -> str:
    return key.replace("_", "-").rstrip("-")


def _types(annotation: object) -> Iterator[object]:
    """The types of a setting, without None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            yield from _types(inner)
    elif annotation is not type(None):
        yield annotation


def _names(kinds: list[object]) -> list[str]:
    """What may be chosen, where the type says it."""
    if bool in kinds:
        return ["yes", "no"]
    return [str(name) for kind in kinds if typing.get_origin(kind) is Literal for name in typing.get_args(kind)]


def _is_optional_switch(field: Field) -> bool:
    return field.props["kind"] == "choice" and {"yes", "no"} <= {option["value"] for option in field.props["options"]}


def _models(typed: str) -> list[str]:
    """Models of this machine with such a name."""
    names = [ref.name for ref in all_refs()]
    return [name for name in names if typed.lower() in name.lower()][:MOST_PROPOSED]


def proposed_paths(typed: str) -> list[str]:
    """Files and folders of this machine whose path begins like this."""
    start = Path(typed or "~/").expanduser()
    folder = start if typed.endswith("/") or not typed else start.parent
    try:
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        named = [path for path in found if str(path).startswith(str(start)) and not path.name.startswith(".")]
        return [f"{path}/" if path.is_dir() else str(path) for path in named[:MOST_PROPOSED]]
    except OSError:
        return []
