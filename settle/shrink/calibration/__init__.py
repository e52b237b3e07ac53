"""Text to measure a model on when it is made smaller, and how it is cut into windows.

The passages beside this file were written for it and are given away under CC0: prose of many registers, talk,
instructions and answers, code, tables and configuration, maths, and more than twenty languages. `docs/calibration.md`
has more.

Letters: W windows, L ids of a window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.tokenizer import Tokenizer
from settle.data.corpus import Ledger, find_files, workspace
from settle.data.layouts import Example
from settle.data.likelihoods import Windows, first_texts, text_windows
from settle.data.rows.collect import ExampleReader
from settle.data.rows.prepare import RowCorpus, prepare_rows
from settle.data.settings import ColumnSettings, RowSettings
from settle.data.store import TokenStore

NAME = "settle's own calibration text"
BETWEEN = "\n=====\n"  # between the passages of a file
LENGTH = 256  # ids of a window
# below this share of what a text finds of its own tokens in itself, another does not speak its language
_ALIKE = 0.6
_FEW = 4096  # tokens under which measured importance is mostly chance


@cache
def calibration_texts() -> tuple[str, ...]:
    """Return the shipped passages, mixed, so that any beginning of them is varied too."""
    placed: list[tuple[float, str]] = []
    for path in sorted(Path(__file__).parent.glob("*.txt")):
        passages = path.read_text(encoding="utf-8").strip().split(BETWEEN)
        placed += [((i + 0.5) / len(passages), passage.strip()) for i, passage in enumerate(passages)]
    return tuple(passage for _, passage in sorted(placed))


@dataclass(frozen=True)
class Calibration:
    """Text to measure a model on, as windows.

    windows: ids, each (L,) int64, the model's opening token first where it has one. num_tokens: of all windows. found:
    how many there were in the texts. warnings: sentences for the user.
    """

    windows: list[np.ndarray]
    num_tokens: int
    found: int
    warnings: tuple[str, ...] = ()


def calibration_windows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    num_tokens: int = 16384,
    length: int = LENGTH,
    data: Sequence[str] = (),
) -> Calibration:
    """Cut texts into windows of `length` ids, taken evenly from all of them when they hold more than is asked for.

    data: texts that the model is going to be used on, when those are others; warns when they are not in the
    language of `texts`, and when there are too few tokens. Raises DataError when not one window comes of the texts.
    """
    encoded = [np.asarray(ids, np.int64) for ids in tokenizer.encode_batch([t.strip() + "\n\n" for t in texts])]
    stream = np.concatenate([np.zeros(0, np.int64), *encoded])
    opening = [tokenizer.bos_id] if getattr(tokenizer, "add_bos", False) and tokenizer.bos_id is not None else []
    step = length - len(opening)
    cut = [stream[first : first + step] for first in range(0, len(stream), step)]
    if len(cut) > 1 and len(cut[-1]) < step // 2:
        cut.pop()
    windows = [np.concatenate([np.asarray(opening, np.int64), ids]) for ids in cut if len(ids) + len(opening) > 1]
    if not windows:
        raise DataError("the calibration text is empty", "give a longer one with --calibration, or none")
    wanted = max(1, num_tokens // length)
    if len(windows) > wanted:
        windows = [windows[int(i)] for i in np.linspace(0, len(windows) - 1, wanted).round()]
    warned = _warnings(tokenizer, stream, data, num_tokens)
    return Calibration(windows, sum(map(len, windows)), len(stream), warned)


def _warnings(tokenizer: Tokenizer, stream: np.ndarray, data: Sequence[str], num_tokens: int) -> tuple[str, ...]:
    warned = []
    if len(stream) < min(num_tokens, _FEW):
        warned.append(
            f"the calibration text is short: {len(stream):,} tokens, where {min(num_tokens, _FEW):,} or more are "
            "needed for figures that do not hang on chance"
        )
    if data:
        ids = np.concatenate([np.asarray(i, np.int64) for i in tokenizer.encode_batch(list(data))])
        other, own = familiarity(ids, stream)
        if other < _ALIKE * own:
            warned.append(
                f"the calibration text is unlike your data: it holds {other:.0%} of the tokens of your data, where "
                f"another part of your data of the same length holds {own:.0%}; is it in another language?"
            )
    return tuple(warned)


def familiarity(ids: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Return the share of a text's tokens that occur in another text, and in a part of the same text.

    ids, others: token ids. Returns two shares of the second half of `ids`: of tokens that occur in `others`, and of
    those that occur in the first half, both cut to one length. (0, 0) when there are too few ids to tell.
    """
    middle = len(ids) // 2
    size = min(middle, len(others))
    if size < 100:
        return 0.0, 0.0
    second_half = ids[middle:]
    starts = np.linspace(0, len(others) - size, 4).astype(int)
    shares = [float(np.isin(second_half, others[start : start + size]).mean()) for start in starts]
    return max(shares), float(np.isin(second_half, ids[:middle][:size]).mean())


