"""Batches that a test makes by hand, and the documents behind them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from settle.data.batches import Batch
from settle.train.proof.source import SourceRow


def packed(lengths: Sequence[int], vocab_size: int, seed: int = 0, answers: bool = False) -> Batch:
    """Random tokens in segments of these lengths. answers: only the second half of each is learned."""
    tokens = np.random.default_rng(seed).integers(0, vocab_size, sum(lengths) + 1)
    learned = np.concatenate([np.arange(n) >= (n // 2 if answers else 0) for n in lengths])
    positions = np.concatenate([np.arange(n) for n in lengths])
    edges = np.cumsum([0, *lengths]).astype(np.int32)
    return Batch(tokens[:-1].copy(), np.where(learned, tokens[1:], -1), edges, positions)


def decisions(data: Batch, labels: Sequence[int], shares: np.ndarray) -> Batch:
    """`data` as decisions: each segment ends before its label."""
    targets = np.full_like(data.targets, -1)
    targets[data.cu_seqlens[1:] - 1] = [labels[i] for i in shares.argmax(1)]
    return replace(data, targets=targets, shares=shares)


def source_rows(batch: Batch, file: str = "rows.jsonl") -> list[SourceRow]:
    """One document a segment: its targets, and where they are not learned its next inputs."""
    rows = []
    for number, (first, last) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)):
        targets = batch.targets[first:last]
        following = np.append(batch.inputs[first + 1 : last], 0)
        document = np.where(targets >= 0, targets, following)
        before, learned = int(batch.inputs[first]), (targets >= 0).astype(np.uint8)
        rows.append(SourceRow(f"{file}:{number}", document, 0, len(document), before, learned))
    return rows
