"""Type every command of README.md and docs/ in a fresh environment, and count those that succeed.

    python bench/typed.py [--wheel FILE] [--work FOLDER] [--page tune ...] [--again]

Builds the wheel, installs it with every extra into an empty virtual environment outside the repository, and types the
commands of the pages' code blocks in their order, in a terminal of 100 columns, with an empty home and, for each page,
an empty folder. Blocks of Python run as well; those of docs/develop.md are files, which tests/test_develop.py runs.

A command succeeds when its exit code is 0, or one of 3 and 4 (no answer, not better, undecided) that its page names or
that follows from a shorter budget. What a page names but does not make, what is shortened and what cannot be typed is
in bench/typed.toml. FOLDER keeps environment, home and record, so that a second call continues with the pages that are
missing; --again types the named pages once more.

Prints a table of failures, and the counts. The clone of `make demo` and the installers load packages.
"""

import argparse
import builtins
import csv
import fcntl
import gzip
import hashlib
import json
import math
import os
import pty
import random
import re
import select
import shlex
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.install import build, environment, local_torch  # noqa: E402
from bench.journey import make_inputs  # noqa: E402
from settle.overview import DATED  # noqa: E402

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
TYPED = ("settle", "make", "pip", "uv", "uvx", "torchrun", "python", "echo", "cat", ".")  # first words of commands
CODES = re.compile(r"exit code[^.]*?\b([34])\b|\| ([34]) \||\band ([34]) when", re.I)
CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-B0-9]|[=>])|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f]")
PROMPT = re.compile(r"(?:> |\? ?|: |\] ?)$")
SERVER = re.compile(r"^settle (?:serve|studio)|--watch$")
UP = re.compile(r"(?:127\.0\.0\.1|localhost):\d+|watch|Ctrl-C", re.I)
CODES_OF_SHORT = {3, 4}  # docs/agents.md: not better, undecided, as a run that was cut short may be
PYTHONS = re.compile(r"Traceback \(most recent|\w+Warning: ")  # words for developers
NAMED = re.compile(r"settle (?:train|tune|distill|index) .*--name (\S+)|settle\.(?:train|tune)\(.*name=\"(\w+)\"")
VOTE = re.compile(r"--vote (\w+)=")
SIBLING = re.compile(r"-(?:seed\d+|member\d+|unjudged|distilled)$")
COLUMNS, ROWS = 100, 40
LIMIT = 1800  # seconds of one command
LIST = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
NOT_TYPED = {command: reason for reason, commands in LIST["not_typed"].items() for command in commands}


class NotMade(Exception):
    """What a page names could not be made."""


@dataclass(frozen=True)
class Typed:
    """One command and how it ended. line: the printed command, `typed` as it was typed; reason: why it was not."""

    page: str
    line: str
    typed: str
    code: int
    seconds: float
    last: str
    fault: str = ""
    reason: str = ""


# --- the pages ---


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> Iterator[list[str]]:
    """Yield the commands of each block of a page; a block of Python is one command."""
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        lines = [line for line in text.splitlines() if line.strip()]
        if language == "python" and page.name != "develop.md":
            yield [f"python\n{text}"]
        elif language in ("", "sh") and lines[0].split()[0] in TYPED:
            yield [re.sub(r"\s+# .*$", "", line) for line in lines]


# --- the world ---


