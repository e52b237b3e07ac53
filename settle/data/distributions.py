"""A model's next-token distributions in compact form, and their comparison with another model's.

Each position stores its K likeliest tokens, and S more that are drawn from all the others. What the others add to
a divergence is the mean over those drawn, so it is unbiased: a bare list of the likeliest would leave the tail out.

P positions, V vocabulary, K likeliest tokens, S drawn ones. Logarithms are natural.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from hashlib import sha256

import numpy as np

TOP, SAMPLED = 128, 32
LEAST = -80.0  # a log-probability below this one counts as this one: exp of it is next to nothing in float32
_GROUPS = 4096  # of a row; its sums and maxima go by whole groups, which numpy does many numbers at a time
_TINY = float(np.exp(LEAST))


@dataclass(frozen=True)
class Rows:
    """What is known of the next token at P positions.

    top_ids (P, K): likeliest first; top_logprobs (P, K) theirs. sampled_ids (P, S): drawn from all other tokens by
    their probability, one from each S-th of its mass; sampled_logprobs (P, S). rest_logmass (P,): of all tokens but the
    K, together. came_logprobs (P,): of the actual next token. S is 0 where K is the whole vocabulary.
    """

    top_ids: np.ndarray
    top_logprobs: np.ndarray
    sampled_ids: np.ndarray
    sampled_logprobs: np.ndarray
    rest_logmass: np.ndarray
    came_logprobs: np.ndarray

    def __len__(self) -> int:
        return len(self.came_logprobs)

    def __getitem__(self, which: slice) -> "Rows":
        return Rows(*(getattr(self, f.name)[which] for f in fields(Rows)))

    @classmethod
    def joined(cls, parts: "list[Rows]") -> "Rows":
        """Join rows one after the other."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class Compared:
    """A model against a reference, position by position, each (P,).

    kl: KL(reference ‖ model) in nats. logprobs: of the actual next token, in the model. top_equal: whether the
    likeliest token is the same in both.
    """

    kl: np.ndarray
    logprobs: np.ndarray
    top_equal: np.ndarray

    @classmethod
    def joined(cls, parts: "list[Compared]") -> "Compared":
        """Join positions one after the other."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def sizes(num_vocab: int, top: int = TOP, sampled: int = SAMPLED) -> tuple[int, int]:
    """Return K and S for a vocabulary: one that is hardly larger than both together is stored whole."""
    return (num_vocab, 0) if num_vocab <= top + sampled else (top, sampled)


def window_hash(ids: np.ndarray) -> bytes:
    """Return the sha256 of a window's ids as int32, little-endian: the key that a window is looked up by."""
    return sha256(np.ascontiguousarray(ids, "<i4").tobytes()).digest()


def draws(ids: np.ndarray, sampled: int) -> np.ndarray:
    """Return numbers (len(ids) − 1, S) between 0 and 1 that decide what is drawn, one in each S-th.

    They are always the same for a window: a record does not depend on who made it, in what pieces, or on how many
    cores.
    """
    seed = int.from_bytes(window_hash(ids)[:8], "little")
    random = np.random.default_rng(seed).random((max(len(ids) - 1, 0), sampled))
    return (np.arange(sampled) + random) / max(sampled, 1)


def summarise(
    logits: np.ndarray, actual: np.ndarray, drawn: np.ndarray, top: int, pool: ThreadPoolExecutor | None = None
) -> Rows:
    """Return the rows of some positions.

    logits: (P, V) float32, not changed. actual: (P,) ids of the next tokens. drawn: (P, S) of `draws`. top: K. pool:
    its threads share the rows. Raises ValueError where a logit is NaN or infinite upwards.
    """
    (positions, num_vocab), sampled = logits.shape, drawn.shape[1]
    rows = Rows(
        np.zeros((positions, top), np.int32),
        np.zeros((positions, top), np.float32),
        np.zeros((positions, sampled), np.int32),
        np.full((positions, sampled), LEAST, np.float32),
        np.full(positions, LEAST, np.float32),
        np.zeros(positions, np.float32),
    )

    def work(first: int, last: int) -> None:
        exponentials = _buffer(num_vocab)
        for at in range(first, last):
            row = logits[at]
            ids = _likeliest(row, top)
            norm, rest = _normalised(row, ids, exponentials)
            rows.top_ids[at] = ids
            rows.top_logprobs[at] = np.maximum(row[ids] - norm, LEAST)
            rows.came_logprobs[at] = max(row[actual[at]] - norm, LEAST)
            if rest.sum() > 0:
                rows.rest_logmass[at] = max(np.log(rest.sum()) + row[ids[0]] - norm, LEAST)
                chosen = _drawn(exponentials, rest, drawn[at])
                rows.sampled_ids[at] = chosen
                rows.sampled_logprobs[at] = np.maximum(row[chosen] - norm, LEAST)

    _shared(work, positions, pool)
    return rows


