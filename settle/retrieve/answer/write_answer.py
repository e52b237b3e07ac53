"""A language model's answer from some passages: its prompt, the grammar that it is held to, and its sentences."""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from settle.base.errors import UsageError
from settle.infer.client import LlamaClient
from settle.infer.safe_prompt import Fence, Turn
from settle.retrieve.answer.context import TOKENS, Packed, pack
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from settle.retrieve.search.hybrid_search import Hit

LONGEST = 256  # tokens of an answer
MOST = 4  # sentences of an answer
RUNAWAY = 600  # characters of a sentence that comes to no end: a small model that says the same over and over
_ORDER = (
    "Answer the question with what the passages say, in one to three short sentences. End each sentence with the number"
    " of its passage, like [1]."
)
# A sentence ends with one of the numbers that were given, and only after one may the next begin: a full stop inside it
# is followed by something that no sentence begins with. A bracket before a digit is a citation, whatever the text says.
_GRAMMAR = """root ::= " "? sentence (" " sentence){{0,{more}}}
sentence ::= first rest* [.!?] ["')`]? " [" number "]"
first ::= [^a-z .!?\\[\\]›\\n]
rest ::= [^.!?\\[\\]›\\n] | [.!?] [a-z0-9_/)"'`,:;-] | "[" [A-Za-z_] | "]"
number ::= {numbers}
"""
_CITED = re.compile(r"\s*\[(\d+)\]\s*")


@dataclass(frozen=True)
class Writing:
    """How an answer is written. system: what the asker wants of every answer. tokens: its longest. stop: texts that end
    it. sampling: in llama.cpp's words; the likeliest answer when empty. is_left: whether nobody wants it any more,
    asked after each token."""

    system: str = ""
    tokens: int = LONGEST
    stop: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    is_left: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Written:
    """How a model's answer ended. prompt, made: tokens that were read and written. is_cut: whether its last sentence
    was cut off, which is left out. stop: the text that ended it, or ""."""

    prompt: int
    made: int
    is_cut: bool
    stop: str = ""


class Prompt:
    """What a model is asked: a question, and the passages that fit beside it.

    before: the question before this one where this one goes on from it. longest: tokens that are left for the answer.
    Raises UsageError when not even one passage fits.
    """

    def __init__(
        self,
        collection: Collection,
        model: LlamaClient,
        question: str,
        hits: Sequence[Hit],
        writing: "Writing",
        before: str = "",
    ) -> None:
        # reasoning would come before the first sentence, and the grammar has no place for it
        self._fence, self._takes_turns = Fence(model, enable_thinking=False), model.takes_turns
        self._question = f"Before this I asked: {before}\nQuestion: {question}" if before else f"Question: {question}"
        self._system = f"{_ORDER}\n{writing.system}" if writing.system else _ORDER
        self.longest = min(writing.tokens, model.context // 4)
        empty = len(self._fence.ids(self._turns(())))
        room = min(model.context - self.longest - empty, TOKENS)
        self.packed: Packed = pack(collection, hits, lambda text: len(self._fence.tokens(text)), room)
        if hits and not self.packed.sources:
            raise UsageError(
                f"no passage fits into a context of {model.context:,} tokens beside the question",
                "ask something shorter, or a model with a longer context",
            )
        self.ids = self._fence.ids(self._turns([text for s in self.packed.sources for text in s.texts]))
        assert len(self.ids) == empty + self.packed.tokens

    def _turns(self, passages: Sequence[str]) -> list[Turn]:
        if self._takes_turns:
            return [Turn("system", [self._system]), Turn("user", ["Passages:\n\n", *passages, self._question])]
        return [Turn("user", [f"{self._system}\n\n", *passages, f"{self._question}\nAnswer:"])]

    @property
    def grammar(self) -> str:
        """GBNF of an answer that cites these passages only."""
        numbers = " | ".join(f'"{source.number}"' for source in self.packed.sources)
        return _GRAMMAR.format(more=MOST - 1, numbers=numbers)


def written(model: LlamaClient, prompt: Prompt, writing: Writing) -> Generator[tuple[str, int], None, Written]:
    """Yields (sentence, number of its passage) as each is complete. Stops the model when it begins to say things
    twice."""
    stop, sampling = writing.stop, writing.sampling
    pieces = model.complete(prompt.ids, prompt.longest, 0.0, 1.0, 0, 0, stop, prompt.grammar, sampling)
    held, made, said = "", 0, set[tuple[str, ...]]()
    try:
        while not writing.is_left():
            try:
                held += next(pieces)
            except StopIteration as ended:
                told: Mapping[str, Any] = ended.value
                word, is_open = told.get("stopping_word") or "", bool(held.strip())
                return Written(len(prompt.ids), told.get("tokens_predicted", made), is_open and not word, word)
            made += 1
            if len(held) > RUNAWAY:
                break
            while found := _CITED.search(held):
                sentence, held = held[: found.start()].strip(), held[found.end() :]
                stems = tuple(words(sentence))
                if stems in said:
                    return Written(len(prompt.ids), made, False)
                said.add(stems)
                if stems:
                    yield sentence, int(found[1])
        return Written(len(prompt.ids), made, True)
    finally:
        pieces.close()
