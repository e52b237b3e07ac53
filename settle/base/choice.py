"""A setting that is a part and the part's own settings: `--adapter lora --adapter.rank 32`.

    adapter: Choice = choice("model/adapters", default="lora", description="what is trained beside the base")

A recipe gives the name, `adapter = "lora"`, or a table with the name and settings, `[adapter]`; Python gives a string
or a dict. The settings are checked against the part that is named, which is imported only when some are given.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from settle.base.errors import UsageError
from settle.base.files import JsonObject
from settle.base.registry import Part, nearest, part, part_names


@dataclass(frozen=True)
class Choice:
    """A part by name, and the settings that were asked for."""

    family: str
    name: str | None = None  # None where the data decide
    settings: JsonObject = field(default_factory=dict)  # those that were given; others keep the part's defaults
    key: str = field(default="", compare=False)  # the setting that makes the choice, for messages

    def named(self, name: str) -> "Choice":
        """Return this choice, of the part `name` where none was asked for. Raises UsageError for others' settings."""
        return self if self.name else replace(self, name=name, settings=_checked(self.family, name, self))

    def over(self, usual: JsonObject) -> "Choice":
        """Return this choice over settings that hold where nothing else was asked for."""
        return replace(self, settings={**usual, **self.settings})

    def to_json(self) -> dict[str, Any]:
        """Return the form of a recipe: {"name": "lora", "rank": 8}."""
        return {**({"name": self.name} if self.name else {}), **self.settings}


class ChoiceError(UsageError):
    """A choice that is none. key: the setting that is wrong, such as "adapter.rank"."""

    def __init__(self, key: str, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.key = key


@dataclass(frozen=True)
class Family:
    """What a setting chooses from."""

    path: str
    default: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)  # names that stand for no part, each with what it means
    suits: JsonObject = field(default_factory=dict)  # values of class attributes that a part must have to be chosen
    only: tuple[str, ...] = ()  # names that may be chosen, of all parts

    def names(self) -> tuple[str, ...]:
        """Every name that may be chosen; imports parts only to see what suits."""
        known = [name for name in part_names(self.path) if not self.only or name in self.only]
        if self.suits:
            wanted = self.suits.items()
            known = [name for name in known if all(getattr(part(self.path, name), k) == v for k, v in wanted)]
        return tuple(sorted([*known, *self.extra]))

    def parts(self) -> dict[str, type[Part]]:
        """Every part that may be chosen, by name."""
        return {name: part(self.path, name) for name in self.names() if name not in self.extra}

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        to_json = core_schema.plain_serializer_function_ser_schema(Choice.to_json)
        return core_schema.with_info_plain_validator_function(self._validate, serialization=to_json)

    def _validate(self, value: object, info: ValidationInfo) -> Choice:
        key = info.field_name or "choice"
        if isinstance(value, Choice):
            return value
        given = spelled_out(value)
        if given is None or not isinstance(given.get("name", ""), str):
            key, value = (key, value) if given is None else (f"{key}.name", given["name"])
            raise ChoiceError(key, f"{key} = {value!r} names no part", f"one of: {', '.join(self.names())}")
        name = str(given.pop("name", None) or self.default or "") or None
        if name is not None and name not in self.names():
            name = name.replace("-", "_")
        if name is not None and name not in self.names():
            shown = tuple(known.replace("_", "-") for known in self.names())
            raise ChoiceError(f"{key}.name", f"--{key} has no choice {name!r}", _instead(key, name, shown))
        asked = Choice(self.path, name, given, key)
        if name in self.extra and given:
            first = min(given)
            raise ChoiceError(f"{key}.{first}", f"{key} {name} has no setting {first!r}", f"leave --{key}.{first} out")
        return replace(asked, settings=_checked(self.path, name, asked, self.names())) if given else asked


def _instead(key: str, name: str, names: tuple[str, ...]) -> str:
    """Say what to choose instead of a name that does not exist."""
    if (key, name) == ("adapter", "qlora"):
        return "--quantize nf4 keeps the base in 4 bits below a LoRA"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(names)}"


def choice(
    family: str,
    *,
    description: str,
    default: str | None = None,
    extra: Mapping[str, str] | None = None,
    suits: JsonObject | None = None,
    only: Iterable[str] = (),
) -> Any:  # what pydantic's own Field is: the default of a field of any type
    """Declare a field that chooses a part of `family`; see `Family`. default: None where the data decide."""
    info = FieldInfo(default=Choice(family, default), description=description)
    info.metadata.append(Family(family, default, extra or {}, suits or {}, tuple(only)))
    return info


def family_of(info: FieldInfo) -> Family | None:
    """Return what a field chooses from, when it is a choice."""
    return next((found for found in info.metadata if isinstance(found, Family)), None)


def named_family(info: FieldInfo) -> Family | None:
    """Return the family that a field chooses from, or whose parts it names as plain text."""
    extra = info.json_schema_extra
    if isinstance(extra, dict) and "parts" in extra:
        return Family(str(extra["parts"]))
    return family_of(info)


def described(info: FieldInfo) -> str:
    """Return the description of a setting, with the parts that it may name."""
    family = named_family(info)
    return f"{info.description}; one of: {', '.join(family.names())}" if family else str(info.description)


def spelled_out(value: object) -> dict[str, Any] | None:
    """Return a choice as a name and settings with underscores, however it was given; None when it is no choice."""
    match value:
        case Choice():
            return value.to_json()
        case str():
            return {"name": value}
        case Mapping():
            return {str(key).replace("-", "_"): setting for key, setting in value.items() if setting is not None}
    return None


def _checked(family: str, name: str | None, asked: Choice, names: tuple[str, ...] = ()) -> JsonObject:
    """Return the settings as the part keeps them. Raises ChoiceError.

    Without a name, some part must have each setting.
    """
    key, settings = asked.key, asked.settings
    candidates = {n: part(family, n) for n in ([name] if name else names) if n in part_names(family)}
    known = tuple(dict.fromkeys(setting for p in candidates.values() for setting in p.model_fields))
    for setting in settings:
        if setting not in known:
            whose = f"{key} {name} has" if name else "there is"
            fix = nearest(f"{key}.{setting}", tuple(f"{key}.{k}" for k in known)) if known else f"{name} has none"
            raise ChoiceError(f"{key}.{setting}", f"{whose} no setting {f'{key}.{setting}'!r}", fix)
    if name is None:
        return settings
    try:
        built = candidates[name].model_validate(dict(settings))
    except ValidationError as e:
        first = e.errors()[0]
        wrong = ".".join([key, *map(str, first["loc"][:1])])
        what = f"{wrong} = {first.get('input')!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise ChoiceError(wrong, what, "see --help") from None
    return built.model_dump(mode="json", include=set(settings))
