import importlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

import settle
from settle import api
from settle.base.events import AnswerText, Listing, ResultReady
from settle.base.files import write_json
from settle.base.run import Run
from settle.base.run.result import Result
from settle.formats.gguf import export_gguf
from tests.trained import trained


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    tiny = trained()
    return export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path_factory.mktemp("api") / "Tiny.gguf", "f16")


def test_the_verbs_stay_functions_when_rooms_of_their_name_are_loaded():
    code = (
        "import importlib, settle\n"
        "room = importlib.import_module('settle.train')\n"
        "from settle.train import __path__ as path\n"
        "assert settle.train is not room and settle.train.__name__ == 'train' and path is room.__path__"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_further_name_hides_a_package():
    """Three older names do. `settle.evaluate` is a package, so the comparison is `settle.eval`."""
    packages = {path.parent.name for path in Path(settle.__file__).parent.glob("*/__init__.py")}
    assert packages & {*settle.__all__} == {"doctor", "shrink", "train"}
    assert settle.eval.__name__ == "eval" and importlib.import_module("settle.evaluate").__path__


def test_everything_that_is_promised_is_there():
    assert all(hasattr(settle, name) for name in settle.__all__) and settle.__version__.count(".") == 2


def test_what_python_shows_of_settle(home):
    assert dir(settle) == sorted([*settle.__all__, "__version__"])
    with pytest.raises(settle.SettleError) as error:
        settle.train("x", tiem="1m")
    assert error.value.what == "there is no setting 'tiem'" and "time" in error.value.fix
    run = Run.create("train", "notes")
    write_json(run.path / "result.json", {"verdict": "settled", "best": {"loss": 1.9, "bits_per_byte": 1.4}})
    assert repr(settle.open_run("notes")) == "<FinishedRun notes: settled, 1.4000 bits per byte>"


def test_commands_return_what_they_report(home, tiny_file, capsys):
    pulled = settle.pull(str(tiny_file))
    assert (pulled.exit_code, pulled["name"]) == (0, "tiny") and pulled["sha256"]
    fits = settle.fit("tiny", context="64")
    assert fits.result["rows"][0]["fits"] and fits["context"] == 64
    assert "tokens/s" in repr(fits) and "<table>" in fits._repr_html_() and "tiny" in fits._repr_html_()
    checked = settle.doctor("tiny", only=["template"])
    assert checked.exit_code in (0, 3) and checked.result
    for wrong in (lambda: settle.fit(contxt="2k"), lambda: settle.pick("x", promts="y"), lambda: settle.decide("tiny")):
        with pytest.raises(settle.SettleError) as error:
            wrong()
        assert error.value.fix
    assert capsys.readouterr() == ("", ""), "a library prints nothing where nobody looks"


def test_progress_is_shown_in_a_terminal_and_in_a_notebook_and_nowhere_else(home, tiny_file, monkeypatch, capsys):
    code = f"import settle; settle.pull({str(tiny_file)!r})"
    leader, follower = os.openpty()
    done = subprocess.run([sys.executable, "-c", code], stderr=follower, stdout=subprocess.PIPE, timeout=120)
    os.close(follower)
    assert done.returncode == 0 and b"checking its hash" in os.read(leader, 10_000) and not done.stdout
    os.close(leader)
    settle.pull(str(tiny_file), again=True)
    assert capsys.readouterr().err == ""
    notebook = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    settle.pull(str(tiny_file), again=True)
    shown = capsys.readouterr()
    assert "checking its hash" in shown.out and not shown.err, "a notebook marks what is on stderr as an error"
    settle.pull(str(tiny_file), again=True, progress=False)
    assert capsys.readouterr().err == ""


def test_money_has_a_currency_in_a_notebook():
    forecast = {"cost": {"value": 0.25, "low": 0.2, "high": 0.3, "unit": "EUR"}}
    assert "0.25 EUR" in Result(verdict="settled", forecast=forecast, actual={"cost": 0.24})._repr_html_()


def test_a_report_shows_its_tables_and_sentences_and_escapes_them():
    report = api.Report("pick")
    for event in (
        Listing(columns=("model", "score"), rows=[["<b>x</b>", "1"]], title="models"),
        AnswerText(text="yes\n"),
        ResultReady(result={"sentence": "take <x>", "chosen": "x"}),
    ):
        report.listen(event)
    assert repr(report).startswith("yes\n") and "take <x>" in repr(report) and report["chosen"] == "x"
    html = report._repr_html_()
    assert "<b>x</b>" not in html and "&lt;b&gt;x" in html and "take &lt;x&gt;" in html


def test_a_conversation_remembers_what_was_said(home, tiny_file):
    with settle.chat(str(tiny_file), max_tokens=8, temperature=0) as talk:
        answers = [talk.say("def f("), "".join(talk.stream("class A"))]
        assert all(answers) and [m["content"] for m in talk.messages[1::2]] == answers
        assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
        assert repr(talk) == "<Conversation with Tiny: 4 messages>"
    with pytest.raises(settle.SettleError, match="nobody"):
        settle.chat("nobody")


def test_a_server_runs_in_the_background_until_it_is_closed(home, tiny_file):
    with settle.serve(str(tiny_file), port=0) as server:
        request = urllib.request.Request(
            f"{server.address}/v1/models", headers={"Authorization": f"Bearer {server.key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            assert json.load(reply)["data"][0]["id"] == "Tiny"
        assert repr(server).endswith("running>")
    assert repr(server).endswith("stopped>")
    with pytest.raises(settle.SettleError, match="'prot'"):
        settle.serve(str(tiny_file), prot=0)
    with pytest.raises(settle.SettleError, match="did not start"):
        settle.serve(str(tiny_file.with_name("none.gguf")))
