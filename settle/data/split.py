"""Three sides, so that nothing nearly the same is on two of them: what trains, what selects the weights, what judges.

A figure read off the rows that selected the weights is too good: the best of many evaluations is partly luck. So the
held-out side is read once, when the weights are fixed, and a smaller selection side is taken from the training text.

Many documents: whole clusters of similar ones go to a side by the hash of their text, so a document stays on its side
when others are added. Few documents: each is cut into sections, of which the last ones are held out, and short
stretches all over what is before them select: one long stretch would take a whole chapter away from training. Near
duplicates, and answers to one prompt, are one family: no independent samples.
Legend: D documents, R examples.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from settle.data.corpus import workspace
from settle.data.document_buffer import BufferWriter, DocumentBuffer
from settle.data.layouts import Example
from settle.data.similarity import Similarity
from settle.documents.rows import cut

DROPPED, TRAIN, HELD_OUT, SELECTION = -1, 0, 1, 2
SIDES = {TRAIN: "train", SELECTION: "selection", HELD_OUT: "held_out"}
SELECTION_SHARE = 0.5  # of what is held out, at most
# bytes, and share of the text: an evaluation of the loop reads no more (train/settled), and what it does not read would
# be lost to training for nothing
MOST_READ, MOST_READ_SHARE = 24 << 10, 1 / 80
FEW = 50
# of few rows as many judge as show a difference of 30 points in four cases of five, but no more than a third of them
JUDGING_ROWS, MOST_JUDGING = 40, 1 / 3
# more held-out text makes an evaluation no better, only the training set smaller
MOST_HELD_OUT = 16 << 20
# documents are kin, and stay on one side, well before they are near duplicates; where that makes one family of almost
# everything (texts from one template), near duplicates alone are kept together
KINSHIP, NEAR_DUPLICATE = 0.6, 0.85
_SECTIONS, _SMALLEST_SECTION, _LARGEST_SECTION = 512, 512, 1 << 15
_SECTIONS_OF_ONE = 64  # where what selects is one stretch
# bytes of a stretch that selects: several contexts, so that most of it is far from what trains
_SHORTEST_STRETCH, _MOST_STRETCHES = 4096, 16


@dataclass(frozen=True)
class Split:
    """The side and the family of each document.

    sides: int8 (D,). families: int64 (D,), group id; documents in a group are near-duplicates, so not independent
    samples.
    """

    sides: np.ndarray
    families: np.ndarray


def selecting_bytes(size: float, share: float, all_of_half: bool = False) -> float:
    """Return how many bytes of a text of `size` bytes select the weights, where a `share` of it judges them.

    all_of_half: half of what judges, also where nobody reads as much.
    """
    half = SELECTION_SHARE * min(share * size, MOST_HELD_OUT)
    return half if all_of_half else min(half, max(MOST_READ, MOST_READ_SHARE * size))


def split_documents(documents: DocumentBuffer, remaining: np.ndarray, share: float, selecting: float) -> Split:
    """Return the side of each document, for many documents; `remaining` is bool (D,), the others are DROPPED.

    selecting: bytes that select.
    """
    sizes = np.where(remaining, documents.sizes, 0)
    levels = document_clusters(documents)
    sides = np.where(remaining, TRAIN, DROPPED).astype(np.int8)
    budget = _budget(sizes, share)
    held_out, families = _first_clusters(levels, documents.hashes, sizes, budget)
    sides[held_out] = HELD_OUT
    _select(sides, levels, documents.hashes, sizes, selecting)
    return Split(sides, families)


def judging_share(rows: int, share: float) -> float:
    """Return the share of so many rows that judges, where a `share` is the usual one and none was asked for."""
    return max(share, min(MOST_JUDGING, JUDGING_ROWS / max(1, rows)))


def split_rows(
    texts: DocumentBuffer, prompts: np.ndarray, remaining: np.ndarray, share: float, selecting: float | None = None
) -> Split:
    """Return the side of each of R examples; `remaining` is bool (R,), the others are DROPPED.

    Neither a near duplicate nor another answer to the same prompt is on two sides. texts: what each example says.
    prompts: a hash of what each asks, uint64 (R,). A cluster goes to a side by the hash of its text, so that an example
    stays on its side when others are added. selecting: the share that selects; None: half of `share`.
    """
    sides = np.where(remaining, TRAIN, DROPPED).astype(np.int8)
    number, weights = int(remaining.sum()), remaining.astype(float)
    selecting = SELECTION_SHARE * share if selecting is None else selecting
    levels = row_clusters(texts, prompts)
    held_out, families = _first_clusters(levels, texts.hashes, weights, max(1.0, share * number))
    if 0 < held_out.sum() < number:
        sides[held_out] = HELD_OUT
        _select(sides, levels, texts.hashes, weights, max(1.0, selecting * number))
    return Split(sides, families)


def row_clusters(texts: DocumentBuffer, prompts: np.ndarray) -> list[np.ndarray]:
    """Return clusterings of examples, coarsest first: for each example the first of its cluster, int64 (R,).

    Where kinship, or a prompt that all share, makes one cluster of almost everything, the next one is stricter.
    """
    similarity = Similarity(texts)
    kin, near = similarity.clusters(KINSHIP), similarity.clusters(NEAR_DUPLICATE)
    return [_joined_by_prompt(kin, prompts), _joined_by_prompt(near, prompts), near]


def split_given(
    documents: DocumentBuffer,
    levels: Sequence[np.ndarray],
    remaining: np.ndarray,
    given: np.ndarray,
    selecting: float,
    *,
    by_rows: bool,
) -> Split:
    """Return the sides for held-out text of the user's own, `given` bool (D,); others select.

    levels: as of `row_clusters`. selecting: the bytes that select or, where it goes `by_rows`, the share of the rows.
    """
    sides = np.where(remaining, TRAIN, DROPPED).astype(np.int8)
    sides[given & remaining] = HELD_OUT
    weights = np.where(sides == TRAIN, 1.0 if by_rows else documents.sizes, 0.0)
    budget = selecting * float(weights.sum()) if by_rows else selecting
    _select(sides, levels, documents.hashes, weights, max(1.0, budget))
    return Split(sides, families_of(levels, sides == HELD_OUT))


def families_of(levels: Sequence[np.ndarray], measured: np.ndarray) -> np.ndarray:
    """Return the coarsest clustering whose largest cluster holds at most half of the `measured` documents.

    The last one where there is none. levels: int64 (D,) each; measured: bool (D,).
    """
    for families in levels:
        if 2 * int(np.bincount(families[measured]).max(initial=0)) <= measured.sum():
            break
    return families


def document_clusters(documents: DocumentBuffer) -> list[np.ndarray]:
    """Return for each document the first of its cluster, int64 (D,), the second time by a stricter measure."""
    similarity = Similarity(documents)
    return [similarity.clusters(jaccard) for jaccard in (KINSHIP, NEAR_DUPLICATE)]


def _first_clusters(
    levels: Sequence[np.ndarray], hashes: np.ndarray, sizes: np.ndarray, budget: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return documents, bool (D,), in whole clusters that fit into the budget, and the clustering that was used.

    That is the first level of which they fill half of the budget. sizes: 0 of documents that are not to be had.
    """
    available = sizes > 0
    for cluster in levels:
        size = np.bincount(cluster, sizes, len(sizes))
        order = uniform_order(cluster, hashes, available)
        # one large family must not be the whole of what is measured on
        chosen = _first_to_fit(size, order, budget, max(budget / 2, 1.0))
        if budget / 2 < size[chosen].sum() < sizes.sum():
            break
    return np.isin(cluster, chosen) & available, cluster


