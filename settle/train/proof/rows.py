"""Which rows of the first batch a proof computes on: whole ones, or parts of them where exactness is dear."""

from collections.abc import Iterator

import numpy as np

from settle.data.batches import Batch

# tokens from the start of a row that stay in a shortened row: trained attention rests on the first tokens, and without
# them bfloat16 gives another gradient (measured: 4 % off with them, up to 53 % without, on Gemma 3 270M)
ROW_HEAD_TOKENS = 4


def shorten(batch: Batch, tokens: int, segments: int) -> Batch:
    """The beginning of a packed batch: at most `tokens` and `segments`, cut into at least two segments."""
    n = min(tokens, len(batch.inputs))
    cuts = [int(c) for c in batch.cu_seqlens if c < n][:segments]
    if len(cuts) == segments:
        n = min(n, int(batch.cu_seqlens[segments]))
    edges = {*cuts, n}
    if len(edges) < 3 and n > 2:
        edges.add(n // 3)
    return between(batch, np.array(sorted(edges), dtype=batch.cu_seqlens.dtype))


def whole_rows(batch: Batch, tokens: int, step: int) -> Batch:
    """As many rows of `step` segments from the first on as fit into `tokens`, whole. Of rows so long that not even two
    fit, the `tails` of two.
    """
    num_rows = (len(batch.cu_seqlens) - 1) // step
    ends = batch.cu_seqlens[step::step]
    fitting = int((ends <= tokens).sum())
    if fitting >= min(2, num_rows):
        return between(batch, batch.cu_seqlens[: fitting * step + 1])
    return tails(batch, tokens, min(2, num_rows) * step)


def tails(batch: Batch, tokens: int, segments: int) -> Batch:
    """The ends of the first `segments` rows, where answers are, after their first tokens; at most `tokens` in all."""
    bounds = batch.cu_seqlens[: segments + 1].tolist()
    each = tokens // (len(bounds) - 1)
    head = min(ROW_HEAD_TOKENS, each // 2)
    pieces = [
        np.r_[first : first + head, last - each + head : last] if last - first > each else np.arange(first, last)
        for first, last in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    place = np.concatenate(pieces)
    positions = np.concatenate([np.arange(len(piece)) for piece in pieces])
    edges = np.cumsum([0, *map(len, pieces)]).astype(batch.cu_seqlens.dtype)
    record = None if batch.record is None else batch.record[place]
    shares = None if batch.shares is None else batch.shares[: len(pieces)]
    return Batch(batch.inputs[place], batch.targets[place], edges, positions, record, shares=shares)


def between(batch: Batch, edges: np.ndarray) -> Batch:
    """The part of a batch between the first and the last edge, its segments bounded by `edges` (S+1,)."""
    first, last = int(edges[0]), int(edges[-1])
    positions = np.concatenate([np.arange(b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)])
    record = None if batch.record is None else batch.record[first:last]
    start = int(np.searchsorted(batch.cu_seqlens, first))
    shares = None if batch.shares is None else batch.shares[start : start + len(edges) - 1]
    return Batch(
        batch.inputs[first:last], batch.targets[first:last], edges - edges[0], positions, record, shares=shares
    )


def row_by_row(batch: Batch, step: int) -> Iterator[Batch]:
    """Rows of `step` segments, one by one."""
    for i in range(0, len(batch.cu_seqlens) - 1, step):
        yield between(batch, batch.cu_seqlens[i : i + step + 1])
