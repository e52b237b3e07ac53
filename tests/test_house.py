"""The rules of the house, checked on the tree itself: layers, sizes, names, and what may be loaded by what."""

import ast
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "settle"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Rooms that `settle --help`, `settle runs` or a reader of files need: they load no torch until asked to work.
LIGHT = ("base", "machine", "audit", "documents", "data", "formats", "commands", "show", "cli.py", "__init__.py")
MOST_ANY, MOST_HIDDEN_IMPORTS = 5.0, 44  # per 1,000 lines; in the whole package
MOST_COMMAND_LINES = 80
# How large the house is, and what is still to be merged, typed or renamed: these figures only fall.
MOST_OF = {
    "files": 716,
    "files under 40 lines": 117,
    "non-blank lines": 92843,
    "mappings from str to object": 132,
    "isinstance": 598,
    "asserts": 52,
    "modules under 80 lines with one importer": 6,
    "names of classes in three rooms": 0,
}
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
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


def test_the_house_keeps_its_limits():
    """Sizes, cycles, hidden imports, untyped seams and names: bench/house.py prints where things stand."""
    figures = runpy.run_path(str(ROOT / "bench/house.py"))["measure"](PACKAGE)
    counts = {name: len(value) if isinstance(value, list) else value for name, value in figures.items()}
    for name in {*MOST_OF, *(name for name, value in figures.items() if isinstance(value, list))}:
        assert counts[name] <= MOST_OF.get(name, 0), (name, figures[name])
    assert figures["Any per 1,000 lines"] <= MOST_ANY
    assert figures["imports of our own inside functions"] <= MOST_HIDDEN_IMPORTS
    assert figures["identifiers told or said"] == 0


def test_one_module_names_the_python_of_every_child():
    """`python -m` imports what lies in the current folder; what base/python_command.py starts does not."""
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _names_python(node)
    }
    # torchrun's option, in a script that exports PYTHONSAFEPATH; and an option of Cline's, for a model
    options = {"jobs/ranks/launch_script.py", "connect/clients/cline.py"}
    assert found == {"base/python_command.py", *options}


def _names_python(node: ast.AST) -> bool:
    """Whether a piece of code names the interpreter, or its option for a module, as one word of a command line."""
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and (node.value.id, node.attr) == ("sys", "executable")
    words = node.elts if isinstance(node, ast.List | ast.Tuple) else node.args if isinstance(node, ast.Call) else []
    strings = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    first = strings[0] if strings and isinstance(node, ast.List) else ""
    return "-m" in strings or bool(re.fullmatch(r"(.*/)?python[\d.]*(\.exe)?", first))


def test_the_pages_for_developers_know_the_house():
    """The drawing has every room, and the limit of hidden imports is one number."""
    drawing = (ROOT / "docs/develop.md").read_text(encoding="utf-8").partition("## The house")[2].partition("###")[0]
    drawn = set(re.findall(r"^├── (\w+)/", drawing, re.M))
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert drawn == rooms
    assert f"| {MOST_HIDDEN_IMPORTS} of our own" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_commands_are_fields_and_one_call():
    for path in (PACKAGE / "commands").glob("*/*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_COMMAND_LINES, path


def test_every_name_says_something():
    for path in SOURCES:
        assert path.stem not in VAGUE and path.parent.name not in VAGUE, path


def test_every_test_asserts_something():
    """By its syntax: an assert, an error or warning that is expected, or a helper of the tests that has one."""
    found = [
        node
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    used = [(function, _names_in(function)) for function in found]
    asserting = {"assert", "raises", "warns", "fail"}
    while more := {f.name for f, names in used if f.name[:5] != "test_" and names & asserting} - asserting:
        asserting |= more
    tests = [(function, names) for function, names in used if function.name.startswith("test_")]
    assert len(tests) > 2000 and not [function.name for function, names in tests if not names & asserting]


def _names_in(function: ast.AST) -> set[str]:
    """What a function calls, names or takes; "assert" where it asserts."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Assert):
            names.add("assert")
    return names


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


def test_no_file_that_a_command_wrote_is_in_the_tree():
    """At the top there is nothing but texts: commands that are tried there leave models, and `git add` takes them."""
    assert not [
        path.name for path in _tracked() if path.parent == ROOT and path.suffix not in ("", ".md", ".toml", ".txt")
    ]


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
            whole = re.compile(rf"(?<!\w){re.escape(place)}")  # settle/retrieve/check/ is a folder of ours
            assert not whole.search(text), f"{path.relative_to(ROOT)} names {place}"


@cache
def _names_of(module: str) -> set[str] | None:
    """What can be imported from a module of this tree: names at its top level and its submodules. None: no such one."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not source.is_file():
        return None
    below = {child.stem for child in path.iterdir()} if path.is_dir() else set()
    tree = ast.parse(source.read_text(encoding="utf-8"))
    statements = [s for top in tree.body for s in (ast.walk(top) if isinstance(top, ast.If | ast.Try) else (top,))]
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            below.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            below.update(alias.asname or alias.name for alias in statement.names)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            below.update(name.id for name in ast.walk(statement) if isinstance(name, ast.Name))
    return below


def test_benches_and_pages_import_what_is_there():
    """A bench runs rarely, and the code on a page never: a name that was renamed is noticed months later."""
    missing = []
    sources = [(path, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "bench").rglob("*.py"))]
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        sources += [(path, code) for code in PYTHON_BLOCK.findall(path.read_text(encoding="utf-8"))]
    for path, code in sources:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("settle", "tests"):
                there = _names_of(node.module)
                missing += [
                    f"{path.name}: {node.module}.{alias.name}"
                    for alias in node.names
                    if there is None or not ({alias.name, "__getattr__"} & there)
                ]
    assert not missing


def test_no_test_sets_the_clock_of_the_whole_process():
    """A server that another test keeps running in it would wait for a time that never comes."""
    whole = re.compile(r"""setattr\((?:time|[\w.]+\.time|["'](?:[\w.]+\.)?time\.\w+["']),""")
    assert whole.search('setattr(power.time, "monotonic", f)') and whole.search('setattr("time.sleep", f)')
    found = [path.name for path in (ROOT / "tests").rglob("*.py") for line in _lines(path) if whole.search(line)]
    assert found == ["test_house.py"]


def _lines(path):
    return path.read_text(encoding="utf-8").splitlines()
