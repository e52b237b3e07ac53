"""Write constraints.txt, the installed versions of every dependency, and locked.txt, the hashes of their wheels.

locked.txt is for this system, as the package index has the wheels.

    python bench/constraints.py            # writes constraints.txt; run it in the environment that passed the tests
    python bench/constraints.py --hashes   # writes locked.txt, too: pip asks the index for each wheel, for minutes

Read by `pip install -c constraints.txt …`, which names versions and nothing about where they come from, and by
`pip install --no-deps --require-hashes -r locked.txt`. With hashes in the constraints themselves pip would refuse the
wheels of every other system.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
OWN = "settle-lm"
UNPINNED = ("pip",)  # an installer that is told to replace itself fails on Windows
# The machine that runs the tests has a build of torch for CPUs from elsewhere, whose wheel has another hash. Whoever
# installs chooses the build, which brings what it needs.
UNLOCKED = ("torch",)
LOCKED_HEAD = """\
# The wheels of constraints.txt for Linux on x86-64 and CPython 3.11, with hashes; not torch, whose build you choose.
#   pip install -c constraints.txt torch
#   pip install --no-deps --require-hashes -r locked.txt
#   pip install --no-deps .
# `python bench/constraints.py --hashes` writes this file.
"""
HEAD = "# The versions that settle's tests passed with. `make constraints` writes this file; see the README.\n"


def declared() -> list[Requirement]:
    """Return what pyproject.toml asks for, with every extra; settle itself left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [r for text in texts if canonicalize_name((r := Requirement(text)).name) not in (OWN, *UNPINNED)]


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


def hashed(requirements: Sequence[str]) -> list[str]:
    """Each requirement as a line with the hash of the wheel that pip would install here."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [sys.executable, "-P", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet",
             "--only-binary", ":all:", "--report", str(report), *requirements],
            check=True,
        )  # fmt: skip
        return lines_of(json.loads(report.read_text(encoding="utf-8")))


def lines_of(report: Mapping[str, list[dict[str, dict[str, dict[str, dict[str, str]]]]]]) -> list[str]:
    lines = []
    for entry in report["install"]:
        what, sha256 = entry["metadata"], entry["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{canonicalize_name(str(what['name']))}=={what['version']} --hash=sha256:{sha256}\n")
    return sorted(lines)


def main() -> None:
    versions = closure(declared())
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    (ROOT / "constraints.txt").write_text(HEAD + "".join(lines), encoding="utf-8")
    if "--hashes" in sys.argv[1:]:
        locked = [line.strip() for line in lines if line.partition("==")[0] not in UNLOCKED]
        (ROOT / "locked.txt").write_text(LOCKED_HEAD + "".join(hashed(locked)), encoding="utf-8")


if __name__ == "__main__":
    main()
