"""Speed beside one busy process: training, tuning, embedding and serving, before and now, idle and busy in turns.

    python bench/busy.py [--before 679c961] [--only training tuning embedding serving] [--rounds 3]
    python bench/busy.py --before 7233fd96 --only starting [--text FILE]

About ten minutes for everything on two idle cores. Each job is the product's own (`settle train`, `settle tune`, the
embedder of `settle index`, llama.cpp in the child that serves), once from the tree of --before and once from this one.
Both are started alone, one after the other, on the machine as it is; then they take turns, the other one stopped:
before, now, and both again while one process computes without an end. The order changes with every round. What a job
does in the first --settle seconds of its turn is not counted: load that begins is noticed in half a second to a few
seconds. Ratios are of turns of one round. "begun busy" is a run of this tree that starts while the other process
computes, as its number of threads is chosen then. `others` is how many cores were in use with all jobs stopped: a
figure above 0.2 means that the machine was not free, and the table says nothing about an idle one.

starting: seconds from the start of a process until `settle --help` has ended, until `settle ask` has answered from the
pages of docs/, and until `settle train FILE --time 60s` has taken its first step, in an empty home and in the same one
again; FILE: its first megabyte. The trees take turns; before the first of them each is run once, for its bytecode.

Prints a table in Markdown.
"""

import argparse
import datetime
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
START_SECONDS = 240
STEPS = "4000"  # more than a run takes in its turns, few enough for a short forecast
SETTLE = (sys.executable, "-P", "-m", "settle")  # -P: the tree is that of PYTHONPATH, wherever we are
BAR, IDLE_BAR = 0.45, 0.97
WORKERS = {
    "embedding": """
import sys, time, json
from settle.retrieve.index.embedders.minilm import Minilm
texts = [t for t in open(sys.argv[1], encoding="utf-8").read().split("\\n\\n") if 40 < len(t) < 300][:32]
vectorizer = Minilm().open()
while True:
    vectorizer.documents(texts)
    print(time.time(), len(texts), flush=True)
""",
    "serving": """
import sys, time
from settle.infer.engine import Engine
from settle.library.resolve import resolve_gguf
with Engine(resolve_gguf("smollm2").weights, 1024) as engine:
    print("child", engine.pid, flush=True)
    while True:
        for piece in engine.complete("The history of the city begins", 200, 0.0):
            print(time.time(), 1, flush=True)
""",
}


