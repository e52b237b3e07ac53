"""How often settle refuses what the documents do not hold, and what they do hold, on the gold sets of `gold.py`.

    python bench/refusal.py GOLD [--sets …] [--split test] [--most 1000] [--fit]

Each set's documents are indexed as `settle index` does, where SETTLE_HOME is, and refusals are calibrated as `--check`
does: on questions made from the indexed documents alone. Then the questions of the split are asked: what is told is the
share of the unanswerable ones that are refused and the share of the answerable ones that are, with 95 % intervals: by
what was calibrated, by the weights that settle brings, and by what was calibrated with the threshold that refuses one
in twenty of the answerable questions of the other half. The last line of the three is what the features could do with
a threshold that fits.

`--fit` fits the weights that settle brings to the split, all sets together, prints them, and prints for each set what
weights fitted to the others do there.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from retrieval import SETS, indexed, read

from settle.base.event_log import Events
from settle.base.statistics import wilson
from settle.retrieve.answer.evidence import DEPTH, FEATURES, SHIPPED, EvidenceWeights, features_of, store
from settle.retrieve.answer.retrieval import read_best
from settle.retrieve.check.calibration import cross_validate, fit, run_trials, threshold
from settle.retrieve.check.synthetic_questions.questions import make
from settle.retrieve.index.collection import Collection
from settle.retrieve.search.hybrid_search import search

KINDS = ("questions", "unanswerable")
CALIBRATED_ON = 200  # questions made from the documents
FALSE = 0.05  # share of the answerable questions of a gold set that may be refused
EVEN = 30.0  # how much weights near 0, and so near each other, count: what fits four sets has to do for others
Measured = tuple[np.ndarray, np.ndarray]  # features of the answerable questions (n, F), and of the unanswerable ones


def features(collection: Collection, folder: Path, split: str, most: int) -> Measured:
    """Of at most so many questions of each kind."""
    found = []
    for kind in KINDS:
        asked = [row["question"] for row in read(folder / f"{kind}.jsonl") if row["split"] == split][:most]
        found.append(np.array([_features(collection, question) for question in asked]))
    return found[0], found[1]


def scores(weights: EvidenceWeights, of: np.ndarray) -> np.ndarray:
    return np.array([weights.score(row) for row in of])


def row(name: str, how: str, weights: EvidenceWeights, asked: Measured) -> str:
    """Refused of the unanswerable, and of the answerable."""
    shares = [wilson((scores(weights, of) < weights.threshold).tolist()) for of in reversed(asked)]
    shown = (f"{100 * f.value:.1f} % ({100 * f.low:.1f}–{100 * f.high:.1f})" for f in shares)
    return f"| {name} | {how} | {' | '.join(shown)} |"


def fitted(sets: Sequence[Measured]) -> EvidenceWeights:
    """On some sets together: each counts the same."""
    there, gone = (np.concatenate([s[kind] for s in sets]) for kind in (0, 1))
    weights = fit(there, gone, [0.0] * len(FEATURES), EVEN)
    return replace(weights, threshold=threshold(scores(weights, there), FALSE))


def _features(collection: Collection, question: str) -> np.ndarray:
    hits, readings = read_best(collection, question, search(collection, question, DEPTH))
    return features_of(collection, question, hits, readings=readings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--split", default="test", choices=("test", "dev"))
    parser.add_argument("--most", type=int, default=1000, help="questions of each kind")
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    by_set: dict[str, Measured] = {}
    other = {"test": "dev", "dev": "test"}[args.split]
    print("| set | by | refused, not there | refused, there |\n|---|---|--:|--:|")
    for name in args.sets:
        folder = args.gold / name
        with indexed(folder / "documents") as collection:
            by_set[name] = asked = features(collection, folder, args.split, args.most)
            if args.fit:
                continue
            weights = cross_validate(run_trials(collection, make(collection, CALIBRATED_ON), Events())).weights
            if weights.questions:
                weights = store(collection.catalogue, weights)
            print(row(name, "calibrated", weights, asked))
            print(row(name, "weights that come along", SHIPPED, asked))
            there = scores(weights, features(collection, folder, other, args.most)[0])
            best = replace(weights, threshold=threshold(there, FALSE))
            print(row(name, f"calibrated, threshold of {other}", best, asked), flush=True)
    if args.fit:
        for name, asked in by_set.items():
            print(row(name, "fitted to the others", fitted([s for n, s in by_set.items() if n != name]), asked))
            print(row(name, "fitted to all", fitted([*by_set.values()]), asked))
        print(fitted([*by_set.values()]))


if __name__ == "__main__":
    main()
