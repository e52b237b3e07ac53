"""How long a search takes without the embedder, and what of it are its parts: real texts, vectors by chance.

    python bench/search.py GOLD [--passages 100000] [--questions 500]

GOLD is what `gold.py` made. Entries of WordNet are the passages and its reworded glosses the questions. Each passage
has a vector drawn at random, and each question one that is near that of some passage, not the one with its words:
meaning and words do not agree, so both bring their own candidates.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gold import PACKAGES, unpacked, wordnet_entries
from paraphrase import WordNet

from settle.documents.blocks import Chunk, Place
from settle.retrieve.index.catalogue import Catalogue, DocumentChange, DocumentRecord
from settle.retrieve.index.collection import Collection, create
from settle.retrieve.index.embedders import Vectorizer
from settle.retrieve.search import SCORED, search, terms

BATCH, WIDTH = 2000, 384


class Chance(Vectorizer):
    """Questions whose vectors are known."""

    width, most, identity = WIDTH, 254, "chance"

    def __init__(self) -> None:
        self.known: dict[str, np.ndarray] = {}

    def count(self, texts):
        return [len(text.split()) for text in texts]

    def queries(self, texts):
        return np.array([self.known[text] for text in texts])

    def documents(self, texts):
        raise NotImplementedError


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def fill(collection: Collection, gold: Path, number: int, rng: np.random.Generator) -> np.ndarray:
    """So many entries; their vectors (number, WIDTH)."""
    database = WordNet(unpacked(gold, PACKAGES["wordnet"])[0] / "usr/share/wordnet")
    documents = list(wordnet_entries(database, random.Random(0), number))
    vectors = unit(rng.standard_normal((number, WIDTH), np.float32))
    for first in range(0, number, BATCH):
        some = documents[first : first + BATCH]
        ids = collection.catalogue.ids.reserve(len(some))
        collection.vectors.store.add(np.array(ids), vectors[first : first + BATCH])
        changes = []
        for id, document in zip(ids, some, strict=True):
            text = document.content.decode()
            chunk = Chunk(text, (), Place(line=1), len(text.split()))
            changes.append(
                DocumentChange(DocumentRecord(document.path, len(text), 0, b"", document.path), [chunk], [id])
            )
        kept = dict(zip(ids, vectors[first : first + BATCH], strict=True))
        collection.catalogue.commit(changes, kept)
    collection.vectors.store.compact()
    collection.catalogue.compact()
    return vectors


def by_words(catalogue: Catalogue, question: str) -> object:
    return catalogue.words.search(terms(catalogue, question).stems, SCORED)


def timed(what: str, calls: list[Callable[[], object]]) -> None:
    spent = []
    for call in calls:
        began = time.perf_counter()
        call()
        spent.append(1e3 * (time.perf_counter() - began))
    print(f"{what:34} {np.median(spent):8.2f} {np.percentile(spent, 95):8.2f} {max(spent):8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=500)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as home:
        os.environ["SETTLE_HOME"] = home
        with create("speed") as collection:
            parts = {"embedder": {"name": "chance"}, "store": {"name": "lancedb"}, "chunker": {"name": "structure"}}
            collection.catalogue.settings.set("made", {**parts, "identity": "chance", "width": WIDTH, "table": "speed"})
            collection.vectors.use(Chance())
            vectors = fill(collection, args.gold, args.passages, rng)
            with (args.gold / "wordnet" / "questions.jsonl").open(encoding="utf-8") as file:
                questions = [json.loads(line)["question"] for line in file][: args.questions]
            near = vectors[rng.choice(len(vectors), len(questions))]
            noise = rng.standard_normal(near.shape, np.float32) / WIDTH**0.5
            known = collection.vectors.vectorizer.known = dict(zip(questions, unit(near + noise), strict=True))
            print(f"{args.passages:,} passages, {len(questions)} questions; ms:        median      p95  longest")
            catalogue = collection.catalogue
            for _ in range(2):  # the first time warms up
                timed("search", [lambda q=q: search(collection, q) for q in questions])
            timed("  nearest vectors", [lambda q=q: collection.vectors.nearest(known[q], 50)() for q in questions])
            timed("  words", [lambda q=q: by_words(catalogue, q) for q in questions])
            ids = [rng.choice(args.passages, 50, False).tolist() for _ in questions]
            timed("  vectors of 50", [lambda i=i: catalogue.passages.vectors(i) for i in ids])
            timed(
                "  texts of 100",
                [lambda i=i: (catalogue.passages.get(i), catalogue.passages.occurrences(i)) for i in ids],
            )


if __name__ == "__main__":
    main()