def compare(rows: Rows, logits: np.ndarray, actual: np.ndarray, pool: ThreadPoolExecutor | None = None) -> Compared:
    """Compare another model's logits (P, V), float32, on the same positions, with the reference's rows.

    With p of the reference and q of the model, every token adds q − p − p·log(q/p), which is never negative, and whose
    sum over all tokens is the divergence. It also tolerates that a record holds rounded logarithms: their error counts
    only as far as p and q differ. What is not among the likeliest is taken as one outcome, and inside of it the drawn
    tokens represent the others. Raises ValueError as `summarise`.
    """
    positions, num_vocab = logits.shape
    kl, logprobs = np.zeros(positions), np.zeros(positions, np.float32)
    top_equal = np.zeros(positions, bool)

    def work(first: int, last: int) -> None:
        exponentials = _buffer(num_vocab)
        for at in range(first, last):
            row, ids = logits[at], rows.top_ids[at]
            norm, rest = _normalised(row, ids, exponentials)
            logprobs[at] = max(row[actual[at]] - norm, LEAST)
            top_equal[at] = row.max() <= row[ids[0]]
            kl[at] = _divergence(rows, at, row, norm, float(rest.sum()) * np.exp(float(row.max()) - norm))

    _shared(work, positions, pool)
    return Compared(kl, logprobs, top_equal)


def _divergence(rows: Rows, at: int, row: np.ndarray, norm: float, rest_mass: float) -> float:
    """Return the KL of one position; rest_mass: what the model gives to all but the reference's likeliest."""
    ours = rows.top_logprobs[at].astype(float)
    mass, theirs = float(rows.rest_logmass[at]), float(np.log(max(rest_mass, _TINY)))
    total = _gap(ours, np.maximum(row[rows.top_ids[at]] - norm, LEAST)).sum() + _gap(mass, theirs)
    if not rows.sampled_ids.shape[1]:
        return float(total)
    # probabilities among the others alone, in both models
    inside = np.maximum(row[rows.sampled_ids[at]] - norm, LEAST) - theirs
    ratio = inside - (rows.sampled_logprobs[at].astype(float) - mass)
    return float(total + np.exp(mass) * (np.expm1(ratio) - ratio).mean())


def _gap(ours: np.ndarray | float, theirs: np.ndarray | float) -> np.ndarray:
    """Return q − p − p·log(q/p) from the logarithms of p and of q."""
    ratio = np.asarray(theirs) - ours
    return np.exp(ours) * (np.expm1(ratio) - ratio)


def _shared(work: Callable[[int, int], None], positions: int, pool: ThreadPoolExecutor | None) -> None:
    """Give each thread an equal run of the rows."""
    number = min(pool._max_workers, positions) if pool else 1
    if pool is None or number < 2:
        work(0, positions)
        return
    bounds = [positions * i // number for i in range(number + 1)]
    for done in [pool.submit(work, *pair) for pair in zip(bounds, bounds[1:], strict=False)]:
        done.result()


def _groups(num_vocab: int) -> int:
    """Return how many groups a row is cut into: token i belongs to group i modulo this."""
    return min(_GROUPS, max(1, num_vocab // 8))


def _buffer(num_vocab: int) -> np.ndarray:
    """Return room (tokens of a group, groups) for one row, zero after its end."""
    groups = _groups(num_vocab)
    return np.zeros((-(-num_vocab // groups), groups), np.float32)


def _likeliest(row: np.ndarray, top: int) -> np.ndarray:
    """Return the `top` tokens with the largest logits, largest first, equal ones by their id. row: (V,).

    Only what is no smaller than the K-th largest of the groups' maxima can be among them: that leaves few to sort.
    """
    groups = _groups(len(row))
    candidates = np.arange(len(row))
    if groups > top:
        maxima = row[: len(row) // groups * groups].reshape(-1, groups).max(0)
        candidates = np.flatnonzero(row >= np.partition(maxima, groups - top)[groups - top])
    order = np.argsort(-row[candidates], kind="stable")[:top]
    if len(order) < top:
        raise ValueError("a logit is not a number")
    return candidates[order]


def _normalised(row: np.ndarray, top_ids: np.ndarray, exponentials: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the log normaliser, and exp(logit − largest) of all tokens but `top_ids`, summed in groups.

    exponentials: see `_buffer`; left with those of all tokens but `top_ids`.
    """
    largest = row.max()
    flat = exponentials.reshape(-1)
    values = flat[: len(row)]
    with np.errstate(invalid="ignore"):
        np.subtract(row, largest, out=values)
        np.exp(values, out=values)
    likely = values[top_ids].sum(dtype=float)
    values[top_ids] = 0.0
    rest = exponentials.sum(0).astype(float)
    norm = float(largest) + np.log(likely + rest.sum())
    if not np.isfinite(norm):
        raise ValueError("a logit is not a number")
    return norm, rest


def _drawn(exponentials: np.ndarray, rest: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the tokens at the places `drawn` (S,) of the mass in `exponentials`, whose groups sum to `rest`."""
    upto = np.cumsum(rest)
    target = drawn * upto[-1]
    group = np.minimum(np.searchsorted(upto, target, "right"), len(rest) - 1)
    inside = exponentials[:, group].astype(float)
    above = np.cumsum(inside, 0) <= target - np.where(group > 0, upto[group - 1], 0.0)
    member = np.minimum(above.sum(0), len(inside) - 1)
    # rounding may point behind the last token that has any mass
    nothing = inside[member, np.arange(len(member))] <= 0
    member = np.where(nothing, inside.argmax(0), member)
    places: np.ndarray = member * exponentials.shape[1] + group
    return places
