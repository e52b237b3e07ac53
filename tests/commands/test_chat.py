"""`settle chat` with a real model in a real child, one-shot, by pipe and on a terminal."""

import io
import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from settle.base.event_log import Events
from settle.base.files import write_json
from settle.base.run import Run
from settle.cli import main
from settle.formats.gguf import export_gguf
from settle.infer.child_process import Draft
from settle.infer.engine import draft_for
from settle.library.resolve import resolve_gguf


@pytest.fixture
def a_run(tiny, home):
    """A finished run named notes, trained on plain text."""
    run = Run.create("train", "notes")
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, run.out / "notes.gguf", "f16", {"base": True})
    return run


def test_one_answer(a_run, capsys):
    assert main(["chat", "notes", "    def __init__(self", "--temperature", "0", "--max-tokens", "20"]) == 0
    first = capsys.readouterr().out
    assert len(first) > 10 and first.endswith("\n")
    path = str(a_run.out / "notes.gguf")
    assert main(["chat", path, "    def __init__(self", "--temperature", "0", "--max-tokens", "20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answer"] == first[:-1]


def test_with_a_draft(a_run, tiny, home, capsys):
    asked = ["chat", "notes", "    def __init__(self", "--temperature", "0", "--max-tokens", "20"]
    assert main(asked) == 0
    alone = capsys.readouterr().out
    run = Run.create("distill", "quick")
    for name in ("quick", "quick-draft"):
        export_gguf(tiny.part, tiny.weights, tiny.tokenizer, run.out / f"{name}.gguf", "q8_0", {"base": True})
    write_json(run.path / "result.json", {"pair": {"draft_tokens": 3, "draft_sure": 0.5, "speed_up": 0.9}})
    notes = resolve_gguf("notes")
    assert draft_for(notes, "quick", Events()) == Draft(run.out / "quick-draft.gguf", 3, 0.5)
    assert main([*asked, "--draft", "quick"]) == 0
    said = capsys.readouterr()
    assert said.out == alone and "0.90 times as fast" in said.err
    path = run.out / "quick.gguf"
    assert draft_for(notes, str(path), Events()) == Draft(path)
    assert main([*asked, "--draft", str(path)]) == 0
    assert capsys.readouterr().out == alone


def test_drafts_that_are_none(a_run, tiny, home, capsys):
    other = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, home / "other.gguf", "f16", {"base": True})
    word = next(token for token in tiny.tokenizer.tokens if len(token) > 5 and token.isalpha()).encode()
    other.write_bytes(other.read_bytes().replace(word, word[::-1], 1))
    broken = home / "broken.gguf"
    broken.write_bytes(other.read_bytes()[:5000])
    for name, why in {
        "notes": "is the model itself",
        "nobody": "there is no model 'nobody'",
        str(other): "another tokenizer",
        str(broken): "broken.gguf",
        str(home / "none.gguf"): "none.gguf",
    }.items():
        assert main(["chat", "notes", "hi", "--draft", name]) in (1, 2), name
        said = capsys.readouterr()
        assert why in said.err and "Traceback" not in said.err and not said.out


def test_prompt_from_stdin(a_run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n"))
    assert main(["chat", "notes", "--seed", "1", "--max-tokens", "10"]) == 0
    assert capsys.readouterr().out.strip()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat", "notes"]) == 2
    assert "no prompt to answer" in capsys.readouterr().err


def test_template_is_used_only_when_asked_for(a_run, capsys):
    assert main(["chat", "notes", "hello", "--seed", "1", "--max-tokens", "8", "--template"]) in (0, 3)
    assert main(["chat", "notes", "hello", "--system", "Be brief."]) == 2
    assert "add --template" in capsys.readouterr().err


def test_long_prompt_says_what_is_left_out(a_run, capsys):
    assert main(["chat", "notes", "word " * 2000, "--max-tokens", "8", "--seed", "1"]) in (0, 3)
    assert "fit into the context" in capsys.readouterr().err


def test_no_such_run_and_no_model_yet(home, capsys):
    assert main(["chat", "nobody", "hi"]) == 2
    assert "there is no model 'nobody'" in capsys.readouterr().err
    Run.create("train", "cut")
    assert main(["chat", "cut", "hi"]) == 2
    assert "settle resume cut" in capsys.readouterr().err
    assert main(["chat", "none.gguf", "hi"]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_damaged_file(a_run, capsys):
    file = a_run.out / "notes.gguf"
    file.write_bytes(file.read_bytes()[:-50_000])
    assert main(["chat", "notes", "hi"]) == 1
    assert "notes.gguf is not a sound GGUF file" in capsys.readouterr().err


class Terminal:
    """`settle chat`, or another command, on a pseudo-terminal."""

    def __init__(self, arguments: list[str], command: str = "chat") -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "settle", command, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )
        os.close(slave)
        self.heard = ""

    def type(self, text: str) -> None:
        self.heard = ""
        os.write(self.master, text.encode())

    def hears(self, text: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while text not in self.heard and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.heard += os.read(self.master, 65536).decode("utf-8", "replace")
                except OSError:
                    break
        return text in self.heard

    def until(self, text: str) -> str:
        if not self.hears(text, 60):
            self.process.kill()
            self.close()
            raise AssertionError(f"{text!r} was never heard: {self.heard!r}")
        return self.heard

    def close(self) -> int:
        code = self.process.wait(60)
        os.close(self.master)
        return code


def test_a_talk_on_a_terminal(a_run, tmp_path):
    terminal = Terminal(["notes", "--max-tokens", "30", "--seed", "1"])
    assert "plain text" in terminal.until("> ")
    terminal.type("import sys\n")
    terminal.until("\n> ")
    terminal.type("/nonsense\n")
    terminal.until("there is no /nonsense")
    terminal.until("> ")
    terminal.type("/system Be brief.\n")
    terminal.until("has no system prompt")
    saved = tmp_path / "talk.json"
    terminal.type(f"/save {saved}\n")
    terminal.until("wrote")
    terminal.until("> ")
    talk = json.loads(saved.read_text())
    assert [m["role"] for m in talk["messages"]] == ["user", "assistant"]
    assert talk["messages"][0]["content"] == "import sys"
    terminal.type("/reset\n")
    terminal.until("forgotten")
    terminal.until("> ")
    # readline may be deaf to the signal until the next key, where it comes together with another key.
    for keys in ("\x03", "\n\x03", "\n\x03"):
        terminal.type(keys)
        if terminal.hears("Ctrl-D leaves", 5):
            break
    else:
        terminal.until("Ctrl-D leaves")
    terminal.type("/bye\n")
    assert terminal.close() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(a_run):
    for _ in range(10):  # an answer may be over before the key is pressed: then once more from the beginning
        terminal = Terminal(["notes", "--max-tokens", "500", "--seed", "1", "--temperature", "2", "--top-p", "1"])
        terminal.until("> ")
        terminal.type("import sys\n")
        terminal.until("import sys\r\n")
        terminal.type("\x03")
        if stopped := terminal.hears(" …\r\n", 3):
            terminal.until("…\r\n> ")
            terminal.type("\x04")
        else:
            assert terminal.process.poll() is None, terminal.heard
            terminal.process.kill()
        code = terminal.close()
        if stopped:
            assert code == 0
            return
    raise AssertionError("no answer was ever stopped")
