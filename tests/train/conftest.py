"""A corpus of a few words, prepared as a run would."""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from settle.base.event_log import Events
from settle.data.prepare import Corpus, prepare
from settle.data.settings import DataSettings


@pytest.fixture
def corpus(home: Path, tmp_path: Path) -> Corpus:
    words = ["lorem", "ipsum", "dolor", "sit", "amet", "vokma", "tudri", "rensel"]
    for number in range(30):
        text = " ".join(random.Random(number).choices(words, k=200))
        (tmp_path / f"{number}.txt").write_text(f"{number} {text}\n")
    return prepare([str(tmp_path)], DataSettings(vocab_size=400), Events())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.name == "nt"
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "settle", str(place)], capture_output=True
        ).returncode
    ):
        pytest.skip("this system lets us mount no small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
