"""Questions generated from a collection's own passages, so their answers are known.

An unanswerable question is one whose topic is left out: the passages with the answer or near it, and those elsewhere
that say the same. A language model may write some; the search does not filter those, which would keep only what is
found anyway. Such a question is kept where it is one, and most of its weight is in words of the passage.
"""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import ceil, log
from random import Random
from typing import NamedTuple

from settle.infer.client import Fence, LlamaClient, Turn
from settle.retrieve.check import phrases
from settle.retrieve.check.phrases import Rewording, as_people_ask, definitions, prose_sentences
from settle.retrieve.index.catalogue import DocumentSize, Passage, WordIndex
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words

LONGEST = 40  # tokens of a question
_READ = 1200  # characters of a passage
_ORDER = (
    "Write one short question that this text answers, as somebody would ask who has not read it. Only the question."
)
_FIRST = re.compile(r"[^\n?]{12,200}\?")
WHOLE = 0.1  # share of the collection up to which a document is left out as a whole
NEAR = 2  # passages before and after the answer that are left out of a larger one, beside its section
INVENTED = 60  # questions that a model asks
ABOUT = 0.5  # share of what a model's question tells that has to stand in its passage
WANTED = {"heading": 3.0, "sentence": 1.0}  # how often a kind is asked beside the others, which are 2: as people ask
SENTENCES = 0.25  # of the questions at most are made from sentences, as long as there is something else to ask
BEGINNINGS = 0.5  # share of the documents whose beginning is asked for first
ALIKE = 0.8  # share of what a text's words tell that a passage has to have to say the same
MOST_COPIED = 5  # words in a row that a question may have of its passage
_NEIGHBOURS = 30  # passages with most of a text's rarest words that are looked at for saying the same
_RAREST_WORDS = 16  # of those words
_TRIES = 8  # places looked at for each question that is wanted
_WINDOW = 60  # passages on each side among which a section is looked for
_COMMON = 0.02  # share of the passages that may have a question's rarest word
_LEAST = 3  # words, numbers left out, of a question that is not about a name
_ENOUGH = 0.9  # of what one passage's name would tell, that a question's words have to tell together


def write_question(model: LlamaClient, text: str) -> str:
    """Return a question that the model writes about a passage, or "" where it wrote none."""
    fence = Fence(model, enable_thinking=False)
    if model.takes_turns:
        ids = fence.ids([Turn("user", [f"{_ORDER}\n\n", text[:_READ]])])
    else:
        ids = fence.ids([Turn("user", [text[:_READ], "\n\nA question that this answers:"])])
    reply = model.answer(ids, LONGEST).text
    match = _FIRST.search(reply)
    return match[0].strip(" -*\"'") if match else ""


def weights(index: WordIndex, total: int, stems: AbstractSet[str]) -> dict[str, float]:
    """Return how much each stem tells of which passage is meant, in nats. total: passages of the collection."""
    frequencies = index.frequencies(stems)
    return {stem: log(total / frequencies.get(stem, 1)) for stem in stems}


@dataclass(frozen=True)
class CheckQuestion:
    """A generated question."""

    text: str
    kind: str  # what it was made from
    document: int  # its id
    path: str  # of the document
    passage: int  # that it was made from
    answers: frozenset[int]  # all passages that answer it
    # what is left out to make it unanswerable: passages, `answers` among them, and documents by id
    topic: frozenset[int]
    without: frozenset[int]


class _Candidate(NamedTuple):
    """A question that may be asked."""

    kind: str  # what it was made from
    text: str
    source: str  # the text of that
    answers: frozenset[int]  # passages of its document that answer it


class _Spot(NamedTuple):
    """A passage in its document."""

    document: DocumentSize
    ordinal: int
    passage: Passage
    around: list[tuple[int, int]]  # (ordinal, id) of those near it, itself included, in order
    passages: dict[int, Passage]

    def section(self, depth: int) -> frozenset[int]:
        """Return the passages around under the same `depth` outermost headings."""
        path = self.passage.headings[:depth]
        return frozenset(i for _, i in self.around if self.passages[i].headings[:depth] == path)


