"""How much of the loss a model's size and its text leave, what text is worth seen again, and how predictable it is.

Counting n-grams is some thousand times cheaper than training, so the whole text can be counted where only a short
stretch can be trained on. What a text's n-gram model gains from more of that text says how much a network will.

Interpolated as Witten and Bell 1991 (method C): p(w | c) = (n(c, w) + t(c) p(w | c')) / (n(c) + t(c)) for a context c
that occurs n(c) times before t(c) kinds of tokens, and c' the same without its first token.

Legend: V vocabulary, N counted tokens, M held-out tokens, C tokens of a chunk.
"""

import lzma
import math
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from settle.data.prepare import Corpus  # whose imports take a while

REPEATS = 15.0
# Loss that a model's size and its text leave: Hoffmann et al. 2022, arXiv 2203.15556, approach 3.
SIZE_TERM, SIZE_POWER = 406.4, 0.34
TEXT_TERM, TEXT_POWER = 410.7, 0.28


def left_over(parameters: float, fresh_tokens: float) -> float:
    """Return the part of the loss that more parameters or more text would take away, up to a unit."""
    return SIZE_TERM / math.pow(parameters, SIZE_POWER) + TEXT_TERM / math.pow(fresh_tokens, TEXT_POWER)


def worth(tokens: float, unique: float, repeats: float = REPEATS) -> float:
    """Return how many fresh tokens teach as much as `tokens` drawn again and again from `unique` ones.

    U (1 + R (1 - e^(-x/R))) for U unique tokens seen 1 + x times (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5).
    """
    if tokens <= unique:
        return tokens
    return unique * (1 + repeats * -math.expm1(-(tokens / unique - 1) / repeats))


# --- how predictable a text is ---

ORDER = 4  # tokens of the longest n-gram
FEWEST_COUNTED, MOST_COUNTED = 1 << 12, 1 << 19  # tokens; a second's work
MOST_ASKED = 12_288  # held-out tokens
# To compare two texts by: what a network makes of stretches that the text holds word for word, n-grams make of them
# once a sixteenth of its training is counted. After 250 steps the shifts of eight texts were 1.03 times those.
SHIFT_COUNTED, SHIFT_ASKED, SHIFT_SHARE = [1 << k for k in range(13, 18)], 1 << 15, 1 / 16  # tokens
MOST_PACKED = 1 << 18  # tokens
CHUNK = 128  # tokens; chunks are drawn at random from the text, as batches are
NEAR_BITS = 20  # of a hash
NgramCurve = list[tuple[float, list[float]]]  # (tokens counted, `ngram_losses`), rising
_counted: dict[str, "Counted"] = {}
_counting = Lock()
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth 1998, section 6.4)


