"""Every promise of SECURITY.md has a test: the table says which, and what was missing is tested below it."""

import ast
import http.client
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

import settle
from settle.base.registry import part_names
from settle.cli import main
from tests.base.test_python_command import code_that_ran, hostile  # noqa: F401  a fixture

ROOT = Path(__file__).parents[1]
DEFENDS = "What settle defends"
# words of a sentence of SECURITY.md → the tests of what they say; together the words are the whole part
PROMISES = {
    "GGUF, safetensors, configurations, tokenizers, adapters and documents are checked before they are believed": [
        "tests/formats/test_hostile_files.py::test_gguf",
        "tests/formats/test_hostile_files.py::test_hugging_face",
        "tests/formats/test_hostile_files.py::test_peft",
        "tests/formats/test_hostile_files.py::test_mutants",
        "tests/data/test_pretrained_tokenizer.py::test_what_is_not_read",
        "tests/documents/test_hostile.py::test_files_that_are_not_what_their_names_say",
        "tests/documents/test_hostile.py::test_archives_that_swell",
    ],
    "read without pickle": [
        "tests/test_security.py::test_nothing_of_settle_can_open_a_pickle",
        "tests/model/test_pretrained.py::test_pickled_weights_are_refused_unopened",
        "tests/formats/test_peft.py::test_halves_and_strangers",
    ],
    "and, where a library reads them, in a process with limits": [
        "tests/documents/test_confine.py::test_what_a_confined_process_can_do",
        "tests/documents/test_confine.py::test_the_reader_reads_documents_below_its_roots_and_no_others",
        "tests/server/test_guard.py::test_a_template_that_would_not_end",
    ],
    "no command runs Python code that lies there, such as a `pip.py` in a downloaded folder": [
        "tests/test_security.py::test_no_command_runs_code_of_the_folder",
        "tests/base/test_python_command.py::test_pip_is_not_taken_from_the_folder",
        "tests/base/test_python_command.py::test_no_child_imports_from_the_folder",
    ],
    "Only `python -m settle` lets Python itself look there first": [
        "tests/base/test_python_command.py::test_python_m_settle_leaves_the_folder_at_once",
    ],
    "the command `settle` does not": ["tests/test_security.py::test_no_command_runs_code_of_the_folder"],
    "listens on this machine only unless `--host` says otherwise": [
        "tests/test_security.py::test_a_server_at_its_defaults",
        "tests/audit/test_levels.py::test_offline_serves_no_other_machine",
    ],
    "wants a key": [
        "tests/test_security.py::test_a_server_at_its_defaults",
        "tests/test_security.py::test_a_server_that_others_reach_has_a_key",
        "tests/server/test_guard.py::test_keys",
        "tests/server/test_guard.py::test_without_a_key",
        "tests/server/test_api_contract.py::test_a_route_is_documented_with_its_body_and_error_and_needs_a_key",
    ],
    "refuses web pages and foreign host names": [
        "tests/test_security.py::test_a_server_at_its_defaults",
        "tests/server/test_guard.py::test_foreign_hosts",
        "tests/server/test_guard.py::test_foreign_origins",
        "tests/studio/test_base.py::test_foreign_requests_are_refused_also_with_the_cookie",
    ],
    "and bounds what a client can make it hold": [
        "tests/server/test_guard.py::test_large_bodies",
        "tests/server/test_guard.py::test_a_header_without_end",
        "tests/server/test_guard.py::test_too_many_requests",
        "tests/server/test_guard.py::test_a_child_that_fills_the_memory_is_ended",
    ],
    "text of documents, models and names is shown without control characters": [
        "tests/commands/test_control_characters.py::test_nothing_that_a_terminal_obeys_comes_out",
        "tests/commands/test_control_characters.py::test_events_of_every_kind",
    ],
    "nothing is sent anywhere": [
        "tests/audit/test_commands.py::test_a_command_at_its_defaults",
        "tests/audit/test_telemetry.py::test_nothing_is_sent_with_the_switches",
    ],
    "Keys of servers go to the address that they were given for": [
        "tests/retrieve/embedders/test_openai.py::test_a_redirect_is_not_followed_and_the_key_stays",
        "tests/connect/test_connect.py::test_the_key_stays_on_this_machine",
    ],
}
# none of these is a promise: who is defended, and where more is said
NO_PROMISE = (r"\*\*[^*]+\*\*:", r"see \[limits\]\(docs/limits\.md\)", r"^- ")
OPENS_PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def unpromised(text: str, promises: dict[str, list[str]]) -> str:
    """Return what of the part's sentences no promise covers, without its punctuation."""
    part = text.partition(f"## {DEFENDS}\n")[2].partition("\n## ")[0]
    for pattern in NO_PROMISE:
        part = re.sub(pattern, "", part, flags=re.M)
    part = " ".join(part.split())
    for words in sorted(promises, key=len, reverse=True):
        part = part.replace(words, "")
    return re.sub(r"[\s.,;:]+", " ", part).strip()


