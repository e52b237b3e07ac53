"""A corpus of a few words, prepared as a run would."""

import random
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