class World:
    """An environment, a person's home, and a folder for each page.

    Attributes:
        work: the folder of everything.
        person: HOME, with ~/notes and ~/docs.
        home: SETTLE_HOME.
    """

    def __init__(self, work: Path, wheel: Path) -> None:
        self.work, self.wheel, self.person = work, wheel, work / "person"
        self.home, self.bin = self.person / ".settle", work / "environment/bin"
        if not self.person.exists():
            (self.person / "Downloads").mkdir(parents=True)
            write_documents(self.person)
        self.install()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "SETTLE", "UV_"))}
        links = os.environ.get("PIP_FIND_LINKS", "")
        self.environ = clean | {
            "HOME": str(self.person), "SETTLE_HOME": str(self.home), "TERM": "xterm-256color",
            "PATH": f"{self.bin}:{work / 'tools/bin'}:{os.environ['PATH']}", "UV_CACHE_DIR": str(work / "uv"),
            "UV_FIND_LINKS": links, "UV_OVERRIDE": str(local_torch(work, links)), "UV_PYTHON": sys.executable,
        }  # fmt: skip

    def install(self) -> None:
        """Install the wheel with every extra, and transformers and uv, which pages use; once for each wheel."""
        stamp, now = self.work / "installed", hashlib.sha256(self.wheel.read_bytes()).hexdigest()
        if stamp.exists() and stamp.read_text(encoding="utf-8") == now:
            return
        if (self.bin / "python").exists():
            asked = ["--quiet", "--no-deps", "--force-reinstall", str(self.wheel)]
        else:
            environment(sys.executable, self.work / "environment")
            asked = ["--quiet", f"{self.wheel}[all]", "transformers"]
        subprocess.run([self.bin / "python", "-m", "pip", "install", *asked], check=True)
        if not (self.work / "tools").exists():
            tools = environment(sys.executable, self.work / "tools")
            subprocess.run([tools, "-m", "pip", "install", "--quiet", "uv"], check=True)
        stamp.write_text(now, encoding="utf-8")

    def made(self, name: str) -> Iterator[Path]:
        """Yield the folders of runs, models and collections of that name; with several seeds, of each."""
        for path in self.home.glob("*/*"):
            found = DATED.fullmatch(path.name)
            own = found[1] if found else path.name
            if path.parent.name in ("runs", "models", "collections", "choices") and SIBLING.sub("", own) == name:
                yield path

    def forget(self, command: str) -> None:
        """Delete what an earlier page has made under the name that a command gives."""
        if found := NAMED.search(command):
            for path in [*self.made(found[1] or found[2])]:
                shutil.rmtree(path)


def write_documents(person: Path) -> None:
    """Write ~/notes, from Python's own help texts, and ~/docs, which has the page that docs/ask.md cites."""
    from pydoc_data.topics import topics

    (person / "notes").mkdir()
    (person / "docs").mkdir()
    for name, text in sorted(topics.items())[::2]:
        (person / "notes" / f"{name.replace('/', '-')}.md").write_text(text, encoding="utf-8")
    (person / "docs/keys.md").write_text(
        "# Keys\n\n## Rotation\n\nTo rotate the key, run `vault rotate` and restart the gateway. The old key works for "
        "15 minutes.\n\n## Storage\n\nKeys are stored in the vault of the gateway's host.\n",
        encoding="utf-8",
    )
    (person / "docs/mill.md").write_text(
        "# The mill\n\nThe mill is 340 kg heavy and stands in hall 4. It grinds two tons of rye an hour.\n",
        encoding="utf-8",
    )


