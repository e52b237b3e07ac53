"""A check of another package: a number in a file of this machine is too large. `level` files stand for a setting."""

import os
import time
from pathlib import Path
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Details, Fix
from settle.doctor.subject import ThisMachine
from settle.doctor.trial import Side, Trial

ITEMS = [f"item {i}" for i in range(8)]
OTHERS = [f"other {i}" for i in range(8)]


def level_file():
    return Path(os.environ["SETTLE_HOME"]) / "level"


class Level(Side):
    def __init__(self, name, level):
        self.name, self.level = name, level

    def measure(self, item):
        if (level_file().parent / "hang").exists():
            (level_file().parent / "hanging").touch()
            time.sleep(600)
        if (level_file().parent / "interrupt").exists():
            raise KeyboardInterrupt
        if (pause := level_file().parent / "pause").exists():
            time.sleep(float(pause.read_text()))
        with (level_file().parent / "asked").open("a") as file:
            file.write(f"{self.name} {item}\n")
        level = 2.0 if (level_file().parent / "idle").exists() else self.level  # it is not what wobbles
        return level + len(item) * 0.01 + (hash_of(item) % 7) * 0.01

    def guard(self, item):
        return 10.0 if self.level == 2.0 else 1.0


def hash_of(item):
    return sum(map(ord, item))


class Height(Details):
    """Of the level."""

    level: float


class WobblyKnob(Check[ThisMachine, Height]):
    """The level should be at most 3."""

    number: ClassVar[int] = 901
    symptom: ClassVar[str] = "wobbling"

    def detect(self, subject):
        level = float(level_file().read_text()) if level_file().exists() else 0.0
        if level > 3:
            details = Height(level=level)
            yield self.finding(f"the level is {level:g}", "seen in its file", strength=0.9, details=details)

    def trial(self, finding, subject, folder):
        before, after = Level("as it is", finding.details.level), Level("lower", 2.0)
        guards = ITEMS[:6] if level_file().with_name("harm").exists() else ()
        return Trial(
            "level = 2", before, after, "wobble", "mm", ITEMS, OTHERS, least=0.5, guards=guards, harm=0.1, seconds=0.01
        )

    def fix(self, finding, subject):
        broken = level_file().with_name("no-write").exists()

        def write():
            level_file().write_text("5" if broken else "2")
            return "wrote level = 2"

        def undo():
            level_file().write_text(f"{finding.details.level:g}")

        return Fix("lower the level", "echo 2 > level", write, lambda: subject, undo)
