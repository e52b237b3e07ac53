"""Runs every command once, at its defaults but for sizes, in one watched process; prints what each reached as JSON."""

import contextlib
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from settle.audit import session

if __name__ == "__main__":  # before any thread of torch runs
    session.from_command_line(False)
    LEDGER = session.ledger("every")
    OPENED = LEDGER.__enter__()

from settle.audit.ledger import read_sessions
from settle.base.run import Run
from settle.base.server_state import running_server
from settle.cli import main
from settle.formats.gguf import export_gguf
from settle.library.store import StoredModel, add_model
from tests import decision_model
from tests.trained import trained

SMALL = ["--threads", "1", "--steps", "2"]


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


COMMANDS = [
    ["train", "notes", "--name", "made", "--size", "20k", *SMALL],
    ["resume", "made"],
    ["tune", "tiny", "rows.jsonl", "--name", "tuned", *SMALL],
    ["eval", "tuned", "--rows", "rows.jsonl", "--limit", "4"],
    ["distill", "tiny", "notes", "--drop-layers", "1", "--name", "small", *SMALL],
    ["shrink", "made", "notes", "--to", "Q8_0", "--name", "less"],
    ["index", "notes"],
    ["ask", "notes", "How are the models shrunk?"],
    ["chat", "tiny", "Once", "--max-tokens", "4"],
    ["decide", "decider", "It is late."],
    ["export", "made", "--to", "safetensors", "--out", "out"],
    ["plan", "tune", "tiny", "--rows", "9"],
    ["pick", "short answers", "--prompts", "rows.jsonl", "--models", "tiny"],
    ["choose", "rows.jsonl", "--model", "tiny"],
    ["models"],
    ["runs"],
    ["models", "fit"],
    ["runs", "audit"],
    ["chat", "--votes"],
    ["doctor"],
    ["connect"],
    ["tokens", "tiny", "How are the models shrunk?"],
    ["doctor", "tiny", "--lesson", "all", "--draws", "4"],
    ["train", "notes", "--prove-scale", "1,2", "--steps", "5", "--size", "20k"],
    ["pull", "./decider.gguf", "--name", "copy"],
    ["serve", "--port", "0"],
    ["studio", "--port", str(free_port()), "--no-browser"],
]


def stock(home: Path) -> None:
    """Models in the store, documents, and rows."""
    made = trained()
    tiny = home / "tiny.gguf"
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    export_gguf(made.part, made.weights, made.tokenizer, tiny, "f32", {"chat_template": template})
    add_model(StoredModel("tiny", "gguf", tiny, "ab" * 32, "test"))
    decision_model.write(home / "decider.gguf", decision_model.keys(columns=("prompt",)))
    add_model(StoredModel("decider", "gguf", home / "decider.gguf", "ab" * 32, "test"))
    pages = sorted((Path(__file__).parents[2] / "docs").glob("s*.md"))
    (home / "notes").mkdir()
    for page in pages:
        (home / "notes" / page.name).write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    rows = [{"prompt": f"What is {n} + {n}?", "completion": f"It is {2 * n}."} for n in range(48)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stop_when_it_serves() -> None:
    end = time.monotonic() + 60
    while not running_server() and time.monotonic() < end:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)


def stop_when_it_answers(port: int) -> None:
    """The studio, which refuses who has no key."""
    end, answered = time.monotonic() + 60, False
    while not answered and time.monotonic() < end:
        time.sleep(0.1)
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answered = connection.recv(12) == b"HTTP/1.1 401"
    os.kill(os.getpid(), signal.SIGINT)


def run(argv: list[str], ledger: Path) -> dict[str, object]:
    """One command: its exit code, its last line, and what went beyond this machine meanwhile."""
    before = read_sessions([ledger], True).beyond
    if argv[0] == "serve":
        threading.Thread(target=stop_when_it_serves).start()
    if argv[0] == "studio":
        threading.Thread(target=stop_when_it_answers, args=(int(argv[2]),)).start()
    if argv[0] == "resume":  # as if it had been stopped before it was written
        (Run.find("made").path / "result.json").unlink()
    out, began = io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(argv)
    after = read_sessions([ledger], True)
    beyond = [c for c in after.beyond if c not in before]
    figures = {"beyond": [c.target for c in beyond], "undeclared": [c.target for c in beyond if not c.declared]}
    text = out.getvalue().strip()
    return {
        "code": code,
        **figures,
        "listens": after.listens,
        "seconds": round(time.monotonic() - began, 1),
        "end": text[-600:],
    }


if __name__ == "__main__":
    folder = Path(os.environ["SETTLE_HOME"])
    stock(folder)
    os.chdir(folder)
    results = {argv[0].replace("-", "_"): run(argv, OPENED.path) for argv in COMMANDS}
    sys.stdout.write(json.dumps({"level": OPENED.level, "commands": results}) + "\n")
    LEDGER.__exit__(None, None, None)
