"""Fits the weights of the evidence that settle ships: how far the judge, words and meaning speak for an answer.

    python bench/judge_weights.py FOLDER [NAME ...] [--gold GOLD]

On questions that the judge has not learned from: the dev half of seven sets in `asked/`, that of the files NAME of
`judge_questions/`, which were left out of its training (rental and patience), and that of the sets of `gold.py` in
GOLD, dictionaries and manuals. Each collection counts the same, and in it questions with an answer and without.
Documents and indexes are made below FOLDER. Printed: what separates answerable questions from others (AUROC), each
collection judged by weights fitted on the others; where the outcomes lie; the weights for
`settle/retrieve/answer/evidence.py`; where the right passage comes first, by the judge's weight.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from judge_documents import documents_of
from judge_lists import WRITTEN
from questions import Question, auroc, plain, questions, questions_in
from questions import make_documents as make_asked
from retrieval import indexed, read

from settle.retrieve.answer.evidence import FEATURES, SURE, UNLIKELY, EvidenceWeights, features_of
from settle.retrieve.answer.retrieval import JUDGED, RERANKED, read_best
from settle.retrieve.check.calibration import fit
from settle.retrieve.index.collection import Collection
from settle.retrieve.search.hybrid_search import Hit, search

GOLD = ("foldoc", "wordnet", "python", "man")
ASKED = ("stars", "borg", "games", "uprisings", "engraving", "notensatz", "theatre")
TRUST = 20.0  # precision of the prior, which is no weight at all
LARGEST, SPREAD = 100.0, 20.0  # weight of a line, at most, and the spread of the prior that it is 0
JUDGE, ALIKE = FEATURES.index("judged"), FEATURES.index("alike")
COUNTED = 200  # rows that each kind of question of a collection is repeated to


def rows_of(name: str, collection: Collection, asked: Sequence[Question]) -> Iterator[dict[str, Any]]:
    for question in asked:
        hits, row = row_of(name, collection, question.text)
        shown = [plain(hit.passage.embedded) for hit in hits]
        right = [any(phrase in text for phrase in question.phrases) for text in shown]
        yield row | {"answerable": question.is_answerable, "right": right}


def gold_rows(folder: Path, collection: Collection) -> Iterator[dict[str, Any]]:
    """Of the dev half of a set that `gold.py` has made."""
    for kind in ("questions", "unanswerable"):
        for asked in read(folder / f"{kind}.jsonl"):
            if asked["split"] == "dev":
                hits, row = row_of(folder.name, collection, asked["question"])
                paths = (asked["answer"], *asked["also"]) if kind == "questions" else ()
                right = [any(place.path.endswith(paths) for place in hit.occurrences) for hit in hits]
                yield row | {"answerable": kind == "questions", "right": right}


def row_of(name: str, collection: Collection, question: str) -> tuple[list[Hit], dict[str, Any]]:
    """The hits of a question as the search orders them, and what the evidence is judged by."""
    hits = search(collection, question, JUDGED)
    in_order, readings = read_best(collection, question, hits)
    return hits, {
        "set": name,
        "question": question,
        "features": features_of(collection, question, in_order, readings=readings).tolist(),
        "logits": [readings[hit.passage.id].logit for hit in hits[:RERANKED]],
        "scores": [hit.score for hit in hits],
        "cosines": [hit.similarity for hit in hits],
    }


def gathered(folder: Path, names: Sequence[str], gold: Path | None) -> list[dict[str, Any]]:
    make_asked(folder)
    off = [question for question in questions("off_topic") if question.split == "dev"]
    rows: list[dict[str, Any]] = []
    for name in (*ASKED, *names):
        written = questions(name) if name in ASKED else questions_in(WRITTEN / f"{name}.txt")
        asked = [question for question in written if question.split == "dev"]
        with indexed(documents_of(name, folder)) as collection:
            rows += rows_of(name, collection, asked)
            rows += ({**r, "off": True} for r in rows_of(name, collection, off))
            (folder / "weights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(name, len(asked), flush=True)
    for name in GOLD if gold else ():
        with indexed(gold / name / "documents") as collection:
            rows += (of_set := list(gold_rows(gold / name, collection)))
        print(name, len(of_set), flush=True)
    return rows


def balanced(features: np.ndarray, there: np.ndarray, sets: np.ndarray) -> EvidenceWeights:
    """Weights for which each collection counts the same."""
    kinds = []
    for is_there in (True, False):
        own = [features[(there == is_there) & (sets == name)] for name in dict.fromkeys(sets)]
        kinds.append(np.concatenate([np.repeat(of, round(COUNTED / len(of)), 0) for of in own]))
    return fit(kinds[0], kinds[1], [0.0] * features.shape[1], TRUST)


def staged(features: np.ndarray, there: np.ndarray, sets: np.ndarray) -> EvidenceWeights:
    """The weights that ship: the judge's and the bias of people's questions; given these, that of what a line says of
    dictionaries and manuals, where it never speaks against an answer and leaves people's questions as they are."""
    is_gold = np.isin(sets, GOLD)
    alone = balanced(features[~is_gold][:, [JUDGE]], there[~is_gold], sets[~is_gold])
    z, answered = features[is_gold, ALIKE], there[is_gold].astype(float)
    offset = np.array([_logit(alone.score(row)) for row in features[is_gold][:, [JUDGE]]])
    kinds = [f"{name} {kind}" for name, kind in zip(sets[is_gold], answered, strict=True)]
    count = Counter(kinds)
    share = np.array([COUNTED / count[kind] for kind in kinds])
    least, most = 0.0, LARGEST
    while most - least > 1e-3:
        weight = (least + most) / 2
        p = 1 / (1 + np.exp(-(offset + weight * z)))
        falls = share @ ((p - answered) * z) + weight / SPREAD**2 < 0
        least, most = (weight, most) if falls else (least, weight)
    means, scales, weights = np.zeros(len(FEATURES)), np.ones(len(FEATURES)), np.zeros(len(FEATURES))
    means[JUDGE], scales[JUDGE] = alone.means[0], alone.scales[0]
    weights[JUDGE], weights[ALIKE] = alone.weights[0], least
    return EvidenceWeights(tuple(means.tolist()), tuple(scales.tolist()), tuple(weights.tolist()), alone.bias, UNLIKELY)


