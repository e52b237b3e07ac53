"""The kill matrix: a run is stopped in every way, `settle resume` goes on, the weights end byte for byte the same.

    python bench/kill.py                    # everything
    python bench/kill.py --tune             # the same of a LoRA over a tiny base, past its first epoch
    python bench/kill.py --reduced --json   # what the tests run

Every session is a process of its own that runs the real command line and is really killed. It is forked from one that
has imported torch already, so that the moments fall into the work and not into the imports. Inside a save a profiling
hook counts the file events (mkdir, open, write, flush, fsync, rename, unlink …) and kills, or reports a full disk, at
the n-th; nothing of settle's is replaced.
"""

import argparse
import datetime
import errno
import hashlib
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import safetensors.numpy  # noqa: E402

from settle.cli import main  # noqa: E402
from settle.train import checkpoint  # noqa: E402

for _room in ("data", "train", "plan", "evaluate", "show", "commands"):  # so that a session does not load them again
    _folder = importlib.import_module(f"settle.{_room}").__path__
    for _module in pkgutil.walk_packages(_folder, f"settle.{_room}."):
        importlib.import_module(_module.name)
for _package in ("matplotlib.figure", "matplotlib.font_manager", "matplotlib.backends.backend_agg", "rich.live"):
    importlib.import_module(_package)

STEPS, EVERY = 45, 20  # regular checkpoints at 0, 20 and 40, and one at the end
SETTINGS = [
    "--name", "k", "--size", "60k", "--steps", str(STEPS), "--dtype", "float32",
    "--batch-tokens", "128", "--threads", "1", "--data.vocab-size", "400", "--keep-checkpoints",
]  # fmt: skip
TUNE_SETTINGS = [
    "--name", "k", "--steps", str(STEPS), "--dtype", "float32", "--batch-rows", "4", "--adapter.rank", "4",
    "--threads", "1", "--rows.held-out", "0.2", "--rates.lr", "0.01", "--no-compare", "--keep-checkpoints",
]  # fmt: skip
FILE_EVENTS = {
    "mkdir", "open", "write", "flush", "fsync", "close", "rename", "replace", "rmdir", "unlink", "remove", "scandir",
}  # fmt: skip
PATIENCE = 120.0  # seconds after which a session counts as hung


def killed_after(step: int) -> Any:
    """Return a hook that kills the process once the save of `step` has returned: all of the run but the export."""

    def hook(frame: Any, event: str, arg: Any) -> None:
        if event == "return" and frame.f_code is checkpoint.save.__code__ and frame.f_locals["checkpoint"].step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


class Fault:
    """A profiling hook that does `act` at each file event of the saves of step `step`, and `over` behind each save."""

    def __init__(self, step: int, act: Callable[[int], None], over: Callable[[], None] = lambda: None) -> None:
        self.step, self.act, self.over = step, act, over
        self.depth = self.count = 0

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        if frame.f_code is checkpoint.save.__code__ and event in ("call", "return"):
            if event == "call" and frame.f_locals["checkpoint"].step == self.step:
                self.depth, self.count = 1, 0
            elif self.depth:
                self.depth = 0
                self.over()
        elif event == "c_call" and self.depth and getattr(arg, "__name__", "") in FILE_EVENTS:
            self.count += 1
            self.act(self.count)


@dataclass
class Session:
    """One process that has ended: its exit code (negative: the signal), its output, how long it took."""

    code: int
    output: str
    seconds: float


def begin(home: Path, argv: list[str], hook: Any = None) -> int:
    """Start `settle argv` in a forked process; its id."""
    home.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ["SETTLE_HOME"] = str(home)
        log = os.open(f"{home}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.setprofile(hook)
        code = main(argv)
        sys.setprofile(None)
        sys.stderr.flush()
        os._exit(code)
    except BaseException:  # noqa: BLE001  (a forked child must end here)
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)


