"""The text that a model is made smaller by, and the text that it is judged by: the person's own, or settle's.

The two are never the same: a file that was fitted to a text says nothing when it is asked that text again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.errors import DataError
from settle.base.events import Events
from settle.data.layouts import Example
from settle.data.rows.prepare import RowCorpus, prepare_rows
from settle.data.settings import RowSettings
from settle.data.store import TokenStore
from settle.data.windows import Windows, text_windows
from settle.shrink.calibration import NAME, calibration_texts, calibration_windows

WINDOW = 512  # ids of a window that a model is judged on
CALIBRATION_TOKENS = 16_384
HELD_OUT_TOKENS = 16_384
HELD_OUT_SHARE = 0.3
EVERY = 4  # of settle's own passages, so many-th is held out


@dataclass(frozen=True)
class Material:
    """calibration: windows of ids that importance and sensitivity are measured on. held_out: windows that files are
    judged on; texts: the same as text, some of it. examples: held-out rows that ask something, if there are any.
    """

    name: str
    calibration: Sequence[np.ndarray]
    held_out: Windows
    texts: Sequence[str]
    examples: Sequence[Example] = ()
    warnings: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of the ids."""
        digest = sha256()
        for windows in (self.calibration, self.held_out.ids):
            for ids in windows:
                digest.update(np.asarray(ids, "<i4").tobytes() + b"|")
            digest.update(b"||")
        return digest.hexdigest()[:16]


def material(inputs: Sequence[str], calibration: Sequence[str], tokenizer: Any, events: Events) -> Material:
    """inputs: the person's files; settle's own text where there are none. calibration: other files to calibrate on.

    Raises DataError for inputs that cannot be used or that hold next to nothing.
    """
    if not inputs:
        return _shipped(calibration, tokenizer, events)
    corpus = _corpus(inputs, tokenizer, events)
    held_out = _judged(corpus.held_out, tokenizer)
    texts = [tokenizer.decode(ids) for ids in _spread(corpus.held_out, HELD_OUT_TOKENS)]
    if calibration:
        calibrated = _calibrated(calibration, tokenizer, events, texts)
    else:
        windows = [np.asarray(ids, np.int64) for ids in _spread(corpus.train, CALIBRATION_TOKENS)]
        calibrated = windows, _too_few(windows)
    examples = [] if corpus.kind == "text" else list(corpus.examples())
    name = ", ".join(Path(given).name for given in inputs[:3]) + (", …" if len(inputs) > 3 else "")
    return Material(name, calibrated[0], held_out, texts, examples, calibrated[1])


def _shipped(calibration: Sequence[str], tokenizer: Any, events: Events) -> Material:
    passages = calibration_texts()
    judged = [text for number, text in enumerate(passages) if number % EVERY == 0]
    fitted = [text for number, text in enumerate(passages) if number % EVERY]
    if calibration:
        calibrated = _calibrated(calibration, tokenizer, events, judged)
    else:
        calibrated = calibration_windows(tokenizer, fitted, CALIBRATION_TOKENS).windows, ()
    return Material(NAME, calibrated[0], text_windows(tokenizer, judged, WINDOW), judged, (), calibrated[1])


def _calibrated(
    inputs: Sequence[str], tokenizer: Any, events: Events, judged: Sequence[str]
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    corpus = _corpus(inputs, tokenizer, events)
    texts = [tokenizer.decode(corpus.train.document(i)) for i in range(corpus.train.num_documents)]
    found = calibration_windows(tokenizer, texts, CALIBRATION_TOKENS, data=judged)
    return found.windows, found.warnings


def _corpus(inputs: Sequence[str], tokenizer: Any, events: Events) -> RowCorpus:
    settings = RowSettings(held_out=HELD_OUT_SHARE, max_tokens=WINDOW, most_too_long=1.0)
    corpus = prepare_rows(list(inputs), tokenizer, settings, events)
    if corpus.held_out.num_tokens < 2 * corpus.held_out.num_documents or not corpus.held_out.num_documents:
        raise DataError("there is too little text to judge a model by", "give more of it, or none: settle brings some")
    return corpus


def _judged(store: TokenStore, tokenizer: Any) -> Windows:
    ids = [document.tolist() for document in _spread(store, HELD_OUT_TOKENS)]
    lengths = tokenizer.byte_length
    num_bytes = np.array([int(lengths[np.asarray(window[1:])].sum()) for window in ids])
    return Windows(ids, np.arange(len(ids)), num_bytes)


def _spread(store: TokenStore, most_tokens: int) -> Iterator[np.ndarray]:
    """Documents of a store, evenly over it, about `most_tokens` in all."""
    step = max(1, round(store.num_tokens / most_tokens))
    for index in range(0, store.num_documents, step):
        document = store.document(index)
        if len(document) > 1:
            yield document


def _too_few(windows: Sequence[np.ndarray]) -> tuple[str, ...]:
    number = sum(map(len, windows))
    if number >= CALIBRATION_TOKENS // 4:
        return ()
    return (
        f"your text is short to calibrate on: {number:,} tokens, where {CALIBRATION_TOKENS // 4:,} or more tell chance "
        "apart; --calibration takes another text like it",
    )
