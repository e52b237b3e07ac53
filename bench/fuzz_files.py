"""Fuzzes the readers of models: GGUF, safetensors, config.json, tokenizer.json, adapters of peft.

    python bench/fuzz_files.py --files 25000 --seed 1

Every file is a sound one that was changed; it is read as commands read it, in a process with 4 GiB of address space and
20 s of clock a file. A file is read or refused with settle's own error; anything else is a crash, and is kept in
`--out`. Memory and open files are compared between the first tenth and the end: what grows is a leak.
"""

import argparse
import collections
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.hostile import KINDS, Mutant, outcome, sound  # noqa: E402  beside this folder

SECONDS, MEMORY = 20, 4 << 30


def fuzz(kind: str, source: Path, files: int, seed: int, out: Path) -> None:
    """Read many damaged files of one kind, and print the outcomes as a line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _late)
    me, outcomes, slowest = psutil.Process(), collections.Counter[str](), 0.0
    first: tuple[int, int] | None = None
    with tempfile.TemporaryDirectory() as folder:
        mutant = Mutant(kind, source, Path(folder), seed)
        for number in range(files):
            mutant.change()
            began = time.process_time()
            signal.alarm(SECONDS)
            try:
                found = outcome(mutant.read)
            except _Hang:
                found = "hang"
            signal.alarm(0)
            slowest = max(slowest, time.process_time() - began)
            outcomes[found] += 1
            if found not in ("read", "refused") and outcomes[found] == 1:
                kept = out / f"{kind}-{seed}-{number}"
                (shutil.copytree if mutant.path.is_dir() else shutil.copy)(mutant.path, kept)
            if number == files // 10:
                first = me.memory_info().rss, me.num_fds()
    assert first is not None
    grown = {"rss_mb": round((me.memory_info().rss - first[0]) / 1e6, 1), "fds": me.num_fds() - first[1]}
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)
    report = {"kind": kind, "files": files, "outcomes": outcomes, "slowest_cpu_s": round(slowest, 2)}
    print(json.dumps(report | {"peak_rss_mb": peak, "grown": grown}), flush=True)


class _Hang(BaseException):
    """A file took too long; no reader catches it."""


def _late(*_: object) -> None:
    raise _Hang


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=25_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--out", type=Path, default=Path("crashes"))
    given = parser.parse_args()
    given.out.mkdir(exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = folder
        sources = sound(Path(folder))
        for kind in given.kinds:
            arguments = (kind, sources[kind], given.files // len(given.kinds), given.seed, given.out)
            process = spawn.Process(target=fuzz, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                print(json.dumps({"kind": kind, "died": process.exitcode}), flush=True)


if __name__ == "__main__":
    main()
