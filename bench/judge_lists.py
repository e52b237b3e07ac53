"""Questions with the passages that the search brings for them, which is what the judge of answers learns from.

    python bench/judge_lists.py FOLDER [NAME ...] --out lists.jsonl

NAME.txt in `judge_questions/` has the questions, all of them where no NAME is given, in the format of `asked/`:
"@ document", "+ question => words of the answer | other words of it", and "- question" for one that the documents do
not answer. Another file of that kind is named by its path. `judge_documents.py` puts the documents that a head names
below FOLDER.

Each line is a question with the first eight passages as `settle ask` finds them, and the first one that answers where
it is not among them: headings, text, right, and span, the characters of the text that answer.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from judge_documents import documents_of, file_of
from questions import Question, plain, questions_in
from retrieval import indexed

from settle.retrieve.index.collection import Collection
from settle.retrieve.search import Hit, search

WRITTEN = Path(__file__).with_name("judge_questions")
LISTED, SEARCHED = 8, 40
_BETWEEN = r"[\s*`_|“”]+"


def lists_of(source: str, collection: Collection, asked: Sequence[Question]) -> Iterator[dict[str, Any]]:
    for question in asked:
        hits = search(collection, question.text, SEARCHED)
        is_right = [any(phrase in plain(hit.passage.embedded) for phrase in question.phrases) for hit in hits]
        kept = list(range(min(LISTED, len(hits))))
        if not any(is_right[:LISTED]):
            kept += [number for number, right in enumerate(is_right) if right][:1]
        yield {
            "source": source,
            "question": question.text,
            "answerable": question.is_answerable,
            "hits": [_record(hits[number], is_right[number], question.phrases) for number in kept],
        }


def _record(hit: Hit, is_right: bool, phrases: Sequence[str]) -> dict[str, Any]:
    passage = hit.passage
    span = next((found for phrase in phrases if (found := _span(passage.text, phrase))), None) if is_right else None
    return {"headings": list(passage.headings), "text": passage.text, "right": is_right, "span": span}


def _span(text: str, phrase: str) -> tuple[int, int] | None:
    """Where a phrase is that `plain` has been through."""
    match = re.search(_BETWEEN.join(map(re.escape, phrase.split())).replace("'", "['’]"), text, re.I)
    return match.span() if match else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    paths = [Path(name) if name.endswith(".txt") else file_of(name) for name in args.names]
    with args.out.open("a", encoding="utf-8") as out:
        for path in paths or sorted(WRITTEN.glob("*.txt")):
            with indexed(documents_of(path.stem, args.folder.resolve())) as collection:
                rows = list(lists_of(path.stem, collection, list(questions_in(path))))
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            there = [row for row in rows if row["answerable"]]
            found = sum(any(hit["right"] for hit in row["hits"][:4]) for row in there)
            lost = sum(not any(hit["right"] for hit in row["hits"]) for row in there)
            print(f"{path.stem}: {len(rows)} questions, {len(there)} answered, {found} among four, {lost} not found")


if __name__ == "__main__":
    main()
