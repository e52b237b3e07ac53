"""Write constraints.txt, the installed versions of every dependency, and locked.txt, the hashes of their wheels.

Also settle-lm.cdx.json, the bill of materials (CycloneDX) that the wheel carries: those versions, and their licences.

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


# --- the bill of materials ---


def bill_of_materials() -> dict[str, object]:
    """Return, in CycloneDX 1.6, what an installation with every extra holds, in the versions of constraints.txt.

    Without a time or a number of its own, so that the same versions give the same bytes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = [Requirement(text) for text in project["dependencies"]]
    optional = {name: texts for name, texts in project["optional-dependencies"].items() if name != "dev"}
    extras = [Requirement(text) for texts in optional.values() for text in texts]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    needed = set(closure(base))
    names = [name for name in sorted(needed | set(closure([r for r in extras if r.name != OWN]))) if name in pinned]
    own = {"type": "application", "bom-ref": OWN, "name": OWN, "version": project["version"]}
    own |= {"licenses": [{"expression": project["license"]}], "purl": f"pkg:pypi/{OWN}@{project['version']}"}
    direct = sorted({canonicalize_name(r.name) for r in (*base, *extras)} & set(names))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own},
        "components": [component(name, pinned[name], name in needed) for name in names],
        "dependencies": [{"ref": OWN, "dependsOn": direct}]
        + [{"ref": name, "dependsOn": sorted(_needs(name) & set(names) - {name})} for name in names],
    }


def component(name: str, version: str, is_required: bool) -> dict[str, object]:
    about = distribution(name).metadata
    texts = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier", []) if text.startswith("License :: ")]
    stated = (about.get("License") or "").strip()
    if expression := about.get("License-Expression"):
        licences: list[dict[str, object]] = [{"expression": expression}]
    else:
        one_line = [stated] if stated and len(stated) < 60 and "\n" not in stated else []
        licences = [{"license": {"name": text}} for text in one_line or texts or ["not stated"]]
    return {"type": "library", "bom-ref": name, "name": name, "version": version, "licenses": licences,
            "scope": "required" if is_required else "optional", "purl": f"pkg:pypi/{name}@{version}"}  # fmt: skip


def _needs(name: str) -> set[str]:
    requirements = map(Requirement, distribution(name).requires or [])
    return {canonicalize_name(r.name) for r in requirements if _applies(r, {""})}


def write_bill() -> None:
    text = json.dumps(bill_of_materials(), indent=1, ensure_ascii=False)
    (ROOT / "settle/settle-lm.cdx.json").write_text(text + "\n", encoding="utf-8", newline="")


def main() -> None:
    versions = closure(declared())
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    (ROOT / "constraints.txt").write_text(HEAD + "".join(lines), encoding="utf-8")
    write_bill()
    if "--hashes" in sys.argv[1:]:
        locked = [line.strip() for line in lines if line.partition("==")[0] not in UNLOCKED]
        (ROOT / "locked.txt").write_text(LOCKED_HEAD + "".join(hashed(locked)), encoding="utf-8")


if __name__ == "__main__":
    main()