WINDOW = 512  # ids of a window that a model is judged on, where it knows so many
CALIBRATION_TOKENS = 8_192
HELD_OUT_TOKENS = 16_384
HELD_OUT_SHARE = 0.22  # half as much again selects
PASSAGE = 3000  # characters that a plain text is cut into
EVERY = 3  # every third text is held out, where the texts are not the person's own files


@dataclass(frozen=True)
class CalibrationData:
    """The texts of one job of shrinking, which do not overlap.

    A file's loss on the text that it was fitted to says nothing, and on the text that chose it among others it is too
    low.

    calibration: windows of ids that importance and sensitivity are measured on. fitted: text that may be fitted to, all
    of it. selection: windows that files are chosen by, each of `window` ids at most; texts: that text. held_out:
    windows that the chosen file is judged on; judged: that text. examples: held-out rows that ask something, if there
    are any.
    """

    name: str
    calibration: Sequence[np.ndarray]
    selection: Windows
    texts: Sequence[str]
    held_out: Windows
    judged: Sequence[str]
    fitted: Sequence[str]
    window: int
    examples: Sequence[Example] = ()
    warnings: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A hash of all ids."""
        digest = sha256()
        for windows in (self.calibration, self.selection.ids, self.held_out.ids):
            for ids in windows:
                digest.update(np.asarray(ids, "<i4").tobytes() + b"|")
            digest.update(b"||")
        return digest.hexdigest()[:16]

    def in_tokens_of(self, tokenizer: Tokenizer) -> "CalibrationData":
        """Return the texts in the ids of a tokenizer with fewer tokens."""
        windows = calibration_windows(tokenizer, self.fitted, CALIBRATION_TOKENS, min(LENGTH, self.window)).windows
        selection, held_out = (text_windows(tokenizer, texts, self.window) for texts in (self.texts, self.judged))
        return replace(self, calibration=windows, selection=selection, held_out=held_out)


def calibration_data(
    inputs: Sequence[str],
    calibration: Sequence[str],
    tokenizer: Tokenizer,
    context: int,
    events: Events,
    known: Sequence[str] = (),
) -> CalibrationData:
    """Read the texts and divide them.

    inputs: the user's files. calibration: other files to calibrate on. context: the model's context in tokens. known:
    texts of the kind that the model was trained on, used where there are no inputs; settle's own otherwise.

    Raises DataError for inputs that cannot be used or that hold next to nothing.
    """
    window = min(WINDOW, context)
    if not inputs:
        name, texts = ("its held-out text", known) if len(known) >= 2 * EVERY else (NAME, calibration_texts())
        return _of_texts(name, texts, calibration, tokenizer, window, events)
    plain = _plain_text(inputs, events)
    if plain is not None:
        return _of_texts(_named(inputs), plain, calibration, tokenizer, window, events)
    corpus = _corpus(inputs, tokenizer, window, events)
    sides = (corpus.selection, corpus.held_out)
    selection, held_out = (_judged(side, tokenizer) for side in sides)
    texts, judged = ([tokenizer.decode(ids) for ids in _spread(side, HELD_OUT_TOKENS)] for side in sides)
    if calibration:
        calibrated = _calibrated(calibration, tokenizer, window, events, [*texts, *judged])
    else:
        windows = [np.asarray(ids, np.int64) for ids in _spread(corpus.train, CALIBRATION_TOKENS)]
        calibrated = windows, _too_few(windows)
    examples = list(corpus.examples())
    fitted = [tokenizer.decode(corpus.train.document(i)) for i in range(corpus.train.num_documents)]
    return CalibrationData(
        _named(inputs), calibrated[0], selection, texts, held_out, judged, fitted, window, examples, calibrated[1]
    )


def _of_texts(
    name: str, passages: Sequence[str], calibration: Sequence[str], tokenizer: Tokenizer, window: int, events: Events
) -> CalibrationData:
    kept = [text for number, text in enumerate(passages) if number % EVERY == 0]
    fitted = [text for number, text in enumerate(passages) if number % EVERY]
    if calibration:
        calibrated = _calibrated(calibration, tokenizer, window, events, kept)
    else:
        windows = calibration_windows(tokenizer, fitted, CALIBRATION_TOKENS, min(LENGTH, window)).windows
        calibrated = windows, _too_few(windows)
    texts, judged = (first_texts(tokenizer, side, HELD_OUT_TOKENS) for side in _halves(kept))
    selection, held_out = (text_windows(tokenizer, side, window) for side in (texts, judged))
    return CalibrationData(name, calibrated[0], selection, texts, held_out, judged, fitted, window, (), calibrated[1])


def _halves(passages: Sequence[str]) -> tuple[list[str], list[str]]:
    """Every other passage; of a single one its two halves."""
    if len(passages) == 1:
        middle = len(passages[0]) // 2
        passages = [passages[0][:middle], passages[0][middle:]]
    return list(passages[::2]), list(passages[1::2])


def _calibrated(
    inputs: Sequence[str], tokenizer: Tokenizer, window: int, events: Events, judged: Sequence[str]
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    texts = _plain_text(inputs, events)
    if texts is None:
        corpus = _corpus(inputs, tokenizer, window, events)
        texts = [tokenizer.decode(corpus.train.document(i)) for i in range(corpus.train.num_documents)]
    cut = calibration_windows(tokenizer, texts, CALIBRATION_TOKENS, min(LENGTH, window), judged)
    return cut.windows, cut.warnings


def _plain_text(inputs: Sequence[str], events: Events) -> list[str] | None:
    """Files of plain text in passages, so that a single file has several; None for examples that ask something."""
    ledger = Ledger()
    with workspace() as work:
        reading = ExampleReader(
            find_files(list(inputs), work, ledger), ColumnSettings.model_validate({}), ledger, events
        )
        passages: list[str] = []
        for _, _, example in reading.examples():
            if example.kind != "text":
                return None
            passages += _passages(example.text)
    if not passages:
        raise DataError(f"there is no text in {_named(inputs)}", "give a file of text or of examples")
    return passages


def _passages(text: str) -> Iterator[str]:
    """Yield a text in parts of about PASSAGE characters, cut between paragraphs or lines where there are some."""
    at = 0
    while at < len(text):
        end = at + PASSAGE
        if end < len(text):
            cuts = (text.rfind(mark, at + PASSAGE // 2, end) for mark in ("\n\n", "\n", " "))
            end = next((cut for cut in cuts if cut > 0), end)
        yield text[at:end].strip("\n")
        at = end


def _named(inputs: Sequence[str]) -> str:
    return ", ".join(Path(path).name for path in inputs[:3]) + (", …" if len(inputs) > 3 else "")


def _corpus(inputs: Sequence[str], tokenizer: Tokenizer, window: int, events: Events) -> RowCorpus:
    settings = RowSettings.model_validate({"held_out": HELD_OUT_SHARE, "max_tokens": window, "most_too_long": 1.0})
    corpus = prepare_rows(list(inputs), tokenizer, settings, events)
    if any(
        side.num_tokens < 2 * side.num_documents or not side.num_documents
        for side in (corpus.selection, corpus.held_out)
    ):
        raise DataError("there is too little text to judge a model by", "give more of it, or none: settle brings some")
    return corpus


def _judged(store: TokenStore, tokenizer: Tokenizer) -> Windows:
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
    if number >= CALIBRATION_TOKENS // 2:
        return ()
    return (
        f"your text is short to calibrate on: {number:,} tokens, where {CALIBRATION_TOKENS // 2:,} or more tell chance "
        "apart; --calibration takes another text like it",
    )
