"""constraints.txt: a tested version for everything that pyproject.toml asks for, and nothing about where it is from.
locked.txt: the hash of each wheel."""

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from settle.base.version import __version__

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PINNED = dict(line.split("==") for line in TEXT.splitlines() if not line.startswith("#"))


def test_every_dependency_is_pinned_to_a_version_that_is_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    for requirement in map(Requirement, texts):
        name = canonicalize_name(requirement.name)
        if name not in ("settle-lm", "pip") and (requirement.marker is None or requirement.marker.evaluate()):
            assert name in PINNED, f"{name}: run `make constraints`"
            assert requirement.specifier.contains(PINNED[name], prereleases=True), f"{name}: run `make constraints`"


def test_it_holds_what_those_need_too():
    assert {"pydantic-core", "markupsafe", "anyio", "networkx"} <= set(PINNED)


def test_it_holds_names_and_versions_only():
    for line in TEXT.splitlines()[1:]:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][A-Za-z0-9.]*", line), line
        Version(line.partition("==")[2])
    assert "://" not in TEXT and " -" not in TEXT


def test_the_writer_follows_what_packages_need():
    made = runpy.run_path(str(ROOT / "bench/constraints.py"))
    assert set(made["closure"]([Requirement("pydantic")])) >= {"pydantic", "pydantic-core", "typing-extensions"}
    assert made["closure"]([Requirement("pydantic; sys_platform == 'nowhere'")]) == {}


def test_every_version_has_a_hash():
    lines = [line for line in (ROOT / "locked.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    locked = dict(line.partition(" ")[0].split("==") for line in lines)
    assert locked == {name: version for name, version in PINNED.items() if name != "torch"}


def test_the_bill_of_materials_is_that_of_these_versions():
    """CycloneDX: what pyproject.toml asks for, and what that needs, each with a version and a licence."""
    made = runpy.run_path(str(ROOT / "bench/constraints.py"))
    bill = json.loads((ROOT / "settle/settle-lm.cdx.json").read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == __version__, "run `make constraints`"
    parts = {part["name"]: part for part in bill["components"]}
    assert {name: part["version"] for name, part in parts.items()}.items() <= PINNED.items(), "run `make constraints`"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [text for name, texts in project["optional-dependencies"].items() if name != "dev" for text in texts]
    asked = {canonicalize_name(Requirement(text).name) for text in (*project["dependencies"], *texts)}
    assert asked - {"settle-lm", "pip"} <= set(parts) and not {"pytest", "mypy"} & set(parts)
    assert all(part["licenses"] and part["purl"].endswith(f"@{part['version']}") for part in parts.values())
    refs = {"settle-lm", *parts}
    assert all({entry["ref"], *entry["dependsOn"]} <= refs for entry in bill["dependencies"])
    assert made["component"]("pydantic", "1", True)["licenses"] == [{"expression": "MIT"}]


def test_pip_refuses_a_wheel_with_another_hash(tmp_path, monkeypatch):
    """The lines as the writer makes them, and pip as a person runs it."""
    wheel, info = tmp_path / "small-1.0-py3-none-any.whl", "small-1.0.dist-info"

    def write(text):
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("small.py", text)
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")

    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    write("good")
    (line,) = runpy.run_path(str(ROOT / "bench/constraints.py"))["hashed"](["small==1.0"])
    (tmp_path / "locked.txt").write_text(line)
    install = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--require-hashes", "-r", "locked.txt"]
    assert subprocess.run(install, cwd=tmp_path, capture_output=True).returncode == 0
    write("bad")
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "DO NOT MATCH THE HASHES" in done.stderr
