"""Which text a model is calibrated on, which chooses the file, and which judges it: no text does two of these."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.data.rows.render import KNOWN
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.shrink import calibration as module
from settle.shrink.calibration import EVERY, calibration_data, calibration_texts, calibration_windows
from tests.trained import trained

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = ByteBpeTokenizer.train([" ".join(WORDS)] * 3, 280, tmp_path_factory.mktemp("tokenizer"))
    made.chat_template = KNOWN["chatml"]
    return made


def passage(number, words=12):
    """A text that begins with its number, of words of its own."""
    random = np.random.default_rng(number)
    return f"no{number:03d} " + " ".join(random.choice(WORDS, words))


def numbers(tokenizer, windows):
    """The passages that are in some windows of ids."""
    text = " ".join(tokenizer.decode(np.asarray(ids).tolist()) for ids in windows)
    return {number for number in range(400) if f"no{number:03d}" in text}


def test_every_few_passages_are_kept_to_choose_and_to_judge(tokenizer):
    known = [passage(number) for number in range(60)]
    data = calibration_data([], [], tokenizer, 64, Events(), known)
    fitted, chosen, judged = (numbers(tokenizer, w) for w in (data.calibration, data.selection.ids, data.held_out.ids))
    kept = set(range(0, 60, EVERY))
    assert chosen | judged == kept and not chosen & judged and abs(len(chosen) - len(judged)) <= 1
    assert fitted and not fitted & kept and data.name == "its held-out text" and data.window == 64
    assert {int(text[2:5]) for text in data.fitted} == set(range(60)) - kept
    assert all(len(ids) <= 64 for ids in data.selection.ids) and "short to calibrate on" in data.warnings[0]
    few = calibration_data([], [], tokenizer, 64, Events(), known[: 2 * EVERY - 1])
    assert few.name != data.name, "too few texts of the model's own: settle brings some"


def test_another_text_calibrates_and_none_of_it_judges(tokenizer, home, tmp_path):
    (tmp_path / "mine.txt").write_text("\n\n".join(passage(number, 300) for number in range(24)))
    (tmp_path / "other.txt").write_text("\n\n".join(passage(number, 300) for number in range(100, 112)))
    own = calibration_data([str(tmp_path / "mine.txt")], [], tokenizer, 64, Events())
    data = calibration_data([str(tmp_path / "mine.txt")], [str(tmp_path / "other.txt")], tokenizer, 64, Events())
    assert data.name == "mine.txt" and min(numbers(tokenizer, data.calibration)) >= 100
    assert [list(w) for w in data.selection.ids] == [list(w) for w in own.selection.ids]
    assert max(numbers(tokenizer, data.held_out.ids)) < 100 and max(numbers(tokenizer, own.calibration)) < 100
    assert data.fingerprint != own.fingerprint
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError):
        calibration_data([str(tmp_path / "empty.txt")], [], tokenizer, 64, Events())


def test_examples_are_calibrated_on_as_they_are_asked(tokenizer, home, tmp_path):
    rows = [{"prompt": passage(number, 9), "completion": f"yes{number:03d}"} for number in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = calibration_data([str(tmp_path / "rows.jsonl")], [], tokenizer, 128, Events())
    fitted, chosen, judged = (numbers(tokenizer, w) for w in (data.calibration, data.selection.ids, data.held_out.ids))
    assert fitted and chosen and judged and not (fitted & chosen or fitted & judged or chosen & judged)
    assert len(fitted | chosen | judged) == 80 and len(data.examples) == len(judged)
    for ids, num_bytes in zip(data.held_out.ids, data.held_out.num_bytes, strict=True):
        text = tokenizer.decode(list(ids))
        assert "assistant\nyes" in text
        assert num_bytes == sum(int(tokenizer.byte_length[i]) for i in list(ids)[1:])


@pytest.mark.parametrize(
    ("tokens", "texts"), [((40, 3), (20, 20)), ((3, 40), (20, 20)), ((0, 40), (0, 20)), ((40, 40), (20, 20))]
)
def test_either_side_needs_text_to_judge_by(tokens, texts, monkeypatch, tokenizer):
    """Two tokens a text are one that can be predicted."""
    sides = [SimpleNamespace(num_tokens=t, num_documents=n) for t, n in zip(tokens, texts, strict=True)]
    corpus = SimpleNamespace(selection=sides[0], held_out=sides[1])
    monkeypatch.setattr(module, "prepare_rows", lambda *given: corpus)
    if tokens == (40, 40):
        assert module._corpus(["x"], tokenizer, 64, Events()) is corpus
    else:
        with pytest.raises(DataError, match="too little text to judge"):
            module._corpus(["x"], tokenizer, 64, Events())


ENGLISH = "The harbour was quiet, and nobody on the quay had anything to say about the boats that were late. " * 60
GERMAN = "Der Hafen war still, und niemand wusste etwas über die Schiffe, die längst hätten zurück sein müssen. " * 60


def test_the_shipped_text_is_varied():
    texts = calibration_texts()
    assert sum(len(t.encode()) for t in texts) > 55_000
    assert len(set(texts)) == len(texts) > 80
    first = "\n".join(texts[: len(texts) // 4])
    for sign in ("def ", "SELECT", "的", "ist ", "User:", "{", "$"):
        assert sign in first or sign in "\n".join(texts), sign
    shares = [sum(not c.isascii() for c in t) / len(t) for t in texts]
    assert max(shares) > 0.7 and np.median(shares) < 0.05


def test_windows_have_the_asked_length_and_come_from_everywhere():
    tokenizer = trained().tokenizer
    found = calibration_windows(tokenizer, calibration_texts(), 4096, 128)
    assert len(found.windows) == 32 and {len(w) for w in found.windows} <= set(range(64, 129))
    assert found.num_tokens == sum(map(len, found.windows)) and found.found > 4096
    whole = calibration_windows(tokenizer, calibration_texts(), 1 << 30, 128)
    assert whole.num_tokens >= whole.found - 128
    starts = [next(i for i, w in enumerate(whole.windows) if np.array_equal(w, v)) for v in found.windows]
    assert starts == sorted(starts) and starts[0] < 3 and starts[-1] > len(whole.windows) - 4
    again = calibration_windows(tokenizer, calibration_texts(), 4096, 128)
    assert all(np.array_equal(a, b) for a, b in zip(found.windows, again.windows, strict=True))


def test_a_text_in_another_language_is_told_with_numbers():
    tokenizer = trained().tokenizer
    assert calibration_windows(tokenizer, [ENGLISH], 1024, 128, data=[ENGLISH[500:]]).warnings == ()
    warned = calibration_windows(tokenizer, [ENGLISH], 1024, 128, data=[GERMAN]).warnings
    assert len(warned) == 1 and "%" in warned[0] and "language" in warned[0]
