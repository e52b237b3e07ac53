"""How long a model takes for a token, in llama.cpp as the person runs it."""

from collections.abc import Sequence

from settle.doctor.known_answers import PROSE, SENTENCES
from settle.doctor.trial import Item, Side
from settle.infer.engine import Engine
from settle.library.reference import ModelRef

CONTEXT = 512  # tokens
WRITTEN = 16  # tokens of an answer
LEAST_SECONDS = 0.4  # of a measurement


def openings(first: int, number: int) -> Sequence[Item]:
    """Beginnings of texts that a model completes, all different."""
    return [" ".join(text.split()[:6]) for text in [*PROSE, *SENTENCES][first : first + number]]


class TokenTime(Side):
    """Seconds for a token that is written after a short prompt, with a number of threads."""

    def __init__(self, name: str, model: ModelRef, threads: int) -> None:
        self.name, self.num_bytes = name, model.weights.stat().st_size
        self._engine = Engine(model.weights, CONTEXT, threads, adapter=model.adapter)

    def open(self) -> None:
        self._engine.start()
        self._engine.timed("Once", WRITTEN)  # the first answer also reads the file

    def measure(self, item: Item) -> float:
        seconds, tokens = 0.0, 0
        while seconds < LEAST_SECONDS:  # a moment in which the machine does something else is not the measurement
            answer = self._engine.timed(str(item), WRITTEN)
            seconds, tokens = seconds + answer.seconds, tokens + len(answer.ids)
            if not answer.ids:
                break
        return seconds / max(1, tokens)

    def close(self) -> None:
        self._engine.close()
