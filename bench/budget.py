"""Asked and taken: whether `--time` is kept, by the wall clock, and how near the time left was that a person was told.

    python bench/budget.py                                  # train, tune and distill; idle, under load, resumed
    python bench/budget.py --cases train --ways idle,load   # some of them
    python bench/budget.py --time 60s --table bench/results/budget.md
    python bench/budget.py --drawn 20 --seed 3              # cases, ways and times of 4 to 7 min from a seed

Every run is a process of its own, and what counts is from its start to its end. Load: a busy process joins at half of
the time. Changing: up to two busy processes come and go, each change after 5 to 40 s. Resumed: Ctrl-C at half of the
time, then `settle resume`; both sessions count; killed: the same with kill -9. Where runs are drawn, the load changes
in all of them. The time left is read whenever the terminal would show it, from a quarter of the time on, as an error of
the whole time. A tiny base is trained first, once (seconds on an idle machine); nine runs of 90 s are about a quarter
of an hour.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

CASES, WAYS = ("train", "tune", "distill"), ("idle", "load", "resume")
DRAWN_CASES = ("train", "train", "tune", "distill")
DRAWN_WAYS = ("changing", "changing", "changing", "resume", "killed")
DRAWN_SECONDS = 270, 420
MOST_BUSY, CHANGE_SECONDS = 2, (5.0, 40.0)  # processes at once; from one change of the load to the next
MODULES = (
    "argparse",
    "ast",
    "calendar",
    "cmd",
    "csv",
    "difflib",
    "dis",
    "inspect",
    "locale",
    "optparse",
    "pdb",
    "shlex",
)
KEPT_SHARE, KEPT_SECONDS = 0.05, 20.0  # the promise: within either
ETA_BAR = 0.20
AFTER = ("loop", "judge", "export", "compare", "result")  # stages whose seconds are noted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="of train, tune, distill")
    parser.add_argument("--ways", default=",".join(WAYS), help="of idle, load, resume")
    parser.add_argument("--time", default="90s", help="what each run is asked to take")
    parser.add_argument("--drawn", type=int, help="so many runs of drawn cases, ways and times instead")
    parser.add_argument("--together", type=int, default=1, help="runs at a time, each other's load")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn, and of the load")
    parser.add_argument("--table", type=Path, help="where the table is written as well")
    parser.add_argument("--child", nargs=3, metavar=("JOB", "SETTINGS", "LEFT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        sys.exit(child(*asked.child))
    cases, ways = (text.split(",") for text in (asked.cases, asked.ways))
    if unknown := [name for name in (*cases, *ways) if name not in CASES + WAYS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    wanted = [(case, way, asked.time, None) for case in cases for way in ways]
    if asked.drawn:
        wanted = drawn(asked.drawn, asked.seed)
    with tempfile.TemporaryDirectory(prefix="settle-budget-") as folder, ThreadPoolExecutor(asked.together) as pool:
        make_base(Path(folder))
        measured = list(pool.map(lambda one: measure(*one, Path(folder)), [(n, *one) for n, one in enumerate(wanted)]))
    print(table(measured, asked.table))


def drawn(number: int, seed: int) -> list[tuple[str, str, str, int | None]]:
    """(case, way, time, seed of the load) of so many runs."""
    draw = random.Random(seed)
    return [
        (draw.choice(DRAWN_CASES), draw.choice(DRAWN_WAYS), f"{draw.randint(*DRAWN_SECONDS)}s", draw.randrange(2**32))
        for _ in range(number)
    ]


class ChangingLoad(threading.Thread):
    """Busy processes that come and go, by a seed, while it is entered."""

    def __init__(self, seed: int) -> None:
        super().__init__(daemon=True)
        self.draw, self.over = random.Random(seed), threading.Event()

    def run(self) -> None:
        busy: list[subprocess.Popen[bytes]] = []
        while not self.over.wait(self.draw.uniform(*CHANGE_SECONDS)):
            wanted = self.draw.randint(0, MOST_BUSY)
            for process in busy[wanted:]:
                process.kill()
                process.wait()
            more = range(wanted - len(busy))
            busy = busy[:wanted] + [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in more]
        for process in busy:
            process.kill()
            process.wait()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def child(job: str, settings: str, left_file: str) -> int:
    """One session in this process; every time left that is shown goes to `left_file`, as (time, seconds)."""
    from settle.base.errors import SettleError
    from settle.base.event_log import Events
    from settle.base.events import Event
    from settle.base.run import launcher
    from settle.base.run.course import RunCourse
    from settle.show.talk import Talk

    launcher.note_start()
    talk, course = Talk(), RunCourse(keep_steps=False)
    with open(left_file, "a", encoding="utf-8") as lines:

        def listen(event: Event) -> None:
            course.add(event)
            left = course.left.seconds()
            lines.write(json.dumps([event.time, event.kind, None if left is None else left[0]]) + "\n")
            talk.show(event)

        try:
            return session(job, settings, Events(listeners=[listen]))
        except (SettleError, KeyboardInterrupt) as e:
            print(f"{type(e).__name__}: {e}", file=sys.stderr)
            return 130


def session(job: str, settings: str, events: Any) -> int:
    from settle.jobs.job import find_job, resume, start

    if job == "resume":
        return resume(settings, events)
    found = find_job(job)
    return start(found, found.settings.model_validate(json.loads(settings)), events).exit_code or 0


def measure(number: int, case: str, way: str, budget: str, load: int | None, folder: Path) -> dict[str, Any]:
    from settle.base.amounts import seconds

    wanted, name = seconds(budget), f"{case}-{way}-{number}"
    environment = environment_of(folder)
    left, log = folder / f"{name}.left", folder / f"{name}.log"
    began = time.monotonic()
    with ExitStack() as stack:
        if load is not None:
            stack.enter_context(ChangingLoad(load))
        process = run([case, json.dumps(settings(case, name, budget, folder)), str(left)], log, environment)
        if way == "load":
            wait(process, wanted / 2)
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.kill)
        if way in ("resume", "killed"):
            wait(process, wanted / 2)
            process.send_signal(signal.SIGINT if way == "resume" else signal.SIGKILL)
            process.wait()
            process = run(["resume", name, str(left)], log, environment)
        code = process.wait()
        taken = time.monotonic() - began
    shown = [json.loads(line) for line in left.read_text().splitlines()]
    found = {"case": case, "way": way, "asked": wanted, "taken": taken, "code": code, "errors": errors(shown, taken),
             **ended(folder, name)}  # fmt: skip
    print(json.dumps(found | {"errors": len(found["errors"])}), file=sys.stderr, flush=True)
    return found


def environment_of(folder: Path) -> dict[str, str]:
    return os.environ | {"SETTLE_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}


def make_base(folder: Path) -> None:
    """Make the model that is tuned and distilled, and the rows."""
    base = {"inputs": [str(text(folder))], "name": "base", "size": "200k", "steps": 60, "seed": 1}
    rows(folder)
    run(["train", json.dumps(base), str(folder / "base-made")], folder / "base.log", environment_of(folder)).wait()


def settings(case: str, name: str, budget: str, folder: Path) -> dict[str, object]:
    common: dict[str, object] = {"name": name, "time": budget}
    if case == "train":
        return common | {"inputs": [str(text(folder))]}
    if case == "tune":
        return common | {"model": "base", "inputs": [str(rows(folder))]}
    return common | {"teacher": "base", "inputs": [str(text(folder))], "drop_layers": 1}


def text(folder: Path) -> Path:
    target = folder / "text"
    if not target.exists():
        target.mkdir()
        library = Path(sysconfig.get_path("stdlib"))
        for name in MODULES:
            (target / f"{name}.py").write_text((library / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    return target


def rows(folder: Path) -> Path:
    """Support tickets to sort: four hundred, from a seed."""
    target, draw = folder / "rows.jsonl", random.Random(7)
    devices, queues = ("printer", "laptop", "phone", "router"), ("hardware", "network", "billing")
    if not target.exists():
        with target.open("w", encoding="utf-8") as f:
            for number in range(400):
                device, queue = draw.choice(devices), draw.choice(queues)
                prompt = f"Ticket {number}: my {device} has a problem. It concerns {queue}. Sort it:"
                f.write(json.dumps({"prompt": prompt, "completion": f" {queue} / {device}"}) + "\n")
    return target


def run(arguments: list[str], log: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    with log.open("ab") as f:
        return subprocess.Popen([sys.executable, __file__, "--child", *arguments], stdout=f, stderr=f, env=environment,
                                start_new_session=True)  # fmt: skip


def wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def errors(shown: list[list[Any]], taken: float) -> list[float]:
    """(predicted ÷ taken − 1) of the whole time, of everything shown from a quarter of the time on.

    An interruption counts as working time where a session is being resumed: it is a second or two.
    """
    if not shown:
        return []
    end = shown[-1][0]
    began = end - taken
    later = [(at, left) for at, _, left in shown if left is not None and at - began >= taken / 4]
    return [(at + left - began) / taken - 1 for at, left in later]


def ended(folder: Path, name: str) -> dict[str, object]:
    """Verdict, steps, and the last rate as a share of the highest."""
    from settle.base.event_log import read_records

    paths = sorted((folder / "home" / "runs").glob(f"*-{name}-??????"))
    if not paths:
        return {"verdict": "no run", "steps": 0, "last_rate": float("nan"), "shortened": "", "took": {}, "planned": {}}
    path = paths[-1]
    records = list(read_records(path / "events.jsonl"))
    steps = [record for record in records if record["kind"] == "step"]
    phases = [record for record in records if record["kind"] == "phase"]
    ends = [*(float(str(r["time"])) for r in phases[1:]), float(str(records[-1]["time"]))]
    took = {str(r["phase"]): round(end - float(str(r["time"])), 1) for r, end in zip(phases, ends, strict=True)}
    rates = [float(str(record["lr"])) for record in steps]
    result = json.loads((path / "result.json").read_text()) if (path / "result.json").exists() else {}
    compared = result.get("comparison") or {}
    return {
        "verdict": result.get("verdict", "none"),
        "steps": len(steps),
        "last_rate": rates[-1] / max(rates) if rates else float("nan"),
        "shortened": "; ".join(compared.get("shortened") or ()),
        "took": {name: took[name] for name in AFTER if name in took},
        "planned": {name: s for name, s in (result.get("forecast") or {}).get("phases") or () if name in AFTER},
    }


def table(measured: list[dict[str, Any]], path: Path | None) -> str:
    head = ("case", "way", "asked", "taken", "off", "kept", "ETA error: median", "worst", "ETA kept", "steps",
            "last rate", "verdict", "left out")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for m in measured:
        off = m["taken"] - m["asked"]
        is_kept = abs(off) <= max(KEPT_SHARE * m["asked"], KEPT_SECONDS)
        apart = [abs(error) for error in m["errors"]] or [float("nan")]
        cells = (m["case"], m["way"], f"{m['asked']:.0f} s", f"{m['taken']:.1f} s", f"{100 * off / m['asked']:+.1f} %",
                 "✓" if is_kept else "no", f"{100 * statistics.median(apart):.1f} %", f"{100 * max(apart):.1f} %",
                 "✓" if max(apart) <= ETA_BAR else "no", m["steps"], f"{m['last_rate']:.3f}", m["verdict"],
                 m["shortened"])  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    text = "\n".join(lines)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
    return text


if __name__ == "__main__":
    main()
