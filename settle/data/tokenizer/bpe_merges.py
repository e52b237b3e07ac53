"""From symbols to tokens: the two ways of merging neighbours, of byte-level BPE and of SentencePiece's BPE.

Both merge the best pair again and again, of equals the leftmost. They differ in what is best: the earliest merge in a
list, or the pair whose concatenation has the highest score. (arXiv:1508.07909; arXiv:1808.06226)
"""

import heapq
from collections.abc import Callable


def merged(symbols: list[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """What is left of `symbols` when no two neighbours can be merged. rank: lower goes first, None never."""
    if len(symbols) < 2:
        return symbols
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    parts: list[str | None] = list(symbols)
    queue: list[tuple[float, int, int, int]] = []

    def offer(left: int, right: int) -> None:
        a, b = parts[left], parts[right]
        assert a is not None and b is not None
        priority = rank(a, b)
        if priority is not None:
            heapq.heappush(queue, (priority, left, right, len(a) + len(b)))

    for left in range(len(symbols) - 1):
        offer(left, left + 1)
    while queue:
        _, left, right, length = heapq.heappop(queue)
        a, b = parts[left], parts[right]
        if a is None or b is None or len(a) + len(b) != length or after[left] != right:
            continue
        parts[left], parts[right] = a + b, None
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        if before[left] >= 0:
            offer(before[left], left)
        if after[left] >= 0:
            offer(left, after[left])
    return [part for part in parts if part is not None]