def write_files(world: World, page: str, commands: list[str], here: Path) -> None:
    """Write the files that a page's commands name."""
    inputs = here.parent / f"{here.name}-inputs"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir(parents=True)
    make_inputs(inputs)
    rows = [json.dumps(row) + "\n" for row in functions()]
    words = {word.strip("\"'(),") for command in commands for word in command.split()}
    for word in words:
        path = here / word
        if word.endswith("pairs.jsonl"):
            path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs()), encoding="utf-8")
        elif word == "chat.jsonl":
            turns = [("user", "How do I rotate the key?"), ("assistant", "the the the the the the the the the the")]
            turn = {"messages": [{"role": role, "content": content} for role, content in turns]}
            path.write_text(json.dumps(turn) + "\n", encoding="utf-8")
        elif word.endswith(".jsonl"):
            path.write_text("".join(rows), encoding="utf-8")
        elif word.endswith(".jsonl.gz"):
            path.write_bytes(gzip.compress("".join(rows).encode()))
        elif word in ("tickets.csv", "new.csv"):
            with path.open("w", encoding="utf-8", newline="") as f:
                csv.writer(f).writerows(tickets(labels=word == "tickets.csv"))
        elif word == "questions.json":
            question = {"type": "choice", "instructions": "How urgent?", "criteria": {"now": None, "later": None}}
            path.write_text(json.dumps({"urgency": question}), encoding="utf-8")
        elif word in ("base.toml", "wider.toml"):
            wide = 'size = "200k"\n' if word == "wider.toml" else 'size = "100k"\n'
            slow = "[optimizer]\nlr = 0.001\n" if word == "base.toml" else ""  # so that a change can be better
            path.write_text(f'inputs = ["~/notes"]\nsteps = 20\nthreads = 1\n{wide}{slow}', encoding="utf-8")
            shutil.rmtree(world.home / "labs", ignore_errors=True)
        elif word == "student.toml":
            path.write_text("num_hidden_layers = 20\n", encoding="utf-8")
        elif word == "recipes/demo.toml":
            path.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / word, path)
        elif word == "*.md":
            for note in sorted((world.person / "notes").iterdir())[:9]:
                shutil.copy(note, here)
        elif word == "book.txt":
            text = "\n\n".join(note.read_text(encoding="utf-8") for note in sorted((world.person / "notes").iterdir()))
            path.write_text(text[:100_000], encoding="utf-8")
        elif word == "notes.txt":  # of few words, so that a vocabulary has others
            path.write_text("The miller and the mill were old, and the water was low.\n" * 60, encoding="utf-8")
        elif word == "essays/":
            shutil.copytree(world.person / "notes", path)
        elif word.endswith(".gguf") and "/" not in word and word != "small.gguf":
            path.symlink_to(gguf(world, "tuned" if word == "lora.gguf" else "smollm2"))
        elif word == "~/Downloads/model.gguf" and not (world.person / "Downloads/model.gguf").exists():
            shutil.copy(gguf(world, "smollm2"), world.person / "Downloads")
            next((world.person / "Downloads").glob("*.gguf")).rename(world.person / "Downloads/model.gguf")
    for folder in LIST["folders"].get(page, []):
        shutil.rmtree(world.home / "collections" / folder, ignore_errors=True)
        shutil.copytree(world.person / "docs" if folder == "more" else inputs / "docs", here / folder)
    shutil.rmtree(inputs)


def functions() -> Iterator[dict[str, str]]:
    """Yield what Python says that its own functions do, as questions and answers."""
    for kind in (builtins, str, list, dict, set, int, math, statistics):
        for name, value in sorted(vars(kind).items()):
            says = (getattr(value, "__doc__", "") or "").partition("\n")[0]
            if callable(value) and name[0].islower() and 20 < len(says) < 120 and says.endswith("."):
                yield {"prompt": f"What does Python's {kind.__name__}.{name} do?", "completion": says}


def pairs() -> Iterator[dict[str, str]]:
    """Yield questions with their passages."""
    for number in range(60):
        thing = ("mill", "pump", "lamp", "crane", "boat", "drill")[number % 6]
        yield {"question": f"In which hall is {thing} number {number}?",
               "passage": f"The {thing} with the number {number} stands in hall {number * 7 % 31}."}  # fmt: skip


def tickets(labels: bool) -> Iterator[list[str]]:
    """Yield a header and rows of a text, with the queue that answers it."""
    draw = random.Random(5)
    words = {"billing": ("charged twice", "invoice wrong", "refund missing"), "shipping": ("parcel late", "box broken")}
    yield ["text", "queue"] if labels else ["text"]
    for number in range(240 if labels else 6):
        queue = draw.choice(list(words))
        text = f"Order {number}: {draw.choice(words[queue])} since {draw.randint(1, 28)} {draw.choice(('May', 'June'))}"
        yield [text, queue] if labels else [text]


def gguf(world: World, name: str) -> Path:
    """Return the weights of a model or of a run, which is made where it is missing."""
    make(world, name)
    if (record := world.home / "models" / name / "model.json").exists():
        found = re.findall(r'"(/[^"]+\.gguf)"', record.read_text(encoding="utf-8"))
        return Path(found[0]) if found else next(record.parent.glob("*.gguf"))
    return next(path for run in world.made(name) for path in (run / "out").glob("*.gguf"))


