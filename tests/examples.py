"""The parts that docs/develop.md shows, one file each, and packages that bring them to settle."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from settle.base import registry
from settle.documents import readers

PAGE = Path(__file__).parent.parent / "docs" / "develop.md"


def example(name: str) -> str:
    """The code of the block that the page calls `name`.py."""
    found = re.search(rf"^```python {name}\.py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found, f"docs/develop.md has no {name}.py"
    return found[1]


def install(
    site: Path, parts: Mapping[str, str], patch: pytest.MonkeyPatch, code: Callable[[str], str] = example
) -> None:
    """A package in the folder `site` that brings examples, family → "name:Class", here and in child processes. code:
    of a part, by its name."""
    metadata = site / "settle_examples-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: settle-examples\nVersion: 1\n")
    points = []
    for family, part in parts.items():
        name = part.partition(":")[0]
        (site / f"settle_{name}.py").write_text(code(name), encoding="utf-8")
        points.append(f"[settle.{family.replace('/', '.')}]\n{name} = settle_{part}\n")
    (metadata / "entry_points.txt").write_text("".join(points))
    patch.syspath_prepend(site)
    patch.setenv("PYTHONPATH", f"{site}{os.pathsep}{Path(__file__).parent.parent}")
    forget_parts()


@contextmanager
def joined(site: Path, points: str) -> Iterator[None]:
    """A package in the folder `site` with these entry points, here and in every process that is started."""
    info = site / "settle_tests-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: settle-tests\nVersion: 1\n")
    (info / "entry_points.txt").write_text(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forget_parts()
        yield
    forget_parts()


def forget_parts() -> None:
    """What the registry and the readers' pool know of installed packages."""
    for module in (registry, readers):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
