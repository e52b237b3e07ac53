"""constraints.txt: the versions that this environment has of everything settle depends on, directly or not.

    python bench/constraints.py            # writes it; run it in the environment that passed the tests

Read by `pip install -c constraints.txt …`. It names versions and nothing about where they come from.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
OWN = "settle-lm"
HEAD = "# The versions that settle's tests passed with. `make constraints` writes this file; see the README.\n"


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, with every extra; settle itself left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [requirement for text in texts if canonicalize_name((requirement := Requirement(text)).name) != OWN]


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Name → version, of all that is installed for them. A local part (`+cpu`) is left out: it says which build."""
    versions: dict[str, str] = {}
    todo, done = list(requirements), set[tuple[str, frozenset[str]]]()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in done or (requirement.marker and not _applies(requirement, {""})):
            continue
        done.add(key)
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:
            continue  # of another system
        versions[key[0]] = installed.version.partition("+")[0]
        needed = map(Requirement, installed.requires or [])
        todo += [below.__class__(str(below).partition(";")[0]) for below in needed if _applies(below, {"", *key[1]})]
    return versions


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def main() -> None:
    lines = [f"{name}=={version}\n" for name, version in sorted(closure(declared()).items())]
    (ROOT / "constraints.txt").write_text(HEAD + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
