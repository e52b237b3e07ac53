"""Training and held-out documents, so that nothing nearly the same stands on both sides.

Many documents: whole clusters of similar ones go to a side by the hash of their text, so a document stays on its side
when others are added. Few documents: each is cut into sections and its last ones are held out.
Legend: D documents.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from settle.data.document_buffer import BufferWriter, DocumentBuffer
from settle.data.similarity import Similarity
from settle.documents.rows import cut

DROPPED, TRAIN, HELD_OUT = -1, 0, 1
FEW = 50
# more held-out text makes an evaluation no better, only the training set smaller
MOST_HELD_OUT = 16 << 20
# documents are kin, and stay on one side, well before they are near duplicates; where that makes one family of almost
# everything (texts from one template), near duplicates alone are kept together
KINSHIP, NEAR_DUPLICATE = 0.6, 0.85
_SECTIONS, _SMALLEST_SECTION, _LARGEST_SECTION = 64, 512, 1 << 15


def split_documents(documents: DocumentBuffer, remaining: np.ndarray, share: float) -> np.ndarray:
    """The side of each document, int8 (D,), for many documents; `remaining` is bool (D,), the others are DROPPED."""
    sizes = np.where(remaining, documents.sizes, 0)
    budget = _budget(sizes, share)
    similarity = Similarity(documents)
    for jaccard in (KINSHIP, NEAR_DUPLICATE):
        cluster = similarity.clusters(jaccard)
        size = np.bincount(cluster, sizes, len(sizes))
        order = uniform_order(cluster, documents.hashes, remaining)
        # one large family must not be the whole of what is measured on
        chosen = _first_to_fit(size, order, budget, budget / 2)
        if size[chosen].sum() > budget / 2:
            break
    sides = np.where(remaining, TRAIN, DROPPED).astype(np.int8)
    sides[np.isin(cluster, chosen) & remaining] = HELD_OUT
    return sides


def split_rows(texts: DocumentBuffer, prompts: np.ndarray, remaining: np.ndarray, share: float) -> np.ndarray:
    """The side of each of R examples, int8 (R,); `remaining` is bool (R,), the others are DROPPED. Neither a near
    duplicate nor another answer to the same prompt is on both sides.

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
            cluster = _joined_by_prompt(cluster, prompts)
        size = np.bincount(cluster[remaining], minlength=len(remaining))
        order = uniform_order(cluster, texts.hashes, remaining)
        chosen = _first_to_fit(size, order, budget, max(budget / 2, 1))
        if size[chosen].sum() > budget / 2 and size[chosen].sum() < remaining.sum():
            sides[np.isin(cluster, chosen) & remaining] = HELD_OUT
            break
    return sides


def _first_to_fit(size: np.ndarray, order: np.ndarray, budget: float, most: float) -> np.ndarray:
    """The clusters of at most `most`, first in `order`, that together stay within the budget."""
    candidates = np.flatnonzero((size > 0) & (size <= most))
    candidates = candidates[np.argsort(order[candidates], kind="stable")]
    chosen: np.ndarray = candidates[np.cumsum(size[candidates]) <= budget]
    return chosen


def _joined_by_prompt(cluster: np.ndarray, prompts: np.ndarray) -> np.ndarray:
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


def uniform_order(cluster: np.ndarray, hashes: np.ndarray, remaining: np.ndarray) -> np.ndarray:
    """A uniform number a cluster, from its lowest hash: float64 (D,).

    The lowest of n hashes is the lower the larger n, and large clusters would be held out first: of n uniform numbers
    the lowest is below x with probability 1 - (1 - x)^n, which is uniform again.
    """
    lowest = np.ones(len(hashes))
    np.minimum.at(lowest, cluster[remaining], hashes[remaining] / 2.0**64)
    members = np.bincount(cluster[remaining], minlength=len(hashes))
    return -np.expm1(members * np.log1p(-np.minimum(lowest, 1 - 2.0**-53)))


def are_few(documents: DocumentBuffer, remaining: np.ndarray, share: float) -> bool:
    """Whether whole documents are too few, or some of them too large, to give a fair held-out set."""
    sizes = documents.sizes[remaining]
    large = sizes[sizes > _budget(sizes, share) / 4]
    return len(sizes) < FEW or 2 * large.sum() > sizes.sum()


