"""The form of a command: a field for every setting, the essential ones first, and those of chosen parts."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from nicegui import ui
from nicegui.events import GenericEventArguments

from settle.base.command_line import Given, blamed, positional
from settle.base.described_settings import SETTINGS, Setting
from settle.base.errors import SettleError
from settle.base.files import MOST_LISTED, JsonObject, paths_from
from settle.base.registry import Part
from settle.base.words.amounts import amount
from settle.library.resolve import all_refs
from settle.studio.command_child import read_module
from settle.studio.field import Field
from settle.studio.layout import words

SECONDS = 60.0  # to read the settings of a command
_read: dict[str, asyncio.Future[object]] = {}


class Form:
    """The form of a command's settings.

    on_change: called when a value is another. first: settings that are not folded, the essential ones if empty, which
    come with a field that finds settings; without: those that the page asks for itself.
    """

    def __init__(
        self, command: type[Part], settings: Sequence[Setting], on_change: Callable[[], Awaitable[None]],
        first: Sequence[str] = (), without: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._on_change = on_change
        self.fields: dict[str, Field] = {}
        self._settings: dict[str, Setting] = {}  # of the fields
        self._folds: list[tuple[ui.element, list[str]]] = []  # with the keys that each holds
        if not first:
            Field("Find a setting", hint="learning rate, seed, checkpoint …").on("typed", self._find, throttle=0.2)
        known = {setting.key: setting for setting in settings if setting.key not in without}
        essential = first or [*positional(command), *(getattr(command, "essential", ()) or known)]
        for key in dict.fromkeys(key for key in essential if key in known):
            self._add(known[key])
        groups: dict[str, list[Setting]] = {}
        for key, setting in known.items():
            if key not in self.fields:
                groups.setdefault(key.rpartition(".")[0], []).append(setting)
        for group, members in groups.items():
            self._add_folded(f"Settings of {group.replace('.', ' ')}" if group else "More settings", members)

    def fill(self, values: Mapping[str, str]) -> None:
        """Put values into the fields of that name."""
        for key, value in values.items():
            if key in self.fields:
                self.fields[key].put(value in ("true", "yes") if self._settings[key].kind == "switch" else value)

    def add(self, key: str, text: str) -> None:
        """Put a text into a field, below those that are there where it takes several."""
        field = self.fields[key]
        before = field.text.splitlines() if field.props["kind"] == "lines" else []
        field.put("\n".join([*before, text]))

    def show_derived(self, plan: JsonObject) -> None:
        """Show what a plan chose where a field is left empty. plan: settings, nested as in a recipe."""
        for key, field in self.fields.items():
            group, _, name = key.rpartition(".")
            match plan.get(group) if group else plan, self._settings[key].kind:
                case {**values}, "text" if values.get(name) is not None:
                    field.props["hint"] = amount(values[name])

    def _find(self, event: GenericEventArguments) -> None:
        """Show the settings whose name or meaning has every word that was typed."""
        typed = str(event.args).lower().split()
        for key, field in self.fields.items():
            text = f"{key} {field.props['help']}".lower().replace("_", " ")
            field.set_visibility(all(word in text for word in typed))
        for fold, keys in self._folds:
            is_found = any(key in self.fields and self.fields[key].visible for key in keys)
            fold.set_visibility(is_found)
            fold.props["open"] = bool(typed) and is_found

    def given(self) -> dict[str, Given]:
        """Return the settings that differ from their defaults, by dotted key."""
        given: dict[str, Given] = {}
        for key, field in self.fields.items():
            setting = self._settings[key]
            value: Given = field.value if isinstance(field.value, bool) else field.text
            if setting.kind == "lines":
                value = [line.strip() for line in field.text.splitlines() if line.strip()]
            elif {"yes", "no"} <= dict(setting.options).keys():
                value = {"yes": True, "no": False}.get(field.text, "")
            if value not in ("", []) and not (setting.kind == "switch" and value == setting.default):
                given[key] = value
        return given

    def show_error(self, error: SettleError | None) -> bool:
        """Says at its field what is wrong with it. Whether there is such a field."""
        key = blamed(error, self.given(), self.fields) if error else None
        for name, field in self.fields.items():
            text = f"{error.what}. {error.fix[:1].upper()}{error.fix[1:]}" if error and name == key else ""
            field.show_error(text)
        return key is not None

    def _add_folded(self, title: str, settings: Sequence[Setting]) -> None:
        with ui.element("details") as fold:
            words(f"{title} ({len(settings)})", "summary")
            for setting in settings:
                self._add(setting)
        self._folds.append((fold, [setting.key for setting in settings]))

    def _add(self, setting: Setting) -> None:
        field = self.fields[setting.key] = Field(
            setting.key.replace("_", "-").rstrip("-"), setting.kind, options=setting.options, hint=setting.hint,
            value=setting.default if setting.kind == "switch" else "", help=setting.help, on_set=self._on_change,
            suggest=SUGGESTIONS.get(setting.proposes),
        )  # fmt: skip
        self._settings[setting.key] = setting
        if not setting.parts:
            return
        place = ui.element("div").classes("part")

        async def chosen() -> None:
            self._show_part(setting, place)
            await self._on_change()

        field.on_set = chosen
        self._show_part(setting, place)

    def _show_part(self, setting: Setting, place: ui.element) -> None:
        """Show the settings of the part that is chosen, in place of those of the one before."""
        for old in [old for old in self.fields if old.startswith(f"{setting.key}.")]:
            del self.fields[old]
        self._folds = [(fold, keys) for fold, keys in self._folds if not keys[0].startswith(f"{setting.key}.")]
        place.clear()
        name = self.fields[setting.key].text or setting.part
        if settings := setting.parts.get(name):
            with place:
                self._add_folded(f"Settings of {name}", settings)


async def settings_of(command: type[Part]) -> list[Setting]:
    """Those of a command, read once, also for pages that ask meanwhile. Raises RunError."""
    name = command.part_name()
    if name not in _read or (_read[name].done() and _read[name].exception()):
        reading = read_module("settle.base.described_settings", name, seconds=SECONDS)
        _read[name] = asyncio.ensure_future(reading)
    return SETTINGS.validate_python(await asyncio.shield(_read[name]))  # who leaves a page ends only its own waiting


def _models(typed: str) -> list[str]:
    """Models of this machine with such a name."""
    names = [ref.name for ref in all_refs()]
    return [name for name in names if typed.lower() in name.lower()][:MOST_LISTED]


SUGGESTIONS = {"models": _models, "paths": paths_from}
