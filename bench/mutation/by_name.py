"""Which tests are likely to reach a function, by their text alone: where nobody noted what they call.

Files of tests that import the function's module; where there is none, those of its room that name the function, its
class or its module. Within them the tests that name it themselves first, those with few fixtures before others.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest
from mutation.faults import Fault

A_TEST = 3  # cases of one parametrized test that are taken
CHEAP_FIXTURES = {"tmp_path", "monkeypatch", "capsys", "home", "request", "own_home"}


@cache
def _texts(root: Path) -> Mapping[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((root / "tests").rglob("test_*.py"))
    }


def _names(fault: Fault) -> list[str]:
    """Return the names that a test has for the function, nearest first."""
    *classes, name = fault.function.split(".")
    stem = Path(fault.path).stem
    return [n for n in (name, *classes[::-1], Path(fault.path).parent.name if stem == "__init__" else stem) if n]


def files_that_name(root: Path, fault: Fault) -> list[str]:
    """Files of tests, relative to the root."""
    module = fault.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    folder, _, stem = module.rpartition(".")
    imports = re.compile(rf"(?:from|import) {re.escape(module)}\b|from {re.escape(folder)} import [^\n]*\b{stem}\b")
    found = [path for path, text in _texts(root).items() if imports.search(text)]
    if found:
        return found
    names = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in _names(fault)))
    room = f"tests/{fault.path.split('/')[1]}/"
    return [path for path, text in _texts(root).items() if path.startswith(room) and names.search(text)]


def tests_that_name(fault: Fault, files: Iterable[str], items: Mapping[str, pytest.Item]) -> list[str]:
    """Tests of these files, the likeliest and cheapest first."""
    names, wanted = _names(fault), set(files)
    ranked: list[tuple[tuple[int, int, str], str]] = []
    cases: dict[str, int] = {}
    for test, item in items.items():
        own = test.split("[")[0]
        if test.split("::")[0] not in wanted or item.get_closest_marker("slow") or cases.get(own, 0) >= A_TEST:
            continue
        cases[own] = cases.get(own, 0) + 1
        text = _source(item)
        near = next((at for at, name in enumerate(names) if re.search(rf"\b{re.escape(name)}\b", text)), len(names))
        fixtures = [name for name in getattr(item, "fixturenames", ()) if name not in CHEAP_FIXTURES]
        ranked.append(((near, len(fixtures), test), test))
    return [test for _, test in sorted(ranked)]


def _source(item: pytest.Item) -> str:
    return inspect.getsource(item.function) if isinstance(item, pytest.Function) else ""
