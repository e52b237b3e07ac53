"""Clients set up in a home of their own, and tried against a real server."""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from settle.base.registry import part, part_names
from settle.base.server_state import allow_origins, allowed_origins, forget_server, note_server, running_server
from settle.cli import main
from settle.connect import client_files
from settle.connect.clients import Connection, cli_name
from settle.connect.config_files import CannotMerge, merge_json, merge_yaml
from settle.machine.web_request import is_loopback
from tests.server.conftest import KEY

CLIENTS = [cli_name(name) for name in part_names("connect/clients")]
WITH_FILE = ["cline", "continue", "librechat", "vscode"]
CONNECTION = Connection("http://127.0.0.1:7388", KEY, "tiny", 4096, ("completion", "tools"))

CONTINUE = """\
# my own settings
name: Mine
version: 1.0.0
schema: v1
models:
  - name: big   # the large one
    provider: openai
    apiKey: "${{ secrets.X }}"
    roles: [chat]

  # what comes now are rules
rules:
  - Be brief   # always
"""
LIBRECHAT = """\
version: 1.2.1
cache: true

endpoints:
  # agents:
  #   disableBuilder: true
  custom:
    # Groq
    - name: 'groq'
      apiKey: '${GROQ_API_KEY}'
      models:
        default:
          - 'llama3-70b'
        fetch: false
      # iconURL: none

    # Mistral
    - name: 'Mistral'
      apiKey: '${MISTRAL_API_KEY}'
      dropParams: ['stop', 'user']

# the end
"""
CLINE = {
    "version": 1,
    "lastUsedProvider": "anthropic",
    "modes": {"plan": {"x": 1}},
    "providers": {"anthropic": {"settings": {"apiKey": "sk-ant", "ü": 1.5}, "tokenSource": "manual"}},
}
VSCODE = [{"vendor": "ollama", "name": "Ollama", "url": "http://old:11434"}]
THERE = {
    "continue": CONTINUE,
    "librechat": LIBRECHAT,
    "cline": json.dumps(CLINE, indent="\t", ensure_ascii=False),
    "vscode": json.dumps(VSCODE, indent=4) + "\n",
}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A person's home, without any client's settings; what was let in is forgotten afterwards."""
    folder = tmp_path / "person"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("CLINE_", "CONTINUE_", "VSCODE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("APPDATA", str(folder))
    monkeypatch.setenv("CONFIG_PATH", str(folder / "chat" / "librechat.yaml"))
    monkeypatch.chdir(folder)
    yield folder
    for name in CLIENTS:
        if client_files.is_connected(name):
            client_files.undo(name, force=True)
    allow_origins(frozenset())


@pytest.fixture
def running(live):
    """The server, as one that `settle serve` started."""
    note_server(live.address, needs_key=True)
    yield live
    forget_server(live.address)


def file_of(name):
    (file,) = part("connect/clients", cli_name(name) if "-" in name else name)().files(CONNECTION)
    return file.path


def connect(capsys, *args):
    """Exit code, result, and what was said."""
    code = main(["connect", *args, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.mark.parametrize("name", CLIENTS)
def test_shown_and_tried(running, desk, capsys, name):
    allow_origins(frozenset())
    assert main(["connect", name, "--key", KEY]) == 0
    out, err = capsys.readouterr()
    assert str(running.port) in out and KEY in out and "notes" not in out
    assert f"{name} can use tiny" in err
    assert ("--write" in err) == (name in [*WITH_FILE, "page-assist", "zed"])
    assert not list(desk.rglob("*.json")) and not list(desk.rglob("*.yaml"))


@pytest.mark.parametrize("name", WITH_FILE)
def test_a_new_file_and_its_end(running, desk, capsys, name):
    code, told, err = connect(capsys, name, "--write", "--key", KEY)
    path = file_of(name)
    assert code == 0 and told["written"] == [str(path)] and f"written: {path}" in err
    assert path.is_relative_to(desk) and path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    value = yaml.safe_load(text)
    assert KEY in text and running.address in text and "tiny" in text
    assert value == (yaml.safe_load if path.suffix == ".yaml" else json.loads)(text)
    assert all(check["passed"] for check in told["checks"]) and told["checks"]
    assert connect(capsys, name, "--undo")[0] == 0
    assert list(desk.iterdir()) == []
    code, _, err = connect(capsys, name, "--undo")
    assert code == 2 and "nothing" in err


@pytest.mark.parametrize("name", WITH_FILE)
def test_what_was_there_stays_and_comes_back(running, desk, capsys, name):
    path = file_of(name)
    path.parent.mkdir(parents=True)
    path.write_bytes(THERE[name].encode())
    path.chmod(0o644)
    assert connect(capsys, name, "--write", "--print", "--key", KEY)[0] == 2
    assert connect(capsys, name, "--write", "--key", KEY)[0] == 0
    once = path.read_text()
    if path.suffix == ".yaml":
        assert [line for line in THERE[name].splitlines() if line not in once.splitlines()] == []
        before, after = yaml.safe_load(THERE[name]), yaml.safe_load(once)
    else:
        before, after = json.loads(THERE[name]), json.loads(once)
    assert _without_ours(after) == _without_ours(before) and after != before
    # once more, for another model: still one entry, and the first state is what comes back
    assert connect(capsys, name, "--write", "--model", "tiny:notes", "--key", KEY)[0] == 0
    assert path.read_text().count(KEY) == 1 and "tiny:notes" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert connect(capsys, name, "--undo")[0] == 0
    assert path.read_bytes() == THERE[name].encode() and path.stat().st_mode & 0o777 == 0o644


def _without_ours(value):
    """The value without what we put into it."""
    if isinstance(value, list):
        return [item for item in value if item.get("name") != "settle"]
    if "providers" in value:
        others = {name: p for name, p in value["providers"].items() if name != "openai-compatible"}
        return value | {"lastUsedProvider": "", "providers": others}
    if "endpoints" in value:
        return value | {"endpoints": value["endpoints"] | {"custom": _without_ours(value["endpoints"]["custom"])}}
    return value | {"models": _without_ours(value["models"])}


@pytest.mark.parametrize("name", WITH_FILE)
def test_an_empty_file_is_written_and_comes_back(running, desk, capsys, name):
    path = file_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    code, _, err = connect(capsys, name, "--write", "--key", KEY)
    assert code == 0 and KEY in path.read_text(), err
    assert connect(capsys, name, "--undo")[0] == 0
    assert path.read_bytes() == b""


def test_the_id_of_a_server_that_ended_is_used_by_another_program(desk, monkeypatch):
    """The key must not go to whatever has the port now."""
    note_server("http://127.0.0.1:7388", True)
    assert running_server().address == "http://127.0.0.1:7388"
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time() + 60)
    assert running_server() is None


def test_undo_does_not_lose_a_change_by_hand(running, desk, capsys):
    path = file_of("continue")
    assert connect(capsys, "continue", "--write", "--key", KEY)[0] == 0
    path.write_text(path.read_text() + "# mine\n")
    code, _, err = connect(capsys, "continue", "--undo")
    assert code == 1 and "changed since" in err and "--force" in err and "# mine" in path.read_text()
    assert connect(capsys, "continue", "--undo", "--force")[0] == 0 and not path.exists()


def test_a_link_stays_a_link(running, desk, capsys):
    real, path = desk / "dotfiles.yaml", file_of("continue")
    real.write_text(CONTINUE)
    path.parent.mkdir()
    path.symlink_to(real)
    assert connect(capsys, "continue", "--write", "--key", KEY)[0] == 0
    assert path.is_symlink() and KEY in real.read_text()
    assert connect(capsys, "continue", "--undo")[0] == 0 and real.read_text() == CONTINUE


def test_another_place_is_undone_first(running, desk, capsys, monkeypatch):
    assert connect(capsys, "continue", "--write", "--key", KEY)[0] == 0
    monkeypatch.setenv("CONTINUE_GLOBAL_DIR", str(desk / "other"))
    code, _, err = connect(capsys, "continue", "--write", "--key", KEY)
    assert code == 1 and "--undo" in err and not (desk / "other").exists()


def test_a_file_that_cannot_be_extended_stays(running, desk, capsys):
    for name, text in (("continue", "models: *x\n"), ("vscode", "// mine\n[]\n"), ("cline", "[]")):
        path = file_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        code, _, err = connect(capsys, name, "--write", "--key", KEY)
        assert code == 1 and path.read_text() == text and str(running.port) in err, name
        assert not client_files.is_connected(name)


def test_the_only_place_of_cline_is_not_taken_unasked(running, desk, capsys):
    path = file_of("cline")
    path.parent.mkdir(parents=True)
    settings = {"apiKey": "sk-theirs", "baseUrl": "https://example.org/v1", "model": "x", "headers": {"a": "b"}}
    path.write_text(json.dumps({"providers": {"openai-compatible": {"settings": settings}}}))
    code, _, err = connect(capsys, "cline", "--write", "--key", KEY)
    assert code == 1 and "example.org" in err and "sk-theirs" in path.read_text()
    assert connect(capsys, "cline", "--write", "--force", "--key", KEY)[0] == 0
    now = json.loads(path.read_text())["providers"]["openai-compatible"]["settings"]
    assert now["apiKey"] == KEY and now["headers"] == {"a": "b"}


def test_an_extension_is_let_in_and_out_again(running, desk, capsys):
    other = "moz-extension://0f0e0d0c-1111-4222-8333-444455556666"
    code, told, err = connect(capsys, "page-assist", "--origin", other, "--key", KEY)
    assert code == 1 and "--write" in err and not any(c["passed"] for c in told["checks"])
    connect(capsys, "page-assist", "--origin", other, "--write", "--key", KEY)
    assert allowed_origins() == {other}
    connect(capsys, "page-assist", "--write", "--key", KEY)
    assert allowed_origins() == {other, "chrome-extension://jfgfiigpkhlkbnfnbobbkinehhfdhndo"}
    assert connect(capsys, "page-assist", "--undo")[0] == 0 and allowed_origins() == frozenset()


@pytest.mark.parametrize("name", CLIENTS)
def test_no_server_and_wrong_keys(live, desk, capsys, name):
    code, told, err = connect(capsys, name)
    assert code == 1 and told is None and "`settle serve`" in err
    code, _, err = connect(capsys, name, "--address", "http://127.0.0.1:9")
    assert code == 1 and "no answer from http://127.0.0.1:9" in err
    code, _, err = connect(capsys, name, "--write", "--address", live.address, "--key", "sk-settle-wrong-wrong")
    assert code == 1 and "wrong API key" in err and "--key" in err and list(desk.iterdir()) == []


def test_what_fails_is_told(running, desk, capsys):
    code, told, err = connect(capsys, "curl", "--model", "plain", "--key", KEY)
    assert code == 1 and "no chat template" in err
    assert [check["passed"] for check in told["checks"]] == [False] and "400" in told["checks"][0]["why"]


def test_models(running, desk, capsys):
    code, _, err = connect(capsys, "curl", "--model", "huge", "--key", KEY)
    assert code == 2 and "it has:" in err and "tiny" in err
    assert connect(capsys, "curl", "--model", "tiny:notes", "--print", "--key", KEY)[1]["checks"] == []
    code, told, err = connect(capsys, "cline", "--key", KEY)
    assert told["model"] == "tiny" and "512 tokens of context" in err


def test_list(running, desk, capsys):
    assert main(["connect"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CLIENTS) and running.address in out
    code, told, _ = connect(capsys)
    assert code == 0 and told["server"]["address"] == running.address
    assert [c["name"] for c in told["clients"]] == CLIENTS
    assert connect(capsys, "emacs")[0] == 2


def test_the_programs_run(running, desk, capsys):
    def steps(name):
        return connect(capsys, name, "--print", "--key", KEY)[1]["steps"]

    done = subprocess.run([sys.executable, "-c", steps("python")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    if shutil.which("curl"):
        done = subprocess.run(["sh", "-c", steps("curl")], capture_output=True, text=True, timeout=120)
        assert json.loads(done.stdout)["choices"][0]["message"]["content"]
    if shutil.which("node"):
        (desk / "program.mjs").write_text(steps("node"))
        done = subprocess.run(["node", "--check", "program.mjs"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


LOSSY = "models:\n- name: settle # a comment that would be lost\n  model: old\n"
ENTRY = {"name": "settle", "model": 'it\'s: "x"', "roles": ["chat"]}


@pytest.mark.parametrize(
    "old",
    [
        "a: 1\nmodels: []\nb: 2\n",
        "a: 1\nmodels:\n# none yet\nb: 2",
        "models:\n- name: x\n  text: |\n    one\n    two\n- name: settle\n  model: old\n# after\nb: 2\n",
        "models: [{name: x}, {name: settle, model: old}]\n",
        "models: [{name: x}] # all\n",
        "a: 1\r\nmodels:\r\n  - name: x\r\n",
        "a: {b: [1, 2]}\n# the end",
        "# nothing but this\n",
        "models:\n  - name: x\n    deep:\n      - [1,\n         2]\n  # and then\n",
        "",
    ],
)
def test_yaml(old):
    text = merge_yaml(old, {"version": 1}, ["models"], ENTRY)
    was = yaml.safe_load(old) or {"version": 1}
    now = yaml.safe_load(text)
    assert [m for m in now.pop("models") if m["name"] != "x"] == [ENTRY]
    was.pop("models", None)
    assert now == was and [c for c in old.splitlines() if c.startswith("#") and c not in text] == []
    assert merge_yaml(text, {}, ["models"], ENTRY) == text


@pytest.mark.parametrize(
    "old",
    [
        "models: 5\n",
        "- a\n",
        "{models: []}\n",
        "a: &m []\nmodels: *m\n",
        "a: !x 1\n",
        "a: [",
        "a: 1\n---\nb: 2\n",
        LOSSY,
    ],
)
def test_yaml_that_stays_as_it_is(old):
    with pytest.raises(CannotMerge) as e:
        merge_yaml(old, {}, ["models"], ENTRY)
    assert yaml.safe_load(e.value.fix) == {"models": [ENTRY]}


def test_yaml_keeps_what_a_person_added_to_our_entry():
    old = "models:\n- name: settle\n  model: old\n  mine: 1\n"
    assert yaml.safe_load(merge_yaml(old, {}, ["models"], ENTRY)) == {"models": [ENTRY | {"mine": 1}]}


def test_the_key_stays_on_this_machine():
    here = ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9:1"]
    elsewhere = ["http://example.org:1", "http://127.0.0.1.example.org:1", "http://10.0.0.1:1", "http://0.0.0.0:1"]
    assert all(map(is_loopback, here)) and not any(map(is_loopback, elsewhere))


@pytest.mark.parametrize("old", ['{"a": 1, "a": 2}', "[]", '{"a": 1 /* */}', "nonsense"])
def test_json_that_stays_as_it_is(old):
    with pytest.raises(CannotMerge):
        merge_json(old, {}, lambda value: value | {"b": 1}, "part")
