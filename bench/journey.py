"""A newcomer's way through the README: its commands, wrong inputs, no network, a full disk. Counts, no timings.

    python bench/journey.py [--parts readme,wrong,network,disk] [--table FILE]

readme: the commands of README.md in its order, with small texts, each as a process of its own in an empty home.
wrong: more than 200 wrong inputs: a bad value for the options of every command, and files, names and folders that are
not what they should be. An input is answered well when its exit code is 1, 2 or 3, what happened and what to do are
said in words, and no traceback, control character or leftover remains.
network: the same home in a network namespace of its own (`unshare -n`).
disk: a home on a file system that is nearly full (`mount -t tmpfs`). Both need the rights for it, and are named as left
out otherwise.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PARTS = ("readme", "wrong", "network", "disk")
TINY = "--size 60k --steps 12 --threads 1 --dtype float32"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
BAD_VALUES = ("banana", "-5", "nan", "1e400", "99999999999999999999", "0.5.5", "../..", "é\u202e")
LIMIT = 600  # seconds of one command
WARNS, WAITS = "the run will pause until there is room", "The run waits"  # in place of an end for want of room
DISK = "8m"  # size of the nearly full file system


@dataclass(frozen=True)
class Step:
    """One command line, and what became of it. fault: what is wrong with how it was answered, "" for nothing."""

    part: str
    command: str
    code: int
    fault: str
    said: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="settle-journey-") as folder:
        os.environ["SETTLE_HOME"] = str(Path(folder, "home"))
        make_inputs(Path(folder))
        os.chdir(folder)
        steps = [step for part in given.parts.split(",") for step in RUN[part](Path(folder))]
    text = table(steps)
    print(text)
    if given.table:
        given.table.write_text(text + "\n", encoding="utf-8")
    sys.exit(any(step.fault for step in steps))


def make_inputs(folder: Path) -> None:
    """Write notes, rows of questions and answers, and documents."""
    draw = random.Random(3)
    things = ("printer", "router", "phone", "laptop", "screen", "keyboard", "camera", "speaker")
    verbs = ("restart", "clean", "update", "replace", "connect", "unplug")
    for name in ("notes", "docs", "home"):
        (folder / name).mkdir()
    for number in range(40):
        lines = [
            f"To {draw.choice(verbs)} the {draw.choice(things)} number {draw.randint(1, 999)}, "
            f"{draw.choice(verbs)} the {draw.choice(things)} first and wait {draw.randint(2, 90)} seconds."
            for _ in range(30)
        ]
        (folder / "notes" / f"{number}.md").write_text("\n\n".join(lines), encoding="utf-8")
    for thing in things:
        text = f"# The {thing}\n\nThe {thing} stands in room {draw.randint(1, 99)}. Its owner is team {thing[::-1]}.\n"
        (folder / "docs" / f"{thing}.md").write_text(text, encoding="utf-8")
    with (folder / "examples.jsonl").open("w", encoding="utf-8") as f:
        for number in range(120):
            thing = draw.choice(things)
            row = {"prompt": f"Ticket {number}: my {thing} is broken. Which queue?", "completion": f" {thing}s"}
            f.write(json.dumps(row) + "\n")


# --- the README ---


def readme(folder: Path) -> Iterator[Step]:
    """Yield the README's commands, with options that make them small.

    Those that download, serve or connect are left to `network` and the test suite.
    """
    tune = "--steps 8 --threads 1 --dtype float32 --batch-rows 4 --compare-rows 6"
    commands = (
        f"train notes --name notes {TINY} --dry",
        f"train notes --name notes {TINY}",
        f"tune notes examples.jsonl --name mine {tune}",
        "chat notes 'The first thing' --max-tokens 6",
        "chat mine 'Ticket 1: my phone is broken. Which queue?' --max-tokens 6",
        "index docs --name docs",
        "ask docs 'Where does the printer stand?' --model none",
        "index docs --check",
        "shrink notes --to Q8_0 --no-compare",
        f"distill notes examples.jsonl --drop-layers 1 --name small {tune}",
        "runs",
        "runs show notes",
        "runs prune --yes",
        "export notes --dtype q8_0 --out notes.gguf",
        "models",
        "eval mine --rows examples.jsonl --limit 4",
        "--version",
        "--help",
    )
    for command in commands:
        yield judged("readme", command, settle(command), wanted=(0, 3))


# --- wrong inputs ---


def wrong(folder: Path) -> Iterator[Step]:
    files(folder)
    for arguments in (*bad_files(), *bad_options()):
        before = leftovers(folder)
        step = judged("wrong", shlex.join(arguments), in_process(arguments), wanted=(1, 2, 3))
        fault = step.fault or ("leaves " + ", ".join(sorted(leftovers(folder) - before)[:3]))
        yield step if leftovers(folder) == before or step.fault else Step(step.part, step.command, step.code, fault, "")


def files(folder: Path) -> None:
    """Write files that are no text, no model and no rows."""
    (folder / "empty.txt").write_bytes(b"")
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "zeros.bin").write_bytes(bytes(4096))
    (folder / "broken.jsonl").write_text('{"prompt": "a"\n{"completion": 1}\n', encoding="utf-8")
    (folder / "columns.jsonl").write_text('{"foo": 1}\n' * 50, encoding="utf-8")
    (folder / "one.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    (folder / "short.gguf").write_bytes(b"GGUF" + bytes(60))
    (folder / "no.toml").write_text("this is = = no toml", encoding="utf-8")
    (folder / "unknown.toml").write_text("nonsense = 3\n", encoding="utf-8")
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text('{"model_type": "frob"}', encoding="utf-8")
    (folder / "nothing").mkdir()


def bad_files() -> Iterator[list[str]]:
    names = ("nowhere", "empty.txt", "zeros.bin", "nothing", "broken.jsonl", "empty.jsonl")
    for name in (*names, "hf", "short.gguf", "a/b/c", "https://example.invalid/x", "~nobody/x"):
        yield ["train", name]
        yield ["tune", name, "one.jsonl"]
        yield ["chat", name, "hello"]
        yield ["shrink", name, "--to", "Q8_0"]
        yield ["export", name]
        yield ["eval", name, "--rows", "one.jsonl"]
        yield ["resume", name]
        yield ["ask", name, "why?"]
        yield ["distill", name, "one.jsonl", "--drop-layers", "1"]
    for name in ("nowhere", "a/b/c"):  # a file without text is a part of a folder like any other
        yield ["index", name, "--name", "x"]
    for name in (*names, "columns.jsonl", "one.jsonl"):
        yield ["tune", "short.gguf", name]
    for recipe in ("no.toml", "unknown.toml", "nowhere.toml", "nothing"):
        yield ["train", "docs", "--recipe", recipe]
    yield from (["runs", "show", "x"], ["runs", "remove", "x", "--yes"], ["models", "remove", "x"], ["models", "show"])
    yield from (["frob"], ["trian", "docs"], ["--frob"], ["train"], ["tune"], ["chat"], ["ask"], ["export"], ["eval"])
    yield from (["pull", "a b c"], ["pull", "x/../../y"], ["connect", "nobody"], ["bench", "frob"])


def bad_options() -> Iterator[list[str]]:
    """Yield a value that no number, time, share, file or choice has, for every option of every command."""
    from settle.base.registry import parts

    good = {"train": ["docs"], "tune": ["hf", "one.jsonl"], "distill": ["hf", "one.jsonl"], "shrink": ["hf"],
            "index": ["docs"], "ask": ["docs", "why?"], "chat": ["hf", "hi"], "eval": ["hf"],
            "export": ["hf"], "resume": ["x"], "pull": ["x"]}  # fmt: skip
    draw = random.Random(11)
    for name, command in parts("commands").items():
        for field, info in command.model_fields.items():
            if (
                name not in good
                or field in getattr(command, "positional", ())
                or info.annotation in (bool, str | None, str)
            ):
                continue
            for value in draw.sample(BAD_VALUES, 2):
                yield [name, *good[name], f"--{field.replace('_', '-')}", value]
        yield [name, "--frobnicate", "1"]


def leftovers(folder: Path) -> set[str]:
    """Return runs and half-written files: a wrong input begins nothing."""
    home = Path(os.environ["SETTLE_HOME"])
    runs = {f"run {path.name}" for path in (home / "runs").glob("*")}
    return runs | {str(path) for path in folder.glob(".*") if path.name.startswith((".unproven", ".work"))}


# --- no network, a full disk ---


def network(folder: Path) -> Iterator[Step]:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        yield Step("network", "unshare -n", -1, "", "left out: no right to make a network namespace")
        return
    alone = [
        "unshare",
        "-n",
        "sh",
        "-c",
        'ip link set lo up && exec "$@"',
        "-",
    ]  # with loopback, as offline machines have
    for command in ("pull smollm2", "pull someone/model", "tune smollm2 examples.jsonl", "chat smollm2 hi"):
        yield judged("network", command, settle(command, alone), wanted=(1, 2))
    for command in (f"train notes --name offline {TINY}", "chat offline 'To restart' --max-tokens 4", "models", "runs"):
        yield judged("network", command, settle(command, alone), wanted=(0,))


def disk(folder: Path) -> Iterator[Step]:
    """Yield commands on a full disk.

    Whatever was being written, the words say that the disk is full, and once there is room the same command, or `settle
    resume`, completes it.
    """
    place = folder / "full"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", place], capture_output=True).returncode:
        yield Step("disk", "mount -t tmpfs", -1, "", "left out: no right to mount")
        return
    home = os.environ["SETTLE_HOME"]
    try:
        settle("index docs --name before")  # gets the embedder, which the small disk would not hold
        os.environ["SETTLE_HOME"] = str(place / "home")
        (place / "home").mkdir()
        (place / "home" / "models").symlink_to(Path(home, "models"))
        (place / "ballast").write_bytes(bytes(7 << 20))
        yield from waiting(place, folder)
        yield judged("disk", "index docs --name x", settle("index docs --name x"), wanted=(1,), says="full|space|room")
        fill(place / "ballast", leave=300 << 10)
        yield judged("disk", "runs", settle("runs"), wanted=(0, 1))
        (place / "ballast").unlink()
        for command in (f"train notes --name b {TINY}", "index docs --name x"):
            yield judged("disk", f"{command} (after there is room)", settle(command), wanted=(0,))
    finally:
        os.environ["SETTLE_HOME"] = home
        subprocess.run(["umount", place], check=True)


def waiting(place: Path, folder: Path) -> Iterator[Step]:
    """Train on the full disk, which is warned of, waits, is stopped by Ctrl-C, and is resumed once there is room."""
    command, said = f"train notes --name a {TINY}", folder / "said.txt"
    line = [sys.executable, "-m", "settle", *shlex.split(command)]
    with said.open("wb") as out:
        run = subprocess.Popen(line, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=python_path())
        ends = time.monotonic() + LIMIT
        while run.poll() is None and WAITS not in said.read_text("utf-8", "replace") and time.monotonic() < ends:
            time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        try:
            code = run.wait(60)
        except subprocess.TimeoutExpired:
            run.kill()
            code = run.wait()
    text = said.read_text("utf-8", "replace")
    yield judged("disk", command, (code, text), wanted=(130,), says=f"(?s){WARNS}.*{WAITS}.*settle resume a")
    (place / "ballast").unlink()
    yield judged("disk", "resume a", settle("resume a"), wanted=(0,))
    settle("runs remove a --yes")  # the disk is small
    (place / "ballast").write_bytes(b"")
    fill(place / "ballast", leave=8 << 10)


def python_path() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def fill(path: Path, leave: int) -> None:
    with path.open("ab") as f:
        f.write(bytes(max(0, shutil.disk_usage(path.parent).free - leave)))


# --- running and judging ---


def settle(command: str, before: list[str] | None = None) -> tuple[int, str]:
    """Run a process; return its exit code, and what it wrote to stderr and stdout."""
    line = [*(before or []), sys.executable, "-m", "settle", *shlex.split(command)]
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=LIMIT, env=python_path(), stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end within {LIMIT} s"
    return done.returncode, done.stderr + done.stdout


def in_process(arguments: list[str]) -> tuple[int, str]:
    """Run a command without the time that a process needs to start; nothing that is wrong gets far."""
    from settle.cli import main

    raw, code, fault = io.BytesIO(), -1, ""
    out = io.TextIOWrapper(raw, "utf-8", write_through=True)
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        try:
            code = main(arguments)
        except SystemExit as e:
            code = int(e.code or 0) if isinstance(e.code, int | None) else 1
        except BaseException as e:  # noqa: BLE001  that is the fault that is looked for
            fault = f"\nTraceback: {type(e).__name__}: {e}"
    return code, raw.getvalue().decode() + fault


def judged(part: str, command: str, ended: tuple[int, str], wanted: tuple[int, ...], says: str = "") -> Step:
    code, said = ended
    faults = []
    if code not in wanted:
        faults.append(f"exit code {code}")
    if "Traceback" in said:
        faults.append("traceback")
    if CONTROL.search(said.replace("\r", "")):
        faults.append("control characters")
    if code in (1, 2) and part != "readme" and "→" not in said:
        faults.append("does not say what to do")
    if says and not re.search(says, said):
        faults.append(f"says nothing of {says}")
    return Step(part, command, code, ", ".join(faults), said[-300:])


RUN: dict[str, Callable[[Path], Iterator[Step]]] = {"readme": readme, "wrong": wrong, "network": network, "disk": disk}


def table(steps: list[Step]) -> str:
    lines = ["| part | inputs | answered well | faults |", "|---|--:|--:|---|"]
    for part in dict.fromkeys(step.part for step in steps):
        mine = [step for step in steps if step.part == part]
        bad = [step for step in mine if step.fault]
        lines.append(f"| {part} | {len(mine)} | {len(mine) - len(bad)} | {'; '.join(sorted({s.fault for s in bad}))} |")
    for step in steps:
        if step.fault or step.code == -1:
            lines.append(f"\n`settle {step.command}`: {step.fault or step.said}\n\n    {step.said[-300:].strip()!r}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
