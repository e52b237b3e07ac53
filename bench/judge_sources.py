"""Rows of pairs from public sets of questions, for `judge_pairs.py`.

Each is a question with a passage that answers it, if any does, and the passages that share most words with it.

SQuAD 2.0 (Rajpurkar et al. 2018, CC BY-SA 4.0): crowd workers' questions about paragraphs of Wikipedia, half of them
asked so that the paragraph does not answer. Sentences (Du et al. 2017, github.com/xinyadu/nqg): the sentences of
articles, and SQuAD's questions about each. MedQuAD (Ben Abacha and Demner-Fushman 2019, CC BY 4.0): questions about
diseases and drugs; the other answers about the same one are the negatives.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

from judge_pairs import Row, Words

LENGTHS = (15, 25, 35, 50, 70)  # words of a passage
HEADED = 0.5  # share of the passages that stand below the name of what they are about
SENTENCES = 4500  # of each file of sentences
DOCUMENTS = 1800  # of MedQuAD
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])")
_TOKENS = (
    ("-lrb- ", "("), (" -rrb-", ")"), ("-lrb-", "("), ("-rrb-", ")"), ("-lsb-", "["), ("-rsb-", "]"), (" 's", "'s"),
    (" n't", "n't"), ("`` ", '"'), (" ''", '"'), (" ,", ","), (" .", "."), (" ;", ";"), (" ?", "?"), (" :", ":"),
)  # fmt: skip


def row(source: str, question: str, passage: str, answer: str | None, head: str = "") -> Row:
    """answer: the words of the passage that answer, or None where it does not."""
    shown = f"{head}\n{passage}" if head else passage
    about = {"question": question, "passage": shown, "group": f"{source}/{question}", "source": source, "kind": source}
    return {**about, "label": int(answer is not None), **({"answer": answer} if answer else {})}


def rows_of_squad(path: Path, random: Random) -> Iterator[Row]:
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        title = article["title"].replace("_", " ")
        paragraphs = [_SENTENCE.split(paragraph["context"]) for paragraph in article["paragraphs"]]
        near = Near([(n, text) for n, of in enumerate(paragraphs) for text in _windows(of, random)])
        for number, paragraph in enumerate(article["paragraphs"]):
            for asked in paragraph["qas"]:
                head = title if random.random() < HEADED else ""
                yield from _squad_question(asked, number, paragraph["context"], paragraphs[number], near, head, random)


def _squad_question(
    asked: dict[str, Any], number: int, text: str, sentences: Sequence[str], near: "Near", head: str, random: Random
) -> Iterator[Row]:
    question, wanted = asked["question"], random.choice(LENGTHS)
    if asked["is_impossible"]:
        plausible = asked.get("plausible_answers")
        own = [_around(sentences, _at(text, sentences, plausible[0]["answer_start"]), wanted, random)] * bool(plausible)
        others = [other for n, other in near.of(question) if n != number or not own]
        for passage in [*own, *others[: 3 - len(own)]]:
            yield row("squad-none", question, passage, None, head)
        return
    start, _ = Counter(answer["answer_start"] for answer in asked["answers"]).most_common(1)[0]
    answer = next(a["text"] for a in asked["answers"] if a["answer_start"] == start)
    passage = _around(sentences, _at(text, sentences, start), wanted, random)
    if answer not in passage:
        return
    yield row("squad", question, passage, answer, head)
    answers = [a["text"].lower() for a in asked["answers"]]
    others = [t for n, t in near.of(question) if not any(a in t.lower() for a in answers) and t[:30] not in passage]
    for other in _two_and_one(others, random):
        yield row("squad", question, other, None, head)


def rows_of_sentences(sentences: Path, questions: Path, random: Random) -> Iterator[Row]:
    """sentences, questions: one a line, as the tokenizer of Penn's treebank splits them; the sentences in order."""
    told, asked = (
        [_joined(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in (sentences, questions)
    )
    order = list(dict.fromkeys(told))
    place, near = {sentence: number for number, sentence in enumerate(order)}, Near(list(enumerate(order)))
    for number in random.sample(range(len(told)), min(SENTENCES, len(told))):
        at, wanted = place[told[number]], random.choice(LENGTHS)
        passage = _around(order[max(0, at - 6) : at + 7], min(at, 6), wanted, random)
        yield row("sentence", asked[number], passage, told[number])
        for other in _two_and_one([n for n, text in near.of(asked[number]) if text not in passage], random):
            around = _around(order[max(0, other - 4) : other + 5], min(other, 4), wanted, random)
            yield row("sentence", asked[number], order[other] if told[number] in around else around, None)


def rows_of_medquad(folder: Path, random: Random) -> Iterator[Row]:
    documents = []
    for path in random.sample(files := sorted(folder.rglob("*.xml")), min(DOCUMENTS, len(files))):
        root = ElementTree.parse(path).getroot()
        pairs = [
            (re.sub(r"\(are\) | (?=\?)", "", pair.findtext("Question") or ""), (pair.findtext("Answer") or "").split())
            for pair in root.iter("QAPair")
        ]
        pairs = [(question, answer) for question, answer in pairs if len(answer) > 8]
        if len(pairs) >= 2:
            documents.append(((root.findtext("Focus") or "").strip(), pairs))
    for focus, pairs in documents:
        for number, (question, answer) in random.sample(list(enumerate(pairs)), 2):
            head = focus if random.random() < HEADED else ""
            passage = " ".join(answer[: random.choice(LENGTHS[2:])])
            yield row("med", question, passage, "", head)
            others = [text for n, (_, text) in enumerate(pairs) if n != number]
            for other in random.sample(others, min(2, len(others))):
                yield row("med", question, " ".join(other[: random.choice(LENGTHS[2:])]), None, head)


class Near:
    """Numbered texts by the words that they share with a question."""

    def __init__(self, texts: Sequence[tuple[int, str]]) -> None:
        self._texts, self._words = texts, Words([text for _, text in texts])

    def of(self, question: str) -> list[tuple[int, str]]:
        return [self._texts[i] for i in self._words.nearest(question)[:20]]


def _two_and_one(others: Sequence[Any], random: Random) -> list[Any]:
    """Return the two nearest, and one of the six that follow."""
    return [*others[:2], *random.sample(others[2:8], min(1, len(others[2:8])))]


def _windows(sentences: Sequence[str], random: Random) -> Iterator[str]:
    start, wanted = 0, random.choice(LENGTHS)
    for end in range(1, len(sentences) + 1):
        if end == len(sentences) or len(" ".join(sentences[start:end]).split()) >= wanted:
            yield " ".join(sentences[start:end])
            start = end


def _around(sentences: Sequence[str], at: int, wanted: int, random: Random) -> str:
    """Return the sentence `at` with some before and behind it, `wanted` words or a little more."""
    first, last = at, at
    while len(" ".join(sentences[first : last + 1]).split()) < wanted and last - first + 1 < len(sentences):
        if first > 0 and (random.random() < 0.5 or last == len(sentences) - 1):
            first -= 1
        else:
            last += 1
    return " ".join(sentences[first : last + 1])


def _at(text: str, sentences: Sequence[str], start: int) -> int:
    """Return the sentence that the character `start` of a text is in."""
    found, end = 0, 0
    for number, sentence in enumerate(sentences):
        begins = text.find(sentence, end)
        if begins <= start:
            found = number
        end = begins + len(sentence)
    return found


def _joined(line: str) -> str:
    for apart, whole in _TOKENS:
        line = line.replace(apart, whole)
    return line.strip()
