"""The documents say it, and the answer does not: the passage is not in the index, or not among the first, or the
documents are cut into pieces that are too small to say it."""

import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from settle.base.event_log import Events
from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.known_answers import KNOWN_ANSWERS
from settle.doctor.subject import Subject
from settle.doctor.trial import FEWEST_ITEMS, Item, Side, Trial
from settle.retrieve.check.synthetic_questions.questions import Question, make
from settle.retrieve.index.catalogue.catalogue import Catalogue
from settle.retrieve.index.changes import find_changes
from settle.retrieve.index.chunkers import Chunker
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.collection_folder import CATALOGUE
from settle.retrieve.index.config import IndexConfig, IndexParts
from settle.retrieve.index.update_index import update
from settle.retrieve.search.hybrid_search import search

DEPTH = 10  # passages that are looked through, at least
LOOKED, MADE = 16, 64  # questions that a look asks, and that a proof makes
LEAST_SHARE = 0.25  # of the questions, whose passage is found with the change alone
SUSPECT_SHARE = 0.375  # the same in a look, which asks too few to tell a quarter from chance
SAME_WORDS = 0.6  # of a passage's words that a found one must have to be the same, however it was cut
SMALL, USUAL = 64, 200  # tokens of a passage: below that it seldom says a whole thing; what a collection has unasked
RECUT = 32  # documents that are cut again for a proof
_WORD = re.compile(r"\w+")


