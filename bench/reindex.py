"""An index that is stopped in every way: what it holds is never wrong, and the next run ends as if nothing had been.

    python bench/reindex.py kill [--moments 20] [--stores lancedb chroma] [--json]   # kill -9 at random moments
    python bench/reindex.py full [--limits 16] [--json]      # no file may grow beyond ever larger limits
    python bench/reindex.py small [--limits 16] [--json]     # a disk that is full at ever later points (needs root)
    python bench/reindex.py again [--documents 400] [--json] # the second run over unchanged files, as a whole command

The first two change an index of documents into one of others (new, changed, moved, deleted, the same text twice), in a
process of its own that runs the real command and is really killed. Right after, every document that the catalogue
holds must have the text, the places and the vectors that a fresh index of the one or the other state has, and none that
stayed may be missing. Then the command runs once more, and all must be as in a fresh index. An embedder by hashed words
takes the place of a model, so that most of the time goes into what is tried here.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from settle.base.errors import SettleError  # noqa: E402

WORDS = [a + b for a in ("lo", "mi", "sa", "tu", "ren", "vok", "pel") for b in ("ma", "dri", "k", "sel", "no", "ber")]
PATIENCE = 120.0  # seconds after which a command counts as hung


def join_embedder(folder: Path) -> None:
    """`hashed`, the embedder of the tests, becomes a part as other people's packages do."""
    info = folder / "settle_bench-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: settle-bench\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[settle.retrieve.index.embedders]\nhashed = tests.retrieve.hashed:Hashed\n")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)


def write_states(folder: Path, seed: int = 1) -> tuple[Path, Path]:
    """Documents in two states: a fifth each is changed, moved, deleted and new; some text stands in two of them."""
    chance = random.Random(seed)

    def text(number: int, version: int) -> str:
        parts = []
        for section in range(20):
            body = " ".join(chance.choices(WORDS, k=60))
            own = f"number{number} version{version} section{section}" if section % 5 else "the same everywhere"
            parts.append(f"# Section {section}\n\n{own} {body if section % 5 else ''}\n")
        return "\n".join(parts)

    before, after = folder / "before", folder / "after"
    for place in (before, after):
        place.mkdir()
    for number in range(60):
        kind, old = number % 5, text(number, 1)
        if kind != 4:
            (before / f"{number}.md").write_text(old)
        if kind == 0:
            (after / f"{number}.md").write_text(old)
        elif kind == 1:
            (after / f"{number}.md").write_text(text(number, 2))
        elif kind == 2:
            (after / f"moved{number}.md").write_text(old)
        elif kind == 4:
            (after / f"{number}.md").write_text(old)
    long_ago = time.time() - 1000
    for path in [*before.iterdir(), *after.iterdir()]:
        os.utime(path, (long_ago, long_ago + (path.parent == after)))
    return before, after


def contents(home: Path) -> dict[str, list[Any]]:
    """Return what an index holds: by document its passages with their places and vectors, as one hash each."""
    os.environ["SETTLE_HOME"] = str(home)
    from settle.retrieve.index.collection import Collection

    found: dict[str, list[Any]] = {}
    with Collection("docs") as collection:
        passages = {p.id: p for p in collection.catalogue.passages.page(limit=10**6)}
        vectors = collection.catalogue.passages.vectors(list(passages))
        for id in random.Random(len(vectors)).sample(sorted(vectors), min(40, len(vectors))):
            assert id in collection.vectors.nearest(vectors[id], 3)(), f"passage {id} is not found by its vector"
        found = {known.path: [known.sha256.hex(), known.error] for known in collection.catalogue.documents.all()}
        for id, occurrences in collection.catalogue.passages.occurrences(list(passages)).items():
            assert id in vectors, f"passage {id} has no vector"
            vector = np.round(vectors[id].astype(np.float64), 4) + 0.0
            told = hashlib.sha256(passages[id].embedded.encode() + vector.tobytes()).hexdigest()
            for s in occurrences:
                found[s.path].append((s.ordinal, s.place.after(""), told))
    return {path: [*told[:2], *sorted(told[2:])] for path, told in found.items()}


