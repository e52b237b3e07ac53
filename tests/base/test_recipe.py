"""A recipe holds what was asked: written and read again, it resolves to the same settings."""

import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import annotated_types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from settle.base.choice import Family, family_of
from settle.base.errors import RunError
from settle.base.settings import group_of, read_recipe, recipe_text, resolve
from settle.commands import Command
from settle.commands.make.tune import Tune

COMMANDS = {name: command for name, command in Command.parts().items() if "recipe" in command.model_fields}
OF_NAME = {"dtype": st.sampled_from(["float32", "bfloat16", "float16"])}  # settings that take few texts
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_columns_of_rows_can_be_written():
    """The table in a table that the former writer made invalid TOML of."""
    asked = {"model": "m", "inputs": ["a"], "rows": {"columns": {"prompt": "q", "text": None}, "held_out": 0.2}}
    text = recipe_text(asked)
    assert tomllib.loads(text)["rows"] == {"held_out": 0.2, "columns": {"prompt": "q"}}


@settings(deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", COMMANDS)
def test_a_recipe_resolves_to_the_settings_it_was_written_from(tmp_path_factory, name, data):
    command = COMMANDS[name]
    asked = data.draw(_settings(command))
    value = resolve(command, [("asked", asked)]).value
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe_text(value.model_dump(exclude_unset=True, mode="json")), encoding="utf-8")
    assert resolve(command, [("recipe", read_recipe(path))]).value == value


def _settings(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of a model's settings, and always those without a default."""
    required = {name: _values(field) for name, field in model.model_fields.items() if field.is_required()}
    optional = {
        name: OF_NAME[name] if name in OF_NAME else _values(field)
        for name, field in model.model_fields.items()
        if name not in required and name not in ("recipe", "dry")
    }
    return st.fixed_dictionaries(required, optional=optional)


def _values(field: FieldInfo) -> st.SearchStrategy[Any]:
    family, group = family_of(field), group_of(field.annotation)
    if family:
        return _choices(family)
    return _settings(group) if group else _of_type(field.annotation, field.metadata)


def _choices(family: Family) -> st.SearchStrategy[Any]:
    """A name, a table with a name and settings, or settings alone where the part has a usual name."""
    parts = family.parts()
    named = [
        _settings(part).map(lambda settings, name=name: {"name": name, **settings}) for name, part in parts.items()
    ]
    alone = [_settings(parts[family.default])] if family.default in parts else []
    return st.one_of(st.sampled_from(family.names()), *named, *alone)


def _of_type(kind: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([_of_type(one, metadata) for one in arguments if one is not type(None)])
    if origin is list:
        return st.lists(_of_type(arguments[0], []), min_size=1, max_size=3)
    if kind is bool:
        return st.booleans()
    if kind in (int, float):
        return _numbers(kind, metadata)
    if pattern := next((found for bound in metadata if (found := getattr(bound, "pattern", None))), None):
        return st.from_regex(pattern, fullmatch=True)
    return (
        TEXT.map(lambda text: text.replace("/", "_")).map(Path) if kind is Path else TEXT.filter(lambda t: "," not in t)
    )


def _numbers(kind: type, metadata: list[Any]) -> st.SearchStrategy[Any]:
    low, high = -(2**40), 2**40
    for bound in metadata:
        if isinstance(bound, annotated_types.Gt | annotated_types.Ge):
            low = getattr(bound, "gt", None) or getattr(bound, "ge", 0) or 0
        if isinstance(bound, annotated_types.Lt | annotated_types.Le):
            high = getattr(bound, "lt", None) or getattr(bound, "le", 0) or 0
    if kind is int:
        return st.integers(low + 1, high)
    return st.floats(low, high, exclude_min=True, exclude_max=True, allow_nan=False)


@pytest.mark.parametrize("version", [2, 99])
def test_a_recipe_of_a_newer_version_is_refused_by_its_number(tmp_path, version):
    path = tmp_path / "recipe.toml"
    path.write_text(f'version = {version}\ninputs = ["a"]\n')
    with pytest.raises(RunError, match=f"recipe.toml has version {version}; this settle reads versions up to 1") as e:
        read_recipe(path)
    assert "--upgrade settle-lm" in e.value.fix
    path.write_text('version = 1\ninputs = ["a"]\n')
    assert read_recipe(path) == {"inputs": ["a"]}


@pytest.mark.parametrize("recipe", ['adapter = "dora"', '[adapter]\nname = "dora"\nrank = 32', "[adapter]\nrank = 8"])
def test_the_forms_of_a_choice_in_a_recipe(recipe):
    adapter = resolve(Tune, [("recipe", {"model": "m", **tomllib.loads(recipe)})]).value.adapter
    asked = tomllib.loads(recipe)["adapter"]
    asked = {"name": asked} if isinstance(asked, str) else asked
    assert adapter.name == asked.pop("name", "lora") and adapter.settings == asked
