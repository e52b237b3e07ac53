"""Fits the weights of the evidence that settle ships: how far the judge, words and meaning speak for an answer.

    python bench/judge_weights.py FOLDER [NAME ...]

On questions that the judge has not learned from: the dev half of seven sets in `asked/`, and that of the files NAME of
`judge_questions/`, which were left out of its training (rental and patience). Each collection counts the same, and in
it questions with an answer and without. Documents and indexes are made below FOLDER. Printed: what separates answerable
questions from others (AUROC), each collection judged by weights fitted on the others; where the outcomes lie; the
weights for `settle/retrieve/answer/evidence.py`; where the right passage comes first, by the judge's weight.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from judge_documents import documents_of
from judge_lists import WRITTEN
from questions import Question, auroc, plain, questions, questions_in
from questions import make_documents as make_asked
from retrieval import indexed

from settle.retrieve.answer.evidence import FEATURES, SURE, UNLIKELY, EvidenceWeights, features_of
from settle.retrieve.answer.retrieval import JUDGED, RERANKED, answer_judge
from settle.retrieve.check.calibration import fit
from settle.retrieve.index.collection import Collection
from settle.retrieve.search.hybrid_search import search

ASKED = ("stars", "borg", "games", "uprisings", "engraving", "notensatz", "theatre")
TRUST = 20.0  # precision of the prior, which is no weight at all
COUNTED = 200  # rows that each kind of question of a collection is repeated to


def rows_of(name: str, collection: Collection, asked: Sequence[Question]) -> Iterator[dict[str, Any]]:
    reader = answer_judge(collection)
    assert reader is not None
    for question in asked:
        hits = search(collection, question.text, JUDGED)
        read = reader.read(question.text, [hit.passage for hit in hits[:RERANKED]])
        readings = {hit.passage.id: reading for hit, reading in zip(hits, read, strict=False)}
        shown = [plain(hit.passage.embedded) for hit in hits]
        yield {
            "set": name,
            "question": question.text,
            "answerable": question.is_answerable,
            "features": features_of(collection, question.text, hits, readings=readings).tolist(),
            "logits": [reading.logit for reading in read],
            "scores": [hit.score for hit in hits],
            "right": [any(phrase in text for phrase in question.phrases) for text in shown],
        }


def gathered(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    make_asked(folder)
    rows: list[dict[str, Any]] = []
    for name in (*ASKED, *names):
        written = questions(name) if name in ASKED else questions_in(WRITTEN / f"{name}.txt")
        asked = [question for question in written if question.split == "dev"]
        with indexed(documents_of(name, folder)) as collection:
            rows += rows_of(name, collection, asked)
        print(name, len(asked), flush=True)
    return rows


def balanced(features: np.ndarray, there: np.ndarray, sets: np.ndarray) -> EvidenceWeights:
    """Weights for which each collection counts the same."""
    kinds = []
    for is_there in (True, False):
        own = [features[(there == is_there) & (sets == name)] for name in dict.fromkeys(sets)]
        kinds.append(np.concatenate([np.repeat(of, round(COUNTED / len(of)), 0) for of in own]))
    return fit(kinds[0], kinds[1], [0.0] * features.shape[1], TRUST)


def report(rows: Sequence[dict[str, Any]]) -> None:
    features = np.array([row["features"] for row in rows])
    there = np.array([row["answerable"] for row in rows])
    sets = np.array([row["set"] for row in rows])
    columns = {
        "cosine": [0],
        "no judge": list(range(len(FEATURES) - 1)),
        "judge": [len(FEATURES) - 1],
        "all": list(range(len(FEATURES))),
    }
    for name, own in columns.items():
        logits = np.zeros(len(rows))
        for left in dict.fromkeys(sets):
            weights = balanced(features[sets != left][:, own], there[sets != left], sets[sets != left])
            logits[sets == left] = [weights.score(row) for row in features[sets == left][:, own]]
        by_set = [auroc(logits[there & (sets == s)], logits[~there & (sets == s)]) for s in dict.fromkeys(sets)]
        strict = float(np.mean(logits[~there] < np.quantile(logits[there], 0.05)))
        together = auroc(logits[there], logits[~there])
        print(
            f"{name:9} AUROC",
            *(f"{value:.3f}" for value in by_set),
            f"all {together:.3f}, refused at 5 %: {strict:.2f}",
        )
        for low in (UNLIKELY, SURE):
            gone, wrong = (
                [float(np.mean(logits[kind & (sets == s)] < low)) for s in dict.fromkeys(sets)]
                for kind in (~there, there)
            )
            of_sets = " ".join(f"{share:.2f}" for share in wrong)
            print(f"    below {low}: {np.mean(gone):.2f} without an answer, {np.mean(wrong):.3f} with one ({of_sets})")
    weights = balanced(features, there, sets)
    alone = balanced(features[:, -1:], there, sets)  # the judge's; what else was found did not help, see RESULTS
    print("means =", tuple(round(value, 4) for value in weights.means))
    print("scales =", tuple(round(value, 4) for value in weights.scales))
    print("the judge's weight =", round(alone.weights[0], 4), "bias =", round(alone.bias, 4))
    for weight in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 100.0):
        first = [_first(row, weight) for row in rows if row["answerable"]]
        print(f"right first, weight {weight}: {np.mean(first):.3f}")


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
