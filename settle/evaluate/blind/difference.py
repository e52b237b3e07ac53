"""Whether two models that run are different weights, by what they hold likely: two names, and even two files, may be
the same ones, and a comparison of a model with itself says nothing."""

import math
from typing import NamedTuple

from settle.base.errors import UsageError
from settle.formats.gguf.metadata import TOKENS
from settle.infer.engine import Engine

TEXTS = ("The capital of France is", "12 + 30 =", "def main():\n    ")
LIKELIEST = 256  # tokens after each text whose probabilities are compared
SAME_NATS = 1e-3  # below it two models are one, but for rounding: no answers would tell them apart


class WeightDifference(NamedTuple):
    """nats: the largest difference of a token's log-probability after any of the texts; infinite where the models hold
    no token likely that both know."""

    nats: float

    @property
    def sentence(self) -> str:
        apart = f"up to {self.nats:.3g} nats" if math.isfinite(self.nats) else "all they hold likely"
        return f"They are different weights: after {len(TEXTS)} fixed texts their log-probabilities differ by {apart}."


def require_different_weights(one: Engine, two: Engine, names: tuple[str, str]) -> WeightDifference:
    """Asks the very processes that will answer. Raises UsageError where they are the same weights, EngineError."""
    nats = max(_apart(_likeliest(one, text), _likeliest(two, text)) for text in TEXTS)
    if nats < SAME_NATS:
        raise UsageError(
            f"{names[0]} and {names[1]} are the same weights: after {len(TEXTS)} fixed texts no log-probability "
            f"differs by more than {nats:.1g} nats",
            "choose another model to compare with",
        )
    return WeightDifference(nats)


def _apart(one: dict[str, float], two: dict[str, float]) -> float:
    return max((abs(one[token] - two[token]) for token in one.keys() & two.keys()), default=math.inf)


def _likeliest(engine: Engine, text: str) -> dict[str, float]:
    """Log-probabilities of the likeliest tokens after a text, by how they are spelled: ids depend on the tokenizer."""
    tokens = engine.metadata[TOKENS]
    assert isinstance(tokens, list)
    found = engine.next_token_logprobs(engine.plain(text), LIKELIEST, reuse=False)
    return {str(tokens[token]): logprob for token, logprob in found.items() if math.isfinite(logprob)}
