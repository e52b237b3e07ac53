"""constraints.txt: a tested version for everything that pyproject.toml asks for, and nothing about where it is from."""

import re
import runpy
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PINNED = dict(line.split("==") for line in TEXT.splitlines() if not line.startswith("#"))


def test_every_dependency_is_pinned_to_a_version_that_is_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    for requirement in map(Requirement, texts):
        name = canonicalize_name(requirement.name)
        if name != "settle-lm" and (requirement.marker is None or requirement.marker.evaluate()):
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