class Job:
    """One job of one tree, stopped whenever it is not its turn."""

    def __init__(self, what: str, tree: Path, home: Path, data: dict[str, Path]) -> None:
        self.what, self.home, self.log = what, home, home / "out.txt"
        home.mkdir(exist_ok=True)
        (home / "models").exists() or (home / "models").symlink_to(data["models"])
        command = [*SETTLE]
        common = ["--name", "busy", "--steps", STEPS, "--tolerance", "1e-9", "--dtype"]
        if what.startswith("training"):
            dtype = what.rpartition(" ")[2]
            command += ["train", str(data["text"]), "--size", "1M", *common, dtype]
        elif what == "tuning":
            command += [
                "tune",
                str(data["base"]),
                str(data["rows"]),
                *common,
                "float32",
                "--no-compare",
                "--rows.most-too-long",
                "0.9",
            ]
        else:
            command = [sys.executable, "-P", "-c", WORKERS[what], str(data["text"])]
        env = os.environ | {"PYTHONPATH": str(tree), "SETTLE_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
            env.pop(name, None)
        self.process = subprocess.Popen(
            command, stdout=self.log.open("wb"), stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        deadline = time.time() + START_SECONDS
        while len(self.events()) < 4:
            if self.process.poll() is not None or time.time() > deadline:
                self.end()
                raise SystemExit(f"{what} did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.2)
        self.send(signal.SIGSTOP)

    def events(self) -> list[tuple[float, float]]:
        """Return the events as (time, units done since the event before)."""
        if self.what in WORKERS:
            rows = [line.split() for line in self.log.read_text().splitlines()]
            return [(float(a), float(b)) for a, b in (row for row in rows if len(row) == 2) if a[:1].isdigit()]
        found: list[tuple[float, float]] = []
        for path in (self.home / "runs").glob("*/events.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                event = json.loads(line)
                if event["kind"] == "step":
                    found.append((event["time"], event["tokens"]))
        return [(t, n - before) for (_, before), (t, n) in zip(found, found[1:], strict=False)]

    def turn(self, seconds: float, settle: float) -> float:
        """Units per second, from the first event after `settle` seconds to the last."""
        began = time.time()
        self.send(signal.SIGCONT)
        time.sleep(seconds)
        self.send(signal.SIGSTOP)
        counted = [(t, n) for t, n in self.events() if began + settle < t < began + seconds]
        if len(counted) < 3:
            raise SystemExit(f"{self.what}: {len(counted)} events in a turn; give a longer --turn")
        return sum(n for _, n in counted[1:]) / (counted[-1][0] - counted[0][0])

    def send(self, what: signal.Signals) -> None:
        for group in [self.process.pid, *self._children()]:
            os.killpg(group, what)

    def end(self) -> None:
        for group in [*self._children(), self.process.pid]:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def _children(self) -> list[int]:
        head = self.log.read_text().split("\n", 1)[0].split()
        return [int(head[1])] if head[:1] == ["child"] else []


@contextmanager
def load() -> Iterator[None]:
    """One process that computes."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def others(seconds: float = 0.5) -> float:
    """Cores in use while every job is stopped."""

    def used() -> float:
        fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    return (used() - before) / (time.monotonic() - began)


def measure(what: str, trees: dict[str, Path], work: Path, data: dict[str, Path], asked: argparse.Namespace) -> str:
    rates: dict[tuple[str, str], list[float]] = {}
    quiet: list[float] = []
    jobs: dict[str, Job] = {}
    try:
        for side, tree in trees.items():
            jobs[side] = Job(what, tree, work / f"{what} {side}".replace(" ", "-"), data)
        if what == "training float32":
            with load():
                jobs["begun busy"] = Job(what, trees["now"], work / "begun-busy", data)
        for number in range(asked.rounds):
            order = list(jobs) if number % 2 else list(jobs)[::-1]
            quiet.append(others())
            for side in order:
                rates.setdefault((side, "idle"), []).append(jobs[side].turn(asked.turn, asked.settle))
            with load():
                for side in order:
                    rates.setdefault((side, "busy"), []).append(jobs[side].turn(asked.turn, asked.settle))
    finally:
        for job in jobs.values():
            job.end()
    free = statistics.median(quiet)
    lines = []
    for side in list(jobs)[1:]:
        idle = _ratios(rates[side, "idle"], rates["before", "idle"])
        busy = _ratios(rates[side, "busy"], rates[side if side == "now" else "now", "idle"])
        was = _ratios(rates["before", "busy"], rates["before", "idle"])
        met = statistics.median(busy) >= BAR and (side != "now" or statistics.median(idle) >= IDLE_BAR)
        cells = [
            what if side == "now" else f"{what}, {side}",
            f"{statistics.median(rates['before', 'idle']):,.0f}",
            f"{statistics.median(rates[side, 'idle']):,.0f}",
            _shown(idle),
            _shown(was),
            _shown(busy),
            f"{free:.2f}",
            "met" if met else "**missed**",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def starting(trees: dict[str, Path], work: Path, text: Path, rounds: int) -> str:
    """Return the lines of what processes take to begin, before and now in turns."""
    first = work / "megabyte.txt"
    first.write_bytes(text.read_bytes()[:1_000_000])
    asked, question = work / "asked", "how do I resume a run?"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": str(work / "bytecode")}
    seconds: dict[str, dict[str, list[float]]] = {}
    index = ["index", str(HERE / "docs"), "--name", "docs"]
    made = environment | {"PYTHONPATH": str(HERE), "SETTLE_HOME": str(asked)}
    subprocess.run([*SETTLE, *index], env=made, check=True, capture_output=True)
    for number in range(-1, rounds):
        for side in list(trees)[:: 1 if number % 2 else -1]:
            home = work / f"home-{side}-{number}"
            env = environment | {"PYTHONPATH": str(trees[side])}
            took = {
                "`settle --help`": _process(["--help"], env),
                "`settle ask`": _process(["ask", "docs", question], env | {"SETTLE_HOME": str(asked)}),
                "first step, empty home": _first_step(first, home, env),
                "first step, again": _first_step(first, home, env),
            }
            for what, value in took.items():
                if number >= 0:
                    seconds.setdefault(what, {}).setdefault(side, []).append(value)
    return "\n".join(
        f"| {what} | {statistics.median(of['before']):.2f} s | {statistics.median(of['now']):.2f} s"
        f" | {_shown(_ratios(of['now'], of['before']))} |"
        for what, of in seconds.items()
    )


def _process(command: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([*SETTLE, *command], env=env, check=True, capture_output=True)
    return time.perf_counter() - began


def _first_step(text: Path, home: Path, env: dict[str, str]) -> float:
    """Seconds from the start of a run of a minute to its first step, at which it is killed."""
    shutil.rmtree(home / "runs", ignore_errors=True)
    command, began = [*SETTLE, "train", str(text), "--time", "60s"], time.time()
    with subprocess.Popen(
        command, env=env | {"SETTLE_HOME": str(home)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            lines = [line for log in home.glob("runs/*/events.jsonl") for line in log.read_text().split("\n")[:-1]]
            if steps := [event for event in map(json.loads, lines) if event["kind"] == "step"]:
                process.kill()
                return float(steps[0]["time"]) - began
            time.sleep(0.05)
    raise SystemExit(f"settle train ended with {process.returncode} before its first step")


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def library_text(path: Path) -> Path:
    """Write the largest modules of Python's library to `path`."""
    sources = sorted(Path(os.__file__).parent.glob("*.py"), key=lambda p: p.stat().st_size)[-40:]
    path.write_text("\n\n".join(p.read_text(encoding="utf-8", errors="replace") for p in sources), encoding="utf-8")
    return path


def prepared(work: Path) -> dict[str, Path]:
    """Text, rows and models that both trees use."""
    text = library_text(work / "text.txt")
    pieces = [piece.strip() for piece in text.read_text(encoding="utf-8").split("\n\n") if 80 < len(piece) < 400]
    rows = work / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as out:
        for i in range(0, min(len(pieces) - 1, 800), 2):
            out.write(json.dumps({"prompt": pieces[i][:200], "completion": pieces[i + 1][:200]}) + "\n")
    home = work / "home"
    env = os.environ | {"SETTLE_HOME": str(home), "PYTHONPATH": str(HERE)}
    for model in ("smollm2", "minilm"):
        subprocess.run([*SETTLE, "pull", model], env=env, check=True, capture_output=True)
    # a small base: proving and forecasting a large one would take longer than all turns
    made = ["train", str(text), "--size", "3M", "--steps", "30", "--name", "base"]
    subprocess.run([*SETTLE, *made], env=env, check=True, capture_output=True, cwd=work)
    (base,) = (home / "runs").glob("*-base-*/out/base.gguf")
    return {"text": text, "rows": rows, "models": home / "models", "base": base}


def tree_of(commit: str, folder: Path) -> Path:
    """Put the package as it was at a commit into `folder`; return that."""
    archive = subprocess.run(["git", "-C", str(HERE), "archive", commit, "settle"], capture_output=True)
    if archive.returncode:
        raise SystemExit(archive.stderr.decode())
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ["training float32", "training bfloat16", "tuning", "embedding", "serving"]
    parser.add_argument("--before", default="679c961", help="commit to compare with")
    parser.add_argument("--only", nargs="+", default=["training", "tuning", "embedding", "serving"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=Path, help="what `starting` trains on; Python's library if not given")
    parser.add_argument("--turn", type=float, default=8.0, help="seconds of a turn")
    parser.add_argument("--settle", type=float, default=3.5, help="seconds of a turn that are not counted")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # no job is left behind, stopped for ever
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="settle-busy-") as folder:
        work = Path(folder)
        trees = {"before": tree_of(asked.before, work / "before"), "now": HERE}
        if asked.only == ["starting"]:
            print("| until | before | now | now ÷ before |\n|---|--:|--:|--:|")
            print(starting(trees, work, asked.text or library_text(work / "text.txt"), asked.rounds))
            return
        data = prepared(work)
        head = [
            f"{datetime.date.today()}, `python bench/busy.py`, {os.cpu_count()} cores; tokens or texts per second.",
            "",
            f"| job | {asked.before}, idle | now, idle | now ÷ before, idle | before, busy ÷ idle | now, busy ÷ idle | "
            "others, cores | bar |",
            "|---|--:|--:|--:|--:|--:|--:|---|",
        ]
        print("\n".join(head), flush=True)
        for what in kinds:
            if what.split()[0] in asked.only:
                print(measure(what, trees, work, data, asked), flush=True)
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
