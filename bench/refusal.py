"""How often settle refuses what the documents do not hold, and what they do hold, on the gold sets of `gold.py`.

    python bench/refusal.py GOLD [--sets …] [--split test] [--most 1000] [--check 200] [--fit]

Each set's documents are indexed as `settle index` does, where SETTLE_HOME is, and the questions of the split are asked:
the AUROC of the evidence, the shares of the unanswerable and of the answerable questions that are refused and warned
of, with 95 % intervals, and a question's processor time: search and judge, and the other features. Then refusals are
calibrated as `--check` does, on questions made from the indexed documents alone, and the same questions are judged
again; last is what calibration said of its own questions. The unanswerable questions of the gold sets leave out those
of which some sentence that is left has most of the words, so they are easier than people's.

`--fit` fits the weights that settle brings to the split, all sets together, prints them, and prints for each set what
weights fitted to the others do there.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from judge_weights import fit
from questions import auroc, outcome, said
from retrieval import SETS, indexed, read

from settle.base.event_log import Events
from settle.base.statistics import wilson
from settle.retrieve.answer.evidence import (
    DEPTH,
    FEATURES,
    SHIPPED,
    EvidenceWeights,
    features_of,
    read_best,
    weights_for,
)
from settle.retrieve.check.calibration import threshold
from settle.retrieve.check.check import check
from settle.retrieve.index.collection import Collection
from settle.retrieve.search import search

KINDS = ("questions", "unanswerable")
FALSE = 0.05  # share of the answerable questions of a gold set that may be refused
EVEN = 30.0  # how much weights near 0, and so near each other, count: what fits four sets has to do for others
Measured = tuple[np.ndarray, np.ndarray]  # features of the answerable questions (n, F), and of the unanswerable ones


def features(collection: Collection, folder: Path, split: str, most: int) -> tuple[Measured, tuple[float, float]]:
    """Measure at most so many questions of each kind, drawn evenly.

    Also returns a question's median processor time in seconds: of search and judge, and of the features.
    """
    found, seconds = [], []
    for kind in KINDS:
        rows = [row["question"] for row in read(folder / f"{kind}.jsonl") if split in (row["split"], "both")]
        asked = [rows[n * len(rows) // min(most, len(rows))] for n in range(min(most, len(rows)))]
        of_kind = []
        for question in asked:
            began = time.process_time()
            hits, readings = read_best(collection, question, search(collection, question, DEPTH))
            judged = time.process_time()
            of_kind.append(features_of(collection, question, hits, readings=readings))
            seconds.append((judged - began, time.process_time() - judged))
        found.append(np.array(of_kind))
    of_judge, of_features = np.median(seconds, 0).tolist()
    return (found[0], found[1]), (of_judge, of_features)


def scores(weights: EvidenceWeights, of: np.ndarray) -> np.ndarray:
    return np.array([weights.score(row) for row in of])


def row(name: str, how: str, weights: EvidenceWeights, asked: Measured, seconds: Sequence[float] = ()) -> str:
    """AUROC; refused and warned of the unanswerable, and of the answerable."""
    there, gone = (scores(weights, of) for of in asked)
    cells = [name, f"{len(there)} + {len(gone)}", how, f"{auroc(there, gone):.3f}"]
    for of in (gone, there):
        kinds = [outcome(score, weights) for score in of]
        for kind in ("refused", "perhaps"):
            f = wilson([found == kind for found in kinds])
            cells.append(f"{100 * f.value:.0f} ({100 * f.low:.0f}–{100 * f.high:.0f})")
    return f"| {' | '.join([*cells, ' + '.join(f'{1e3 * s:.0f}' for s in seconds)])} |"


def fitted(sets: Sequence[Measured]) -> EvidenceWeights:
    """On some sets together: each counts the same."""
    there, gone = (np.concatenate([s[kind] for s in sets]) for kind in (0, 1))
    weights = fit(there, gone, [0.0] * len(FEATURES), EVEN)
    return replace(weights, threshold=threshold(scores(weights, there), FALSE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--split", default="test", choices=("test", "dev", "both"))
    parser.add_argument("--most", type=int, default=1000, help="questions of each kind")
    parser.add_argument("--check", type=int, default=200, help="questions made from the documents; 0: no calibration")
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    by_set: dict[str, Measured] = {}
    print(
        "| set | with + without an answer | by | AUROC | refused, not there | perhaps, not there | refused, there"
        " | perhaps, there | ms |\n|---|--:|---|--:|--:|--:|--:|--:|--:|"
    )
    for name in args.sets:
        folder = args.gold / name
        with indexed(folder / "documents") as collection:
            by_set[name], seconds = features(collection, folder, args.split, args.most)
            if args.fit:
                continue
            print(row(name, "weights that come along", SHIPPED, by_set[name], seconds), flush=True)
            if args.check:
                told = check(collection, Events(), args.check)
                print(row(name, "after --check", weights_for(collection.catalogue), by_set[name]))
                print(f"{name}: {said(told)}", flush=True)
    if args.fit:
        for name, asked in by_set.items():
            print(row(name, "fitted to the others", fitted([s for n, s in by_set.items() if n != name]), asked))
            print(row(name, "fitted to all", fitted([*by_set.values()]), asked))
        print(fitted([*by_set.values()]))


if __name__ == "__main__":
    main()
