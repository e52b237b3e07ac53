"""The documents say it, and the answer does not.

The passage is not in the index, or not among the first, or the documents are cut into pieces that are too small to say
it, or the model does not read what it is given.
"""

import contextlib
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import ClassVar, Literal, NamedTuple

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.known_answers import made_up_fact
from settle.doctor.likelihood import NATS, LikelihoodReading, LikelihoodSide
from settle.doctor.subject import IndexedDocuments
from settle.doctor.trial import FEWEST_ITEMS, HeldSide, Item, Trial, typed
from settle.infer.engine import Engine
from settle.library.facts import answering_models
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_gguf
from settle.machine import memory
from settle.retrieve.answer.write_answer import AnswerOptions, Prompt
from settle.retrieve.check.questions import CheckQuestion, make
from settle.retrieve.index.catalogue import Catalogue
from settle.retrieve.index.changes import find_changes
from settle.retrieve.index.chunkers import Chunker
from settle.retrieve.index.collection import CATALOGUE, Collection, IndexConfig, IndexParts
from settle.retrieve.index.update_index import update
from settle.retrieve.search import search

DEPTH = 10  # passages that are looked through, at least
LOOKED, MADE = 16, 64  # questions that a look asks, and that a proof makes
LEAST_SHARE = 0.25  # of the questions, whose passage is found with the change alone
SUSPECT_SHARE = 0.375  # the same in a look, which asks too few to tell a quarter from chance
SAME_WORDS = 0.6  # of a passage's words that a found one must have to be the same, however it was cut
SMALL, USUAL = 64, 200  # tokens of a passage: below that it seldom says a whole thing; what a collection has unasked
DRAWS = 8  # of questions about the documents that changed
RECUT = 32  # documents that are cut again for a proof
FACTS, PROVEN_FACTS = 2, 8  # made-up facts that a look puts into passages, and each half of a proof
UNREAD_NATS = 1.0  # per token: four digits by chance cost more than two
FACT_SECONDS = 2.0  # that a small model takes for the passages of one question
MEMORY_SHARE = 0.5  # of what is free, for another model
CONTEXT = 2048  # tokens: passages take 1,536 at most
_WORD = re.compile(r"\w+")


class NotIndexed(Details):
    """Documents that are not in the index as they are now."""

    stage: Literal["index"]
    paths: list[str]


class Torn(Details):
    """Passages that are too small to say a whole thing."""

    stage: Literal["cut"]
    tokens: int  # of a passage


class TooFew(Details):
    """A passage that comes after the first `k`, and is among `wider`."""

    stage: Literal["k"]
    k: int
    wider: int


class Unread(Details):
    """A passage among the first `k` that the model does not read."""

    stage: Literal["unread"]
    k: int
    fewer: int | None  # passages that it reads
    other: str | None = None  # a larger model, which may read them


Stage = NotIndexed | Torn | TooFew | Unread  # at which a passage is lost


