"""Public questions about tables and long reports, as lists that `judge_tune.py` learns from.

    python bench/judge_public.py tatqa tatqa_dataset_dev.json tatqa_dataset_test_gold.json --out tatqa.jsonl
    python bench/judge_public.py covid 200423_covidQA.json --out covid.jsonl
    python bench/judge_public.py qed qed-dev.jsonlines --out qed.jsonl
    python bench/judge_public.py feta fetaQA-v1_dev.jsonl fetaQA-v1_test.jsonl --out feta.jsonl

tatqa: github.com/NExTplusplus/TAT-QA (Zhu et al. 2021, CC BY 4.0), tables of annual reports with the paragraphs around
them. covid: github.com/deepset-ai/COVID-QA (Möller et al. 2020, Apache-2.0), articles of medicine. Their questions
name no company and no article, so the passages of a question are those of its own report or article: the one that
answers, and those that share most words with the question. Each has an answer; `judge_tune.py` takes it away.

qed: github.com/google-research-datasets/QED (Lamm et al. 2021, CC BY-SA 3.0), what people asked a search engine, with
paragraphs of Wikipedia. feta: github.com/Yale-LILY/FeTaQA (Nan et al. 2022, CC BY-SA 4.0), tables of Wikipedia, some
rows of which answer. Their other passages are those of all paragraphs, and of all tables, that share the rarest words.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import log
from pathlib import Path
from types import MappingProxyType
from typing import Any

from judge_clapnq import joined

from settle.documents.blocks import row_text
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


def qed(path: Path) -> Iterator[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = {joined(row["paragraph_text"]): joined(row["title_text"]) for row in rows}
    by_number = {str(number): text for number, text in enumerate(texts)}
    number_of = {text: number for number, text in by_number.items()}
    headings = {number: [texts[text]] for number, text in by_number.items()}
    for row in rows:
        sentence = row["annotation"].get("selected_sentence")
        text = joined(row["paragraph_text"])
        answer = joined(sentence["string"]) if sentence else ""
        if answer and answer in text:
            begin = text.index(answer)
            span = begin, begin + len(answer)
            yield _row("qed", row["question_text"], number_of[text], by_number, span, headings)


def feta(path: Path) -> Iterator[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tables = {str(number): _table(row["table_array"]) for number, row in enumerate(rows)}
    headings = {str(n): [row["table_page_title"], row["table_section_title"]] for n, row in enumerate(rows)}
    for number, row in enumerate(rows):
        lines = sorted({line for line, _ in row["highlighted_cell_ids"]})
        line = row_text(row["table_array"][lines[0]]) if lines and lines[0] else ""
        begin = tables[str(number)].find(line)
        if line and begin >= 0:
            span = begin, begin + len(line)
            yield _row("feta", row["question"], str(number), tables, span, headings)


def _table(rows: list[list[str]]) -> str:
    return "\n".join(text for row in rows if (text := row_text(row)))[: 2 * CHARACTERS]


def _parts(text: str) -> tuple[list[int], list[str]]:
    """Whole paragraphs and sentences, as many as have room in a passage → where each begins, and its text."""
    starts = [0]
    last = 0
    for match in re.finditer(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n|$", text):
        if match.start() - starts[-1] > CHARACTERS and last > starts[-1]:
            starts.append(last)
        last = match.end()
    return starts, [text[a:b].rstrip() for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def _row(
    source: str,
    question: str,
    at: str,
    texts: Mapping[str, str],
    span: tuple[int, int],
    headings: Mapping[str, list[str]] = MappingProxyType({}),
) -> dict[str, Any]:
    own = set(words(question))
    tells = _rarity(tuple(texts.values()))
    common = {
        name: sum(tells.get(word, 1.0) for word in own & _words(" ".join([*headings.get(name, ()), text])))
        for name, text in texts.items()
        if name != at
    }
    hits = [
        {"headings": headings.get(name, []), "text": texts[name], "right": name == at, "span": None}
        for name in [at, *sorted(common, key=lambda name: -common[name])][:LISTED]
    ]
    hits[0]["span"] = span
    return {"source": source, "question": " ".join(question.split()), "answerable": True, "hits": hits}


@lru_cache(4)
def _rarity(texts: tuple[str, ...]) -> dict[str, float]:
    count = Counter(word for text in texts for word in _words(text))
    return {word: 1 + log(len(texts) / number) for word, number in count.items()}


@lru_cache(1 << 14)
def _words(text: str) -> frozenset[str]:
    return frozenset(words(text))


SOURCES = {"tatqa": tatqa, "covid": covid, "qed": qed, "feta": feta}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=list(SOURCES))
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [row for path in args.files for row in SOURCES[args.source](path)]
    args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{args.source}: {len(rows)} questions")


if __name__ == "__main__":
    main()