class MissedPassage(Check):
    """Stage by stage, by questions whose passage is known: is it in the index, and is it among the first k?"""

    number: ClassVar[int] = 16
    symptom: ClassVar[str] = "the documents say it, and the answer does not"
    about: ClassVar[tuple[str, ...]] = ("collection",)
    seconds: ClassVar[float] = 5.0

    def detect(self, subject: Subject) -> Iterator[Finding]:
        with _opened(subject) as collection:
            changes = find_changes(collection.catalogue, collection.roots, Events())
            unread = sorted(file.path for file, _ in changes.new)
            questions = make(collection, LOOKED, seed=1)
            passages = [_passage(collection, question) for question in questions]
            ranks = [_rank(collection, q.text, text) for q, text in zip(questions, passages, strict=True)]
            tokens = _passage_tokens(collection.config)
        if unread:
            yield Finding(
                check=self.part_name(),
                what=f"{len(unread)} documents are new or changed since they were indexed",
                evidence=(f"not in the index as they are now: {', '.join(Path(path).name for path in unread[:3])}",),
                strength=0.9,
                details={"stage": "index", "paths": unread},
            )
        words = sorted(len(text.split()) for text in passages)
        if tokens and tokens < SMALL and words and words[len(words) // 2] < SMALL:
            yield Finding(
                check=self.part_name(),
                what=f"documents are cut into passages of {tokens} tokens, which are torn from what they belong to",
                evidence=(
                    f"an answer is made from {subject.running.passages} of them, so from some {tokens} tokens each",
                ),
                strength=0.7,
                details={"stage": "cut", "tokens": tokens},
            )
            return
        k = subject.running.passages
        late = sum(k <= rank < max(DEPTH, 2 * k) for rank in ranks)
        if ranks and late >= SUSPECT_SHARE * len(ranks):
            yield Finding(
                check=self.part_name(),
                what=f"an answer is made from the first {_passages(k)}, and the right one often comes later",
                evidence=(f"it is further down in {late} of {len(ranks)} questions made from the documents",),
                strength=0.4 + late / len(ranks) / 2,
                details={"stage": "k", "k": k, "wider": max(DEPTH, 2 * k)},
            )

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        assert subject.collection is not None
        k = subject.running.passages
        if finding.details["stage"] == "k":
            wider = int(str(finding.details["wider"]))
            with _opened(subject) as collection:
                items = [_item(collection, question) for question in make(collection, MADE, seed=2)]
            sides = (_Search(_passages(k), subject, None, k), _Search(f"{wider} passages", subject, None, wider))
            knob = f"{wider} passages in place of {k}"
        elif finding.details["stage"] == "cut":
            if _is_remote(subject):
                return None  # a store of others is looked at, and not filled
            torn, whole = _recut(subject, folder)
            with Collection(subject.collection.name, whole) as collection:
                items = [_item(collection, question) for question in make(collection, MADE, seed=2)]
            sides = (_Search("as it is cut", subject, torn, k, True), _Search("cut anew", subject, whole, k, True))
            knob = f"passages of {USUAL} tokens in place of {finding.details['tokens']}"
        else:
            fresh = folder / "fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            with _opened(subject) as collection:
                shutil.copytree(collection.folder, fresh)
            with Collection(subject.collection.name, fresh) as collection:
                update(collection, Events())
                paths = finding.details["paths"]
                assert isinstance(paths, list)
                made = [q for q in make(collection, MADE * 4, seed=2) if q.path in paths]
                items = [_item(collection, question) for question in made[:MADE]]
            sides = (_Search("the index as it is", subject, None, k), _Search("indexed again", subject, fresh, k))
            knob = "the documents are indexed as they are now"
        if len(items) < 2 * FEWEST_ITEMS:
            return None  # too little text to ask about
        half = len(items) // 2
        return Trial(
            knob=knob,
            before=sides[0],
            after=sides[1],
            measure="questions whose passage is found",
            unit="",
            items=items[:half],
            others=items[half:],
            least=LEAST_SHARE,
            lower=False,
            seconds=0.1,
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        if finding.details["stage"] == "index":
            return Fix("index what changed", f"settle index {subject.name}")
        if finding.details["stage"] == "cut":
            return Fix("cut the documents anew", f"settle index {subject.name} --anew --chunker.tokens {USUAL}")
        wider = finding.details["wider"]
        return Fix(f"ask with {wider} passages", f'settle ask {subject.name} "…" --k {wider}')

    def injected(self, healthy: Subject, folder: Path) -> Subject:
        """A document beside the others that nobody indexed. It is written to the collection's own folder."""
        with _opened(healthy) as collection:
            root = collection.roots[0]
        text = "\n\n".join(f"## {known.question}\n\n{known.answer}" for known in KNOWN_ANSWERS)
        (root / "unread.md").write_text(f"# Unread\n\n{text}\n", encoding="utf-8")
        return healthy


class _Search(Side):
    """Whether the passage that answers is among the first k. folder: of the index, None for the current one. together:
    whether it may lie in several of them."""

    def __init__(self, name: str, subject: Subject, folder: Path | None, k: int, together: bool = False) -> None:
        assert subject.collection is not None
        self.name, self._collection_name, self._folder, self._k = name, subject.collection.name, folder, k
        self._together = together
        self._collection: Collection | None = None

    def open(self) -> None:
        self._collection = Collection(self._collection_name, self._folder)

    def measure(self, item: Item) -> float:
        assert self._collection is not None and isinstance(item, Mapping)
        if self._together:
            return float(_is_covered(self._collection, str(item["question"]), str(item["passage"]), self._k))
        return float(_rank(self._collection, str(item["question"]), str(item["passage"]), self._k) < self._k)

    def close(self) -> None:
        collection, self._collection = self._collection, None
        if collection is not None:
            collection.close()


def _passages(number: int) -> str:
    return "passage" if number == 1 else f"{number} passages"


def _opened(subject: Subject) -> Collection:
    assert subject.collection is not None
    return Collection(subject.collection.name)


def _is_remote(subject: Subject) -> bool:
    with _opened(subject) as collection:
        return collection.vectors.is_remote


def _passage_tokens(config: IndexConfig | None) -> int | None:
    """Of a passage, where the chunker has such a setting."""
    tokens = config.record("chunker").get("tokens") if config else None
    return tokens if isinstance(tokens, int) else None


def _recut(subject: Subject, folder: Path) -> tuple[Path, Path]:
    """Some of the documents in two new indexes, cut as the collection is and as usual."""
    with _opened(subject) as collection:
        config = collection.config
        assert config is not None
        paths = sorted(collection.catalogue.documents.stamps())
    paths = random.Random(0).sample(paths, min(RECUT, len(paths)))
    records = {"torn": config.record("chunker"), "whole": {**config.record("chunker"), "tokens": USUAL}}
    for name, record in records.items():
        settings = {key: value for key, value in record.items() if key != "name"}
        chunker = Chunker.make(str(record["name"]), settings)
        _index(subject, folder / name, paths, IndexParts(config.make_embedder(), config.make_store(), chunker))
    return folder / "torn", folder / "whole"


def _index(subject: Subject, folder: Path, paths: Sequence[str], parts: IndexParts) -> None:
    """Documents in a new index in `folder`, in place of an earlier one."""
    assert subject.collection is not None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    Catalogue(folder / CATALOGUE).close()
    with Collection(subject.collection.name, folder) as collection:
        collection.decide(parts)
        collection.follow([Path(path) for path in paths])
        update(collection, Events())


def _item(collection: Collection, question: Question) -> Item:
    return {"question": question.text, "passage": _passage(collection, question)}


def _passage(collection: Collection, question: Question) -> str:
    """The text of the passage that a question was made from."""
    return collection.catalogue.passages.get([question.passage])[question.passage].text


def _is_covered(collection: Collection, question: str, passage: str, k: int) -> bool:
    """Whether the first k passages together say what a passage does."""
    wanted = set(_WORD.findall(passage.lower()))
    found = {word for hit in search(collection, question, k) for word in _WORD.findall(hit.passage.text.lower())}
    return len(wanted & found) >= SAME_WORDS * len(wanted)


def _rank(collection: Collection, question: str, passage: str, depth: int = 2 * DEPTH) -> int:
    """The place of a passage among what is found, from 0; `depth` where it is not."""
    wanted = set(_WORD.findall(passage.lower()))
    for place, hit in enumerate(search(collection, question, depth)):
        if len(wanted & set(_WORD.findall(hit.passage.text.lower()))) >= SAME_WORDS * len(wanted):
            return place
    return depth