class MissedPassage(Check[IndexedDocuments, Stage]):
    """A passage should be in the index, among the first k that are found, and read there by the model."""

    number: ClassVar[int] = 16
    symptom: ClassVar[str] = "the documents say it, and the answer does not"
    seconds: ClassVar[float] = 5.0

    def detect(self, subject: IndexedDocuments) -> Iterator[Finding[Stage]]:
        with _opened(subject) as collection:
            changes = find_changes(collection.catalogue, collection.roots, Events())
            unread = sorted(file.path for file, _ in changes.new)
            questions = make(collection, LOOKED, seed=1)
            passages = [_passage(collection, question) for question in questions]
            ranks = [_rank(collection, q.text, text) for q, text in zip(questions, passages, strict=True)]
            tokens = _passage_tokens(collection.config)
        if unread:
            yield self.finding(
                f"{len(unread)} documents are new or changed since they were indexed",
                f"not in the index as they are now: {', '.join(Path(path).name for path in unread[:3])}",
                strength=0.9,
                details=NotIndexed(stage="index", paths=unread),
            )
        words = sorted(len(text.split()) for text in passages)
        if tokens and tokens < SMALL and words and words[len(words) // 2] < SMALL:
            yield self.finding(
                f"documents are cut into passages of {tokens} tokens, which are torn from what they belong to",
                f"an answer is made from {subject.running.passages} of them, so from some {tokens} tokens each",
                strength=0.7,
                details=Torn(stage="cut", tokens=tokens),
            )
            return
        k = subject.running.passages
        late = sum(k <= rank < max(DEPTH, 2 * k) for rank in ranks)
        if ranks and late >= SUSPECT_SHARE * len(ranks):
            yield self.finding(
                f"an answer is made from the first {_passages(k)}, and the right one often comes later",
                f"it is further down in {late} of {len(ranks)} questions made from the documents",
                strength=0.4 + late / len(ranks) / 2,
                details=TooFew(stage="k", k=k, wider=max(DEPTH, 2 * k)),
            )
        elif subject.reader is not None and len(questions) >= FACTS:
            yield from self._unread(subject, subject.reader, [question.text for question in questions[:FACTS]])

    def _unread(
        self, subject: IndexedDocuments, reader: ModelRef, questions: Sequence[str]
    ) -> Iterator[Finding[Stage]]:
        """Yield facts that are in the passages, and that the model finds no likelier for that."""
        k, items = subject.running.passages, fact_items(questions, seed=1)
        with contextlib.closing(FactSide("as it is", reader, subject.name, k, k)) as side:
            own, dropped = side.mean(items, k), side.dropped
            fewer = next((n for n in _fewer(k) if own > UNREAD_NATS and own - side.mean(items, n) > UNREAD_NATS), None)
        if own <= UNREAD_NATS:
            return
        seen = f"a made-up fact in the last of {_passages(k)} costs {reader.name} {own:.2f} nats per token"
        what = f"{reader.name} does not read the last of {_passages(k)}"
        if dropped:
            what = f"of {_passages(k)} {dropped} find no room in the prompt"
        details = Unread(stage="unread", k=k, fewer=fewer)
        if fewer is None:
            what = f"{reader.name} does not read the passages that it is given"
            details = Unread(stage="unread", k=k, fewer=fewer, other=_larger(reader))
        yield self.finding(what, seen, strength=0.8, details=details)

    def trial(self, finding: Finding[Stage], subject: IndexedDocuments, folder: Path) -> Trial | None:
        k, found = subject.running.passages, finding.details
        match found:
            case Unread():
                return _reading_trial(found, subject)
            case TooFew(wider=wider):
                knob, asked, paths = f"{wider} passages in place of {k}", None, None
                sides = (_Search(_passages(k), subject, None, k), _Search(f"{wider} passages", subject, None, wider))
            case Torn(tokens=tokens):
                if _is_remote(subject):
                    return None  # a store of others is looked at, and not filled
                knob, paths = f"passages of {USUAL} tokens in place of {tokens}", None
                torn, asked = _recut(subject, folder)
                sides = (_Search("as it is cut", subject, torn, k, True), _Search("cut anew", subject, asked, k, True))
            case NotIndexed(paths=paths):
                knob, asked = "the documents are indexed as they are now", folder / "fresh"
                shutil.rmtree(asked, ignore_errors=True)
                with _opened(subject) as collection:
                    shutil.copytree(collection.folder, asked)
                with Collection(subject.collection.name, asked) as collection:
                    update(collection, Events())
                sides = (_Search("the index as it is", subject, None, k), _Search("indexed again", subject, asked, k))
        with Collection(subject.collection.name, asked) as collection:
            questions = _about(collection, set(paths)) if paths else make(collection, MADE, seed=2)
            items = [Answered(question.text, _passage(collection, question))._asdict() for question in questions]
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

    def fix(self, finding: Finding[Stage], subject: IndexedDocuments) -> Fix:
        match finding.details:
            case NotIndexed():
                return Fix("index what changed", f"settle index {subject.name}")
            case Torn():
                return Fix("cut the documents anew", f"settle index {subject.name} --anew --chunker.tokens {USUAL}")
            case TooFew(wider=wider):
                return Fix(f"ask with {wider} passages", f'settle ask {subject.name} "…" --k {wider}')
            case Unread() as found:
                return _reading_fix(found, subject.name)


class Answered(NamedTuple):
    """A question, and the text of the passage that answers it."""

    question: str
    passage: str


class _Search(HeldSide[Collection]):
    """1 where the passage that answers is among the first k, else 0.

    folder: of the index, None for the current one. together: whether it may lie in several of them.
    """

    def __init__(
        self, name: str, subject: IndexedDocuments, folder: Path | None, k: int, together: bool = False
    ) -> None:
        self.name, self._collection_name, self._folder, self._k = name, subject.collection.name, folder, k
        self._together = together

    def make(self) -> Collection:
        return Collection(self._collection_name, self._folder)

    def measure(self, item: Item) -> float:
        question, passage = typed(item, Answered)
        if self._together:
            return float(_is_covered(self.held, question, passage, self._k))
        return float(_rank(self.held, question, passage, self._k) < self._k)


class PlacedFact(NamedTuple):
    """A made-up fact (see `Fact`), and the question whose passages it goes into."""

    sentence: str
    question: str
    begun: str
    answer: str
    beside: str


class FactSide(LikelihoodSide):
    """The nats per token of a fact that no text ever stated, put into the last of the first `deep` passages.

    It is the furthest from the question there. k: passages that the prompt has, that one among them.
    """

    def __init__(self, name: str, model: ModelRef, collection_name: str, deep: int, k: int) -> None:
        super().__init__(name, model, context=CONTEXT)
        self._collection_name, self._deep, self.k = collection_name, deep, k
        self._collection: Collection | None = None
        self.dropped = 0  # passages that found no room in the latest prompt

    def close(self) -> None:
        collection, self._collection = self._collection, None
        if collection is not None:
            collection.close()
        super().close()

    def mean(self, items: Sequence[Item], k: int) -> float:
        """Return the mean of some items with that many passages."""
        self.k = k
        return fmean(map(self.measure, items))

    def measure(self, item: Item) -> float:
        return self.held.nats_of_end(self.reading(self.held.engine, item))

    def reading(self, engine: Engine, item: Item) -> LikelihoodReading:
        placed = typed(item, PlacedFact)
        self._collection = collection = self._collection or Collection(self._collection_name)
        hits = search(collection, placed.beside, self._deep)
        last = hits[-1]
        passage = last.passage._replace(text=f"{last.passage.text}\n{placed.sentence}")
        hits = [*hits[:-1][: self.k - 1], replace(last, passage=passage)]
        prompt = Prompt(collection, engine, placed.question, hits, AnswerOptions())
        self.dropped = len(prompt.packed.dropped)
        begun = [*prompt.ids, *engine.tokenize(placed.begun)]
        return LikelihoodReading([*begun, *engine.tokenize(placed.answer)], len(begun))


def fact_items(questions: Sequence[str], seed: int) -> list[Item]:
    """Return a made-up fact for each question; it goes into the passages that the question finds."""
    draws = random.Random(seed)
    return [PlacedFact(*made_up_fact(draws), beside=question)._asdict() for question in questions]


def _fewer(k: int) -> list[int]:
    """Return numbers of passages that are tried in place of k, the most first."""
    return sorted({n for n in (k // 2, k // 4, 1) if 0 < n < k}, reverse=True)


def _larger(reader: ModelRef) -> str | None:
    """Return the largest other model here that may answer from documents, if it is larger and fits into memory."""
    refs = [resolve_gguf(name) for name in answering_models()]
    sizes = {ref.name: ref.weights.stat().st_size for ref in refs if ref.weights != reader.weights}
    free = memory().available * MEMORY_SHARE
    fitting = {name: size for name, size in sizes.items() if reader.weights.stat().st_size < size < free}
    return max(fitting, key=fitting.__getitem__, default=None)


def _reading_trial(found: Unread, subject: IndexedDocuments) -> Trial | None:
    """Return the A/B of facts in fewer passages, or read by another model."""
    k, fewer, other, reader = found.k, found.fewer, found.other, subject.reader
    with _opened(subject) as collection:
        questions = [question.text for question in make(collection, 2 * PROVEN_FACTS, seed=2)]
    if reader is None or len(questions) < 2 * FEWEST_ITEMS:
        return None
    items, half = fact_items(questions, seed=2), len(questions) // 2
    if fewer is not None:
        after, knob = FactSide(_passages(fewer), reader, subject.name, k, fewer), f"{fewer} in place of {k}"
    elif other is not None:
        after, knob = FactSide(other, resolve_gguf(other), subject.name, k, k), f"{other} reads them"
    else:
        return None
    return Trial(
        knob=knob,
        before=FactSide("as it is", reader, subject.name, k, k),
        after=after,
        measure="loss of facts that are in the passages",
        unit=NATS,
        items=items[:half],
        others=items[half:],
        least=UNREAD_NATS / 2,
        seconds=FACT_SECONDS,
    )


def _reading_fix(found: Unread, name: str) -> Fix:
    if found.fewer is not None:
        return Fix(f"ask with {found.fewer} passages", f'settle ask {name} "…" --k {found.fewer}')
    if found.other is not None:
        return Fix(f"let {found.other} answer", f'settle ask {name} "…" --model {found.other}')
    return Fix("let a larger model answer; none is here", "settle models fit")


def _passages(number: int) -> str:
    return "passage" if number == 1 else f"{number} passages"


def _opened(subject: IndexedDocuments) -> Collection:
    return Collection(subject.collection.name)


def _is_remote(subject: IndexedDocuments) -> bool:
    with _opened(subject) as collection:
        return collection.vectors.is_remote


def _passage_tokens(config: IndexConfig | None) -> int | None:
    """Return the tokens of a passage, where the chunker has such a setting."""
    tokens = config.record("chunker").get("tokens") if config else None
    return tokens if isinstance(tokens, int) else None


def _recut(subject: IndexedDocuments, folder: Path) -> tuple[Path, Path]:
    """Index some of the documents twice, cut as the collection is and as usual, and return both folders."""
    with _opened(subject) as collection:
        config = collection.config
        if config is None:
            raise UsageError(f"{subject.name} has no settings to cut its documents by", "index it again")
        paths = sorted(collection.catalogue.documents.stamps())
    paths = random.Random(0).sample(paths, min(RECUT, len(paths)))
    records = {"torn": config.record("chunker"), "whole": {**config.record("chunker"), "tokens": USUAL}}
    for name, record in records.items():
        settings = {key: value for key, value in record.items() if key != "name"}
        chunker = Chunker.make(str(record["name"]), settings)
        _index(subject, folder / name, paths, IndexParts(config.make_embedder(), config.make_store(), chunker))
    return folder / "torn", folder / "whole"


def _index(subject: IndexedDocuments, folder: Path, paths: Sequence[str], parts: IndexParts) -> None:
    """Index documents anew in `folder`, in place of an earlier index."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    Catalogue(folder / CATALOGUE).close()
    with Collection(subject.collection.name, folder) as collection:
        collection.decide(parts)
        collection.follow([Path(path) for path in paths])
        update(collection, Events())


def _passage(collection: Collection, question: CheckQuestion) -> str:
    """Return the text of the passage that a question was made from."""
    return collection.catalogue.passages.get([question.passage])[question.passage].text


def _about(collection: Collection, paths: AbstractSet[str]) -> list[CheckQuestion]:
    """Return different questions about some documents: each draw asks one of each passage, which may be few."""
    made: dict[str, CheckQuestion] = {}
    for seed in range(2, 2 + DRAWS):
        made |= {q.text.lower(): q for q in make(collection, MADE, seed, among=paths) if q.text.lower() not in made}
        if len(made) >= MADE:
            break
    return list(made.values())[:MADE]


def _is_covered(collection: Collection, question: str, passage: str, k: int) -> bool:
    """Return whether the first k passages together say what a passage does."""
    wanted = set(_WORD.findall(passage.lower()))
    found = {word for hit in search(collection, question, k) for word in _WORD.findall(hit.passage.text.lower())}
    return len(wanted & found) >= SAME_WORDS * len(wanted)


def _rank(collection: Collection, question: str, passage: str, depth: int = 2 * DEPTH) -> int:
    """Return the place of a passage among what is found, from 0; `depth` where it is not."""
    wanted = set(_WORD.findall(passage.lower()))
    for place, hit in enumerate(search(collection, question, depth)):
        if len(wanted & set(_WORD.findall(hit.passage.text.lower()))) >= SAME_WORDS * len(wanted):
            return place
    return depth