def end(home: Path, pid: int, began: float, patience: float = PATIENCE) -> Session:
    """Wait for a session. One that hangs is killed and told as 124."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() - began > patience:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = 124 << 8
            break
        time.sleep(0.005)
    output = Path(f"{home}.log").read_text(errors="replace")
    return Session(os.waitstatus_to_exitcode(status), output, time.monotonic() - began)


def session(home: Path, argv: list[str], hook: Any = None, patience: float = PATIENCE) -> Session:
    began = time.monotonic()
    return end(home, begin(home, argv, hook), began, patience)


@dataclass
class Matrix:
    """The cases, the data they train on, and what an uninterrupted run made of it."""

    folder: Path
    reduced: bool
    tune: bool = False

    def __post_init__(self) -> None:
        self.data = self.folder / "data"
        self.data.mkdir()
        words = [f"{a}{b}" for a in ("lo", "mi", "sa", "tu", "ren", "vok") for b in ("ma", "dri", "k", "sel", "no")]
        chance = random.Random(5)
        for number in range(60):
            text = " ".join(chance.choice(words) for _ in range(300))
            (self.data / f"{number}.txt").write_text(text + "\n")
        self.random = random.Random(11)
        self.train = ["train", str(self.data), *SETTINGS, "--context", "32"]
        if self.tune:
            self.train = ["tune", *self._base_and_rows(), *TUNE_SETTINGS]
        whole = session(self.folder / "whole", self.train)
        assert whole.code == 0, whole.output
        self.seconds = whole.seconds
        self.expected, self.tensors = fingerprint(self.folder / "whole"), tensors(self.folder / "whole")
        # a run that was killed between the saves of steps 20 and 40, for the cases that begin there
        self.half = self.folder / "half"
        killed = session(self.half, self.train, Fault(40, lambda count: os.kill(os.getpid(), signal.SIGKILL)))
        assert killed.code == -signal.SIGKILL, killed.output
        self.failures: list[str] = []
        self.number = 0

    def _base_and_rows(self) -> list[str]:
        """Train a base for a moment, and write rows for it."""
        home, rows = self.folder / "base", self.folder / "rows.jsonl"
        made = session(home, ["train", str(self.data), *SETTINGS, "--context", "128"])
        assert made.code == 0, made.output
        chance = random.Random(6)
        words = (self.data / "0.txt").read_text().split()
        told = [{"prompt": chance.choice(words), "completion": " ".join(chance.choices(words, k=4))} for _ in range(60)]
        rows.write_text("".join(json.dumps(row) + "\n" for row in told))
        return [str(next((home / "runs").iterdir()) / "out" / "hf"), str(rows)]

    def copy(self, source: Path) -> Path:
        """Copy `source` as a home of its own for one case."""
        self.number += 1
        home = self.folder / f"case{self.number}"
        shutil.copytree(source, home)
        return home

    def fresh(self) -> Path:
        """Return a home where the data is prepared, and no run yet."""
        home = self.copy(self.folder / "whole")
        shutil.rmtree(home / "runs")
        return home

    def settle(self, home: Path, what: str, ended: Session | None = None, expect: set[int] | None = None) -> bool:
        """`settle resume` once, and the comparison. `train` again only if the run had not begun to exist."""
        wrong = ""
        if ended is not None and expect is not None and ended.code not in expect:
            wrong = f"exit code {ended.code}: {ended.output[-500:]}"
        runs = list((home / "runs").glob("*")) if (home / "runs").exists() else []
        began = bool(runs) and ((runs[0] / "recipe.toml").exists() or (runs[0] / "plan.json").exists())
        if not began:
            for run in runs:
                shutil.rmtree(run)
        if not wrong:
            done = session(home, ["resume", "k"] if began else self.train)
            if done.code != 0:
                wrong = f"resume ended with {done.code}: {done.output[-800:]}"
            elif fingerprint(home) != self.expected:
                wrong = "the weights differ"
            else:
                wrong = leftovers(home)
        if wrong:
            self.failures.append(f"{what}: {wrong}")
        else:
            shutil.rmtree(home)
        return not wrong

    # --- the cases ---

    def killed_at_random(self, count: int) -> tuple[int, int]:
        good = 0
        for number in range(count):
            home = self.folder / f"random{number}"  # nothing is prepared: the kill may fall into that too
            moment = self.random.uniform(0, self.seconds)
            began = time.monotonic()
            pid = begin(home, self.train)
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
            ended = end(home, pid, began)
            good += self.settle(home, f"kill -9 after {moment:.2f} s", ended, {-signal.SIGKILL, 0})
        return good, count

    def killed_in_a_save(self, stride: int) -> tuple[int, int]:
        seen: list[int] = []
        counting = Fault(40, lambda count: os.write(write, b"."), lambda: os.kill(os.getpid(), signal.SIGKILL))
        read, write = os.pipe()
        session(self.copy(self.half), ["resume", "k"], counting)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            last = len(pipe.read())
        good = 0
        for at in range(1, last + 1, stride):

            def act(count: int, at: int = at) -> None:
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            home = self.copy(self.half)
            ended = session(home, ["resume", "k"], Fault(40, act))
            seen.append(at)
            if at % 20 == 1:
                good += self.settle(home, f"kill -9 at file event {at} of a save", ended, {-signal.SIGKILL})
                continue
            done = session(home, ["resume", "k"], killed_after(STEPS))  # the hand-over is the same each time
            if ended.code == done.code == -signal.SIGKILL and tensors(home) == self.tensors:
                good += 1
            else:
                self.failures.append(f"kill -9 at file event {at} of a save: {ended.code} {done.code} {done.output}")
            shutil.rmtree(home)
        return good, len(seen)

    def terminated(self, count: int) -> tuple[int, int]:
        good = 0
        for number in range(count):
            home, number = self.fresh(), signal.SIGTERM if number % 2 == 0 else signal.SIGINT
            moment = self.random.uniform(0.05, self.seconds)
            began = time.monotonic()
            pid = begin(home, self.train)
            time.sleep(moment)
            os.kill(pid, number)
            ended = end(home, pid, began)
            # the first moments are before settle holds the signals; a run that is over answers nobody
            expect = {130, 0, -signal.SIGTERM, 70}
            good += self.settle(home, f"{number.name} after {moment:.2f} s", ended, expect)
        return good, count

    def full_in_a_save(self) -> tuple[int, int]:
        """Run with a disk that is full at the n-th file event of the n-th attempt at a save."""
        failed = [0]
        writing = {"mkdir", "open", "write", "flush", "fsync", "rename", "replace"}
        read, write = os.pipe()

        class Full(Fault):
            def __call__(self, frame: Any, event: str, arg: Any) -> None:
                self.name = getattr(arg, "__name__", "")
                super().__call__(frame, event, arg)

        def act(count: int) -> None:
            if hook.name in writing and count > failed[0]:
                failed[0] = count
                os.write(write, b".")
                hook.depth = 0  # where the error is swallowed, the end of the save would not be seen
                # an exception takes the hook away; it comes back while the run waits for room
                signal.signal(signal.SIGALRM, lambda number, frame: sys.setprofile(hook))
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        hook = Full(40, act)
        home = self.copy(self.half)
        ended = session(home, ["resume", "k"], hook, 5 * PATIENCE)  # as many waits as events
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            times = len(pipe.read())
        good = ended.code == 0 and fingerprint(home) == self.expected and "there is room again" in ended.output
        if not good:
            self.failures.append(f"full disk in a save: {ended.code} {ended.output[-800:]}")
        return times if good else 0, times

    def small_disk(self, step_kb: int) -> tuple[int, int, str]:
        """Run on a tmpfs of every size from nothing to enough, so that every write is once the first not to fit."""
        place = self.folder / "small"
        place.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "settle", place], capture_output=True).returncode:
            return 0, 0, "no tmpfs can be mounted here"
        subprocess.run(["umount", place], check=True)
        need = sum(p.stat().st_size for p in (self.folder / "whole").rglob("*") if p.is_file()) // 1024
        good = cases = 0
        for room in range(64, int(need * 1.6), step_kb):
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "settle", place], check=True)
            home, cases, began = place / "home", cases + 1, time.monotonic()
            log = self.folder / "small.log"
            try:
                home.mkdir(exist_ok=True)
                Path(f"{home}.log").symlink_to(log)
                pid = begin(home, self.train)
                self._give_room_when_paused(place, log, pid)
                ended = end(home, pid, began)
                wrong = "" if ended.code in (0, 1) else f"exit code {ended.code}: {ended.output[-800:]}"
                if "Traceback" in ended.output:
                    wrong = ended.output[-1500:]
                give_room(place)
                if wrong:
                    self.failures.append(f"a disk of {room} kB: {wrong}")
                else:
                    good += self.settle(home, f"a disk of {room} kB ({ended.output[-200:]!r})")
            finally:
                subprocess.run(["umount", "-l", place], check=True)
            if ended.code == 0 and "the disk is full" not in ended.output:
                break  # all of it fits from here on
        return good, cases, ""

    @staticmethod
    def _give_room_when_paused(place: Path, log: Path, pid: int) -> None:
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if log.exists() and "continues by itself" in log.read_text(errors="replace"):
                give_room(place)
                return
            time.sleep(0.02)

    def damaged(self, every_file: bool) -> tuple[int, int]:
        """Damage the newest of two checkpoints: the run continues from the one before and says so."""
        template = self.folder / "late"
        shutil.copytree(self.half, template)

        def last(count: int) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        killed = session(template, ["resume", "k"], Fault(STEPS, last))
        assert killed.code == -signal.SIGKILL
        good = cases = 0
        for name in ("model", "optimizer", "best", "state", "manifest"):
            for how in DAMAGES if every_file else {"cut": cut, "flipped": flip}:
                if not every_file and name in ("optimizer", "best"):
                    continue
                home = self.copy(template)
                newest = max((next((home / "runs").iterdir()) / "checkpoints").glob("[0-9]*"))
                file = next(newest.glob(f"{name}.*"))
                DAMAGES[how](file, self.random)
                cases += 1
                events = next((home / "runs").iterdir()) / "events.jsonl"
                before = events.stat().st_size
                if self.settle_keeping(home, f"{file.name} {how}"):
                    told = events.read_bytes()[before:].decode()
                    if "is passed over" in told:
                        good += 1
                    else:
                        self.failures.append(f"{file.name} {how}: nothing said")
        return good, cases

    def settle_keeping(self, home: Path, what: str) -> bool:
        done = session(home, ["resume", "k"])
        if done.code or fingerprint(home) != self.expected:
            self.failures.append(f"{what}: {done.code} {done.output[-800:]}")
            return False
        return True


def cut(file: Path, chance: random.Random) -> None:
    with file.open("rb+") as f:
        f.truncate(chance.randrange(file.stat().st_size))


def flip(file: Path, chance: random.Random) -> None:
    raw = bytearray(file.read_bytes())
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    file.write_bytes(raw)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "cut": cut,
    "flipped": flip,
    "emptied": lambda file, chance: os.truncate(file, 0),
    "removed": lambda file, chance: file.unlink(),
}


def give_room(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=512m", place], check=True)


def tensors(home: Path) -> str:
    """Hash of the weights and the optimizer's state in the last checkpoint."""
    last = next((home / "runs").iterdir()) / "checkpoints" / f"{STEPS:08d}"
    files = [last / f"{name}.safetensors" for name in ("model", "optimizer")]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest() if last.exists() else "none"


