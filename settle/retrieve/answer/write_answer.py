"""A language model's answer from some passages: its prompt, the grammar that constrains it, and its sentences."""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

from settle.base.errors import UsageError
from settle.infer.client import LlamaClient
from settle.infer.prompt_encoder import Fence, Turn
from settle.retrieve.answer.context import TOKENS, Packed, pack
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from settle.retrieve.search.hybrid_search import Hit

LONGEST = 256  # tokens of an answer
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
class AnswerOptions:
    """How an answer is written.

    system: what the user wants of every answer. tokens: its longest. stop: texts that end it. sampling: by llama.cpp's
    names; greedy when empty. is_cancelled: asked after each token whether nobody wants the answer any more.
    """

    system: str = ""
    tokens: int = LONGEST
    stop: tuple[str, ...] = ()
    sampling: Mapping[str, object] = field(default_factory=dict)
    is_cancelled: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Generation:
    """How a model's answer ended.

    prompt_tokens, new_tokens: read and written. is_cut: whether its last sentence was cut off, which is left out. stop:
    the text that ended it, or "".
    """

    prompt_tokens: int
    new_tokens: int
    is_cut: bool
    stop: str = ""


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
                last: Mapping[str, object] = ended.value
                word, is_open = str(last.get("stopping_word") or ""), bool(buffer.strip())
                predicted = last.get("tokens_predicted", new_tokens)
                assert isinstance(predicted, int)
                return Generation(len(prompt.ids), predicted, is_open and not word, word)
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
