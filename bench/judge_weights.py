"""Fits the weights of the evidence that settle ships: how far the judge and the similarity speak for an answer.

    python bench/judge_weights.py FOLDER [NAME ...]

On questions that the judge has not learned from: the dev half of the sets NAME in `asked/` or `judge_questions/`, and
that of `asked/off_topic.txt`, asked of each. Each collection counts the same, and in it questions with an answer
and without. Documents and indexes are made below FOLDER. Printed: what separates answerable questions from others
(AUROC), each collection judged by weights fitted on the others; where the outcomes lie, and whether the scores are
calibrated; the weights for `settle/retrieve/answer/evidence.py`; where the right passage comes first, by the judge's
weight.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from judge_documents import documents_of
from judge_lists import WRITTEN
from questions import Question, auroc, plain, questions, questions_in
from questions import make_documents as make_asked
from retrieval import indexed

from settle.retrieve.answer.evidence import (
    DEPTH,
    FEATURES,
    JUDGED,
    RERANKED,
    SHIPPED,
    SURE,
    UNLIKELY,
    EvidenceWeights,
    features_of,
    read_best,
)
from settle.retrieve.index.collection import Collection
from settle.retrieve.search import Hit, search

ASKED = ("stars", "borg", "theatre", "oncall", "harbour")
KITCHEN = "recipes"  # where some of the off-topic questions are not
TRUST = 20.0  # precision of the prior, which is no weight at all
OFF_TOPIC = 0.3  # share of the questions without an answer that have nothing to do with the documents
STEPS = 100
CONVERGED = 1e-8  # largest change of a weight in the last step
COUNTED = 200  # rows that each kind of question of a collection is repeated to


def rows_of(name: str, collection: Collection, asked: Sequence[Question]) -> Iterator[dict[str, Any]]:
    for question in asked:
        hits, row = row_of(name, collection, question.text)
        shown = [plain(hit.passage.embedded) for hit in hits]
        right = [any(phrase in text for phrase in question.phrases) for text in shown]
        yield row | {"kind": "there" if question.is_answerable else "gone", "right": right}


def row_of(name: str, collection: Collection, question: str) -> tuple[list[Hit], dict[str, Any]]:
    """Return the hits of a question as the search orders them, and what the evidence is judged by."""
    hits = search(collection, question, DEPTH)
    in_order, readings = read_best(collection, question, hits)
    return hits, {
        "set": name,
        "question": question,
        "features": features_of(collection, question, in_order, readings=readings).tolist(),
        "logits": [readings[hit.passage.id].logit for hit in hits[:RERANKED]],
        "scores": [hit.score for hit in hits],
    }


def gathered(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    make_asked(folder)
    off = [question for question in questions("off_topic") if question.split == "dev"]
    rows: list[dict[str, Any]] = []
    for name in names or ASKED:
        path = WRITTEN / f"{name}.txt"
        written = questions_in(path) if path.is_file() else questions(name)
        asked = [question for question in written if question.split == "dev"]
        with indexed(documents_of(name, folder)) as collection:
            rows += rows_of(name, collection, asked)
            rows += ({**row, "kind": "off"} for row in rows_of(name, collection, off if name != KITCHEN else ()))
        print(name, len(asked), flush=True)
    return rows


def balanced(features: np.ndarray, kinds: np.ndarray, sets: np.ndarray) -> EvidenceWeights:
    """Weights for which each collection counts the same, and in it `OFF_TOPIC` of the questions without an answer."""
    rows: list[list[np.ndarray]] = [[], []]
    for name in dict.fromkeys(sets):
        for kind, number in (("there", COUNTED), ("gone", COUNTED * (1 - OFF_TOPIC)), ("off", COUNTED * OFF_TOPIC)):
            own = features[(kinds == kind) & (sets == name)]
            if len(own):
                rows[kind != "there"].append(np.repeat(own, max(1, round(number / len(own))), 0))
    weights = fit(np.concatenate(rows[0]), np.concatenate(rows[1]), [0.0] * features.shape[1], TRUST)
    return replace(weights, floor=SHIPPED.floor, near=SHIPPED.near) if features.shape[1] == len(FEATURES) else weights


def fit(there: np.ndarray, gone: np.ndarray, prior: Sequence[float], trust: float) -> EvidenceWeights:
    """Return weights for features (n, F) with an answer and (m, F) without, by penalised likelihood.

    prior: (F,), with the precision `trust`. No weight is negative: every feature speaks for an answer.
    """
    features = np.concatenate([there, gone])
    answered = np.repeat([1.0, 0.0], [len(there), len(gone)])
    means, scales = features.mean(0), features.std(0) + 1e-6
    z = np.column_stack([(features - means) / scales, np.ones(len(features))])
    drawn, precision = np.array([*prior, 0.0]), np.array([trust] * len(prior) + [1e-6])
    is_free = np.ones(len(drawn), bool)
    while True:
        w = np.zeros(len(drawn))
        w[is_free] = newton(z[:, is_free], answered, drawn[is_free], precision[is_free])
        if (w[:-1] >= 0).all():
            break
        is_free[int(np.argmin(w[:-1]))] = False
    bias = float(w[-1]) - log(len(there) / len(gone))  # as if there were as many of each
    return EvidenceWeights(tuple(means.tolist()), tuple(scales.tolist()), tuple(w[:-1].tolist()), bias, UNLIKELY)


def newton(z: np.ndarray, answered: np.ndarray, drawn: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return the likeliest weights (F,) for features (n, F) with a normal prior: means `drawn` (F,), precisions."""

    def loss(w: np.ndarray) -> float:
        logits = z @ w
        return float(np.logaddexp(0, logits).sum() - answered @ logits + precision @ (w - drawn) ** 2 / 2)

    w = drawn.copy()
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        slope = z.T @ (p - answered) + precision * (w - drawn)
        step = np.linalg.solve((z.T * (p * (1 - p))) @ z + np.diag(precision), slope)
        while loss(w - step) > loss(w) and np.abs(step).max() > CONVERGED:
            step /= 2  # where the curve is flat the step goes too far
        w -= step
        if np.abs(step).max() <= CONVERGED:
            break
    return w


