"""The rules of the house, checked on the tree itself: layers, sizes, names, and what may be loaded by what."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "settle"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Rooms that `settle --help`, `settle runs` or a reader of files need: they load no torch until asked to work.
LIGHT = ("base", "machine", "data", "formats", "commands", "show", "cli.py", "__init__.py")
MOST_LINES, MOST_FUNCTION_LINES, MOST_LOOP_LINES = 400, 60, 120
VAGUE = {"utils", "util", "helpers", "helper", "common", "core", "misc"}


def test_imports_point_downwards():
    run = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c(args=['--no-cache'])"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _light(path: Path) -> bool:
    return path.relative_to(PACKAGE).parts[0] in LIGHT


def test_light_rooms_load_no_torch():
    """Loaded all together, so what they load in turn counts too."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES if _light(path)]
    names = [name.removesuffix(".__init__") for name in names]
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def _lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short_enough_to_read(path):
    text = path.read_text(encoding="utf-8")
    assert _lines(text) <= MOST_LINES
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            most = MOST_LOOP_LINES if path.name == "loop.py" else MOST_FUNCTION_LINES
            assert _lines("\n".join(lines[node.lineno - 1 : node.end_lineno])) <= most, f"{path.name}: {node.name}"


def test_every_name_says_something():
    for path in SOURCES:
        assert path.stem not in VAGUE and path.parent.name not in VAGUE, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is_and_leaves_nothing_for_later(path):
    text = path.read_text(encoding="utf-8")
    if path.name != "__main__.py" and text.strip():
        assert ast.get_docstring(ast.parse(text)), "a file begins with what it is"
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else []
    return [path for path in paths or ROOT.rglob("*.*") if path.is_file() and path.stat().st_size < 1 << 20]


def test_the_tree_names_no_place_of_the_machine_it_was_made_on():
    """No absolute path to this checkout or this person's home, and no host of a package index set up here."""
    top = f"/{ROOT.parts[1]}/"
    places = {f"{ROOT}", f"{Path.home()}/"}
    if top not in {"/home/", "/tmp/", "/usr/", "/opt/", "/var/", "/srv/", "/mnt/", "/Users/", "/private/"}:
        places.add(top)
    config = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    hosts = set(re.findall(r"https?://(?:[^/@'\s]*@)?([^/:'\s]+)", config)) - {"localhost", "127.0.0.1"}
    for path in _tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        for place in places | hosts:
            assert place not in text, f"{path.relative_to(ROOT)} names {place}"
