"""Text to measure a model on when it is made smaller, and how it is cut into windows.

The passages beside this file were written for it and are given away under CC0: prose of many registers, talk,
instructions and answers, code, tables and configuration, maths, and more than twenty languages. `docs/calibration.md`
has more.

Letters: W windows, L ids of a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from settle.base.errors import DataError
from settle.base.tokenizer import Tokenizer

NAME = "settle's own calibration text"
BETWEEN = "\n=====\n"  # between the passages of a file
LENGTH = 256  # ids of a window
# below this share of what a text finds of its own tokens in itself, another does not speak its language
_ALIKE = 0.6
_FEW = 4096  # tokens under which measured importance is mostly chance


@cache
def calibration_texts() -> tuple[str, ...]:
    """The shipped passages, mixed, so that any beginning of them is varied too."""
    placed: list[tuple[float, str]] = []
    for path in sorted(Path(__file__).parent.glob("*.txt")):
        passages = path.read_text(encoding="utf-8").strip().split(BETWEEN)
        placed += [((i + 0.5) / len(passages), passage.strip()) for i, passage in enumerate(passages)]
    return tuple(passage for _, passage in sorted(placed))


@dataclass(frozen=True)
class Calibration:
    """windows: ids, each (L,) int64, the model's opening token first where it has one. num_tokens: of all windows.
    found: how many there were in the texts. warnings: sentences for a person."""

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
    """The share of a text's tokens that occur in another text, and in a part of the same text.

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
