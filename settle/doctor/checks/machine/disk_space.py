"""The disk that settle's home is on is nearly full: checkpoints, exports and indexes need room for a second copy."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.base.files import home
from settle.base.run import Run
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import ThisMachine

LEAST_BYTES = 2e9  # that should be free, and at least as much as the largest model takes
MOST_FILES = 20_000  # that are looked at


class DiskSpace(Check[ThisMachine, Details]):
    """The disk of settle's home should have room for another copy of the largest file on it."""

    number: ClassVar[int] = 24
    symptom: ClassVar[str] = "a run stops because the disk is full"
    seconds: ClassVar[float] = 0.3

    def detect(self, subject: ThisMachine) -> Iterator[Finding[Details]]:
        free = subject.running.room_on_disk
        free = shutil.disk_usage(home()).free if free is None else free
        sizes = _sizes()
        largest = max(sizes.values(), default=0)
        if free >= max(LEAST_BYTES, largest):
            return
        runs = sorted(Run.all(), key=lambda run: -_under(sizes, run.path))[:3]
        most = ", ".join(f"{run.name} {_under(sizes, run.path) / 1e9:.1f} GB" for run in runs)
        seen = f"{free / 1e9:.1f} GB are free, and settle keeps {sum(sizes.values()) / 1e9:.1f} GB in {home()}"
        evidence = (seen, f"the largest runs: {most}") if most else (seen,)
        yield self.finding("the disk is nearly full", *evidence, strength=0.9)

    def fix(self, finding: Finding[Details], subject: ThisMachine) -> Fix:
        return Fix("delete runs and models that you no longer need", "settle runs remove NAME")


def _sizes() -> dict[Path, int]:
    """Return the bytes of the files in settle's home, counting a file with several names once."""
    sizes: dict[Path, int] = {}
    seen: set[tuple[int, int]] = set()
    for path in home().rglob("*"):
        if len(sizes) >= MOST_FILES:
            break
        try:
            about = path.lstat()
        except OSError:
            continue
        if path.is_file() and not path.is_symlink() and (about.st_dev, about.st_ino) not in seen:
            seen.add((about.st_dev, about.st_ino))
            sizes[path] = about.st_size
    return sizes


def _under(sizes: dict[Path, int], folder: Path) -> int:
    return sum(size for path, size in sizes.items() if folder in path.parents)
