"""Questions with the passages that the search brings for them, which is what the judge of answers learns from.

    python bench/judge_lists.py FOLDER [NAME ...] --out lists.jsonl

NAME.txt in `judge_questions/` has the questions, all of them where no NAME is given, in the format of `asked/`:
"@ document", "+ question => words of the answer | other words of it", and "- question" for one that the documents do
not answer. Its head says where the documents are, as many lines as it takes:
"# from deb PACKAGE path/{one,other}.html path/*.txt" of a Debian package, a file's new name behind its path;
"# from wheel NAME==VERSION name.md" for a Python package's README; else they lie in `judge_questions/documents/NAME`.
They are put below FOLDER.

Each line is a question with the first eight passages as `settle ask` finds them, and the first one that answers where
it is not among them: headings, text, right, and span, the characters of the text that answer.
"""

import argparse
import gzip
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from email import message_from_bytes
from pathlib import Path
from typing import Any

from gold import unpacked
from questions import Question, markdown, plain, questions_in
from retrieval import indexed

from settle.retrieve.index.collection import Collection
from settle.retrieve.search.hybrid_search import Hit, search

WRITTEN = Path(__file__).with_name("judge_questions")
LISTED, SEARCHED = 8, 40
_SOURCE = re.compile(r"# (?:Documents:|from) deb (.+)")
_WHEEL = re.compile(r"# from wheel (\S+) (\S+)")
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


def make_documents(path: Path, folder: Path) -> Path:
    """Puts the documents of a file of questions below `folder`, unless they are there → where."""
    target = folder / path.stem / "documents"
    if target.is_dir():
        return target
    partial = target.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)
    if (WRITTEN / "documents" / path.stem).is_dir():
        shutil.copytree(WRITTEN / "documents" / path.stem, partial)
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _WHEEL.match(line):
            partial.mkdir(parents=True, exist_ok=True)
            (partial / match[2]).write_text(_readme(match[1], folder / "packages"), encoding="utf-8")
        if match := _SOURCE.match(line):
            package, *patterns = match[1].split()
            renamed = patterns.pop() if "/" not in patterns[-1] else ""
            (root,) = unpacked(folder, [package])
            for pattern in (one for braced in patterns for one in _expanded(braced)):
                for file in root.glob(pattern.lstrip("/")):
                    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
                    name = renamed or file.name.removesuffix(".gz")
                    if name.endswith(".docbook"):
                        name, data = f"{Path(name).stem}.md", markdown(data.decode()).encode()
                    if name.startswith("index."):
                        name = f"{file.parent.name}{Path(name).suffix}"
                    partial.mkdir(parents=True, exist_ok=True)
                    (partial / name).write_bytes(data)
    partial.rename(target)
    return target


def _readme(requirement: str, folder: Path) -> str:
    """The README of a Python package, as its wheel describes it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    subprocess.run([*pip, requirement], check=True)
    wheel = next(folder.glob(f"{requirement.replace('==', '-').replace('.', '[._]')}-*.whl"))
    with zipfile.ZipFile(wheel) as files:
        name = next(one for one in files.namelist() if one.endswith(".dist-info/METADATA"))
        return str(message_from_bytes(files.read(name)).get_payload(decode=True).decode())


def _expanded(pattern: str) -> Iterator[str]:
    """A pattern for each of the words in braces."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    for word in match[1].split(","):
        yield from _expanded(pattern[: match.start()] + word + pattern[match.end() :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    paths = [WRITTEN / f"{name}.txt" for name in args.names] or sorted(WRITTEN.glob("*.txt"))
    with args.out.open("a", encoding="utf-8") as out:
        for path in paths:
            with indexed(make_documents(path, args.folder.resolve())) as collection:
                rows = list(lists_of(path.stem, collection, list(questions_in(path))))
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            there = [row for row in rows if row["answerable"]]
            found = sum(any(hit["right"] for hit in row["hits"][:4]) for row in there)
            lost = sum(not any(hit["right"] for hit in row["hits"]) for row in there)
            print(f"{path.stem}: {len(rows)} questions, {len(there)} answered, {found} among four, {lost} not found")


if __name__ == "__main__":
    main()
