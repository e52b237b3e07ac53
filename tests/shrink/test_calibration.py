import numpy as np
import pytest

from settle.base.errors import DataError
from settle.shrink.calibration import calibration_texts, calibration_windows, familiarity
from tests.trained import trained

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


def test_a_model_that_opens_its_texts_opens_each_window(monkeypatch):
    tokenizer = trained().tokenizer
    monkeypatch.setattr(tokenizer, "add_bos", True, raising=False)
    found = calibration_windows(tokenizer, [ENGLISH], 512, 64)
    assert all(w[0] == tokenizer.bos_id for w in found.windows)


def test_a_text_that_is_too_short_is_told_with_numbers():
    (warned,) = calibration_windows(trained().tokenizer, ["A few words."], 2048, 128).warnings
    assert "short" in warned and "4,096" not in warned and "2,048" in warned
    with pytest.raises(DataError, match="empty"):
        calibration_windows(trained().tokenizer, [], 2048, 128)


def test_a_text_in_another_language_is_told_with_numbers():
    tokenizer = trained().tokenizer
    assert calibration_windows(tokenizer, [ENGLISH], 1024, 128, data=[ENGLISH[500:]]).warnings == ()
    warned = calibration_windows(tokenizer, [ENGLISH], 1024, 128, data=[GERMAN]).warnings
    assert len(warned) == 1 and "%" in warned[0] and "language" in warned[0]


def test_familiarity_of_halves():
    ids = np.tile(np.arange(200), 10)
    assert familiarity(ids, ids) == (1.0, 1.0)
    assert familiarity(ids, ids + 1000)[0] == 0.0
    assert familiarity(ids[:50], ids) == (0.0, 0.0)
