"""What `settle runs audit` sees, stops and costs.

    python bench/audit.py attacks                 # fourteen ways out: without a ledger, watched, proved
    python bench/audit.py connect [--rounds 40]   # microseconds that watching adds to a connect, in pairs
    python bench/audit.py run FOLDER [--pairs 8]  # what it adds to `settle train FOLDER`, in the order A B B A
    python bench/audit.py commands [--models HOME/models]     # every command once, under one watched ledger

attacks: each in a process of its own, against listeners on this machine's loopback; without a ledger they get through,
which is the control. connect: two processes, one watched, take turns of 50 connects, 5 ms apart, to a listener on the
loopback. run: processor seconds of the run and all its children, the watcher among them, and seconds on the clock.
"""

import argparse
import contextlib
import json
import os
import resource
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from settle.audit.ledger import read_sessions  # noqa: E402  the root of the repository is not installed
from tests.audit.attacks import ATTACKS, Targets, is_recorded  # noqa: E402

HERE = Targets("127.0.0.1", "127.0.0.1", "::1")
BATCH = 50  # connects of one turn
UNDER_LEDGER = """
import os, socket, subprocess, sys, threading, time
{opening}
{code}
"""
OPENING = """
from settle.audit import session
session.from_command_line({offline})
context = session.ledger("bench", (), {offline})
opened = context.__enter__()
sys.stdout.write(opened.level + " " + str(opened.path) + "\\n")
"""
CONNECTING = """
{opening}
import os, socket, sys, time
sys.stdout.write("ready\\n"); sys.stdout.flush()
address = ("127.0.0.1", {port})
for line in sys.stdin:
    taken = []
    for _ in range({batch}):
        one = socket.socket()
        began = time.perf_counter_ns()
        one.connect(address)
        taken.append(time.perf_counter_ns() - began)
        one.close()
        time.sleep(0.005)
    sys.stdout.write(" ".join(map(str, taken)) + "\\n"); sys.stdout.flush()
"""
TRAINING = """
import sys
from settle.audit import session
from settle.cli import main
from settle.commands.make.train import Train
if {watched}:
    session.from_command_line(False)
else:
    Train.is_watched = False
    from contextlib import nullcontext
    from types import SimpleNamespace
    from settle.jobs import job
    job.ledger = lambda name: nullcontext(SimpleNamespace(put_into=lambda path: None))
main({argv})
"""


def environment(home: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"SETTLE_HOME": home, "PYTHONPATH": paths, "RES_OPTIONS": "timeout:1 attempts:1"}


def hang_up(listening: socket.socket, reached: threading.Event) -> None:
    """Accept connections and end them, so that no client waits for an answer."""
    with contextlib.suppress(OSError):
        while True:
            listening.accept()[0].close()
            reached.set()


def attack(name: str, level: str) -> dict[str, object]:
    """One attack at one level: whether a listener was reached, and whether the ledger has it."""
    address, port = HERE.reached(name)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with tempfile.TemporaryDirectory() as home, socket.socket(family, 2 if name == "UDP" else 1) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        reached = threading.Event()
        if name != "UDP":
            listening.listen()
            threading.Thread(target=hang_up, args=(listening, reached), daemon=True).start()
        opening = "" if level == "none" else OPENING.format(offline=level == "proved")
        code = HERE.code(name).replace("assert made < 0", "print('io_uring', made, file=sys.stderr)")
        run = [sys.executable, "-c", UNDER_LEDGER.format(opening=opening, code=code)]
        done = subprocess.run(run, env=environment(home), capture_output=True, text=True)
        came = bool(select.select([listening], [], [], 0)[0]) if name == "UDP" else reached.is_set()
        if name == "io_uring":
            came = any(line.startswith("io_uring") and "-1" not in line for line in done.stderr.splitlines())
        if name != "UDP":
            listening.shutdown(socket.SHUT_RDWR)  # ends the thread
        found: dict[str, object] = {"got through": came}
        if level != "none":
            told, path = done.stdout.split()[:2]
            assert told == level, done.stderr
            found["recorded"] = is_recorded(name, read_sessions([Path(path)], True), HERE)
        return found


