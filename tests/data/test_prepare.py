"""From files to token stores."""

import random
from pathlib import Path

import numpy as np
import pytest

from settle.base.errors import DataError
from settle.base.events import Events
from settle.base.run import home
from settle.data.prepare import Corpus, prepare
from settle.data.settings import DataSettings

TEXT = "the sea wind carries salt over old stone walls while gulls turn above quiet harbour lights at dusk"
WORDS = TEXT.split(" ")


def prose(seed: int, words: int = 400) -> str:
    """Random but word-like text with sentences and paragraphs."""
    rng = random.Random(seed)
    sentences = []
    while words > 0:
        length = rng.randint(5, 14)
        words -= length
        sentence = " ".join(rng.choice(WORDS) + rng.choice(["", "", "s", "ed", "ing"]) for _ in range(length))
        sentences.append(sentence.capitalize() + rng.choice([". ", ". ", ".\n\n"]))
    return "".join(sentences)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))


def run(*inputs: Path | str, **settings: object) -> Corpus:
    return prepare([str(i) for i in inputs], DataSettings(**settings), Events())


def texts(corpus: Corpus, side: str) -> list[str]:
    store = getattr(corpus, side)
    return [corpus.tokenizer.decode(store.document(i)) for i in range(store.num_documents)]


def left_behind() -> list[str]:
    return [p.name for p in (home() / "tokens").iterdir() if p.name != "hashes.json"]


def test_one_file_is_split_at_a_paragraph(tmp_path: Path) -> None:
    text = prose(1, 6000)
    (tmp_path / "a.txt").write_text(text)
    corpus = run(tmp_path / "a.txt")
    assert "".join(texts(corpus, "train") + texts(corpus, "held_out")) == text
    assert 0.05 < corpus.held_out.num_bytes / len(text) < 0.15
    assert corpus.train.num_bytes + corpus.held_out.num_bytes == len(text)


def test_many_files_keep_their_kin_on_one_side(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(120):
        text = prose(i % 60, 200)
        (folder / f"{i}.md").write_text(text if i < 60 else text.replace(". ", ". And ", 8))
    corpus = run(folder, clean=False)
    assert corpus.train.num_documents + corpus.held_out.num_documents == 120
    assert 0 < corpus.held_out.num_bytes <= 0.1 * (corpus.train.num_bytes + corpus.held_out.num_bytes)
    trained = {t[-60:] for t in texts(corpus, "train")}
    assert not trained & {t[-60:] for t in texts(corpus, "held_out")}


def test_nothing_is_made_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 3000))
    first = run(tmp_path / "a.txt")
    stamp = (first.train.folder / "store.json").stat().st_mtime_ns
    (tmp_path / "a.txt").touch()
    again = run(tmp_path / "a.txt")
    assert again.fingerprint == first.fingerprint
    assert (again.train.folder / "store.json").stat().st_mtime_ns == stamp
    assert run(tmp_path / "a.txt", vocab_size=300).fingerprint != first.fingerprint
    (tmp_path / "a.txt").write_text(prose(2, 3000))
    assert run(tmp_path / "a.txt").fingerprint != first.fingerprint
    assert len(left_behind()) == 3


def test_held_out_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 3000))
    (tmp_path / "b.txt").write_text(prose(2, 500))
    corpus = run(tmp_path / "a.txt", held_out_from=tmp_path / "b.txt")
    assert texts(corpus, "train") == [prose(1, 3000)]
    assert texts(corpus, "held_out") == [prose(2, 500)]


def test_too_little_or_nothing_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "x.bin").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "line.txt").write_text("a single line\n")
    for name in ("empty", "binary", "line.txt", "absent"):
        with pytest.raises(DataError) as caught:
            run(tmp_path / name)
        assert caught.value.fix
        assert left_behind() == []


def test_tokens_take_two_bytes_each(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 3000))
    corpus = run(tmp_path / "a.txt")
    assert corpus.train.tokens.dtype == np.uint16
    assert corpus.train.tokens[0] == corpus.tokenizer.bos_id