def make(
    collection: Collection,
    count: int,
    seed: int = 0,
    model: LlamaClient | None = None,
    among: AbstractSet[str] | None = None,
) -> list[CheckQuestion]:
    """Return at most `count` questions, spread evenly over the documents and the kinds; the same seed gives the same.

    model: is asked for some of them, half at most and never more than `INVENTED`, since each takes it a second. among:
    paths of the documents that they are about, all if None.
    """
    random = Random(seed)
    places = _places(collection, count, random, among)
    maker = _Maker(collection, random, [document for document, _ in places[:count]], model)
    chosen: dict[str, CheckQuestion] = {}
    spare: dict[str, CheckQuestion] = {}
    kinds: dict[str, int] = {}
    for document, ordinal in places:
        if len(chosen) >= count:
            break
        question = maker.question(maker.spot(document, ordinal), kinds)
        if question is None or question.text.lower() in chosen:
            continue
        if question.kind == "sentence" and kinds.get("sentence", 0) >= SENTENCES * count:
            spare[question.text.lower()] = question
        else:
            chosen[question.text.lower()] = question
            kinds[question.kind] = kinds.get(question.kind, 0) + 1
    return list((chosen | spare).values())[:count]


def _places(
    collection: Collection, count: int, random: Random, among: AbstractSet[str] | None
) -> list[tuple[DocumentSize, int]]:
    """Return (document, ordinal) of the places to make questions at.

    Every document comes once before any comes twice, many of them at their beginnings first, where they say what they
    are about, which is what people ask for.
    """
    documents = [d for d in collection.catalogue.documents.sizes() if among is None or d.path in among]
    random.shuffle(documents)
    del documents[_TRIES * count :]
    rounds = ceil(_TRIES * count / max(1, len(documents)))
    unseen = {}
    for d in documents:
        places = random.sample(range(d.chunks), min(d.chunks, rounds))
        if random.random() < BEGINNINGS:
            places = [0, *(place for place in places if place)][:rounds]
        unseen[d.id] = places
    return [(d, unseen[d.id][n]) for n in range(rounds) for d in documents if n < len(unseen[d.id])]


