"""A language model's answer from some passages: its prompt, the grammar that constrains it, and its sentences.

Every passage is tokenized by itself (see `settle.infer.client`), so the tokens of a prompt are the sum of its
pieces' tokens, and what fits is known before the model runs.
"""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from settle.base.errors import UsageError
from settle.infer.child_process import Json
from settle.infer.client import Fence, LlamaClient, Turn
from settle.retrieve.answer.answer import Generation, Piece, Source
from settle.retrieve.index.catalogue import Occurrence
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from settle.retrieve.search import Hit

LONGEST = 256  # tokens of an answer
TOKENS = 1536  # of all passages together: small models get lost in more, and a CPU reads slowly
WIDENED = 2  # best passages that get their neighbours, as far as there is room
MOST_SENTENCES = 4
RUNAWAY = 600  # characters of a sentence that never ends: a small model that repeats itself
_ORDER = (
    "Answer the question with what the passages say, in one to three short sentences. End each sentence with the number"
    " of its passage, like [1]."
)
# A sentence ends with one of the given numbers, and only then may the next begin: a full stop inside a sentence is
# followed by something that no sentence begins with. A bracket before a digit is always a citation.
_GRAMMAR = """root ::= " "? sentence (" " sentence){{0,{more}}}
sentence ::= first rest* [.!?] ["')`]? " [" number "]"
first ::= [^a-z .!?\\[\\]›\\n]
rest ::= [^.!?\\[\\]›\\n] | [.!?] [a-z0-9_/)"'`,:;-] | "[" [A-Za-z_] | "]"
number ::= {numbers}
"""
_CITED = re.compile(r"\s*\[(\d+)\]\s*")


@dataclass(frozen=True)
class Packed:
    """The sources that fit into a prompt."""

    sources: tuple[Source, ...]  # in the order of the prompt, the best last
    dropped: tuple[Hit, ...]  # that did not fit
    tokens: int  # of all sources together


def pack(collection: Collection, hits: Sequence[Hit], count: Callable[[str], int], room: int) -> Packed:
    """Return the hits, best first, as far as they fit into `room` tokens, then their neighbours.

    count: tokens of a text.
    """
    groups, dropped = _Groups(cache(count)), list[Hit]()
    with collection.catalogue.snapshot():
        for hit in hits:
            if not groups.add(Piece(hit.passage, hit.occurrences[0]), room):
                dropped.append(hit)
        for hit in hits[:WIDENED]:
            for piece in _neighbours(collection, hit.occurrences[0]):
                groups.add(piece, room, joining=True)
    return Packed(groups.sources(), tuple(dropped), groups.tokens())


class _Groups:
    """The passages chosen so far; those that adjoin in a document form one group."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._groups: list[list[Piece]] = []  # the best first

    def add(self, piece: Piece, room: int, joining: bool = False) -> bool:
        """Add a passage if it fits, and return whether it is in a group now. joining: only where it adjoins a group."""
        at = piece.occurrence
        if any(at[:3] == other.occurrence[:3] for group in self._groups for other in group):
            return True
        touching = [group for group in self._groups if any(_adjoin(at, other.occurrence) for other in group)]
        if joining and not touching:
            return False
        joined = sorted([piece, *(p for group in touching for p in group)], key=lambda p: p.occurrence.ordinal)
        changed: list[list[Piece]] = []
        for group in self._groups:
            if group not in touching:
                changed.append(group)
            elif group is touching[0]:
                changed.append(joined)
        changed += [] if touching else [joined]
        before, self._groups = self._groups, changed
        if self.tokens() <= room:
            return True
        self._groups = before
        return False

    def tokens(self) -> int:
        return sum(self._count(text) for source in self.sources() for text in source.texts)

    def sources(self) -> tuple[Source, ...]:
        """Return the sources in prompt order, the best last: models read best what is next to the question."""
        return tuple(Source(number, tuple(group)) for number, group in enumerate(reversed(self._groups), 1))


def _neighbours(collection: Collection, at: Occurrence) -> list[Piece]:
    """Return the passage after one, then the passage before it."""
    around = dict(collection.catalogue.passages.around(at.document, at.ordinal - 1, at.ordinal + 1))
    ids = [around[ordinal] for ordinal in (at.ordinal + 1, at.ordinal - 1) if ordinal in around]
    passages, occurrences = collection.catalogue.passages.get(ids), collection.catalogue.passages.occurrences(ids)
    return [Piece(passages[id], next(other for other in occurrences[id] if _adjoin(at, other))) for id in ids]


def _adjoin(one: Occurrence, other: Occurrence) -> bool:
    return one.document == other.document and abs(one.ordinal - other.ordinal) == 1


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is written."""

    system: str = ""  # what the user wants of every answer
    tokens: int = LONGEST
    stop: tuple[str, ...] = ()  # texts that end it
    sampling: Mapping[str, object] = field(default_factory=dict)  # by llama.cpp's names; greedy when empty
    is_cancelled: Callable[[], bool] = lambda: False  # asked after each token: nobody wants the answer any more