# --- typing ---


def make(world: World, name: str) -> None:
    """Make what a page names and does not make itself, by a command of the pages. Raises NotMade."""
    if any(world.made(name)):
        return
    command, here = LIST["made"][name], world.work / "made" / name
    here.mkdir(parents=True, exist_ok=True)
    write_files(world, "", [command], here)
    needed(world, command, here)
    code, said, _ = type_in(world, shortened(world, command), here, [])
    if code not in (0, 3) or not any(world.made(name)):
        raise NotMade(f"{command}: exit code {code}: {said[-500:]}")


def needed(world: World, command: str, here: Path) -> None:
    """Make what the words of a command name, but for the name that it gives, and for files of the folder."""
    for word in re.findall(r"[\w.-]+", re.sub(r"settle pull .*|--name \S+|\S*/\S*", "", command)):
        if word in LIST["made"] and not (here / word).exists() and word not in command.split()[:2]:
            make(world, word)


def shortened(world: World, command: str) -> str:
    """Return a command as it is typed: with what stands for its placeholders, and a short budget."""
    for words, other in LIST["stand_ins"].items():
        if words in command:
            if "{notes}" in other:
                make(world, "notes")
            notes = next(world.made("notes"), None)
            model = gguf(world, "smollm2") if "{model}" in other else None
            command = command.replace(words, other.format(wheel=world.wheel, notes=notes, model=model))
    for pattern, other in LIST["shorter"].items():
        command = re.sub(pattern, other, command)
    return command


def type_page(world: World, page: Path) -> Iterator[Typed]:
    """Yield the commands of a page, each typed once the page's folder and what it names are there."""
    here = world.work / "pages" / page.stem
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    commands = [command for block in blocks(page) for command in block]
    write_files(world, page.name, commands, here)
    allowed = {0, *(int(code) for found in CODES.findall(page.read_text(encoding="utf-8")) for code in found if code)}
    said = ""
    for block in blocks(page):
        place, before = here, ""
        if any(command.startswith("make ") for command in block):
            place = here / "clone"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
        for command in block:
            if reason := NOT_TYPED.get(command):
                yield Typed(page.name, command, "", 0, 0.0, "", reason=reason)
                continue
            world.forget(command)
            line = shortened(world, command)
            if found := VOTE.search(said):
                line = VOTE.sub(f"--vote {found[1]}=", line)
            began = time.monotonic()
            try:
                needed(world, command, place)
                with beside(world, LIST["beside"].get(command), place):
                    began = time.monotonic()
                    code, said, fault = type_in(world, before + line, place, LIST["answers"].get(command, []))
            except NotMade as e:
                code, said, fault = -1, "", f"needs {e}"
            known = allowed | (CODES_OF_SHORT if line != command else set())
            fault = fault or ("" if code in known else f"exit code {code}")
            fault = fault or ("a traceback or warning" if PYTHONS.search(said) else "")
            yield Typed(page.name, command, line, code, round(time.monotonic() - began, 1), said[-1500:], fault)
            before += f"{line}; " if command.startswith(". ") else ""
    for command in commands:  # a name of another page's that this page gave to something else
        if (found := NAMED.search(command)) and LIST["made"].get(found[1], command) != command:
            world.forget(command)