def _select(
    sides: np.ndarray, levels: Sequence[np.ndarray], hashes: np.ndarray, sizes: np.ndarray, budget: float
) -> None:
    """Move training documents to the selection side.

    Where kinship leaves none to be moved, single ones are: they only choose among weights, and the judgement is made on
    others.
    """
    available = np.where(sides == TRAIN, sizes, 0)
    budget = min(budget, float(available.sum()) / 3)
    alone = np.arange(len(sides))
    chosen, _ = _first_clusters([*levels, alone], hashes, available, budget)
    if not chosen.any() and (available > 0).sum() > 1:
        candidates = np.flatnonzero(available > 0)
        chosen[candidates[np.argmin(available[candidates])]] = True
    sides[chosen] = SELECTION


def _first_to_fit(size: np.ndarray, order: np.ndarray, budget: float, most: float) -> np.ndarray:
    """Return the clusters of at most `most`, first in `order`, that together stay within the budget."""
    candidates = np.flatnonzero((size > 0) & (size <= most))
    candidates = candidates[np.argsort(order[candidates], kind="stable")]
    chosen: np.ndarray = candidates[np.cumsum(size[candidates]) <= budget]
    return chosen


def _joined_by_prompt(cluster: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Join clusters that share a prompt: for each example the first of its cluster, int64 (R,)."""
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
    """Return a uniform number a cluster, from its lowest hash: float64 (D,).

    The lowest of n hashes is the lower the larger n, and large clusters would be held out first: of n uniform numbers
    the lowest is below x with probability 1 - (1 - x)^n, which is uniform again.
    """
    lowest = np.ones(len(hashes))
    np.minimum.at(lowest, cluster[remaining], hashes[remaining] / 2.0**64)
    members = np.bincount(cluster[remaining], minlength=len(hashes))
    return -np.expm1(members * np.log1p(-np.minimum(lowest, 1 - 2.0**-53)))


def are_few(documents: DocumentBuffer, remaining: np.ndarray, share: float) -> bool:
    """Return whether whole documents are too few, or some of them too large, to give a fair held-out set."""
    sizes = documents.sizes[remaining]
    large = sizes[sizes > _budget(sizes, share) / 4]
    return len(sizes) < FEW or 2 * large.sum() > sizes.sum()


def _budget(sizes: np.ndarray, share: float) -> float:
    return min(share * float(sizes.sum()), MOST_HELD_OUT)


def split_sections(
    documents: DocumentBuffer,
    remaining: np.ndarray,
    share: float,
    folder: Path,
    given: np.ndarray | None,
    selecting: float,
    in_one_stretch: bool = False,
) -> tuple[DocumentBuffer, Split]:
    """Split few documents into parts: a new spool in `folder`, and the side of each part.

    Parts of one document are one family. given: bool (D,), held-out text of the user's own, which stays that.
    selecting: share of each document that selects: from all over it, or in one stretch before what judges.
    """
    number = _SECTIONS_OF_ONE if in_one_stretch else _SECTIONS
    sections, parents = _cut_sections(documents, remaining, folder / "sections", number)
    is_given = np.zeros(len(sections), bool) if given is None else given[parents]
    proposed, sizes = np.where(is_given, HELD_OUT, TRAIN).astype(np.int8), sections.sizes
    parts = ({} if given is not None else {HELD_OUT: share}) | {SELECTION: selecting}
    for parent in np.unique(parents[~is_given]):
        own = np.flatnonzero(parents == parent)
        for side, part in parts.items() if len(own) > 3 else ():
            propose = _propose_tail if in_one_stretch or side == HELD_OUT else _propose_stretches
            propose(proposed, own[proposed[own] == TRAIN], sizes, side, part)
    for side, part in parts.items():
        if not (proposed == side).any() and (proposed == TRAIN).sum() > 1:
            order = np.argsort(sections.hashes, kind="stable")
            order = order[proposed[order] == TRAIN]
            count = int(np.searchsorted(np.cumsum(sizes[order]), part * sizes.sum(), side="right"))
            proposed[order[: max(count, 1)]] = side
    similarity, sides = Similarity(sections), proposed
    for jaccard in (KINSHIP, NEAR_DUPLICATE):
        sides = _kin_together(proposed, similarity.clusters(jaccard))
        if given is not None:
            sides[sides == HELD_OUT] = SELECTION  # of the person's training text
            sides[is_given] = HELD_OUT
        if all(2 * (sides == side).sum() > (proposed == side).sum() for side in parts):
            break
    if not (sides == SELECTION).any():
        _select(sides, [], sections.hashes, sizes.astype(float), 1.0)
    return _join(sections, parents, sides, folder / "split")


def _propose_tail(sides: np.ndarray, own: np.ndarray, sizes: np.ndarray, side: int, share: float) -> None:
    """Put the last of a document's sections `own`, at most `share` of it but at least one, on a side."""
    after = np.cumsum(sizes[own][::-1])[::-1]
    sides[own[after <= max(share * after[0], sizes[own[-1]])]] = side


def _propose_stretches(sides: np.ndarray, own: np.ndarray, sizes: np.ndarray, side: int, share: float) -> None:
    """Put evenly spread stretches of a document's sections `own`, about `share` of it in all, on a side.

    What is too short for one in its middle gives its last sections.
    """
    total = float(sizes[own].sum())
    if share * total < _SHORTEST_STRETCH:
        _propose_tail(sides, own, sizes, side, share)
        return
    number = max(1, int(min(share * total / max(_SHORTEST_STRETCH, total / len(own)), _MOST_STRETCHES)))
    middles = (np.cumsum(sizes[own]) - sizes[own] / 2) / total * number  # of stretch i at i + 1/2
    for stretch in range(number):
        near = np.flatnonzero(middles.astype(int) == stretch)
        near = near[np.argsort(np.abs(middles[near] - stretch - 0.5), kind="stable")]
        taken = np.cumsum(sizes[own[near]]) - sizes[own[near]] / 2 <= share * total / number
        sides[own[near[taken]]] = side


def without_kin_of(
    given: np.ndarray, documents: DocumentBuffer, remaining: np.ndarray, drop: Callable[[str, int, int], None]
) -> np.ndarray:
    """Drop training documents that are nearly the same as `given` held-out text; return those that remain, bool (D,).

    given: bool (D,).
    """
    held_out = given & remaining
    cluster = Similarity(documents).clusters(NEAR_DUPLICATE)
    has_held_out = np.zeros(len(given), bool)
    has_held_out[cluster[held_out]] = True
    # texts of fewer words than a shingle have no cluster
    same = np.isin(documents.hashes, documents.hashes[held_out])
    dropped = remaining & ~given & (has_held_out[cluster] | same)
    for file, row in documents.origins[dropped].tolist():
        drop("the same as held-out text, or nearly", file, row)
    left: np.ndarray = remaining & ~dropped
    return left


def _kin_together(proposed: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Return the sides (D,) with every cluster on one: training where any of it is, else held out."""
    sides = proposed.copy()
    for side in (HELD_OUT, TRAIN):
        has_it = np.zeros(len(sides), bool)
        has_it[cluster[proposed == side]] = True
        sides[has_it[cluster]] = side
    return sides


def _cut_sections(
    documents: DocumentBuffer, remaining: np.ndarray, folder: Path, number: int
) -> tuple[DocumentBuffer, np.ndarray]:
    """Cut documents into about `number` sections each; return these, and the document of each."""
    parents = []
    with BufferWriter(folder) as writer:
        for document in np.flatnonzero(remaining).tolist():
            text = documents.read(document)
            size = min(max(len(text) // number, _SMALLEST_SECTION), _LARGEST_SECTION)
            for section in cut([text], size):
                writer.append(section, *documents.origins[document].tolist())
                parents.append(document)
    return writer.close(), np.array(parents, np.int64)


def _join(
    sections: DocumentBuffer, parents: np.ndarray, sides: np.ndarray, folder: Path
) -> tuple[DocumentBuffer, Split]:
    """Join neighbouring sections of one document on one side into one document."""
    same = (np.diff(parents) == 0) & (np.diff(sides) == 0)
    begins = np.flatnonzero(np.append(True, ~same))
    with BufferWriter(folder) as writer:
        for first, last in zip(begins.tolist(), [*begins[1:].tolist(), len(parents)], strict=True):
            text = "".join(sections.read(i) for i in range(first, last))
            writer.append(text, *sections.origins[first].tolist())
    return writer.close(), Split(sides[begins], parents[begins])


def row_families(examples: Sequence[Example]) -> list[int]:
    """Return the family of each example: near-duplicate texts, or answers to one prompt, share a number."""
    prompts = np.array([prompt_hash(words(example)[0]) for example in examples], np.uint64)
    with buffered(examples) as texts:
        families: list[int] = families_of(row_clusters(texts, prompts), np.ones(len(examples), bool)).tolist()
        return families


@contextlib.contextmanager
def buffered(examples: Sequence[Example]) -> Iterator[DocumentBuffer]:
    """Provide the texts of examples, prompt and answer, in a buffer that exists inside the block."""
    with workspace() as work:
        with BufferWriter(work / "texts") as writer:
            for number, example in enumerate(examples):
                writer.append("\n\n".join(filter(None, words(example))), 0, number)
        yield writer.close()


def words(example: Example) -> tuple[str, str]:
    """Return the prompt and the answer of an example, without the system prompt that all may share."""
    turns = [message["content"] for message in example.messages if message["role"] != "system"]
    if example.kind == "preference":
        return "\n\n".join(turns), "\n\n".join(m["content"] for m in (*example.chosen, *example.rejected))
    if example.kind == "text":
        return example.text, ""
    return turns[0], "\n\n".join(turns[1:])


def prompt_hash(prompt: str) -> int:
    """Return 64 bits that stand for a prompt."""
    return int.from_bytes(hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=8).digest())