class Prompt:
    """A question, and the passages that fit with it, as token ids.

    before: the question that this one refers to, or "". longest: tokens that are left for the answer. Raises UsageError
    when not even one passage fits.
    """

    def __init__(
        self,
        collection: Collection,
        model: LlamaClient,
        question: str,
        hits: Sequence[Hit],
        options: AnswerOptions,
        before: str = "",
    ) -> None:
        # reasoning would come before the first sentence, where the grammar allows none
        self._fence, self._takes_turns = Fence(model, enable_thinking=False), model.takes_turns
        self._question = f"Before this I asked: {before}\nQuestion: {question}" if before else f"Question: {question}"
        self._system = f"{_ORDER}\n{options.system}" if options.system else _ORDER
        self.longest = min(options.tokens, model.context // 4)
        empty = len(self._fence.ids(self._turns(())))
        room = min(model.context - self.longest - empty, TOKENS)
        self.packed: Packed = pack(collection, hits, lambda text: len(self._fence.tokens(text)), room)
        if hits and not self.packed.sources:
            raise UsageError(
                f"no passage fits into a context of {model.context:,} tokens beside the question",
                "ask a shorter question, or use a model with a longer context",
            )
        self.ids = self._fence.ids(self._turns([text for s in self.packed.sources for text in s.texts]))
        assert len(self.ids) == empty + self.packed.tokens

    def _turns(self, passages: Sequence[str]) -> list[Turn]:
        if self._takes_turns:
            return [Turn("system", [self._system]), Turn("user", ["Passages:\n\n", *passages, self._question])]
        return [Turn("user", [f"{self._system}\n\n", *passages, f"{self._question}\nAnswer:"])]

    @property
    def grammar(self) -> str:
        """GBNF of an answer that can only cite these passages."""
        numbers = " | ".join(f'"{source.number}"' for source in self.packed.sources)
        return _GRAMMAR.format(more=MOST_SENTENCES - 1, numbers=numbers)


def generate(
    model: LlamaClient, prompt: Prompt, options: AnswerOptions
) -> Generator[tuple[str, int], None, Generation]:
    """Yield (sentence, number of its passage) as each is complete; stop the model when it begins to repeat itself."""
    pieces = model.complete(prompt.ids, prompt.longest, 0.0, 1.0, 0, 0, options.stop, prompt.grammar, options.sampling)
    buffer, new_tokens, earlier = "", 0, set[tuple[str, ...]]()
    try:
        while not options.is_cancelled():
            try:
                buffer += next(pieces)
            except StopIteration as ended:
                last: Json = ended.value
                word = str(last.get("stopping_word") or "")
                is_open = bool(buffer.strip()) and not word
                return Generation(len(prompt.ids), last.get("tokens_predicted", new_tokens), is_open, word)
            new_tokens += 1
            if len(buffer) > RUNAWAY:
                break
            while citation := _CITED.search(buffer):
                sentence, buffer = buffer[: citation.start()].strip(), buffer[citation.end() :]
                stems = tuple(words(sentence))
                if stems in earlier:
                    return Generation(len(prompt.ids), new_tokens, False)
                earlier.add(stems)
                if stems:
                    yield sentence, int(citation[1])
        return Generation(len(prompt.ids), new_tokens, True)
    finally:
        pieces.close()