def _logit(p: float) -> float:
    return log(p / (1 - p))


def report(rows: Sequence[dict[str, Any]]) -> None:
    features = np.array([row["features"] for row in rows])
    there = np.array([row["answerable"] for row in rows])
    sets = np.array([row["set"] for row in rows])
    columns: dict[str, list[int] | None] = {
        "cosine": [0],
        "no judge": list(range(JUDGE)),
        "judge": [JUDGE],
        "all": list(range(len(FEATURES))),
        "as ships": None,
    }
    for name, own in columns.items():
        scores = np.zeros(len(rows))
        for left in dict.fromkeys(sets):
            others, here = sets != left, features[sets == left]
            if own is None:
                weights = staged(features[others], there[others], sets[others])
            else:
                weights, here = balanced(features[others][:, own], there[others], sets[others]), here[:, own]
            scores[sets == left] = [weights.score(row) for row in here]
        show(name, scores, there, sets)
    weights = staged(features, there, sets)
    print("the judge's mean, scale and weight =", [round(of[JUDGE], 4) for of in (weights.means, weights.scales)])
    print(round(weights.weights[JUDGE], 4), "bias =", round(weights.bias, 4), "of a line =", weights.weights[ALIKE])
    for weight in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 100.0):
        first = [_first(row, weight) for row in rows if row["answerable"]]
        print(f"right first, weight {weight}: {np.mean(first):.3f}")


def show(name: str, scores: np.ndarray, there: np.ndarray, sets: np.ndarray) -> None:
    """What separates, and where the outcomes lie; people's collections and the others apart."""
    by_set = [auroc(scores[there & (sets == s)], scores[~there & (sets == s)]) for s in dict.fromkeys(sets)]
    print(f"{name:9} AUROC", *(f"{value:.3f}" for value in by_set))
    for kinds in ([s for s in dict.fromkeys(sets) if s not in GOLD], [s for s in dict.fromkeys(sets) if s in GOLD]):
        if not kinds:
            continue
        lost = [
            (-np.log(scores[there & (sets == s)]).mean() - np.log(1 - scores[~there & (sets == s)]).mean()) / 2
            for s in kinds
        ]
        print(f"    of {len(kinds)} collections: {np.mean(lost):.3f} nats")
        for low in (UNLIKELY, SURE):
            gone, wrong = ([float(np.mean(scores[of & (sets == s)] < low)) for s in kinds] for of in (~there, there))
            of_sets = " ".join(f"{share:.2f}" for share in wrong)
            print(f"    below {low}: {np.mean(gone):.2f} without an answer, {np.mean(wrong):.3f} with one ({of_sets})")


def _first(row: dict[str, Any], weight: float) -> bool:
    scores = [s + weight / (1 + np.exp(-z)) for s, z in zip(row["scores"], row["logits"], strict=False)]
    return bool(scores) and row["right"][int(np.argmax(scores))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--gold", type=Path, help="a folder of gold.py with " + ", ".join(GOLD))
    args = parser.parse_args()
    folder = args.folder.resolve()
    rows = gathered(folder, args.names, args.gold and args.gold.resolve())
    (folder / "weights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report(rows)


if __name__ == "__main__":
    main()