def report(rows: Sequence[dict[str, Any]]) -> None:
    features = np.array([row["features"] for row in rows])
    kinds, sets = np.array([row["kind"] for row in rows]), np.array([row["set"] for row in rows])
    unread = features * (np.arange(len(FEATURES)) != JUDGED)
    for name, own in (("cosine", features[:, :1]), ("without judge", unread[:, :JUDGED]), ("as ships", features)):
        scores = np.zeros(len(rows))
        for left in dict.fromkeys(sets):
            others = sets != left
            weights = balanced(own[others], kinds[others], sets[others])
            scores[~others] = [weights.score(row) for row in own[~others]]
        show(name, scores, kinds, sets)
    print(balanced(features, kinds, sets), balanced(unread[:, :JUDGED], kinds, sets), sep="\n")
    for weight in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 100.0):
        first = [_first(row, weight) for row in rows if row["kind"] == "there"]
        print(f"right first, weight {weight}: {np.mean(first):.3f}")


def show(name: str, scores: np.ndarray, kinds: np.ndarray, sets: np.ndarray) -> None:
    """Print what separates the kinds, and how often each outcome occurs."""
    there, gone, off = (scores[kinds == kind] for kind in ("there", "gone", "off"))
    by_set = [
        auroc(*(scores[(kinds == kind) & (sets == s)] for kind in ("there", "gone"))) for s in dict.fromkeys(sets)
    ]
    print(f"{name:13} AUROC", *(f"{value:.3f}" for value in by_set), f"off-topic {auroc(there, off):.3f}")
    for of, own in (("with an answer", there), ("without", gone), ("off-topic", off)):
        print(f"    {of}: refused {np.mean(own < UNLIKELY):.3f}, without a warning {np.mean(own >= SURE):.3f}")
    for low, high in ((0.0, UNLIKELY), (UNLIKELY, 0.5), (0.5, 0.85), (0.85, 1.0)):
        own = (scores >= low) & (scores < high)
        if own.any():
            print(f"    said {scores[own].mean():.2f}, true {np.mean(kinds[own] == 'there'):.2f} (n={own.sum()})")


def _first(row: dict[str, Any], weight: float) -> bool:
    scores = [s + weight / (1 + np.exp(-z)) for s, z in zip(row["scores"], row["logits"], strict=False)]
    return bool(scores) and row["right"][int(np.argmax(scores))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    folder = args.folder.resolve()
    rows = gathered(folder, args.names)
    (folder / "weights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report(rows)


if __name__ == "__main__":
    main()