class _Maker:
    """Generates questions at places of a collection."""

    def __init__(
        self, collection: Collection, random: Random, documents: Sequence[DocumentSize], model: LlamaClient | None
    ) -> None:
        self._collection, self.random, self._model = collection, random, model
        self._left_to_model = 0  # places where it was asked for a question
        self._total = max(2, collection.catalogue.counts()["passages"])
        spots = [self.spot(document, 0) for document in documents]
        self._rewording = Rewording(collection.vectors.vectorizer, (p.text for s in spots for p in s.passages.values()))

    def spot(self, document: DocumentSize, ordinal: int) -> _Spot:
        catalogue = self._collection.catalogue
        around = catalogue.passages.around(document.id, ordinal - _WINDOW, ordinal + _WINDOW)
        passages = catalogue.passages.get([i for _, i in around])
        return _Spot(document, ordinal, passages[dict(around)[ordinal]], around, passages)

    def question(self, spot: _Spot, kinds: dict[str, int]) -> CheckQuestion | None:
        """Return a question that the passage answers, of the rarest kind so far; None when it gives none."""
        candidates = self._of_model(spot) if 2 * self._left_to_model <= sum(kinds.values()) else []
        if not candidates:
            candidates = self._candidates(spot)
            self.random.shuffle(candidates)
        for one in sorted(candidates, key=lambda a: kinds.get(a.kind, 0) / WANTED.get(a.kind, 2.0)):
            least = 1 if one.kind in ("definition", "heading") else _LEAST
            if self._tells(one.text, least) and phrases.longest_copied(one.text, spot.passage.text) <= MOST_COPIED:
                return self._finished(spot, one)
        return None

    def _finished(self, spot: _Spot, candidate: _Candidate) -> CheckQuestion:
        """Return a question with all that answers it and all that belongs to its topic."""
        answers = candidate.answers | self._saying(candidate.source)
        document = spot.document
        whole = document.chunks <= WHOLE * self._total
        if whole:
            near = (i for _, i in self._collection.catalogue.passages.around(document.id, 0, document.chunks))
        else:
            near = (i for n, i in spot.around if abs(n - spot.ordinal) <= NEAR)
        return CheckQuestion(
            text=as_people_ask(candidate.text, self.random) if candidate.kind != "model" else candidate.text,
            kind=candidate.kind,
            document=document.id,
            path=document.path,
            passage=spot.passage.id,
            answers=answers,
            topic=answers.union(near, spot.section(len(spot.passage.headings)) if spot.passage.headings else ()),
            without=frozenset([document.id] if whole else []),
        )

    def _tells(self, question: str, least: int) -> bool:
        """Return whether a question's words, at least so many, say which passages are meant."""
        stems = set(words(question))
        if sum(not stem.isdigit() for stem in stems) < least:
            return False
        tells = weights(self._collection.catalogue.words, self._total, stems).values()
        rarest = log(self._total / max(3, _COMMON * self._total))
        return max(tells, default=0.0) >= rarest and sum(tells) >= _ENOUGH * log(self._total)

    def _candidates(self, spot: _Spot) -> list[_Candidate]:
        random, passage = self.random, spot.passage
        only, other = frozenset((passage.id,)), self._other
        candidates = self._of_headings(spot)
        if terms := definitions(passage.text, spot.ordinal == 0 and not passage.headings):
            term, gloss = random.choice(terms)
            source = f"{term} {gloss}"
            if not self._headed_elsewhere(term, spot.section(len(passage.headings))):
                candidates.append(_Candidate("definition", phrases.of_term(other(term), random), source, only))
            candidates.append(_Candidate("meaning", phrases.of_meaning(other(gloss), term, random), source, only))
        if prose := prose_sentences(passage.text):
            sentence = random.choice(prose)
            question = phrases.of_sentence(other(sentence), self._telling, random)
            candidates.append(_Candidate("sentence", question, sentence, only))
        if code := phrases.functions(passage.text):
            doc = random.choice(code)[1]
            candidates.append(_Candidate("code", phrases.of_function(other(doc), random), doc, only))
        if cells := phrases.rows(passage.text):
            row, column, cell = random.choice(cells)
            question = phrases.of_row(other(row), other(column), random)
            candidates.append(_Candidate("row", question, f"{row} {column} {cell}", only))
        return candidates

    def _of_headings(self, spot: _Spot) -> list[_Candidate]:
        """Return a question from one of the headings over a passage, unless other sections have the same heading."""
        headings = spot.passage.headings
        if not headings:
            return []
        depth = self.random.randint(1, len(headings))
        heading, section = headings[depth - 1], spot.section(depth)
        above = ""
        if self._headed_elsewhere(heading, section):
            above = headings[depth - 2] if depth > 1 else ""
            if not above or self._headed_elsewhere(f"{above} {heading}", section):
                return []
        question = phrases.of_heading(self._other(heading), self._other(above), self.random)
        return [_Candidate("heading", question, spot.passage.text, section)]

    def _of_model(self, spot: _Spot) -> list[_Candidate]:
        """Return a question that the model asks, if its content words mostly occur in the passage."""
        if self._model is None or self._left_to_model >= INVENTED:
            return []
        self._left_to_model += 1
        passage, text = spot.passage, write_question(self._model, spot.passage.embedded)
        stems = list(dict.fromkeys(words(text)))
        tells = dict(zip(stems, self._telling(stems), strict=True))
        there = sum(tells[stem] for stem in tells.keys() & words(passage.embedded))
        is_about = there >= ABOUT * sum(tells.values()) > 0
        return [_Candidate("model", text, passage.text, frozenset((passage.id,)))] if is_about else []

    def _headed_elsewhere(self, text: str, section: frozenset[int]) -> bool:
        passages = self._collection.catalogue.words.under_headings(list(dict.fromkeys(words(text))), len(section) + 1)
        return not section.issuperset(passages)

    def _other(self, text: str) -> str:
        return self._rewording.reworded(text, self.random)

    def _telling(self, of: Sequence[str]) -> list[float]:
        stems = [set(words(word)) for word in of]
        tells = weights(self._collection.catalogue.words, self._total, {stem for some in stems for stem in some})
        return [max((tells[stem] for stem in some), default=0.0) for some in stems]

    def _saying(self, text: str) -> frozenset[int]:
        """Return the passages that have nearly all that a text says, whatever else they say."""
        stems = sorted(set(words(text)))
        weight = dict(zip(stems, self._telling(stems), strict=True))
        rarest = sorted(stems, key=lambda stem: -weight[stem])[:_RAREST_WORDS]
        catalogue = self._collection.catalogue
        near = catalogue.passages.get([i for i, _ in catalogue.words.search(rarest, _NEIGHBOURS)])
        enough = ALIKE * sum(weight.values())
        return frozenset(
            i for i, other in near.items() if sum(weight[s] for s in weight.keys() & words(other.text)) >= enough > 0
        )
