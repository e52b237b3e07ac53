"""Every part of every family, against what the registry, the help and recipes expect of one."""

import re
import typing
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

import settle
from settle.base.registry import Part, part, part_names
from settle.base.settings import group_of

ROOT = Path(settle.__file__).parent
FAMILIES = sorted(
    path.parent.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("__init__.py")
    if re.search(r"^class \w+\((.*, )?Part(, .*)?\):$", path.read_text(encoding="utf-8"), re.M)
)
PARTS = [(family, name) for family in FAMILIES for name in part_names(family)]
# What a number of a setting counts or measures: one of these words is in its description.
UNITS = re.compile(
    r"tokens?|bytes|seconds|characters|documents|rows|texts|sentences|passages|channels|blocks|layers|heads|logits|"
    r"parameters|iterations|times|threads|questions|rounds|steps|requests|lines|port|ids?|width|size|rank|nats|share|"
    r"fraction|ratio|rate|decay|weight|scale|scaled|temperature|money|price|watts|number|length|minutes|days|MB|GB|"
    r"milliseconds|models|answers|added|seed|standard deviation|strength",
    re.I,
)


@pytest.mark.parametrize(("family", "name"), PARTS)
def test_a_part_is_frozen_strict_and_named_after_its_file(family: str, name: str) -> None:
    kind = part(family, name)
    assert issubclass(kind, Part) and kind.family() == family and kind.part_name() == name
    assert kind.model_config["frozen"] and kind.model_config["extra"] == "forbid"
    assert kind.__module__.rpartition(".")[2] == name or not kind.__module__.startswith("settle.")
    assert (kind.__doc__ or "").strip()


@pytest.mark.parametrize(("family", "name"), PARTS)
def test_every_setting_has_a_description_a_default_and_a_unit(family: str, name: str) -> None:
    kind = part(family, name)
    without_default = {setting for setting, field in kind.model_fields.items() if field.is_required()}
    # What must be given: the positional arguments of a command, and the value that a score is asked for with.
    allowed = set(getattr(kind, "positional", ())) | ({"path", "pattern"} if family == "evaluate/tasks" else set())
    assert without_default <= allowed
    for setting, field in kind.model_fields.items():
        assert field.description or group_of(field.annotation), f"{setting} has no description"
        if family != "model/architectures" and _is_quantity(field):  # whose names are those of config.json
            assert UNITS.search(f"{setting} {field.description}"), f"{setting}: {field.description!r} names no unit"


@pytest.mark.parametrize(
    ("family", "name"),
    [at for at in PARTS if not any(field.is_required() for field in part(*at).model_fields.values())],
)
def test_settings_survive_json(family: str, name: str) -> None:
    kind = part(family, name)
    made = kind()
    assert kind.model_validate(made.model_dump(mode="json")) == made


def _is_quantity(field: FieldInfo) -> bool:
    kinds = {field.annotation, *typing.get_args(field.annotation)}
    return bool(kinds & {int, float}) and bool not in kinds