def _budget(sizes: np.ndarray, share: float) -> float:
    return min(share * float(sizes.sum()), MOST_HELD_OUT)


def split_sections(
    documents: DocumentBuffer, remaining: np.ndarray, share: float, folder: Path
) -> tuple[DocumentBuffer, np.ndarray]:
    """For few documents: a new spool in `folder` whose documents are parts of the old ones, and the side of each."""
    sections, parents = _cut_sections(documents, remaining, folder / "sections")
    sides = np.full(len(sections), TRAIN, np.int8)
    sizes = sections.sizes
    for parent in np.unique(parents):
        own = np.flatnonzero(parents == parent)
        after = np.cumsum(sizes[own][::-1])[::-1]
        tail = own[after <= max(share * after[0], sizes[own[-1]])] if len(own) > 3 else own[:0]
        sides[tail] = HELD_OUT
    if not (sides == HELD_OUT).any() and len(sections) > 1:
        order = np.argsort(sections.hashes, kind="stable")
        count = int(np.searchsorted(np.cumsum(sizes[order]), share * sizes.sum(), side="right"))
        sides[order[: max(count, 1)]] = HELD_OUT
    similarity, proposed = Similarity(sections), sides == HELD_OUT
    for jaccard in (KINSHIP, NEAR_DUPLICATE):
        sides = np.where(proposed, HELD_OUT, TRAIN).astype(np.int8)
        _keep_kin_together(sides, similarity.clusters(jaccard))
        if 2 * (sides == HELD_OUT).sum() > proposed.sum():
            break
    return _join(sections, parents, sides, folder / "split")


def drop_kin_of_held_out(documents: DocumentBuffer, sides: np.ndarray, drop: Callable[[str, int, int], None]) -> None:
    """For a given held-out text: training documents that are the same as one of its own, or nearly, are dropped."""
    cluster = Similarity(documents).clusters(NEAR_DUPLICATE)
    held_out = np.zeros(len(sides), bool)
    held_out[cluster[sides == HELD_OUT]] = True
    # texts of fewer words than a shingle have no cluster
    same = np.isin(documents.hashes, documents.hashes[sides == HELD_OUT])
    dropped = (sides == TRAIN) & (held_out[cluster] | same)
    sides[dropped] = DROPPED
    for file, row in documents.origins[dropped].tolist():
        drop("the same as held-out text, or nearly", file, row)


def _keep_kin_together(sides: np.ndarray, cluster: np.ndarray) -> None:
    """A held-out document with kin in training goes to training."""
    trained = np.zeros(len(sides), bool)
    trained[cluster[sides == TRAIN]] = True
    sides[(sides == HELD_OUT) & trained[cluster]] = TRAIN


def _cut_sections(documents: DocumentBuffer, remaining: np.ndarray, folder: Path) -> tuple[DocumentBuffer, np.ndarray]:
    writer, parents = BufferWriter(folder), []
    try:
        for document in np.flatnonzero(remaining).tolist():
            text = documents.read(document)
            file, row = documents.origins[document].tolist()
            size = min(max(len(text) // _SECTIONS, _SMALLEST_SECTION), _LARGEST_SECTION)
            for section in cut([text], size):
                writer.append(section, file, row)
                parents.append(document)
    finally:
        spool = writer.close()
    return spool, np.array(parents, np.int64)


def _join(
    sections: DocumentBuffer, parents: np.ndarray, sides: np.ndarray, folder: Path
) -> tuple[DocumentBuffer, np.ndarray]:
    """Neighbouring sections of one document on one side become one document again."""
    same = (np.diff(parents) == 0) & (np.diff(sides) == 0)
    begins = np.flatnonzero(np.append(True, ~same))
    writer = BufferWriter(folder)
    try:
        for first, last in zip(begins.tolist(), [*begins[1:].tolist(), len(parents)], strict=True):
            file, row = sections.origins[first].tolist()
            writer.append("".join(sections.read(i) for i in range(first, last)), file, row)
    finally:
        spool = writer.close()
    return spool, sides[begins]
