"""Text of documents, models, files and names reaches no terminal with a control character in it, by any command."""

import json
import os
import re

import pytest

from settle.base.events import AnswerText, Listing, Progress, ResultReady, Say, Warn
from settle.base.run import Run
from settle.base.visible import visible, visible_line
from settle.cli import main
from settle.commands import Command
from settle.documents.blocks import Place
from settle.formats.gguf import export_gguf
from settle.library.store import StoredModel, add_model
from settle.retrieve.answer.ask import AskableCollection
from settle.show import Face
from tests import decision_model
from tests.retrieve.asked import index
from tests.retrieve.conftest import joined  # noqa: F401  a fixture

TITLE = "\x1b]0;TITLE\x07"
ESCAPES = (
    TITLE + "\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2J\x1b[31mRED\x1b[0m \x9b31mC1 \u202eRTL\u202c \u2066ISO\u2069 \x7f\x08"
)
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
COLOURS = re.compile("\x1b\\[[0-9;]*m")  # of rich, which a test's output has none of
FORGED = "\n[9] /etc/shadow:1  Frost guard lever"
HTML = (
    f"<html><body><h1 id='x&#27;]0;T&#7;{FORGED} %'>Vault &#27;]0;H&#7;<br>[9] /etc/shadow:1</h1>"
    f"<p>The vault door opens with the ivory lever {ESCAPES} every hour.</p></body></html>"
)
TEXTS = {
    "rotate.txt": f"To rotate the key run the command keyctl rotate {ESCAPES} every ninety days.\n",
    "page.html": HTML,
    f"lines{FORGED.replace('/', '-')}\x1b]0;F\x07.txt": "The newline tap is behind the red curtain of the cellar.\n",
}
QUESTIONS = ("How do I rotate the key?", "Which lever opens the vault door?", "Where is the newline tap hidden?")


