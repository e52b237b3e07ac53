"""Answers of a language model from documents: how often they cite the document that holds the answer.

    python bench/answering.py GOLD --model smollm2 --questions 60 --documents 600

GOLD is a set of `bench/gold.py`. Some of its documents are indexed: those that answer the questions, and others by
chance. Every question is answered, whatever its evidence, twice: with the best passage last in the prompt, as settle
puts it, and with the best one first. A cited sentence is right when what it cites is the document that the question was
made from. Only what the model wrote counts, not the quotes that stand in for it.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import settle
from settle.base.files import home
from settle.base.statistics import paired_test
from settle.infer.engine import Engine
from settle.library.resolve import resolve_gguf
from settle.retrieve.answer import context
from settle.retrieve.answer.answer import Answer
from settle.retrieve.answer.ask import finish_answer, stream_answer
from settle.retrieve.answer.context import Source
from settle.retrieve.answer.retrieval import retrieve
from settle.retrieve.index.collection import Collection

ORDERS = ("best last", "best first")
PACKED = context._Groups.sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--documents", type=int, default=600)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--rows", type=Path, help="every answer, as a line of JSON")
    asked = parser.parse_args()
    questions = chosen_questions(asked.gold, asked.questions)
    model = resolve_gguf(asked.model)
    with tempfile.TemporaryDirectory() as folder, Engine(model.weights, 4096, adapter=model.adapter) as engine:
        os.environ["SETTLE_HOME"] = home_beside(Path(folder))
        documents = copied(asked.gold, questions, asked.documents, Path(folder) / "documents")
        with settle.index(str(documents), name="gold") as collection:
            rows = [
                row(collection, engine, question, documents, order, asked.k, asked.rows)
                for question in questions
                for order in ORDERS
            ]
    report(rows)


def chosen_questions(gold: Path, number: int) -> list[dict[str, Any]]:
    """Of the half to choose by."""
    lines = (gold / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [question for question in map(json.loads, lines) if question["split"] == "dev"]
    return random.Random(0).sample(questions, min(number, len(questions)))


def home_beside(folder: Path) -> str:
    """A home for the collection, with the models of the one that there is."""
    made = folder / "home"
    made.mkdir()
    (made / "models").symlink_to(home() / "models")
    return str(made)


def copied(gold: Path, questions: list[dict[str, Any]], number: int, folder: Path) -> Path:
    """Documents that answer the questions, and others up to a number."""
    needed = dict.fromkeys(question["answer"] for question in questions)
    every = sorted(str(p.relative_to(gold / "documents")) for p in (gold / "documents").rglob("*") if p.is_file())
    others = random.Random(0).sample(every, len(every))
    for name in [*needed, *others][:number]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(gold / "documents" / name, folder / name)
    return folder


def row(
    collection: Collection,
    engine: Engine,
    question: dict[str, Any],
    documents: Path,
    order: str,
    k: int,
    kept: Path | None,
) -> dict[str, Any]:
    context._Groups.sources = PACKED if order == "best last" else first(PACKED)  # type: ignore[method-assign]
    found = retrieve(collection, question["question"], k=k)
    found = replace(found, evidence=replace(found.evidence, score=1.0))
    began = time.monotonic()
    told = finish_answer(stream_answer(collection, engine, found))
    right = {str(documents / name) for name in (question["answer"], *question["also"])}
    told_row = {"order": order, "question": question["question"], "seconds": time.monotonic() - began}
    told_row |= {"found": any(s.path in right for hit in found.hits for s in hit.occurrences)}
    told_row |= counted(told, right) | {
        "tokens": told.generation.prompt_tokens if told.generation else 0,
        "text": told.text,
    }
    if kept:
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told_row) + "\n")
    return told_row


def first(packed: Callable[[Any], tuple[Source, ...]]) -> Callable[[Any], tuple[Source, ...]]:
    """The same sources the other way round."""
    return lambda groups: tuple(replace(s, number=n) for n, s in enumerate(reversed(packed(groups)), 1))


def counted(told: Answer, right: set[str]) -> dict[str, Any]:
    """sentences that the model wrote; supported: of those; right: supported by the document that holds the answer;
    kept: those whose number the model had right itself."""
    own = [s for s in told.sentences if s.cited_number is not None]
    cited = [s for s in own if s.piece]
    return {
        "sentences": len(own),
        "supported": len(cited),
        "right": sum(s.piece.occurrence.path in right for s in cited if s.piece),
        "kept": sum(s.source.number == s.cited_number for s in cited if s.source),
    }


def report(rows: list[dict[str, Any]]) -> None:
    for order in ORDERS:
        own = [r for r in rows if r["order"] == order]
        total = {key: sum(r[key] for r in own) for key in ("sentences", "supported", "right", "kept")}
        print(
            f"{order}: {len(own)} questions, found {share(own, lambda r: r['found'])}, with a supported sentence"
            f" {share(own, lambda r: r['supported'] > 0)}, answered from the right document"
            f" {share(own, lambda r: r['right'] > 0)}; {total['sentences']} sentences, {total['supported']} supported,"
            f" of those {total['right']} from the right document and {total['kept']} with the model's own number;"
            f" {sum(r['seconds'] for r in own) / len(own):.1f} s, {sum(r['tokens'] for r in own) / len(own):.0f} tokens"
        )
    last, other = ([float(r["right"] > 0) for r in rows if r["order"] == order] for order in ORDERS)
    comparison = paired_test(other, last)
    print(f"answered from the right document, best last less best first: {comparison.difference.value:+.3f}", end=" ")
    print(f"[{comparison.difference.low:+.3f}, {comparison.difference.high:+.3f}], {comparison.verdict}")


def share(rows: list[dict[str, Any]], is_so: Callable[[dict[str, Any]], bool]) -> str:
    return f"{100 * sum(map(is_so, rows)) / len(rows):.0f} %"


if __name__ == "__main__":
    main()
