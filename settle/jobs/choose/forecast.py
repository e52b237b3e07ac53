"""How long a choice takes, by a few answers and a few steps of tuning on this machine.

It is said before the choice begins, and again after the first look, which has timed many more answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from settle.jobs.choose.answerer import DECIDE, DOCUMENTS, PROMPT, TUNE, TUNE_DOCUMENTS, ZERO_SHOT
from settle.jobs.choose.prompts import CALLS
from settle.jobs.choose.triage import AS_IT_IS, EXAMPLES, GOLD, ROWS

PASSAGE_EPOCHS = 0.5  # passes of rows with passages, as a share of those without: each is several times as long
READING_ROWS = 8  # training examples by which the prompt beside passages is chosen
OTHER_SECONDS = 5.0  # starting llama.cpp for other weights
TRIED_EXAMPLES = 0.6  # that the prompts of the search have in the mean, as a share of the first look's


@dataclass(frozen=True)
class Costs:
    """Seconds that the parts of a choice take."""

    plain: float  # an answer to the question alone, and with these before it
    with_examples: float
    with_passages: float
    search: float  # finding the passages of a question
    tuning: float  # on the examples
    steps: float  # of it
    deciding: float = 0.0  # tuning a decision
    longer: float = 1.0  # how many times as long a training row with passages is, in tokens

    def after(self, seconds: Mapping[str, float], search: float) -> "Costs":
        """Return the costs with what an answer of the first look took, by what was tried, and a search."""
        return replace(
            self,
            plain=seconds[AS_IT_IS],
            with_examples=seconds[EXAMPLES],
            with_passages=seconds.get(GOLD, self.with_passages),
            search=search,
        )


def forecast_triage(costs: Costs, train: int, reads: bool, has_form: bool) -> float:
    """Forecast the seconds of the first look. reads: there are documents. has_form: the answers have a form."""
    both = costs.with_passages + costs.with_examples - costs.plain
    read = (costs.search + costs.with_passages + both) * reads
    return min(ROWS, train) * (costs.plain * (1 + has_form) + costs.with_examples + read)


def forecast(costs: Costs, train: int, test: int, ways: Mapping[str, bool]) -> dict[str, float]:
    """Forecast the seconds by way. ways: those that are built, and whether they read passages."""
    tuning = costs.tuning
    with_passages = train * costs.search + tuning + costs.steps * (PASSAGE_EPOCHS * costs.longer - 1)
    examples = costs.with_examples - costs.plain  # that an answer takes longer for them
    build = {
        ZERO_SHOT: 0.0,  # the model is there
        PROMPT: CALLS * (costs.plain + TRIED_EXAMPLES * examples),
        DOCUMENTS: test * costs.search + READING_ROWS * (2 * costs.with_passages + examples),
        DECIDE: costs.deciding + OTHER_SECONDS,
        TUNE: tuning + OTHER_SECONDS,
        TUNE_DOCUMENTS: with_passages + OTHER_SECONDS,
    }
    answer = {way: costs.with_passages if reads else costs.plain for way, reads in ways.items()}
    if PROMPT in answer:
        answer[PROMPT] = costs.with_examples
    return {way: build[way] + test * answer[way] for way in ways}
