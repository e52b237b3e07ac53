"""A part is a file: a family is a folder, a part's name is its filename, nothing lists it a second time.

    settle/model/adapters/lora.py   →   Adapter.part("lora")

A family's `__init__.py` defines the contract: one subclass of `Part`. Each file (or folder with an `__init__.py`)
beside it defines exactly one subclass of that contract. A large family sorts its files into sub-folders that its
`GROUPS` names: then the files of the folder and of those sub-folders are its parts, under their own names, and other
sub-folders are not. Other packages join through the entry-point group `settle.<family>` (slashes as dots).

Where the contract is at hand, ask it; what comes back is typed:

    Adapter.part_names()                    ("dora", "lora"), without importing either
    Adapter.part("lora")                    type[Adapter]
    Adapter.parts()                         dict[str, type[Adapter]]
    Adapter.make("lora", {"rank": 8})       Adapter: the part with these settings
    adapter.part_name()                     "lora", also on the class

`part(family, name)`, `parts(family)` and `part_names(family)` do the same for a family known by its path.
"""

import ast
import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoints, distributions
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Self, cast

from pydantic import BaseModel, ConfigDict, field_validator

from settle.base.amounts import within_64_bits
from settle.base.errors import UsageError
from settle.base.files import JsonObject


class Part(BaseModel):
    """Something that can vary: its fields are its settings, its methods are its work.

    The direct subclass of `Part` is the contract of a family and lives in the `__init__.py` of the family's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    _within_64_bits = field_validator("*")(within_64_bits)

    @classmethod
    def family(cls) -> str:
        """Return the path of the family below `settle/`, such as "model/adapters"."""
        contract = next(c for c in reversed(cls.__mro__) if issubclass(c, Part) and c is not Part)
        return contract.__module__.removeprefix("settle.").replace(".", "/")

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        """Names of the parts of this family; see `part_names`."""
        return part_names(cls.family())

    @classmethod
    def part(cls, name: str) -> type[Self]:
        """Return the part of this family called `name`. Raises UsageError naming the nearest when there is none."""
        return cast(type[Self], part(cls.family(), name))

    @classmethod
    def parts(cls) -> dict[str, type[Self]]:
        """Every part of this family by name."""
        return {name: cls.part(name) for name in cls.part_names()}

    @classmethod
    def make(cls, name: str, settings: JsonObject) -> Self:
        """Make the part called `name` with these settings. Raises UsageError for the name, ValidationError for them."""
        return cls.part(name).model_validate(dict(settings))

    @classmethod
    def part_name(cls) -> str:
        for entry in _joined(cls.family()):
            if entry.value.replace(" ", "") == f"{cls.__module__}:{cls.__qualname__}":
                return entry.name
        return cls.__module__.rpartition(".")[2]


@cache
def part_names(family: str) -> tuple[str, ...]:
    """Names of a family's parts, sorted; reads the folder and the entry points, imports no part."""
    return tuple(sorted({*_own_modules(family), *(entry.name for entry in _joined(family))}))


@cache
def part(family: str, name: str) -> type[Part]:
    """Return the part `name` of `family`. Raises UsageError naming the nearest part when there is none."""
    if name not in part_names(family):
        raise UsageError(f"there is no {name!r} in {family}", nearest(name, part_names(family)))
    for entry in _joined(family):
        if entry.name == name:
            joined: type[Part] = entry.load()
            return joined
    module = importlib.import_module(_own_modules(family)[name])
    return _defined(module, _defined(importlib.import_module(_package_name(family)), Part))


def parts(family: str) -> dict[str, type[Part]]:
    """Every part of a family by name."""
    return {name: part(family, name) for name in part_names(family)}


def summary(family: str, name: str) -> str:
    """Return the first paragraph of a part's docstring, read from its source: settle's own parts are not imported."""
    module = _own_modules(family).get(name)
    spec = find_spec(module) if module else None
    if spec is None or spec.origin is None:
        text = part(family, name).__doc__
    else:
        source = spec.origin
        classes = [node for node in ast.parse(Path(source).read_bytes()).body if isinstance(node, ast.ClassDef)]
        text = next((doc for node in classes if (doc := ast.get_docstring(node))), "")
    return (text or "").strip().partition("\n\n")[0]


def module_of(family: str, name: str) -> str:
    """Return the module that defines a part, without importing a part of settle's own."""
    return _own_modules(family).get(name) or part(family, name).__module__


def groups_of(family: str) -> tuple[str, ...]:
    """Return the sub-folders into which a family sorts its files, without importing it."""
    places = (Path(place, family, "__init__.py") for place in importlib.import_module("settle").__path__)
    return next((groups for file in places if file.is_file() and (groups := _groups(file))), ())


def nearest(name: str, known: tuple[str, ...]) -> str:
    """Say what to use instead of an unknown name: the nearest, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


@cache
def _own_modules(family: str) -> dict[str, str]:
    """Map each part in the family's folder and its groups to its module; import none, since some load torch."""
    loaded = sys.modules.get(_package_name(family))
    places = [Path(place, family) for place in importlib.import_module("settle").__path__]
    folders = list(map(Path, loaded.__path__)) if loaded else places
    groups = next((_groups(file) for folder in folders if (file := folder / "__init__.py").is_file()), None)
    package = _package_name(family)
    files = _listed(folders, package)
    modules = {name: path for name, (path, is_folder) in files.items() if groups is None or not is_folder}
    for group in groups or ():
        for name, (path, _) in _listed([folder / group for folder in folders], f"{package}.{group}").items():
            if name in modules:
                raise TypeError(f"{modules[name]} and {path} have one name")
            modules[name] = path
    return modules


def _groups(file: Path) -> tuple[str, ...] | None:
    """Return what a family's `__init__.py` assigns to GROUPS, or None."""
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["GROUPS"]:
            return tuple(ast.literal_eval(node.value))
    return None


def _listed(folders: Iterable[Path], package: str) -> dict[str, tuple[str, bool]]:
    """Map each public module of a package's folders to its module name, and whether it is a folder."""
    public = (m for m in pkgutil.iter_modules(map(str, folders)) if not m.name.startswith("_"))
    return {m.name: (f"{package}.{m.name}", m.ispkg) for m in public}


@cache
def _installed() -> EntryPoints:
    # reads the metadata of every installed distribution, so once
    return EntryPoints(e for d in distributions() for e in d.entry_points if e.group.startswith("settle."))


@cache
def _joined(family: str) -> EntryPoints:
    return _installed().select(group=_package_name(family))


def _package_name(family: str) -> str:
    return "settle." + family.replace("/", ".")


def _defined(module: ModuleType, base: type[Part]) -> type[Part]:
    """Return the one subclass of `base` that a module itself defines."""
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    defined = [c for c in classes if issubclass(c, base) and c is not base]
    if len(defined) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, not {len(defined)}")
    return defined[0]
