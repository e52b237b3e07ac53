"""Public questions about tables and long reports, as lists that `judge_tune.py` learns from.

    python bench/judge_public.py tatqa tatqa_dataset_dev.json tatqa_dataset_test_gold.json --out tatqa.jsonl
    python bench/judge_public.py covid 200423_covidQA.json --out covid.jsonl

tatqa: github.com/NExTplusplus/TAT-QA (Zhu et al. 2021, CC BY 4.0), tables of annual reports with the paragraphs around
them. covid: github.com/deepset-ai/COVID-QA (Möller et al. 2020, Apache-2.0), articles of medicine. Their questions
name no company and no article, so the passages of a question are those of its own report or article: the one that
answers, and those that share most words with the question. Each has an answer; `judge_tune.py` takes it away.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from settle.documents.table_text import row_text
from settle.retrieve.index.words import words

LISTED = 5  # passages of a question
HEADER = 2  # first rows of a table, which name its columns
CHARACTERS = 900  # of a passage of an article, at most


def tatqa(path: Path) -> Iterator[dict[str, Any]]:
    for report in json.loads(path.read_text(encoding="utf-8")):
        table = "\n".join(text for row in report["table"]["table"] if (text := row_text(row)))
        texts = {str(part["order"]): part["text"] for part in report["paragraphs"]} | {"table": table}
        for asked in report["questions"]:
            if asked["answer_type"] == "span" and asked["answer_from"] != "table-text" and len(asked["answer"]) == 1:
                at = "table" if asked["answer_from"] == "table" else (asked["rel_paragraphs"] or ["table"])[0]
                begin = texts.get(at, "").find(asked["answer"][0])
                is_header = at == "table" and texts[at][:begin].count("\n") < HEADER
                if begin >= 0 and texts[at].count(asked["answer"][0]) == 1 and not is_header:
                    span = begin, begin + len(asked["answer"][0])
                    yield _row("tatqa", asked["question"], at, texts, span)


def covid(path: Path) -> Iterator[dict[str, Any]]:
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            starts, texts = _parts(paragraph["context"])
            for asked in paragraph["qas"]:
                if not asked["answers"]:
                    continue
                answer = asked["answers"][0]
                at = max(number for number, start in enumerate(starts) if start <= answer["answer_start"])
                begin = answer["answer_start"] - starts[at]
                span = begin, begin + len(answer["text"])
                if span[1] <= len(texts[at]):
                    yield _row("covid", asked["question"], str(at), {str(n): t for n, t in enumerate(texts)}, span)


def _parts(text: str) -> tuple[list[int], list[str]]:
    """Whole paragraphs and sentences, as many as have room in a passage → where each begins, and its text."""
    starts = [0]
    last = 0
    for match in re.finditer(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n|$", text):
        if match.start() - starts[-1] > CHARACTERS and last > starts[-1]:
            starts.append(last)
        last = match.end()
    return starts, [text[a:b].rstrip() for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def _row(source: str, question: str, at: str, texts: dict[str, str], span: tuple[int, int]) -> dict[str, Any]:
    own = set(words(question))
    others = sorted((name for name in texts if name != at), key=lambda name: -len(own & set(words(texts[name]))))
    hits = [{"headings": [], "text": texts[name], "right": name == at, "span": None} for name in [at, *others][:LISTED]]
    hits[0]["span"] = span
    return {"source": source, "question": " ".join(question.split()), "answerable": True, "hits": hits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=("tatqa", "covid"))
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [row for path in args.files for row in {"tatqa": tatqa, "covid": covid}[args.source](path)]
    args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{args.source}: {len(rows)} questions")


if __name__ == "__main__":
    main()