def assert_whole(home: Path) -> None:
    """Nothing is kept that does not count, and the words are those of the passages."""
    os.environ["SETTLE_HOME"] = str(home)
    from settle.retrieve.index.collection import Collection

    with Collection("docs") as collection:
        counts = collection.catalogue.counts()
        assert collection.catalogue.ids.loose() == [], "loose passages are left"
        assert len(collection.vectors.store) == counts["passages"], "the store holds others"
        rows = collection.catalogue.database.rows
        for table, number in counts.items():
            assert rows(f"SELECT count(*) FROM {table}") == [(number,)], f"{table} are not {number}"
        assert rows("PRAGMA integrity_check") == [("ok",)]
        assert rows("SELECT count(*) FROM words WHERE words MATCH 'same'")[0][0] <= 60
        collection.catalogue.database._connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")


class Trial:
    """Documents in both states, their fresh indexes, and an index of the first state to begin each case with."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder, self.store, self.number = folder, store, 0
        self.docs = folder / "docs"
        self.states = write_states(folder)
        self.fresh = []
        for name, state in zip(("first", "second"), self.states, strict=True):
            self.place(state)
            code, said, self.seconds = self.index(folder / name)
            assert code == 0, said
            self.fresh.append(contents(folder / name))
        self.failures: list[str] = []

    def place(self, state: Path) -> None:
        """Put the documents into this state."""
        shutil.rmtree(self.docs, ignore_errors=True)
        shutil.copytree(state, self.docs)

    def begin(self, home: Path, limit: int | None = None) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "settle", "index", str(self.docs), "--name", "docs"]
        if limit:  # bytes of the largest file that it may write
            code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
            command[1:3] = ["-c", f"{code}; import sys; from settle.cli import main; sys.exit(main(sys.argv[1:]))"]
        command += ["--embedder", "hashed", "--embedder.width", "384", "--store", self.store]
        environment = {**os.environ, "SETTLE_HOME": str(home)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def index(self, home: Path, limit: int | None = None) -> tuple[int, str, float]:
        began = time.monotonic()
        process = self.begin(home, limit)
        _, said = process.communicate(timeout=PATIENCE)
        return process.returncode, said, time.monotonic() - began

    @contextmanager
    def case(self, what: str) -> Iterator[Path]:
        """Yield a home with the first state's index and the second state's documents, and note what was wrong."""
        self.number += 1
        home = self.folder / f"case{self.number}"
        shutil.copytree(self.folder / "first", home)
        self.place(self.states[1])
        try:
            yield home
        except (AssertionError, SettleError) as e:
            self.failures.append(f"{self.store}, {what}: {e}")
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def check(self, home: Path) -> None:
        """No document is wrong, and none that stayed is missing."""
        first, second = self.fresh
        there = contents(home)
        for path, told in there.items():
            assert told in (first.get(path), second.get(path)), f"{path} is as in neither state"
        missing = [path for path in first if path in second and path not in there]
        assert not missing, f"{missing} are missing"

    def finish(self, home: Path) -> None:
        """Once more, and it is as a fresh one."""
        code, said, _ = self.index(home)
        assert code == 0, f"the next run ends with {code}: {said[-500:]}"
        assert contents(home) == self.fresh[1], "it differs from a fresh index"
        assert_whole(home)


def killed(trial: Trial, moments: int, seed: int = 5) -> tuple[int, int]:
    """(good, cases): killed at random moments of bringing the first state's index to the second's."""
    chance = random.Random(seed)
    with trial.case("a run that is not stopped") as home:
        _, _, seconds = trial.index(home)
        trial.check(home)
    before = len(trial.failures)
    for number in range(moments):
        moment = seconds * (0.2 + 0.8 * (number + chance.random()) / moments)  # before that Python starts
        with trial.case(f"kill -9 after {moment:.2f} s") as home:
            process = trial.begin(home)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            trial.check(home)
            trial.finish(home)
    return moments - (len(trial.failures) - before), moments


def full(trial: Trial, limits: int) -> tuple[int, int]:
    """(good, cases): no file may grow beyond ever larger limits, as on a disk with ever more room."""
    sizes = [p.stat().st_size for p in (trial.folder / "second").rglob("*") if p.is_file()]
    before, refused = len(trial.failures), 0
    for number in range(limits):
        limit = max(4096, round(max(sizes) * 1.3 * number / limits))
        with trial.case(f"no file above {limit / 1e3:.0f} kB") as home:
            refused += ended_well(*trial.index(home, limit)[:2])
            trial.check(home)
            trial.finish(home)
    assert refused, "no limit was small enough"
    return limits - (len(trial.failures) - before), limits


def small_disk(trial: Trial, limits: int) -> tuple[int, int]:
    """Repeat the trial on file systems of ever larger sizes; return (0, 0) if none can be mounted."""
    place = trial.folder / "small"
    place.mkdir()
    first, second = (sum(p.stat().st_size for p in (trial.folder / n).rglob("*")) for n in ("first", "second"))
    before, refused = len(trial.failures), 0
    for number in range(limits):
        size = round(first * 1.05 + (first + second) * number / limits)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "settle", str(place)]
        if subprocess.run(mount, capture_output=True).returncode:
            return 0, 0
        with trial.case(f"a disk of {size / 1e3:.0f} kB") as home:
            try:
                shutil.copytree(home, place, dirs_exist_ok=True)
                code, said, _ = trial.index(place)
                shutil.rmtree(home)
                shutil.copytree(place, home)  # there is room again
            finally:
                subprocess.run(["umount", "-l", place], check=True)
            refused += ended_well(code, said)
            trial.check(home)
            trial.finish(home)
    assert refused, "no disk was small enough"
    return limits - (len(trial.failures) - before), limits


def ended_well(code: int, said: str) -> bool:
    """Whether it was refused room, and said so."""
    assert code in (0, 1) and "Traceback" not in said, f"exit code {code}: {said[-800:]}"
    assert code == 0 or "full" in said or "room" in said, f"said is: {said[-300:]}"
    return code != 0


def again(documents: int, embedder: str, home: Path | None) -> dict[str, float]:
    """Seconds of the first run and of the second, each the whole command; of the second the best of five.

    Python's own library and its documentation strings are the documents; the embedder is the one that people use.
    """
    import sysconfig

    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    files = [path for path in files if "site-packages" not in path.parts and path.stat().st_size > 2000][:documents]
    with tempfile.TemporaryDirectory() as folder:
        docs, own = Path(folder) / "docs", Path(folder) / "home"
        docs.mkdir()
        own.mkdir()
        for number, path in enumerate(files):
            shutil.copy(path, docs / f"{number}-{path.name}")
        if home:
            (own / "models").symlink_to(home / "models")
        command = [
            sys.executable,
            "-m",
            "settle",
            "index",
            str(docs),
            "--name",
            "docs",
            "--embedder",
            embedder,
            "--json",
        ]

        def run() -> tuple[float, dict[str, Any]]:
            began = time.monotonic()
            environment = {**os.environ, "SETTLE_HOME": str(own)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            return time.monotonic() - began, json.loads(done.stdout)

        first, told = run()
        time.sleep(2.5)  # what was written a moment ago is looked at closely
        run()
        second = min(run()[0] for _ in range(5))
    return {"documents": told["documents"], "passages": told["passages"], "first": first, "second": second}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kill", "full", "small", "again"))
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--limits", type=int, default=16)
    parser.add_argument("--stores", nargs="*", default=["lancedb", "chroma"])
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--home", type=Path, help="a SETTLE_HOME that has the embedder's model")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    failures: list[str] = []
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        join_embedder(Path(folder) / "parts")
        if asked.what == "again":
            told = again(asked.documents, asked.embedder, asked.home)
            rows.append(told)
            print(json.dumps(told | {"ratio": told["first"] / told["second"]}), file=sys.stderr)
        for store in asked.stores if asked.what != "again" else ():
            place = Path(folder) / store
            place.mkdir()
            trial = Trial(place, store)
            tried = {"kill": killed, "full": full, "small": small_disk}[asked.what]
            good, cases = tried(trial, asked.moments if asked.what == "kill" else asked.limits)
            rows.append((store, good, cases))
            failures += trial.failures
            print(f"{store}: {good} of {cases}", *trial.failures, sep="\n  ", file=sys.stderr)
    if asked.json:
        print(json.dumps({"rows": rows, "failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
