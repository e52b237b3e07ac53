"""A part is a file: a family is a folder, a part's name is its filename, nothing lists it a second time.

    settle/data/sources/jsonl.py   →   part("data/sources", "jsonl")

A family's `__init__.py` defines the contract: one subclass of `Part`. Each file (or folder with an `__init__.py`)
beside it defines exactly one subclass of that contract. A large family sorts its files into sub-folders that its
`GROUPS` names: then the files of the folder and of those sub-folders are its parts, under their own names, and other
sub-folders are not. Other packages join through the entry-point group `settle.<family>` (slashes as dots).
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoints, distributions
from types import ModuleType

from pydantic import BaseModel, ConfigDict

from settle.base.errors import UsageError


class Part(BaseModel):
    """Something that can vary: its fields are its settings, its methods are its work."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@cache
def part_names(family: str) -> tuple[str, ...]:
    """Names of a family's parts, sorted; reads the folder and the entry points, imports no part."""
    return tuple(sorted({*_modules(family), *(e.name for e in _joined(family))}))


@cache
def part(family: str, name: str) -> type[Part]:
    """The part `name` of `family`. Raises UsageError naming the nearest part when there is none."""
    if name not in part_names(family):
        near = difflib.get_close_matches(name, part_names(family), n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(part_names(family))}"
        raise UsageError(f"there is no {name!r} in {family}", fix)
    for entry in _joined(family):
        if entry.name == name:
            loaded: type[Part] = entry.load()
            return loaded
    module = importlib.import_module(_modules(family)[name])
    contract = _contract(family)
    found = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, contract) and c is not contract and c.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} must define exactly one {contract.__name__}, found {len(found)}"
    return found[0]


def parts(family: str) -> dict[str, type[Part]]:
    """Every part of a family by name."""
    return {name: part(family, name) for name in part_names(family)}


@cache
def _modules(family: str) -> dict[str, str]:
    """The module that defines each part which is a file of our own."""
    package = _family_package(family)
    groups: tuple[str, ...] | None = getattr(package, "GROUPS", None)
    found = _listed(package.__path__, package.__name__)
    modules = {name: path for name, (path, is_folder) in found.items() if groups is None or not is_folder}
    for group in groups or ():
        inner = importlib.import_module(f"{package.__name__}.{group}")
        for name, (path, _) in _listed(inner.__path__, inner.__name__).items():
            assert name not in modules, f"{modules[name]} and {path} have one name"
            modules[name] = path
    return modules


def _listed(folders: Iterable[str], package: str) -> dict[str, tuple[str, bool]]:
    """name → (module, whether it is a folder) of the public modules of a package."""
    public = (m for m in pkgutil.iter_modules(folders) if not m.name.startswith("_"))
    return {m.name: (f"{package}.{m.name}", m.ispkg) for m in public}


@cache
def _installed() -> EntryPoints:
    # reads the metadata of every installed distribution, so once
    return EntryPoints(e for d in distributions() for e in d.entry_points if e.group.startswith("settle."))


@cache
def _joined(family: str) -> EntryPoints:
    return _installed().select(group=_group(family))


def _group(family: str) -> str:
    return "settle." + family.replace("/", ".")


def _family_package(family: str) -> ModuleType:
    return importlib.import_module("settle." + family.replace("/", "."))


def _contract(family: str) -> type[Part]:
    package = _family_package(family)
    found = [
        c
        for _, c in inspect.getmembers(package, inspect.isclass)
        if issubclass(c, Part) and c is not Part and c.__module__ == package.__name__
    ]
    assert len(found) == 1, f"{package.__name__} must define exactly one contract, found {len(found)}"
    return found[0]
