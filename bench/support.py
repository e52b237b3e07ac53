"""The check of cited sentences: what it accepts that is there, and what it lets through that is not.

    python bench/support.py COLLECTION WORDNET --sentences 300

Sentences of the collection's own passages are checked against what a search for them finds: as they stand; reworded by
rule (see `paraphrase.py`, half of the words give way to synonyms); with a number changed; with a negation put in; and
with the document that they are from taken away. WORDNET is the folder of `data.noun` and its like. The shares are told
for thresholds around the one that settle uses.
"""

import argparse
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from paraphrase import Paraphraser, WordNet

from settle.retrieve.answer.answer import Piece, Source
from settle.retrieve.answer.citation_check import SUPPORTED, Checker, Support
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import sentences
from settle.retrieve.search import Hit, search

THRESHOLDS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
SHORTEST, LONGEST = 8, 40  # words
VERB = re.compile(r"\b(is|are|was|were|can|will|may|must|has|does)\b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection")
    parser.add_argument("wordnet", type=Path)
    parser.add_argument("--sentences", type=int, default=300)
    asked = parser.parse_args()
    paraphraser = Paraphraser(WordNet(asked.wordnet))
    found: dict[str, list[tuple[Support, bool]]] = defaultdict(list)
    with Collection(asked.collection) as collection:
        for number, (passage, sentence) in enumerate(drawn(collection, asked.sentences)):
            hits = search(collection, sentence, 5)
            if all(hit.passage.id != passage for hit in hits):
                continue
            for kind, text, kept in variants(sentence, passage, hits, paraphraser, str(number)):
                sources = [Source(n, (Piece(h.passage, h.occurrences[0]),)) for n, h in enumerate(kept[:4], 1)]
                if sources:
                    best = Checker(collection, sources).best(text, random.Random(number).choice(sources).number)
                    found[kind].append((best, best.piece.passage.id == passage))
    report(found)


def drawn(collection: Collection, number: int) -> list[tuple[int, str]]:
    """(passage, sentence) by chance."""
    every, after = [], 0
    while passages := collection.catalogue.passages.page(after):
        after = passages[-1].id
        for passage in passages:
            for sentence in sentences(passage.text):
                if SHORTEST <= len(sentence.split()) <= LONGEST and sentence.endswith("."):
                    every.append((passage.id, sentence))
    return random.Random(0).sample(every, min(number, len(every)))


def variants(
    sentence: str, passage: int, hits: list[Hit], paraphraser: Paraphraser, seed: str
) -> Iterator[tuple[str, str, list[Hit]]]:
    """(kind, sentence, passages to check it against)."""
    yield "as it stands", sentence, hits
    reworded = paraphraser.question(sentence.rstrip("."), ["{}."], seed)
    if reworded:
        yield "reworded", reworded[:1].upper() + reworded[1:], hits
    if re.search(r"\d", sentence):
        yield "number changed", re.sub(r"\d+", lambda m: str(int(m[0]) + 7), sentence, count=1), hits
    if VERB.search(sentence) and not re.search(r"\b(not|no|never)\b", sentence):
        yield "negated", VERB.sub(r"\1 not", sentence, count=1), hits
    of = {s.path for hit in hits if hit.passage.id == passage for s in hit.occurrences}
    yield "its document is gone", sentence, [h for h in hits if not of & {s.path for s in h.occurrences}]


def report(found: dict[str, list[tuple[Support, bool]]]) -> None:
    print(f"accepted, of those under the right passage; settle's threshold is {SUPPORTED}")
    print(f"{'':24}{'n':>5}" + "".join(f"{t:>12}" for t in THRESHOLDS))
    for kind, rows in found.items():
        cells = []
        for threshold in THRESHOLDS:
            accepted = [is_right for support, is_right in rows if support.score >= threshold and not support.differs]
            right = sum(accepted) / len(accepted) if accepted else 0.0
            cells.append(f"{100 * len(accepted) / len(rows):.0f} % {100 * right:.0f} %".rjust(12))
        print(f"{kind:24}{len(rows):5}" + "".join(cells))


if __name__ == "__main__":
    main()
