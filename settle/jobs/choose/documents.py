"""The documents of a choice: indexed, searched for each question, and one of them changed to see what that costs."""

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.files import home
from settle.evaluate.compare.cases import Case
from settle.jobs.index import bring_up_to_date
from settle.jobs.settings import IndexSettings
from settle.retrieve.answer.evidence import retrieve
from settle.retrieve.index.collection import Collection, delete
from settle.retrieve.index.words import words
from settle.retrieve.search import search

PASSAGES = 3  # that a question is answered from: a small model gets lost in more, and each takes time to read
LOOKED_AT = 10  # of which one may hold the wanted answer
HOLDS = 0.8  # share of an answer's words that a passage has to have to hold it
VERBATIM = 5  # words of a question in a row that are no chance


_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Found:
    """What a search brought for a question."""

    passages: tuple[str, ...]  # the best first, as a model reads them
    gold: str = ""  # the passage that holds the wanted answer, or "" where none was found
    seconds: float = 0.0  # of the search

    @property
    def is_found(self) -> bool:
        """Whether the passage with the answer is among them."""
        return bool(self.gold) and self.gold in self.passages


class Documents:
    """A collection over the user's documents. Use it as a context manager."""

    def __init__(self, name: str, folder: Path, events: Events) -> None:
        """Index what changed since the last time. Raises DataError where nothing can be read."""
        began = time.monotonic()
        self.name, self.folder = name, folder.expanduser().resolve()
        report = bring_up_to_date(name, [self.folder], IndexSettings(), events)
        self.build_seconds = time.monotonic() - began
        self.num_documents, self.num_passages = report.documents, report.passages
        self._collection = Collection(name)

    def __enter__(self) -> "Documents":
        return self

    def __exit__(self, *_: object) -> None:
        self._collection.close()

    def find(self, case: Case) -> Found:
        """Return the passages for a question, and the one that holds the wanted answer."""
        began = time.monotonic()
        hits = retrieve(self._collection, case.question, k=PASSAGES).hits
        seconds = time.monotonic() - began
        passages = tuple(hit.passage.embedded for hit in hits)
        return Found(passages, self._gold(case, passages), seconds)

    def holds_verbatim(self, case: Case) -> bool:
        """Return whether a passage has the question in its own words and the wanted answer.

        The documents then hold the row itself, and finding it again would show nothing.
        """
        asked = _plain_words(case.question)
        if len(asked) < VERBATIM:
            return False
        hits = search(self._collection, case.question, PASSAGES)
        texts = [_plain_words(hit.passage.embedded) for hit in hits]
        return any(
            _contains(text, asked) and holds(hit.passage.text, case.reference)
            for text, hit in zip(texts, hits, strict=True)
        )

    def _gold(self, case: Case, found: Sequence[str]) -> str:
        if not words(case.reference):
            return ""
        for passage in found:
            if holds(passage, case.reference):
                return passage
        hits = search(self._collection, f"{case.question} {case.reference}", LOOKED_AT)
        return next((h.passage.embedded for h in hits if holds(h.passage.embedded, case.reference)), "")

    def place(self, passage: str) -> Path | None:
        """Return the document that a passage is from."""
        for hit in search(self._collection, passage[:400], PASSAGES):
            if hit.passage.embedded == passage:
                return Path(hit.occurrences[0].path)
        return None


def holds(passage: str, answer: str) -> bool:
    """Return whether a passage has nearly all words of an answer."""
    wanted = words(answer)
    return bool(wanted) and len(set(wanted) & set(words(passage))) >= HOLDS * len(set(wanted))


class Findings(Mapping[int, Found]):
    """What a search finds for each of some questions, by its number; searched for when it is first wanted."""

    def __init__(self, cases: Sequence[Case] = (), find: Callable[[Case], Found] = lambda case: Found(())) -> None:
        self._find, self._cases = find, {case.number: case for case in cases}
        self._known: dict[int, Found] = {}

    def __getitem__(self, number: int) -> Found:
        if number not in self._known:
            self._known[number] = self._find(self._cases[number])
        return self._known[number]

    def __contains__(self, number: object) -> bool:
        return number in self._cases

    def __iter__(self) -> Iterator[int]:
        return iter(self._cases)

    def __len__(self) -> int:
        return len(self._cases)

    @property
    def known(self) -> Mapping[int, Found]:
        """What was searched for so far."""
        return self._known

    def complete(self, events: Events) -> None:
        """Search for the rest of them."""
        missing = [number for number in self._cases if number not in self._known]
        for done, number in enumerate(missing, 1):
            self[number]
            events.emit(Progress(what="searching", done=done, total=len(missing), unit="questions"))


@dataclass(frozen=True)
class ChangedFact:
    """A changed document that counts."""

    seconds: float  # until it was indexed again
    found: Found  # what a search then brought for the question, whose gold is a passage with the new answer


def change_fact(document: Path, case: Case, new: str, events: Events) -> ChangedFact | None:
    """Change one answer in a copy of a document, as a user would, and bring a collection of it up to date.

    Return None where the document does not have the answer as it is written in the example.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if case.reference not in text:
        return None
    work = Path(tempfile.mkdtemp(prefix=".changed-", dir=home()))
    name = f"changed-{work.name[-8:].strip('_.-')}x"
    try:
        copy = work / "documents" / document.name
        copy.parent.mkdir()
        copy.write_text(text, encoding="utf-8")
        bring_up_to_date(name, [copy.parent], IndexSettings(), events)
        copy.write_text(text.replace(case.reference, new), encoding="utf-8")
        with Documents(name, copy.parent, events) as changed:
            return ChangedFact(changed.build_seconds, changed.find(replace(case, reference=new)))
    finally:
        delete(name)
        shutil.rmtree(work, ignore_errors=True)


def _plain_words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _contains(text: Sequence[str], part: Sequence[str]) -> bool:
    return any(list(text[i : i + len(part)]) == list(part) for i in range(len(text) - len(part) + 1))