@pytest.fixture(scope="module")
def stocked(tmp_path_factory, joined, tiny):  # noqa: F811
    """A home where documents, a model's tokens and template, and a run's results are hostile."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("SETTLE_HOME", str(folder))
        index("docs", folder / "docs", TEXTS)
        path = folder / "models" / "esc" / "esc.gguf"
        path.parent.mkdir(parents=True)
        export_gguf(tiny.part, tiny.weights, tiny.tokenizer, path, "f32")
        # the commonest word of what it learned becomes an escape: `ě` is how such a vocabulary writes the byte 0x1b
        path.write_bytes(path.read_bytes().replace(b"self", "ě[m".encode()))
        add_model(StoredModel("esc", "gguf", path, "ab" * 32, f"test:{ESCAPES}"))
        decider = folder / "models" / "decider" / "decider.gguf"
        decider.parent.mkdir()
        asked = {"type": "choice", "instructions": ESCAPES, "criteria": {ESCAPES: None, f"b{FORGED}": ESCAPES}}
        keys = decision_model.keys(questions={f"q{FORGED}": asked, ESCAPES: asked}, columns=("prompt",))
        decision_model.write(decider, keys)
        add_model(StoredModel("decider", "gguf", decider, "ab" * 32, f"test:{ESCAPES}"))
        run = Run.create("train", "odd")
        result = {"verdict": f"settled{ESCAPES}", "why": f"why {ESCAPES}{FORGED}", "headline": ESCAPES}
        forecast = {f"loss{ESCAPES}": {"value": 1.0, "low": 0.5, "high": 2.0, "unit": ESCAPES}}
        more = {"forecast": forecast, "actual": {}, "files": {"gguf": f"/x/{ESCAPES}.gguf"}, "gate": {"passed": True}}
        (run.path / "result.json").write_text(json.dumps(result | more))
        (run.path / "plan.json").write_text(json.dumps({"values": {ESCAPES: ESCAPES}, "origin": {ESCAPES: ESCAPES}}))
        yield folder


@pytest.fixture
def at_home(stocked, monkeypatch):
    monkeypatch.setenv("SETTLE_HOME", str(stocked))
    monkeypatch.chdir(stocked)
    return stocked


ROWS = [{"prompt": f"Say {ESCAPES}{n}", "completion": f"It is {ESCAPES} {n}"} for n in range(60)]
COMMANDS = {
    "ask": [["docs", question, "--model", "none"] for question in QUESTIONS]
    + [["docs", question, "--passages"] for question in QUESTIONS]
    + [["docs", "What is zymurgy\x1b[31m?", "--model", "none"], [f"no{ESCAPES}", "x"]],
    "chat": [["esc", f"The key {ESCAPES}", "--max-tokens", "4"], [f"no{ESCAPES}", "x"]]
    + [["esc", "x", "--with", f"no{ESCAPES}"], ["--votes"], ["--vote", f"no{ESCAPES}=a"], ["--vote", f"no{ESCAPES}"]],
    "choose": [[f"no{ESCAPES}"], ["rows\x1b[31m.jsonl", "--model", f"no{ESCAPES}"], [f"no{ESCAPES}", "--ask", "x"]],
    "connect": [[f"no{ESCAPES}"], ["continue", "--address", f"http://127.0.0.1:9/{ESCAPES}"]],
    "generate": [["esc", f"no{ESCAPES}"], ["esc", "rows\x1b[31m.jsonl", "--template", TITLE]],
    "decide": [["esc", f"Is it {ESCAPES}?"], [f"no{ESCAPES}", "x"], ["decider", f"{TITLE}x"]]
    + [["decider", "--rows", "rows\x1b[31m.jsonl"], ["decider", "x", "--questions", f"no{ESCAPES}"]],
    "distill": [["esc", f"no{ESCAPES}", "--dry"]],
    "doctor": [[], [f"no{ESCAPES}"], ["esc", "--only", "8"], ["esc", "--prove", f"no{ESCAPES}"]]
    + [["esc", "--lesson", "repetition", "--draws", "4"], ["esc", "--lesson", "template"]]
    + [["esc", "--lesson", f"no{ESCAPES}"], [f"no{ESCAPES}", "--lesson", "all"]],
    "eval": [["esc", "--rows", f"no{ESCAPES}"], ["esc", "--rows", "rows\x1b[31m.jsonl", "--limit\x1b", "1"]],
    "export": [[f"no{ESCAPES}"], ["esc", "--out", f"./no{ESCAPES}/x.gguf"]],
    "index": [["docs"], [f"no{ESCAPES}"]],
    "mcp": [[f"no{ESCAPES}"]],
    "models": [[], ["show", "esc"], ["show", f"no{ESCAPES}"], ["fit", f"no{ESCAPES}"]]
    + [["fit", "esc", "--machine", f"rtx{ESCAPES}"], ["fit", "esc", "--machine", "rtx 4090"]],
    "pick": [["x", "--prompts", f"no{ESCAPES}"], [ESCAPES, "--prompts", "rows\x1b[31m.jsonl", "--models", ESCAPES]],
    "plan": [["tune", f"no{ESCAPES}", "--rows", "9"], ["pay-off", ESCAPES, "--against", ESCAPES]]
    + [["train", "--params", "1b", "--tokens", "1b", "--machine", ESCAPES]],
    "pull": [[f"./no{ESCAPES}.gguf"], [f"no{ESCAPES}"]],
    "resume": [[f"no{ESCAPES}"], ["odd"]],
    "rows": [[f"no{ESCAPES}"], ["docs", "--out", f"no{ESCAPES}/x"],
    ["docs", "--base", f"no{ESCAPES}"], ["docs", "--count", "3"]],
    "runs": [[], ["show", "odd"], ["--ledger"], ["show", f"no{ESCAPES}"], ["audit"], ["audit", f"no{ESCAPES}"]],
    "serve": [[f"no{ESCAPES}"]],
    "shrink": [["esc", "--to", f"no{ESCAPES}"], [f"no{ESCAPES}", "--to", "Q4_0"]],
    "studio": [["--port", f"no{ESCAPES}"]],
    "tokens": [["esc", f"The key {ESCAPES}"], ["esc", "x", "--max-tokens", "4"], [f"no{ESCAPES}", "x"]],
    "train": [["hostile", "--dry", "--threads", "1", "--size", "200k"], [f"no{ESCAPES}"], ["x", f"--no{ESCAPES}"]]
    + [[f"no{ESCAPES}", "--prove-scale", "1"], ["hostile", "--prove-scale", f"1,{ESCAPES}"]],
    "tune": [["esc", "rows\x1b[31m.jsonl", "--dry", "--threads", "1"], [f"no{ESCAPES}", "rows\x1b[31m.jsonl"]],
}  # fmt: skip


def test_each_command_is_walked():
    assert set(COMMANDS) == set(Command.parts())


@pytest.mark.parametrize(("command", "argv"), [(name, argv) for name, all in COMMANDS.items() for argv in all])
def test_nothing_that_a_terminal_obeys_comes_out(command, argv, at_home, capsys):
    if command == "shrink":
        pytest.importorskip("llama_cpp_py_sync")
    (at_home / "rows\x1b[31m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    hostile = at_home / "hostile"
    hostile.mkdir(exist_ok=True)
    (hostile / f"esc\x1b]0;F\x07{os.linesep}.txt").write_text(f"The lever {ESCAPES} turns twice.\n\n" * 4000)
    main([command, *argv])
    out, err = capsys.readouterr()
    assert not OBEYED.search(out) and not OBEYED.search(err), (out, err)
    assert out + err and "\n[9] " not in out + err


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_citation_is_one_line_and_its_fragment_is_encoded(question, at_home, capsys):
    main(["ask", "docs", question, "--model", "none"])
    cited = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    assert cited and all(re.match(r"\[[1-4]\] docs/[^ ]", line) for line in cited)


def test_a_place_holds_nothing_but_a_path_and_a_fragment():
    assert Place(part=f"a b\x1b{FORGED}%é").after("p\n.html") == (
        "p\\n.html#a%20b%1B%0A%5B9%5D%20/etc/shadow:1%20%20Frost%20guard%20lever%25é"
    )
    assert Place(part="OEBPS/one.xhtml#setup").after("b.epub") == "b.epub#OEBPS/one.xhtml#setup"
    assert Place(page=3).after("a.pdf") == "a.pdf#page=3"


def test_what_python_prints_of_an_answer(at_home):
    with AskableCollection("docs") as collection:
        for question in QUESTIONS:
            assert not OBEYED.search(str(collection.ask(question, model="none")))


def test_an_escape_that_is_split_over_tokens(capsys):
    face = Face()
    for piece in ("a", "\x1b", "]0;", "T", "\x07", "\x9b", "31m", "\r", "\n", "b\tc"):
        face(AnswerText(text=piece))
    assert capsys.readouterr().out == "a\\x1b]0;T\\x07\\x9b31m\\r\nb\tc"


def test_raw_is_for_pipes(at_home, capsys, monkeypatch):
    main(["ask", "docs", QUESTIONS[0], "--passages", "--raw"])
    assert "\x1b]0;TITLE\x07" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    main(["ask", "docs", QUESTIONS[0], "--passages", "--raw"])
    assert not OBEYED.search(COLOURS.sub("", capsys.readouterr().out))


def test_json_keeps_the_text_as_it_is(at_home, capsys):
    main(["ask", "docs", QUESTIONS[0], "--passages", "--json"])
    out = capsys.readouterr().out
    assert not OBEYED.search(out) and "\x1b]0;TITLE\x07" in json.loads(out)["passages"][0]["text"]


def test_events_of_every_kind(capsys):
    face = Face()
    face(Say(text=f"said {ESCAPES}{FORGED}"))
    face(Warn(text=ESCAPES))
    face(Progress(what=f"reading {ESCAPES}{FORGED}", done=1, total=1, detail=ESCAPES))
    face(Listing(title=ESCAPES, columns=[ESCAPES, "b"], rows=[[f"a{FORGED}", ESCAPES], [None, 2]], note=ESCAPES))
    face(ResultReady(result={"verdict": f"v{ESCAPES}", "why": f"{ESCAPES}{FORGED}", "files": {}}))
    face.error(f"what {ESCAPES}{FORGED}", f"fix {ESCAPES}{FORGED}")
    out, err = capsys.readouterr()
    assert not OBEYED.search(out + err) and "\n[9]" not in out + err


def test_text_without_any_is_untouched():
    text = "Über “Straße” – naïve\tcafé\n日本語 עברית 👩‍🚀 {x} [31m\\x1b"
    assert visible(text) == text
    assert visible_line("a\tb\r\nc") == "a\\tb\\r\\nc" and visible("a\r\nb") == "a\nb"