def attacks() -> None:
    rows = {name: {level: attack(name, level) for level in ("none", "watched", "proved")} for name in ATTACKS}
    for name, row in rows.items():
        print(
            f"{name:18}",
            *(f"{level}: {', '.join(k for k, v in row[level].items() if v) or '–'}" for level in row),
            sep="  ",
        )
    recorded = [sum(bool(row[level]["recorded"]) for row in rows.values()) for level in ("watched", "proved")]
    through = sum(bool(row["proved"]["got through"]) for row in rows.values())
    print(f"recorded when watched: {recorded[0]} of {len(rows)}; proved: {through} got through, {recorded[1]} recorded")


def connect(rounds: int) -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    port = listening.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        sides = {}
        for name, opening in (("bare", ""), ("watched", "import sys\n" + OPENING.format(offline=False))):
            code = CONNECTING.format(opening=opening, port=port, batch=BATCH)
            sides[name] = subprocess.Popen(
                [sys.executable, "-c", code],
                env=environment(home),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            line = ""
            while line != "ready\n":
                line = sides[name].stdout.readline()
        added, all_of = [], {"bare": [], "watched": []}
        for number in range(rounds):
            took = {}
            for name in list(sides) if number % 2 else reversed(list(sides)):
                sides[name].stdin.write("go\n")
                sides[name].stdin.flush()
                took[name] = [int(ns) / 1000 for ns in sides[name].stdout.readline().split()]
                for _ in range(BATCH):
                    listening.accept()[0].close()
            added.append(statistics.median(took["watched"]) - statistics.median(took["bare"]))
            for name, values in took.items():
                all_of[name] += values
        for side in sides.values():
            side.stdin.close()
            side.wait()
    print(
        f"added to a connect, median of {rounds} pairs: {statistics.median(added):.0f} µs (largest {max(added):.0f} µs)"
    )
    for name, values in all_of.items():
        values.sort()
        at = {share: values[int(share * len(values))] for share in (0.5, 0.95, 0.99)}
        print(f"{name}, the whole connect:", ", ".join(f"{share:.0%} {us:.0f} µs" for share, us in at.items()))


def train(folder: str, watched: bool) -> tuple[float, float]:
    """Processor seconds, and seconds on the clock."""
    argv = ["train", folder, "--name", "run", "--steps", "60", "--size", "500k", "--threads", "1", "--json"]
    with tempfile.TemporaryDirectory() as home:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        code = TRAINING.format(watched=watched, argv=argv)
        subprocess.run([sys.executable, "-c", code], env=environment(home), capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.monotonic() - began


def run(folder: str, pairs: int) -> None:
    ratios = []
    for number in range(pairs):
        took = {side: train(folder, side) for side in ((False, True) if number % 2 else (True, False))}
        ratios.append([a / b for a, b in zip(took[True], took[False], strict=True)])
        print(f"pair {number + 1}: processor ×{ratios[-1][0]:.4f}, clock ×{ratios[-1][1]:.4f}", flush=True)
    for name, values in zip(("processor", "clock"), zip(*ratios, strict=True), strict=True):
        print(f"{name}: median ×{statistics.median(values):.4f}, {min(values):.4f} to {max(values):.4f}")


def commands(models: str | None) -> None:
    with tempfile.TemporaryDirectory() as home:
        if models:
            shutil.copytree(models, Path(home) / "models")
        made = [sys.executable, "-m", "tests.audit.every_command"]
        done = subprocess.run(made, env=environment(home), cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print("level:", found["level"])
    for name, command in found["commands"].items():
        beyond = ", ".join(command["beyond"]) or "nothing"
        print(
            f"{name:10} exit {command['code']}, beyond this machine: {beyond}; undeclared: {len(command['undeclared'])}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_subparsers(dest="what", required=True)
    asked.add_parser("attacks")
    asked.add_parser("commands").add_argument("--models", help="models of a settle home, such as its embedder")
    of_connect, of_run = asked.add_parser("connect"), asked.add_parser("run")
    of_connect.add_argument("--rounds", type=int, default=40)
    of_run.add_argument("folder")
    of_run.add_argument("--pairs", type=int, default=8)
    given = vars(parser.parse_args())
    {"attacks": attacks, "commands": commands, "connect": connect, "run": run}[given.pop("what")](**given)