def chunks(tokens: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """At most `most` of the tokens (any length) as chunks in random order, (N / C, C)."""
    length = min(CHUNK, len(tokens))
    number = len(tokens) // length
    order = np.random.default_rng(seed).permutation(number)[: max(1, most // length)]
    return np.stack([tokens[i * length : (i + 1) * length] for i in order]).astype(np.int64)


def ngram_curve(tokens: np.ndarray, held_out: np.ndarray, vocab_size: int) -> NgramCurve:
    """Count ever more of the text, doubling, up to `MOST_COUNTED` tokens.

    tokens (N,), held_out (M,): ids of the training and of the held-out text, of which `MOST_ASKED` are used.
    """
    asked = chunks(held_out, MOST_ASKED)
    counted = chunks(tokens, MOST_COUNTED)
    sizes = [1 << k for k in range(FEWEST_COUNTED.bit_length() - 1, counted.size.bit_length())]
    rows = sorted({max(1, size // counted.shape[1]) for size in sizes} | {len(counted)})
    return [(float(n * counted.shape[1]), ngram_losses(counted[:n], asked, vocab_size)) for n in rows]


@dataclass(frozen=True)
class Counted:
    """What is counted of a corpus. packed, shifts: see the functions of those names."""

    ngrams: NgramCurve
    packed: float
    shifts: list[tuple[float, float]]


def counted(corpus: "Corpus") -> Counted:
    """Count a corpus, once in a process; what another thread began is waited for."""
    train, selection = corpus.train, corpus.selection
    key, vocab_size = f"{train.folder} {selection.folder}", corpus.tokenizer.vocab_size
    with _counting:
        if key not in _counted:
            curve = ngram_curve(train.tokens, selection.tokens, vocab_size)
            harder = shifts(train.tokens, selection.tokens, corpus.held_out.tokens, vocab_size)
            _counted[key] = Counted(curve, packed(train.tokens), harder)
        return _counted[key]


def packed(tokens: np.ndarray) -> float:
    """Return what LZMA leaves of a text, in nats per token: it finds what is repeated from further away than n-grams.

    tokens (N,): ids, of which the first `MOST_PACKED` are read, a quarter of a second's work.
    """
    text = tokens[:MOST_PACKED].astype("<u2" if tokens.dtype.itemsize <= 2 else "<u4").tobytes()
    left = lzma.compress(text, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 4}])
    return 8 * math.log(2) * len(left) / min(MOST_PACKED, len(tokens))


def shifts(tokens: np.ndarray, selection: np.ndarray, judged: np.ndarray, vocab_size: int) -> list[tuple[float, float]]:
    """Return ln of what n-grams lose on the text that judges ÷ on what selects, by the tokens that they counted.

    The latter is taken from all over the text and the former often is its end. Token ids, of any length each.
    """
    asked, found = [chunks(text, SHIFT_ASKED) for text in (judged, selection)], list[tuple[float, float]]()
    for number in SHIFT_COUNTED:
        known = chunks(tokens, number)
        judging, selecting = (ngram_losses(known, text, vocab_size)[-1] for text in asked)
        found.append((float(number), math.log(judging / selecting)))
    return found


def ngram_losses(counted: np.ndarray, held_out: np.ndarray, vocab_size: int, order: int = ORDER) -> list[float]:
    """Return the mean losses of n-grams of up to one token, two, …, `order` on held-out text, in nats per token.

    counted (N / C, C): the text that was counted; held_out (M / C, C).
    """
    probability, losses = np.full(held_out.size, 1 / vocab_size), list[float]()
    for length in range(1, order + 1):
        contexts, grams = _hashed(counted, length)
        asked_contexts, asked_grams = _hashed(held_out, length)
        contexts, grams = _near(contexts, grams, asked_contexts)
        if length > 1:
            order_of_grams = np.argsort(grams)
            contexts, grams = contexts[order_of_grams], grams[order_of_grams]
        else:  # all have one context, and sorting is some times quicker
            grams = np.sort(grams)
        is_first = np.append(True, grams[1:] != grams[:-1])[: len(grams)]  # of its kind
        of_kinds = contexts[is_first]  # a context once for each of its distinct continuations
        n_gram, n_context = _times(grams, asked_grams), _times(np.sort(contexts), asked_contexts)
        t_context = _times(np.sort(of_kinds), asked_contexts)
        whole = n_context + t_context
        mixed = (n_gram + t_context * probability) / np.maximum(whole, 1)
        probability = np.where(whole > 0, mixed, probability)
        losses.append(float(-np.log(probability).mean()))
    return losses


def _near(contexts: np.ndarray, grams: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out most of what no asked context counts: sorting takes most of the time. By the last bits of a hash."""
    is_asked = np.zeros(1 << NEAR_BITS, np.bool_)
    is_asked[asked & np.uint64(len(is_asked) - 1)] = True
    near = is_asked[contexts & np.uint64(len(is_asked) - 1)]
    return contexts[near], grams[near]


def _hashed(rows: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash the context and the whole n-gram that end at each token, both (rows.size,).

    At the beginning of a row the context is shorter.
    """
    context = np.zeros(rows.shape, np.uint64)
    for back in range(order - 1, 0, -1):
        shifted = np.zeros(rows.shape, np.uint64)
        shifted[:, back:] = rows[:, :-back] + 1
        context = (context + shifted) * _FACTOR
        context ^= context >> np.uint64(29)
    gram = (context + rows.astype(np.uint64) + np.uint64(1)) * _FACTOR
    gram ^= gram >> np.uint64(31)
    return context.ravel(), gram.ravel()


def _times(keys: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Count each asked hash among sorted ones; asking in order finds near ones in the same places of memory."""
    kinds, which = np.unique(asked, return_inverse=True)
    times: np.ndarray = (np.searchsorted(keys, kinds, "right") - np.searchsorted(keys, kinds, "left"))[which]
    return times