def test_every_sentence_of_the_promises_is_in_the_table():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert unpromised(text, PROMISES) == ""
    said = " ".join(text.split())
    assert [words for words in PROMISES if words not in said] == []


def test_a_sentence_without_a_test_is_found():
    text = f"# Security\n\n## {DEFENDS}\n- **The moon**: is green, and no\n  cheese; wants a key.\n\n## Else\n- More.\n"
    assert unpromised(text, PROMISES) == "is green and no cheese"


@pytest.mark.parametrize("test", sorted({test for tests in PROMISES.values() for test in tests}))
def test_the_tests_of_the_table_are_there(test):
    path, name = test.split("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def opened_as_pickle(source: str) -> list[str]:
    """Return the calls and imports of a source that can run the code in a file: pickles, and loaders that take them."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.partition(".")[0] in OPENS_PICKLES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OPENS_PICKLES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            found += [called for _ in range(called == "torch.load" or given.get("allow_pickle") == "True")]
            found += [called for _ in range(called in ("eval", "exec", "yaml.load", "yaml.unsafe_load"))]
    return found


def test_nothing_of_settle_can_open_a_pickle():
    bad = "import torch, pickle\nfrom joblib import load\ntorch.load('x')\nnp.load('x', allow_pickle=True)\nexec('1')\n"
    assert sorted(opened_as_pickle(bad)) == ["exec", "joblib", "np.load", "pickle", "torch.load"]
    words = re.compile("|".join([*OPENS_PICKLES, "torch.load", "allow_pickle", r"\b(?:eval|exec)\(", r"yaml\.\w*load"]))
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "settle").rglob("*.py")}
    assert [path for path, text in texts.items() if words.search(text) and opened_as_pickle(text)] == []


def test_no_command_runs_code_of_the_folder(home, hostile):  # noqa: F811
    """Each command as it begins its work, help with the parts of every family; and the script that `settle` is."""
    script = Path(sys.executable).parent / "settle"
    lines = [[name, "no such name"] for name in part_names("commands") if name not in ("studio", "index")]
    lines += [[name, "--help-all"] for name in ("train", "tune", "index", "shrink", "studio")]
    code = f"from settle.cli import main; print([main(line) for line in {lines}])"
    environment = os.environ | {"PIP_NO_INDEX": "1"}
    environment.pop("PYTHONPATH", None)
    for argv in ([sys.executable, "-P", "-c", code], [str(script), "runs"]):
        done = subprocess.run(argv, cwd=hostile, capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and not code_that_ran(hostile), (done.stderr, code_that_ran(hostile))


def test_a_server_at_its_defaults(home):
    """It is reached from this machine alone, with its key, and neither by web pages nor under other names."""
    with settle.serve(port=0) as server:
        place = urlsplit(server.address)
        family = [server._process, *psutil.Process(server._process.pid).children(recursive=True)]
        bound = [c for p in family for c in psutil.Process(p.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert bound and {c.laddr.ip for c in bound} <= {"127.0.0.1", "::1"}

        def status(**headers):
            connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
            connection.request("GET", "/v1/models", headers={name.title(): value for name, value in headers.items()})
            code = connection.getresponse().status
            connection.close()
            return code

        key = f"Bearer {server.key}"
        assert status(authorization=key) == 200
        assert status() == status(authorization="Bearer wrong") == 401
        assert status(authorization=key, host="evil.example") in (400, 403)
        assert status(authorization=key, origin="https://evil.example") == 403


def test_a_server_that_others_reach_has_a_key(home, capsys):
    assert main(["serve", "--host", "0.0.0.0", "--no-key"]) == 2  # noqa: S104
    assert "only allowed on loopback" in capsys.readouterr().err
