"""Make the archive of a version: `python tests/stability/make.py FOLDER/bin/python tests/stability/v0_3.tar.xz`.

The first argument is a Python that imports the settle of that version. Everything is made by its command line, run as
`python -m settle`: a finished run (`story`), one that was interrupted (`halted`), a tuned one (`tuned`), a collection
(`harbour`) with the model of its embedder, and the recipes that they kept. Left out is what no test reads.
"""

import json
import lzma
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

FOLDER = Path("/tmp/settle-stability")  # in the files: a test puts its own folder in its place
LETTERS = Path(__file__).parent / "letters.gguf.xz"  # an embedder that knows little more than letters
WORDS = "sea wind carries salt over old stone walls while gulls turn above quiet harbour lights".split()  # noqa: SIM905
DOCUMENTS = {
    "boat.md": "# Boat\n\nThe ferry to the island leaves at nine in the morning from pier four.\n",
    "garden.md": "# Garden\n\nThe garden gate is painted green every second spring by the neighbours.\n",
    "clock.md": "# Clock\n\nThe tower clock is wound by hand on Mondays with a brass key.\n",
}
TINY = "--size 10k --context 64 --batch-tokens 512 --data.vocab-size 280 --dtype float32 --device cpu --seed 1"


def main(python: str, archive: Path) -> None:
    home = FOLDER / "home"
    home.mkdir(parents=True)
    _write_inputs()
    environment = {**os.environ, "SETTLE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # which may lead to the settle of today

    def settle(line: str) -> subprocess.Popen[str]:
        command = [python, "-m", "settle", *line.split()]
        return subprocess.Popen(
            command, cwd=FOLDER, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )

    for line in (
        "--version",
        f"train text.txt --name story --steps 30 {TINY}",
        "tune run:story rows.jsonl --name tuned --steps 12 --dtype float32 --device cpu --adapter.rank 2",
        "pull ./letters.gguf --name letters",
        "index docs --name harbour --embedder gguf --embedder.model letters --chunker.tokens 60",
    ):
        shown, _ = settle(line).communicate()
        print(shown)
    halted = settle(f"train text.txt --name halted --steps 4000 {TINY}")
    events = None
    while halted.poll() is None:
        events = events or next(home.glob("runs/*-halted-*/events.jsonl"), None)
        if events and events.read_text().count('"kind": "eval"') + events.read_text().count('"kind":"eval"') >= 2:
            halted.send_signal(signal.SIGINT)
            break
        time.sleep(0.1)
    print(halted.communicate()[0], halted.returncode)
    _pack(home, archive)


def _write_inputs() -> None:
    rng = random.Random(0)
    (FOLDER / "text.txt").write_text("".join(f"{' '.join(rng.choices(WORDS, k=9))}.\n\n" for _ in range(600)))
    rows = [
        {"prompt": f"{a} {b} {n % 40}", "completion": f"{b} {a}."}
        for n in range(160)
        for a, b in [rng.choices(WORDS, k=2)]
    ]
    (FOLDER / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (FOLDER / "docs").mkdir()
    for name, text in DOCUMENTS.items():
        (FOLDER / "docs" / name).write_text(text)
    (FOLDER / "letters.gguf").write_bytes(lzma.decompress(LETTERS.read_bytes()))


def _pack(home: Path, archive: Path) -> None:
    """Keep of the interrupted run what a power cut after its first checkpoint would have left."""
    first = min(path.name for path in home.glob("runs/*-halted-*/checkpoints/*"))

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(member.name)
        is_later = "checkpoints" in path.parts[:-1] and first not in path.parts
        if path.suffix == ".png" or is_later or path.name == "lock":
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for name in ("runs", "collections", "models"):
            tar.add(home / name, name, filter=kept)
        for name in ("text.txt", "rows.jsonl", "docs"):
            tar.add(FOLDER / name, f"inputs/{name}", filter=kept)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