def fingerprint(home: Path) -> str:
    """Hash of the last checkpoint's tensors, the exported weights, and every verdict a resume could change."""
    run = next((home / "runs").iterdir())
    digest = hashlib.sha256(tensors(home).encode())
    adapter, whole = run / "out" / "adapter" / "adapter_model.safetensors", run / "out" / "hf" / "model.safetensors"
    exported = safetensors.numpy.load_file(adapter if adapter.exists() else whole)
    for name in sorted(exported):
        digest.update(name.encode() + exported[name].tobytes())
    result = json.loads((run / "result.json").read_text())
    digest.update(json.dumps([result["verdict"], result["best"]]).encode())
    return digest.hexdigest()


def leftovers(home: Path) -> str:
    """Half-written files that nobody would ever remove."""
    found = [str(p) for p in home.rglob(".*") if p.name != ".lock" and "machine" not in p.parts]
    return f"left over: {found}" if found else ""


Row = tuple[str, int, int, str]


def rows(matrix: Matrix) -> list[Callable[[], Row]]:
    few = matrix.reduced
    return [
        lambda: ("`kill -9` at random moments", *matrix.killed_at_random(1 if few else 32), ""),
        lambda: ("`kill -9` inside a save, at each of its file events", *matrix.killed_in_a_save(39 if few else 1), ""),
        lambda: ("SIGTERM and Ctrl-C at random moments", *matrix.terminated(2 if few else 12), ""),
        lambda: ("disk full at each file event of a save", *matrix.full_in_a_save(), ""),
        lambda: ("disk full at every write: a tmpfs of each size", *matrix.small_disk(1200 if few else 160)),
        lambda: ("newest checkpoint cut, bit-flipped, emptied, a file removed", *matrix.damaged(not few), ""),
    ]