@contextmanager
def beside(world: World, command: str | None, here: Path) -> Iterator[None]:
    """Run a server while a command is typed."""
    if not command:
        yield
        return
    needed(world, command, here)
    with (world.work / "beside.txt").open("w+", encoding="utf-8") as log:
        server = subprocess.Popen(shlex.split(command), cwd=here, env=world.environ, stdout=log, stderr=log,
                                  stdin=subprocess.DEVNULL, executable=str(world.bin / "settle"))  # fmt: skip
        until = time.monotonic() + 120
        while server.poll() is None and time.monotonic() < until:
            if UP.search((world.work / "beside.txt").read_text(encoding="utf-8")):
                break
            time.sleep(0.5)
        try:
            yield
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def type_in(world: World, line: str, here: Path, answers: list[str]) -> tuple[int, str, str]:
    """Type a command into a terminal. Return its exit code, what the terminal showed, and "" or a fault.

    At a prompt the next answer is typed, or Ctrl-D; a server gets Ctrl-C once it says where it is.
    """
    if line.startswith("python\n"):
        (here / "block.py").write_text(line.removeprefix("python\n"), encoding="utf-8")
        line = "python block.py"
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", "bash", "-c", line], cwd=here, env=world.environ,
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    raw, left, until, server = b"", list(answers), time.monotonic() + LIMIT, bool(SERVER.search(line))
    stopped, fault, heard = 0, "", time.monotonic()
    while True:
        ready, _, _ = select.select([master], [], [], 0.5)
        try:
            new = os.read(master, 65536) if ready else b""
        except OSError:  # the last process of the terminal has ended
            break
        if ready and not new:
            break
        raw += new
        heard = time.monotonic() if new else heard
        said, quiet = CONTROL.sub("", raw[-3000:].decode(errors="replace")), time.monotonic() - heard
        if time.monotonic() > until and stopped < 3:
            fault, stopped = f"no end within {LIMIT} s", 3
            os.write(master, b"\x03")
        elif time.monotonic() > until + 60:
            kill_session(process)
        elif server and not stopped and quiet > 2 and UP.search(said):
            os.write(master, b"\x03")
            stopped = 1
        elif quiet > 2 and process.poll() is not None:
            break
        elif quiet > 2 and not server and PROMPT.search(said.rstrip("\n").rpartition("\n")[2]):
            os.write(master, f"{left.pop(0)}\n".encode() if left else b"\x04")
            heard = time.monotonic()
    code = process.wait(60)
    os.close(master)
    text = CONTROL.sub("", raw.decode(errors="replace")).replace("\r\n", "\n")
    return (0 if stopped == 1 and code == 130 else code), text, fault


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """End the processes of a terminal that Ctrl-C has not ended."""
    for child in Path("/proc", str(process.pid), "task", str(process.pid), "children").read_text().split():
        os.killpg(int(child), signal.SIGKILL)


# --- the record ---


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/settle-typed"))
    parser.add_argument("--page", nargs="+", default=[], help="names without .md; all of them if not given")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    world = World(work, given.wheel.absolute() if given.wheel else build(work / "build", work / "dist", False))
    records = work / "records"
    records.mkdir(exist_ok=True)
    for page in pages():
        record = records / f"{page.stem}-{page.parent.name}.json"
        if given.page and page.stem not in given.page or record.exists() and not given.again:
            continue
        steps = []
        for step in type_page(world, page):
            steps.append(step)
            print(f"{page.name}: {step.line.partition(chr(10))[0]}: {step.fault or step.reason or 'ok'}", flush=True)
        record.write_text(json.dumps([asdict(step) for step in steps], indent=1), encoding="utf-8")
    found = [Typed(**step) for path in sorted(records.glob("*.json")) for step in json.loads(path.read_text())]
    print(table(found))
    sys.exit(any(step.fault for step in found))


def table(steps: list[Typed]) -> str:
    """Return the failures, what was not typed by reason, and the counts."""
    lines = ["| page | command | fault | last lines |", "|---|---|---|---|"]
    for step in steps:
        if step.fault:
            last = " / ".join(step.last.split("\n")[-4:]).replace("|", "\\|")
            lines.append(f"| {step.page} | {step.line} | {step.fault} | {last} |")
    for reason in dict.fromkeys(step.reason for step in steps if step.reason):
        lines.append(f"not typed, {reason}: {sum(step.reason == reason for step in steps)}")
    typed = [step for step in steps if not step.reason]
    good = sum(not step.fault for step in typed)
    minutes = sum(step.seconds for step in typed) / 60
    return "\n".join([*lines, f"{good} of {len(typed)} typed succeed, {minutes:.0f} min; {len(steps)} in all"])


if __name__ == "__main__":
    main()
