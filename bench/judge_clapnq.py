"""CLAPNQ's questions as a collection for `judge_lists.py`: what people asked a search engine, half of it unanswered.

    python bench/judge_clapnq.py clapnq_dev_answerable.jsonl clapnq_dev_unanswerable.jsonl FOLDER
    python bench/judge_lists.py FOLDER FOLDER/clapnq.txt --out lists.jsonl

From github.com/primeqa/clapnq (Rosenthal et al. 2024, Apache-2.0), annotated_data/dev: each question with a passage of
Wikipedia, and the sentences that answer it. Written are FOLDER/clapnq/documents, a page for each title, and
FOLDER/clapnq.txt, in the format of `judge_questions/`.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

SENTENCES = 3  # of an answer that are noted
_MARKS = (
    ("( ", "("), ("`` ", '"'), (" ''", '"'), (" -- ", " – "), (" - ", "-"), (" n't", "n't"), (" 's", "'s"), ("|", " "),
)  # fmt: skip


def joined(text: str) -> str:
    """Join the marks of a text that a tokenizer has set apart."""
    for apart, whole in _MARKS:
        text = text.replace(apart, whole)
    return re.sub(r"\s+([.,;:?!)'])", r"\1", " ".join(text.split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("answerable", type=Path)
    parser.add_argument("unanswerable", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    pages: dict[str, list[str]] = defaultdict(list)
    asked = []
    for path in (args.answerable, args.unanswerable):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            passage = row["passages"][0]
            pages[passage["title"]].append(joined(passage["text"]))
            chosen = [joined(sentence) for output in row["output"] for sentence in output["selected_sentences"]]
            question = " ".join(row["input"].split())
            if chosen:
                asked.append(f"+ {question} => {' | '.join(chosen[:SENTENCES])}\n")
            elif path == args.unanswerable:
                asked.append(f"- {question}\n")
    documents = args.folder / "clapnq" / "documents"
    documents.mkdir(parents=True, exist_ok=True)
    for title, texts in pages.items():
        name = re.sub(r"\W+", "_", title)[:60]
        (documents / f"{name}.md").write_text("\n\n".join([f"# {title}", *texts]) + "\n", encoding="utf-8")
    (args.folder / "clapnq.txt").write_text("".join(asked), encoding="utf-8")


if __name__ == "__main__":
    main()
