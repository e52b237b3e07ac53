"""Strict settings: field default < recipe (TOML) < command line, resolved once, every value with its origin."""

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from settle.base.errors import UsageError


class Settings(BaseModel):
    """A group of settings, declared beside what they set. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = typing.TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Resolved(typing.Generic[S]):
    """Settings after all input is merged: the value, and per dotted key where it came from."""

    value: S
    origin: dict[str, str]


def read_recipe(path: Path) -> dict[str, Any]:
    """A TOML recipe as a nested dict. Raises UsageError with the line when it does not parse."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no recipe {path}", "check the path given to --recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} is not valid TOML: {e}", "mend that line") from None


def resolve(model: type[S], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Resolved[S]:
    """Merge layers (lowest first, each a name and nested keys; None means not given) into one frozen value.

    Raises UsageError for an unknown key, naming the nearest one, and for a value of the wrong type.
    """
    merged: dict[str, Any] = {}
    origin = dict.fromkeys(_leaves(model), "default")
    for name, values in layers:
        for key, value in _flatten(values, model):
            if key not in origin:
                raise UsageError(f"{name}: there is no setting {key!r}", _nearest(key, list(origin)))
            _put(merged, key.split("."), value)
            origin[key] = name
    try:
        return Resolved(model.model_validate(merged), origin)
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        given = first.get("input")
        shown = given if isinstance(given, str | int | float | bool) else type(given).__name__
        raise UsageError(
            f"{origin.get(key, 'settings')}: {key} = {shown!r}: {first['msg'].lower()}",
            f"see `settle {model.__name__.removesuffix('Settings').lower()} --help`",
        ) from None


def _is_group(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        groups = [g for a in typing.get_args(annotation) if (g := _is_group(a))]
        return groups[0] if len(groups) == 1 else None
    return None


def _leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    out: list[str] = []
    for name, field in model.model_fields.items():
        group = _is_group(field.annotation)
        out += _leaves(group, f"{prefix}{name}.") if group else [f"{prefix}{name}"]
    return out


def _flatten(values: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        field = model.model_fields.get(key)
        group = _is_group(field.annotation) if field else None
        if group and isinstance(value, Mapping):
            out += _flatten(value, group, f"{prefix}{key}.")
        elif field is None and isinstance(value, Mapping):
            out += [(f"{prefix}{key}.{sub}", v) for sub, v in value.items()] or [(f"{prefix}{key}", value)]
        elif value is not None:
            out.append((f"{prefix}{key}", value))
    return out


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
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