def report(told: list[Row], failures: list[str], seconds: float, tune: bool) -> str:
    command = "python bench/kill.py" + (" --tune" if tune else "")
    lines = [
        "# Kill matrix of tuning" if tune else "# Kill matrix",
        "",
        f"`{command}`, {datetime.date.today().isoformat()}, {seconds / 60:.0f} minutes. After each stop one "
        "`settle resume`, no manual step; equal means: weights, optimizer state, exported file and verdict byte for "
        "byte those of the run that was not stopped (CPU, fp32, --steps, 1 thread), and nothing half-written left.",
        "",
        "| what stops the run | cases | equal |",
        "|---|---|---|",
        *(f"| {what}{f' ({note})' if note else ''} | {cases} | {good} |" for what, good, cases, note in told),
        "",
        *(f"- FAILED {failure}" for failure in failures),
    ]
    return "\n".join(lines).rstrip() + "\n"


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduced", action="store_true", help="a small part of it, for the tests")
    parser.add_argument("--tune", action="store_true", help="of a LoRA, not of training from nothing")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of rows, from 0")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder), asked.reduced, asked.tune)
        told: list[Row] = []
        for number, row in enumerate(rows(matrix)):
            if asked.only is None or number in asked.only:
                told.append(row())
                what, good, cases, note = told[-1]
                print(f"{time.monotonic() - began:6.0f} s  {what}: {good} of {cases} {note}", file=sys.stderr)
    if asked.json:
        print(json.dumps({"rows": told, "failures": matrix.failures}))
    else:
        print(report(told, matrix.failures, time.monotonic() - began, asked.tune))
    return 1 if matrix.failures or any(good < cases for _, good, cases, _ in told) else 0


if __name__ == "__main__":
    sys.exit(run())
