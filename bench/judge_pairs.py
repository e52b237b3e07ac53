"""Training pairs for the judge: questions as people ask them, and passages that answer them or do not.

    python bench/judge_pairs.py FOLDER... --faq FAQ.json --squad dev-v2.0.json --sentences src.txt tgt.txt \
        --medquad FOLDER --out pairs.jsonl

FOLDER: unpacked documentation, one folder a source. Real questions are headings that ask ("Why does …?"), with the
text below them; the question is taken out of the passage. Made ones ask, in many wordings, for the topic of a heading
and for what a sentence says. Negatives are the passages of the same source that share most words with the question,
outside the section that answers it. Passages come as `settle index` cuts them.

Public sets of questions are read by `judge_sources.py`.

Each line: question, passage, label (1 it answers), group (the question as it was first worded), source, kind; also:
other passages that answer; answer: the words of the passage that do.
"""

import argparse
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from judge_wordings import NOUN, VERB, frames, worded_again

from settle.documents.blocks import with_headings
from settle.documents.reader_pool import read_all
from settle.documents.walk import Walk
from settle.formats.gguf import read_gguf
from settle.library.resolve import resolve_whole
from settle.retrieve.index.chunkers.structure import Structure
from settle.retrieve.index.words import words

TOKENS = 96  # of a passage
MOST_FILES, MOST_PASSAGES = 120, 3000  # of a source
WORDINGS = 3  # of each question
NEGATIVES = 4  # of each question
KINDS = {"real": 120, "topic": 30, "verb": 30, "sentence": 30}  # questions of each kind a source may give
_ASKS = re.compile(
    r"^(?:how|why|what|when|where|which|who|can|could|is|are|do|does|did|should|will|would|must)\b", re.I
)
_NUMBER = re.compile(r"^(?:[A-Z]?[\d.]+[.):]?|[A-Z]\.[\d.]+|Q\d*[.:]|\([a-z\d]+\))\s*")
_TO_DO = re.compile(r"^(?:To|In order to) ([a-z]+ (?:[^,.;:]{8,70})), ")
_YOU_CAN = re.compile(r"\byou (?:can|may|could) (?!also|only|not)([a-z]+ [^,.;:()]{8,70}?)(?: by | with | using |[.,])")
_IS_A = re.compile(r"^(?:The |An? )?([A-Za-z][\w-]*(?: [\w-]+){0,3}) (?:is|are) (?:an?|the|one of) \w+[^.]{20,}")
_FOLLOWED = re.compile(r"\b(?:this|these|that|it|above|below|following|your own)\b", re.I)


@dataclass(frozen=True)
class Passage:
    """section: what tells it from the other sections of the source."""

    text: str
    headings: tuple[str, ...]
    section: str

    def shown(self, depth: int | None) -> str:
        """Return the passage below its headings; depth: how many of them, the innermost left out first."""
        return with_headings(self.headings if depth is None else self.headings[:depth], self.text)


