"""Strict settings: field default < recipe (TOML) < command line, resolved once, every value with its origin."""

import difflib
import os
import tomllib
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic.fields import FieldInfo

from settle.base.amounts import within_64_bits
from settle.base.choice import ChoiceError, family_of, spelled_out
from settle.base.errors import UsageError
from settle.base.files import JsonObject, read_bounded
from settle.base.version import refuse_newer

RECIPE_VERSION = 1  # of the format of recipes; a recipe without a version is of the first


class FormerName(FutureWarning):
    """A name was given that still works, and will go."""


@dataclass(frozen=True)
class Renamed:
    """What a setting of a former name is called now, and the version of settle that no longer takes the former."""

    now: str
    gone_in: str

    def warn(self, former: str, shown: str = "") -> None:
        """Warn that `former` was given. shown: the present name as the user writes it, if not as it is here."""
        text = f"{former} is called {shown or self.now} now; settle {self.gone_in} will not take the former name"
        warnings.warn(text, FormerName, stacklevel=2)


class Settings(BaseModel):
    """A group of settings, declared beside what they set. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    renamed: ClassVar[Mapping[str, Renamed]] = {}  # by the former name, which is accepted with a warning
    _within_64_bits = field_validator("*")(within_64_bits)


S = typing.TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Resolved(typing.Generic[S]):
    """Settings after all input is merged: the value, and per dotted key where it came from."""

    value: S
    origin: dict[str, str]


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe as a nested dict, without its version.

    Raises UsageError with the line when it does not parse, RunError for a version that this settle does not know.
    """
    recipe = read_toml(path)
    refuse_newer(recipe, RECIPE_VERSION, str(path))
    return {key: value for key, value in recipe.items() if key != "version"}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as a nested dict. Raises UsageError with the line when it does not parse."""
    try:
        values: dict[str, Any] = _each_text(tomllib.loads(read_bounded(path)), _from_uri)
        return values
    except FileNotFoundError:
        raise UsageError(f"there is no recipe {path}", "check the path to the recipe") from None
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}", "give a recipe, a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} is not valid TOML: {e}", "fix that line") from None


def recipe_text(values: JsonObject) -> str:
    """Write settings as the TOML of a recipe; what is None is left out.

    A path that is not UTF-8, which TOML cannot hold, is written as its `file://` address (RFC 8089).
    """
    return tomli_w.dumps(_each_text({"version": RECIPE_VERSION, **_without_none(values)}, _to_uri))


def resolve(model: type[S], layers: Sequence[tuple[str, JsonObject]]) -> Resolved[S]:
    """Merge layers (lowest first, each a name and nested keys; None means not given) into one frozen value.

    Raises UsageError for an unknown key, naming the nearest one, and for a value of the wrong type.
    """
    merged: dict[str, Any] = {}
    fields = dict(leaves(model))
    choices = {key for key, field in fields.items() if family_of(field)}
    origin = dict.fromkeys((f"{key}.name" if key in choices else key for key in fields), "default")
    for name, values in layers:
        for key, value in _flatten(values, model):
            if key not in origin and key.rpartition(".")[0] not in choices and key not in choices:
                raise UsageError(f"{_where(name)}there is no setting {key!r}", _nearest(key, list(origin)))
            _put(merged, key.split("."), value)
            origin[key] = name
    try:
        return Resolved(model.model_validate(merged), origin)
    except ChoiceError as e:
        raise UsageError(f"{_where(origin.get(e.key, 'settings'))}{e.what}", e.fix) from None
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        given = first.get("input")
        shown = given if isinstance(given, str | int | float | bool) else type(given).__name__
        raise UsageError(
            f"{_where(origin.get(key, 'settings'))}{key} = {shown!r}: {first['msg'].lower()}",
            f"see `settle {model.__name__.removesuffix('Settings').lower()} --help`",
        ) from None


def _where(layer: str) -> str:
    """Return the file that a wrong setting is in; what was asked for directly needs no place."""
    return "" if layer == "asked" else f"{layer}: "


def _without_none(values: JsonObject) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each_text(below, change) for key, below in value.items()}
    return [_each_text(below, change) for below in value] if isinstance(value, list | tuple) else value


def _to_uri(text: str) -> str:
    return text if _is_unicode(text) else Path(text).absolute().as_uri()


def _from_uri(text: str) -> str:
    """Return the path of an address that `_to_uri` made; any other text stays."""
    if not text.startswith("file:///"):
        return text
    path = os.fsdecode(unquote_to_bytes(text.removeprefix("file://")))
    return text if _is_unicode(path) else path


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def group_of(annotation: object) -> type[BaseModel] | None:
    """Return the settings that a field groups, also of an optional group."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        groups = [g for a in typing.get_args(annotation) if (g := group_of(a))]
        return groups[0] if len(groups) == 1 else None
    return None


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting with its dotted key, also those of groups."""
    for name, field in model.model_fields.items():
        group = group_of(field.annotation)
        if group:
            yield from leaves(group, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _flatten(values: JsonObject, model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted key and value of every setting that is given."""
    renamed: Mapping[str, Renamed] = getattr(model, "renamed", {})
    for key, value in values.items():
        if key in renamed:
            renamed[key].warn(key)
            key = renamed[key].now
        field = model.model_fields.get(key)
        group = group_of(field.annotation) if field else None
        if value is None:
            continue
        if field and family_of(field) and (part := spelled_out(value)) is not None:
            yield from ((f"{prefix}{key}.{setting}", v) for setting, v in part.items())
        elif group and isinstance(value, Mapping):
            yield from _flatten(value, group, f"{prefix}{key}.")
        elif field is None and isinstance(value, Mapping) and value:
            yield from ((f"{prefix}{key}.{setting}", v) for setting, v in value.items())
        else:
            yield f"{prefix}{key}", value


def _put(tree: dict[str, Any], path: list[str], value: object) -> None:
    for name in path[:-1]:
        below = tree.get(name)
        if not isinstance(below, dict):
            below = tree[name] = {}
        tree = below
    before = tree.get(path[-1])
    if isinstance(before, dict) and isinstance(value, Mapping):
        value = {**before, **value}  # a free group: what one layer leaves out, the layer below has said
    tree[path[-1]] = value


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:  # a misspelled leaf in the right or wrong group
        by_leaf = {k.rsplit(".", 1)[-1]: k for k in known}
        near = [by_leaf[m] for m in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(by_leaf), n=1)]
    return f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(known)}"
