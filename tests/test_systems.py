"""Windows and macOS, as far as they can be simulated here: docs/install.md says what was proven where.

`pretend_system` takes what they lack away from settle's own code, in its children too: /proc; on Windows also fcntl,
resource, os.killpg, fork, most signals. The real commands then run in that Python, with a console's code page.
"""

import ast
import errno
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import pytest

from settle.base import files, python_command
from settle.connect.clients import Client, Connection
from settle.library.store import model_name

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "settle"
TUNE = "--steps 4 --threads 1 --dtype float32 --batch-rows 4 --compare-rows 4"
IN_TURN = """
import shlex, sys
from settle.cli import main
for line in sys.argv[1:]:
    if (code := main(shlex.split(line))) not in (0, 3):
        raise SystemExit(f"{line!r} ended with {code}")
"""
JOURNEY = runpy.run_path(str(ROOT / "bench/journey.py"))
SYSTEM = runpy.run_path(str(ROOT / "tests/pretend_system/sitecustomize.py"))
# The watcher of system calls, a script that watcher.py starts where Linux has them.
LINUX_ONLY = {"settle.audit.watcher_child"}


@pytest.fixture(params=["win32", "darwin"])
def elsewhere(request, tmp_path):
    """A folder with texts and rows, and what runs Python in it as if on that system."""
    JOURNEY["make_inputs"](tmp_path)
    path = os.pathsep.join([str(ROOT / "tests/pretend_system"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "PYTHONPATH": path,
        "PRETEND_FOR": f"{PACKAGE}{os.sep}",
        "PRETEND": request.param,
        "PYTHONIOENCODING": "cp1252" if request.param == "win32" else "utf-8",
        "SETTLE_HOME": str(tmp_path / "home"),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8",
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


def test_every_module_loads_elsewhere(elsewhere):
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__main__.py"
    ]
    code = "import importlib, json, sys\nfailed = {}\n" + (
        "for name in json.loads(sys.argv[1]):\n"
        "    try:\n        importlib.import_module(name)\n"
        "    except Exception as e:\n        failed[name] = repr(e)\n"
        "print(json.dumps(failed))"
    )
    done = elsewhere("-c", code, json.dumps(names))
    failed = set(json.loads(done.stdout))
    assert failed == (LINUX_ONLY if "fcntl" in done.stdout else set()), done.stdout + done.stderr


def test_settle_trains_tunes_chats_and_answers_elsewhere(elsewhere):
    """Children are started, limited and ended, files replaced; what is piped is UTF-8, whatever the code page is."""
    commands = (
        f"train notes --name notes {JOURNEY['TINY']}",
        "chat notes 'The first thing' --max-tokens 4",
        f"tune notes examples.jsonl --name mine {TUNE}",
        "runs show mine",
        "index docs --name docs",
        "ask docs 'Where does the printer stand?' --model none",
    )
    # the first as a person starts it; the others in one process, whose start would be the same
    for given in (["-m", "settle", *shlex.split(commands[0])], ["-c", IN_TURN, *commands[1:]]):
        done = elsewhere(*given)
        assert done.returncode in (0, 3) and "Traceback" not in done.stderr, (given, done.stderr[-2000:])
        assert "?" * 3 not in done.stdout + done.stderr  # a code page would not have the lines of a box
    assert "│" in elsewhere("-m", "settle", "train", "--help").stdout


def test_what_is_missing_there_is_missing():
    """The simulation itself: settle's code would fail, a library's would not."""
    for name, missing in SYSTEM["MISSING"].items():
        module = __import__(name)
        proxy = SYSTEM["Without"](module, missing)
        assert not any(hasattr(proxy, lacked) for lacked in missing)
        assert [lacked for lacked in missing if hasattr(module, lacked)] or os.name == "nt"


def test_settle_forks_nowhere_and_starts_no_process_that_needs_it():
    """macOS and Windows start Python anew (spawn): there is no multiprocessing, and one fork, in Linux's watcher."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            is_fork = isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty")
            if is_fork or any(name.partition(".")[0] == "multiprocessing" for name in names):
                found.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
            assert not (isinstance(node, ast.keyword) and node.arg == "preexec_fn"), path
    assert found == LINUX_ONLY


def test_text_files_are_opened_as_utf8():
    """The code page of Windows would be taken otherwise. What the kernel writes is ASCII."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _is_text_without_encoding(node):
                found.append(f"{path.relative_to(PACKAGE).as_posix()}:{ast.unparse(node)}")
    kernel = re.compile(
        "machine/|audit/(watcher|system_calls)|base/out_of_memory|base/run/launcher|documents/reader_child"
        "|evaluate/footprint|doctor/resources"
    )
    assert [place for place in found if not kernel.match(place)] == []


def _is_text_without_encoding(call: ast.Call) -> bool:
    options = {keyword.arg for keyword in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("run", "Popen", "check_output"):
        return bool({"text", "universal_newlines"} & options) and "encoding" not in options
    if name not in ("read_text", "write_text"):
        return False
    return "encoding" not in options and len(call.args) < (1 if name == "read_text" else 2) and None not in options


def test_no_two_files_differ_by_case_alone_and_all_names_are_windows_own():
    """Else a clone loses a file on a disk that ignores case, or cannot be made at all."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8").stdout
    names = [name for name in listed.split("\0") if name]
    assert len({name.casefold() for name in names}) == len(names) > 1000
    reserved = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
    for name in names:
        assert len(name) < 180 and not re.search(r'[<>:"|?*\\]', name), name
        assert not any(reserved.match(part) or part[-1] in ". " for part in name.split("/")), name


@pytest.mark.parametrize("wanted", ["C:\\models\\SmolLM2 135M", "C:\\models\\SmolLM2 135M\\", "/models/SmolLM2 135M/"])
def test_a_model_is_named_after_the_last_part_of_a_path(wanted):
    assert model_name(wanted) == "smollm2-135m"


class _Nt:
    """`os` with the name that it has on Windows."""

    name = "nt"

    def __getattr__(self, name):
        return getattr(os, name)


def test_commands_that_are_shown_can_be_pasted_there(monkeypatch):
    rows = PureWindowsPath("C:/Users/Ann Lee/rows.jsonl")
    assert python_command.shell_line("settle", "tune", "it's") == "settle tune 'it'\"'\"'s'"
    monkeypatch.setattr(python_command, "os", _Nt())
    assert python_command.shell_line("settle", "tune", str(rows)) == r'settle tune "C:\Users\Ann Lee\rows.jsonl"'


@pytest.mark.parametrize("name", ["claude_code", "codex", "curl", "open_webui", "zed"])
def test_clients_are_set_up_by_lines_of_the_shell_that_is_there(name, monkeypatch):
    """In PowerShell a curly quotation mark ends a text, too; each is doubled within one."""
    client, connection = Client.make(name, {}), Connection("http://127.0.0.1:7388", "k'e‘y", "tiny", 4096)
    steps = client.steps(connection)
    assert "k'e‘y" in " ".join(shlex.split(steps)) and "$env:" not in steps
    monkeypatch.setattr(python_command, "os", _Nt())
    *variables, command = client.steps(connection).splitlines()
    assert any("k''e‘‘y'" in line for line in variables)
    literal = r"'(?:[^'‘’‚‛]|['‘’‚‛]{2})*'"
    if name == "curl":
        assert re.fullmatch(rf"Invoke-RestMethod -Method Post -Uri {literal} `", variables[0])
        assert re.fullmatch(rf"  -Headers @\{{Authorization = {literal}\}} `", variables[1])
        body = re.fullmatch(rf"  -Body ({literal}) \| ConvertTo-Json -Depth 9", command)[1]
        assert json.loads(body[1:-1].replace("''", "'"))["model"] == "tiny"
    else:
        assert all(re.fullmatch(rf"\$env:\w+ = {literal}", line) for line in variables)
        assert re.fullmatch(rf"[a-z-]+( {literal})*", command)


@pytest.mark.parametrize(
    ("mark", "origin", "active", "command"),
    [
        ("", None, True, "pip install 'settle-lm[serve]'"),
        ("", {"url": "file:///a%20b/x.whl", "archive_info": {}}, True, "pip install '/a b/x.whl[serve]'"),
        ("", {"url": "file:///src", "dir_info": {"editable": True}}, False, "{bin}/pip install -e '/src[serve]'"),
        ("uv-receipt.toml", None, False, "uv tool install --force 'settle-lm[serve]'"),
        ("pipx_metadata.json", {"url": "file:///x.whl"}, False, "pipx install --force '/x.whl[serve]'"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
def test_an_extra_is_added_to_the_installation_that_lacks_it(mark, origin, active, command, tmp_path, monkeypatch):
    """Another Python's pip would put it where it is not found."""
    site = tmp_path / "site"
    about = site / "settle_lm-9.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: settle-lm\nVersion: 9\n")
    if origin:
        (about / "direct_url.json").write_text(json.dumps(origin))
    if mark:
        (tmp_path / mark).touch()
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for place in (bin_, tmp_path / "other"):
        place.mkdir(exist_ok=True)
        (place / "pip").write_text("#!/bin/sh\n")
        (place / "pip").chmod(0o755)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(bin_ if active else tmp_path / "other"))
    assert python_command.extra_command("serve") == command.format(bin=bin_)


def test_a_file_is_replaced_once_its_reader_is_done(tmp_path, monkeypatch):
    """Windows refuses while anybody has it open."""
    path, tries, whole = tmp_path / "result.json", [], Path.replace

    def replace(self, target):
        tries.append(target)
        if len(tries) < 3 or path.exists():
            raise PermissionError(errno.EACCES, "used by another process", str(target))
        whole(self, target)

    monkeypatch.setattr(files, "os", _Nt())
    monkeypatch.setattr(files, "REPLACE_SECONDS", 0)
    monkeypatch.setattr(Path, "replace", replace)
    files.write_atomic(path, "whole")
    assert path.read_text() == "whole" and len(tries) == 3 and list(tmp_path.iterdir()) == [path]
    with pytest.raises(PermissionError):  # the program never closes it
        files.write_atomic(path, "other")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
