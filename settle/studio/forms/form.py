"""The form of a command: a field for every setting, the essential ones first, and those of chosen parts."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from nicegui import ui

from settle.base.errors import SettleError
from settle.base.registry import Part
from settle.library.resolve import all_refs
from settle.studio.field import Field
from settle.studio.forms.arguments import Given, blamed, positional
from settle.studio.forms.settings import Setting
from settle.studio.layout import words

MOST_PROPOSED = 30


class Form:
    """The form of a command's settings.

    on_change: called when a value is another. first: settings that are not folded, the essential ones if empty;
    without: those that the page asks for itself.
    """

    def __init__(
        self, command: type[Part], settings: Sequence[Setting], on_change: Callable[[], Awaitable[None]],
        first: Sequence[str] = (), without: Sequence[str] = ("dry",),  # the button `Forecast`
    ) -> None:  # fmt: skip
        self._on_change = on_change
        self.fields: dict[str, Field] = {}
        self._settings: dict[str, Setting] = {}  # of the fields
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
        with ui.element("details"):
            words(f"{title} ({len(settings)})", "summary")
            for setting in settings:
                self._add(setting)

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
        place.clear()
        name = self.fields[setting.key].text or setting.part
        if settings := setting.parts.get(name):
            with place:
                self._add_folded(f"Settings of {name}", settings)


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


SUGGESTIONS = {"models": _models, "paths": proposed_paths}