class Words:
    """Passages by the words that they share with a question (BM25)."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._by_stem: dict[str, list[tuple[int, float]]] = defaultdict(list)
        bags = [Counter(words(text)) for text in texts]
        mean = sum(bag.total() for bag in bags) / max(1, len(bags))
        for number, bag in enumerate(bags):
            for stem, count in bag.items():
                weight = count * 2.2 / (count + 1.2 * (0.25 + 0.75 * bag.total() / mean))
                self._by_stem[stem].append((number, weight))
        self._total = len(texts)

    def nearest(self, text: str) -> list[int]:
        scores: dict[int, float] = defaultdict(float)
        for stem in set(words(text)):
            of = self._by_stem.get(stem, ())
            rarity = math.log(1 + (self._total - len(of) + 0.5) / (len(of) + 0.5))
            for number, weight in of:
                scores[number] += rarity * weight
        return sorted(scores, key=lambda number: -scores[number])


def passages_of(folder: Path, count: object, random: Random) -> list[Passage]:
    files = list(Walk().files([folder]))
    random.shuffle(files)
    found: list[Passage] = []
    chunker = Structure(tokens=TOKENS)
    for read in read_all((Path(file.path), file.reader) for file in files[:MOST_FILES]):
        for chunk in chunker.cut(read.blocks, count, 2 * TOKENS):  # type: ignore[arg-type]
            if len(chunk.text.split()) >= 8 and chunk.tokens <= 2 * TOKENS:
                found.append(Passage(chunk.text, chunk.headings, f"{read.path.name}/{'/'.join(chunk.headings)}"))
        if len(found) > MOST_PASSAGES:
            break
    return list(dict.fromkeys(found))


def questions_of(passages: Sequence[Passage], random: Random) -> Iterator[tuple[str, str, bool, list[int]]]:
    """(kind, what is asked, whether it is an act, the passages that answer)."""
    sections: dict[str, list[int]] = defaultdict(list)
    for number, passage in enumerate(passages):
        sections[passage.section].append(number)
    taken: Counter[str] = Counter()

    def may(kind: str) -> bool:
        taken[kind] += 1
        return taken[kind] <= KINDS[kind]

    heads = Counter(passage.headings[-1] for passage in passages if passage.headings)
    numbers = list(range(len(passages)))
    random.shuffle(numbers)
    for number in numbers:
        passage = passages[number]
        own = sections[passage.section]
        heading = _NUMBER.sub("", passage.headings[-1]).strip() if passage.headings else ""
        is_first = own[0] == number
        if is_first and heading.endswith("?") and 3 <= len(heading.split()) <= 30:
            if may("real"):
                yield "real", heading, False, own[:2]
        elif is_first and 1 <= len(heading.split()) <= 6 and heads[passage.headings[-1]] == len(own):
            if _ASKS.match(heading) or not heading[0].isalpha():
                continue
            if may("topic"):
                yield "topic", _plain(heading), False, own[:1]
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(passage.text.split()))[:6]:
            if _FOLLOWED.search(sentence[:60]):
                continue
            if (match := _TO_DO.match(sentence)) or (match := _YOU_CAN.search(sentence)):
                if may("verb"):
                    yield "verb", match[1].replace("your", "my"), True, [number]
                break
            if match := _IS_A.match(sentence):
                if len(match[1]) > 3 and may("sentence"):
                    yield "sentence", match[1], False, [number]
                break


def _plain(heading: str) -> str:
    first, _, rest = heading.partition(" ")
    lowered = first.lower() if first.istitle() else first
    return f"{lowered} {rest}".strip().rstrip(".:")


Row = dict[str, object]
Synonyms = dict[str, list[str]]


def rows_of(source: str, passages: Sequence[Passage], synonyms: Synonyms, random: Random) -> Iterator[Row]:
    index = Words([with_headings(passage.headings, passage.text) for passage in passages])
    for kind, asked, is_act, answers in list(questions_of(passages, random)):
        sections = {passages[number].section for number in answers}
        near = [number for number in index.nearest(asked)[:60] if passages[number].section not in sections]
        if kind == "sentence":  # the term is explained elsewhere too: leave out what has it in its heading
            near = [n for n in near if asked.lower() not in " ".join(passages[n].headings).lower()]
        near = near[:NEGATIVES]
        for wording in range(WORDINGS):
            if kind == "real":
                question = asked if wording == 0 else worded_again(asked, synonyms, random)
            else:
                framed = random.choice(frames(VERB if is_act else NOUN, is_training=True)).format(asked)
                question = framed if random.random() < 0.4 else worded_again(framed, synonyms, random)
            hidden = kind == "real" and random.random() < 0.85 or kind == "topic" and random.random() < 0.3
            for number in [*answers, *near]:
                is_answer = number in answers
                depth = -1 if hidden and is_answer else None
                if is_answer and kind == "real" and number != answers[0]:
                    continue
                yield {
                    "question": question,
                    "passage": passages[number].shown(depth),
                    "label": int(is_answer),
                    "group": f"{source}/{asked}",
                    "source": source,
                    "kind": kind,
                }


def faq_passages(path: Path) -> dict[str, list[tuple[str, list[str]]]]:
    by_source: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for row in json.loads(path.read_text(encoding="utf-8")):
        by_source[f"faq-{row['src']}"].append((row["q"], row["chunks"]))
    return by_source


def rows_of_faq(source: str, asked: list[tuple[str, list[str]]], synonyms: Synonyms, random: Random) -> Iterator[Row]:
    cut = [(number, _short(chunk)) for number, (_, chunks) in enumerate(asked) for chunk in chunks[:2]]
    index = Words([text for _, text in cut])
    for number, (question, chunks) in enumerate(asked):
        near = [cut[i][1] for i in index.nearest(question)[:40] if cut[i][0] != number][:NEGATIVES]
        for wording in range(WORDINGS + 1):
            worded = question if wording == 0 else worded_again(question, synonyms, random)
            about = {"question": worded, "group": f"{source}/{question}", "source": source, "kind": "real"}
            yield {**about, "passage": _short(chunks[0]), "label": 1, "also": [_short(chunk) for chunk in chunks[1:]]}
            for text in near:
                yield {**about, "passage": text, "label": 0}


def _short(text: str) -> str:
    return " ".join(text.split()[: round(TOKENS * 0.8)])


def read_synonyms(path: Path) -> dict[str, list[str]]:
    same: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"^[a-z] ([a-z-]+): (.+)$", line)
        if match:
            same[match[1]] = [word.strip() for word in match[2].split(",")]
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--faq", type=Path)
    parser.add_argument("--without", nargs="*", default=[], help="sources of the FAQs that are left out")
    parser.add_argument("--squad", type=Path)
    parser.add_argument("--sentences", nargs=2, action="append", type=Path, default=[])
    parser.add_argument("--medquad", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from judge_sources import rows_of_medquad, rows_of_sentences, rows_of_squad

    from settle.data.tokenizer.fast import fast_tokenizer

    tokenizer = fast_tokenizer(read_gguf(resolve_whole("minilm").source.path).metadata)
    synonyms = read_synonyms(Path(__file__).with_name("synonyms.txt"))

    def count(texts: Sequence[str]) -> list[int]:
        return [len(e) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    with arguments.out.open("w", encoding="utf-8") as out:
        for folder in arguments.folders:
            random = Random(int.from_bytes(hashlib.sha256(f"{arguments.seed}{folder.name}".encode()).digest()[:4]))
            passages = passages_of(folder, count, random)
            rows = list(rows_of(folder.name, passages, synonyms, random))
            kinds = Counter(str(row["kind"]) for row in {str(row["group"]): row for row in rows}.values())
            print(folder.name, len(passages), "passages", dict(kinds), len(rows), "rows", flush=True)
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for source, asked in faq_passages(arguments.faq).items() if arguments.faq else ():
            rows = list(rows_of_faq(source, asked, synonyms, Random(arguments.seed)))
            if source not in arguments.without:
                print(source, len(asked), "questions", len(rows), "rows", flush=True)
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        random = Random(arguments.seed)
        public = [rows_of_squad(arguments.squad, random)] if arguments.squad else []
        public += [rows_of_sentences(*files, random) for files in arguments.sentences]
        public += [rows_of_medquad(arguments.medquad, random)] if arguments.medquad else []
        for rows in public:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()
