"""Installation: the wheel and the sdist, `make install` and `make link`.

bench/install.py, whose cheap part this runs, installs the wheel into empty environments, too; that takes a network.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BENCH = runpy.run_path(str(ROOT / "bench/install.py"))
BILL = "settle/settle-lm.cdx.json"
has_make = pytest.mark.skipif(not shutil.which("make") or os.name == "nt", reason="no make on this system")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built twice, the second time from other times and modes; the sdist too, which the wheel is made from."""
    work = tmp_path_factory.mktemp("dist")
    first = BENCH["built"](work, "first", days_ago=0, mode=0o644)
    for mine, other in zip(first, BENCH["built"](work, "second", days_ago=400, mode=0o600), strict=True):
        assert mine.read_bytes() == other.read_bytes(), mine.name
    return first[1]


def test_the_wheel_is_reproducible_and_small(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    assert 0 < BENCH["data_bytes"](wheel) <= BENCH["MOST_DATA_BYTES"] <= 12 << 20


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(about).decode())
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "settle = settle.__main__:main" in archive.read(entry).decode()
    shared = {name for name in names if ".data/data/" in name}
    assert {name.split("/")[0] for name in names - shared} == {"settle", about.split("/")[0]}
    assert {name.partition(".data/data/")[2] for name in shared} == {
        f"share/man/man1/{page.name}" for page in (ROOT / "man").glob("*.1")
    }
    ours = {path.as_posix() for path in BENCH["tracked"]() if path.parts[0] == "settle"} - {BILL}
    beside = about.removesuffix("METADATA")
    assert {f"{beside}licenses/LICENSE", f"{beside}licenses/NOTICE", f"{beside}sboms/{Path(BILL).name}"} <= names
    assert ours == {name for name in names if name.startswith("settle/")}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"serve", "shrink", "rag", "studio", "chroma", "all"} <= set(metadata.get_all("Provides-Extra"))


def test_what_is_installed_works_from_any_folder(wheel, tmp_path):
    """Folders called settle and docs lie where the command is started, and none of them is taken for the package."""
    site, here = tmp_path / "site", tmp_path / "here"
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("settle", "docs", "settle/base"):
        (here / name).mkdir(parents=True, exist_ok=True)
    searched = os.pathsep.join([str(site), *(path for path in sys.path if path and Path(path) != ROOT)])
    for line in (["-m", "settle", "--version"], ["-c", "import settle; settle.train; print(settle.__version__)"]):
        done = subprocess.run(
            [sys.executable, *line], cwd=here, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": searched}
        )
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


def _make(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    line = ["make", "--no-print-directory", "-C", str(folder), *arguments]
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(line, capture_output=True, text=True, env=environment | environ)


@pytest.fixture
def clone(tmp_path):
    """A clone in which the package is installed: make takes the environment's mark for it."""
    folder = tmp_path / "a clone"
    (folder / ".venv/bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".venv/bin/settle").write_text("#!/bin/sh\necho this is settle\n")
    (folder / ".venv/bin/settle").chmod(0o755)
    (folder / ".venv/bin/activate").write_text(f"PATH='{folder}/.venv/bin':$PATH\n")
    (folder / ".venv/.installed").touch()
    return folder


@has_make
def test_make_install_ends_with_lines_that_can_be_pasted(clone):
    said = _make(clone, "install").stdout.splitlines()
    assert len(said) == 3 and str(clone / ".venv/bin/settle") in said[0]
    activate = said[1].partition(":   ")[2]
    done = subprocess.run(["sh", "-c", f"{activate} && settle"], capture_output=True, text=True)
    assert done.stdout == "this is settle\n", done.stderr
    assert "make link" in said[2]


@has_make
def test_make_link_puts_the_command_on_the_path_and_keeps_what_is_there(clone, tmp_path):
    home = tmp_path / "a home"
    link = home / ".local/bin/settle"
    for _ in range(2):  # again changes nothing
        done = _make(clone, "link", HOME=str(home))
        assert done.returncode == 0 and "not on your PATH" in done.stdout, done.stderr
        assert subprocess.run([link], capture_output=True, text=True).stdout == "this is settle\n"
    assert (
        "not on your PATH"
        not in _make(clone, "link", HOME=str(home), PATH=f"{link.parent}:{os.environ['PATH']}").stdout
    )
    link.unlink()
    link.symlink_to(tmp_path / "gone/.venv/bin/settle")  # of a clone that was deleted
    assert _make(clone, "link", HOME=str(home)).returncode == 0 and link.readlink() == clone / ".venv/bin/settle"
    link.unlink()
    link.write_text("another program")
    done = _make(clone, "link", HOME=str(home))
    assert done.returncode and "another program" in done.stderr and "LINKS=" in done.stderr
    assert link.read_text() == "another program"


# --- what publishes and runs it elsewhere ---

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize(
    ("tag", "heading", "fault"),
    [
        ("v1.2.0", "## 1.2.0 – 2027-01-31", ""),
        ("v1.2.0", "## 1.2.0 – not released yet", "no date"),
        ("v1.2.0", "## 1.1.0 – 2027-01-31", "no date"),
        ("v1.2", "## 1.2.0 – 2027-01-31", "is not v1.2.0"),
    ],
)
def test_a_release_has_the_version_of_its_tag_and_a_date(tag, heading, fault, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n", encoding="utf-8")
    monkeypatch.setitem(BENCH["unfit_for_release"].__globals__, "ROOT", tmp_path)
    found = BENCH["unfit_for_release"](tag)
    assert fault in found and bool(found) == bool(fault)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_take_actions_by_hash_and_may_only_read(path):
    """The job that publishes may also prove to the package index which repository it is of."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job.get("permissions", {}) == ({"id-token": "write"} if name == "publish" else {})
        for step in job["steps"]:
            assert "uses" in step or "run" in step
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step.get("uses", f"a/b@{'0' * 40}")), step
            assert "secrets." not in str(step)
            for script in re.findall(r"(?:bench|tests|container|recipes)/[\w./-]+", step.get("run", "")):
                assert (ROOT / script).exists(), script


def test_every_system_that_the_page_names_has_a_job():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    tested = {entry["os"] for entry in jobs["test"]["strategy"]["matrix"]["include"]}
    assert tested == set(jobs["wheel"]["strategy"]["matrix"]["os"])
    assert {"ubuntu-24.04", "ubuntu-24.04-arm"} < tested
    assert {name.partition("-")[0] for name in tested} == {"ubuntu", "macos", "windows"}


def test_the_container_runs_without_rights_and_is_reached_from_this_machine_alone():
    lines = (ROOT / "container/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    final = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert "USER 1000" in final and not any(line.startswith("ADD ") for line in lines)
    ignored = (ROOT / "container/Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists() and f"!{name}" in ignored
    services = yaml.safe_load((ROOT / "container/compose.yaml").read_text(encoding="utf-8"))["services"]
    assert services["serve"]["command"][0] == "serve" and "--no-key" not in services["serve"]["command"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    for service in services.values():
        assert service["cap_drop"] == ["ALL"] and service["read_only"] and "user" not in service


def test_the_container_installs_the_very_wheel(wheel, tmp_path):
    """What the Dockerfile copies is all that a build needs."""
    text = (ROOT / "container/Dockerfile").read_text(encoding="utf-8")
    sources = [name for names in re.findall(r"^COPY (?!--)(.*) /src", text, re.M) for name in names.split()]
    for name in BENCH["tracked"]():
        if name.parts[0] in sources:
            (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / "src" / name)
    line = [sys.executable, "-P", "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(line, cwd=tmp_path / "src", check=True, capture_output=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()
