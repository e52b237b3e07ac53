"""Training and held-out rows, so that neither a near duplicate nor another answer to the same prompt is on both sides.

Legend: R examples.
"""

import numpy as np

from settle.data.document_buffer import DocumentBuffer
from settle.data.similarity import Similarity
from settle.data.split import DROPPED, HELD_OUT, KINSHIP, NEAR_DUPLICATE, TRAIN, uniform_order


def split_rows(texts: DocumentBuffer, prompts: np.ndarray, remaining: np.ndarray, share: float) -> np.ndarray:
    """The side of each example, int8 (R,); `remaining` is bool (R,), the others are DROPPED.

    texts: what each example says. prompts: a hash of what each asks, uint64 (R,). A cluster goes to a side by the hash
    of its text, so that an example stays on its side when others are added.
    """
    sides = np.where(remaining, TRAIN, DROPPED).astype(np.int8)
    budget = max(1.0, share * int(remaining.sum()))
    similarity = Similarity(texts)
    # where kinship, or a prompt that all share, makes one cluster of almost everything, what is stricter decides
    for jaccard, by_prompt in ((KINSHIP, True), (NEAR_DUPLICATE, True), (NEAR_DUPLICATE, False)):
        cluster = similarity.clusters(jaccard)
        if by_prompt:
            cluster = _joined(cluster, prompts)
        size = np.bincount(cluster[remaining], minlength=len(remaining))
        order = uniform_order(cluster, texts.hashes, remaining)
        candidates = np.flatnonzero((size > 0) & (size <= max(budget / 2, 1)))
        candidates = candidates[np.argsort(order[candidates], kind="stable")]
        chosen = candidates[np.cumsum(size[candidates]) <= budget]
        if size[chosen].sum() > budget / 2 and size[chosen].sum() < remaining.sum():
            sides[np.isin(cluster, chosen) & remaining] = HELD_OUT
            break
    return sides


def _joined(cluster: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Clusters that share a prompt become one: for each example the first of its cluster, int64 (R,)."""
    joined = cluster
    while True:
        _, first, same = np.unique(prompts, return_index=True, return_inverse=True)
        lowest = np.full(len(first), len(cluster))
        np.minimum.at(lowest, same, joined)
        by_prompt = lowest[same]
        lowest = np.full(len(cluster), len(cluster))
        np.minimum.at(lowest, joined, by_prompt)
        after: np.ndarray = lowest[joined]
        if (after == joined).all():
            return after
        joined = after
