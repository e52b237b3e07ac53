"""One dial: a size, or a time, becomes a model, a batch and a number of tokens."""

import math
from dataclasses import dataclass
from functools import cached_property

from settle.base.amounts import count, seconds
from settle.base.errors import UsageError
from settle.data.prepare import Corpus
from settle.machine import Accelerator, num_threads, power
from settle.model.architectures import Architecture
from settle.model.config import default_context, tokens_per_batch
from settle.plan.loss_law import left_over, worth
from settle.plan.settings import RunSettings, TrainingSettings
from settle.plan.speed import Speed, measure_speed
from settle.train.optimizers import Optimizer

SMALLEST, LARGEST = 60_000, 2_000_000_000  # parameters that are considered
PER_UNIQUE_TOKEN = 2.0  # parameters for each token of the corpus, at most: more only memorize it
EPOCHS = 20  # that a run without a budget is expected to take until it has settled
OVERNIGHT = 8 * 3600.0  # that it may take at most, when its size is chosen
MOST_AT_ONCE = 8192  # tokens of one micro-batch
AROUND_SECONDS = 8.0  # probe and proof before the loop, export and gate after it, of a small model


@dataclass(frozen=True)
class Size:
    """The position of the dial."""

    parameters: int
    context: int
    tokens_per_step: int
    micro_tokens: int
    expected_tokens: int
    seconds: float | None  # the budget of the whole run


def choose_size(
    settings: TrainingSettings, corpus: Corpus, device: Accelerator, spent: float, why: dict[str, str]
) -> Size:
    """The size that suits the budget and the corpus; `why` receives the reason of each number."""
    seconds = requested_seconds(settings, device)
    budget = seconds and max(seconds / 4, seconds - spent - AROUND_SECONDS)
    choice = _Choice(settings, corpus, device)
    if settings.size:
        parameters = count(settings.size)
        why["parameters"] = "the shape nearest to the size asked for"
    else:
        parameters, limit = choice.best(budget)
        why["parameters"] = f"the shape nearest to the {parameters:,} that suit {limit}"
    context, batch = choice.context(parameters), choice.batch(parameters)
    for key, tokens in (("context", context), ("batch_tokens", batch)):
        if getattr(settings, key) is None:
            why[key] = f"{tokens} tokens suit a model of this size"
    expected = EPOCHS * corpus.train.num_tokens
    if not (settings.size and (settings.steps or settings.tokens)):
        most = choice.tokens_in(budget or OVERNIGHT, parameters)
        expected = max(batch, int(most if budget else min(expected, most)))
    most = settings.micro_tokens or MOST_AT_ONCE
    micro = max(part for part in range(1, min(batch, most) + 1) if batch % part == 0)
    return Size(parameters, context, batch, micro, expected, seconds)


class _Choice:
    """Sizes weighed against each other by how many tokens each could see and what loss that would leave."""

    def __init__(self, settings: TrainingSettings, corpus: Corpus, device: Accelerator) -> None:
        self.settings, self.unique = settings, corpus.train.num_tokens
        self.vocab_size = corpus.tokenizer.vocab_size
        self.family = Architecture.part(settings.architecture)
        self.device = device

    @cached_property
    def speed(self) -> Speed:
        """Measured when it is first asked for: a size with a number of steps needs no weighing."""
        optimizer = Optimizer.make(str(self.settings.optimizer.name), self.settings.optimizer.settings)
        return measure_speed(self.family, self.vocab_size, optimizer, self.device, self.settings.dtype)

    def best(self, budget: float | None) -> tuple[int, str]:
        """The size that leaves the least loss, and what it suits."""
        most = max(SMALLEST, int(PER_UNIQUE_TOKEN * self.unique))
        tokens = count(self.settings.tokens) if self.settings.tokens else None
        if budget:
            parameters, limit = self._best_in(budget), "the time, by the speed measured here"
        elif tokens or self.settings.steps:
            parameters, limit = self._best_for(tokens), "the number of tokens"
        else:
            parameters, limit = self._best_in(OVERNIGHT), "a night on this machine"
        return (most, "the corpus") if parameters > most else (parameters, limit)

    def _best_in(self, seconds: float) -> int:
        sizes = [int(SMALLEST * 1.15**i) for i in range(round(math.log(LARGEST / SMALLEST) / math.log(1.15)))]
        return min(sizes, key=lambda size: self._loss(size, self.tokens_in(seconds, size)))

    def _best_for(self, tokens: int | None) -> int:
        """The size that would also be the best one for the time that it takes over these tokens."""
        parameters = SMALLEST
        for _ in range(12):
            tokens_seen = tokens or (self.settings.steps or 1) * self.batch(parameters)
            parameters = self._best_in(tokens_seen / self.tokens_in(1.0, parameters))
        return parameters

    def _loss(self, parameters: int, tokens: float) -> float:
        return left_over(parameters, max(1.0, worth(tokens, self.unique)))

    def tokens_in(self, seconds: float, parameters: int) -> float:
        """How many tokens a model of this size sees in that time."""
        context, batch = self.context(parameters), self.batch(parameters)
        architecture = self.family.sized(parameters, self.vocab_size, context)
        return seconds / self.speed.step(architecture, batch, context) * batch

    def context(self, parameters: int) -> int:
        return self.settings.context or default_context(parameters)

    def batch(self, parameters: int) -> int:
        return self.settings.batch_tokens or tokens_per_batch(parameters)


def requested_seconds(settings: RunSettings, device: Accelerator) -> float | None:
    """The time that was asked for, or that the money asked for buys here, whichever is less."""
    times = [seconds(settings.time)] if settings.time else []
    if settings.max_cost:
        watts = power(num_threads(settings.threads), settings.watts, device.kind).watts
        price = watts / 3.6e6 * settings.price_per_kwh + settings.price_per_hour / 3600
        if not price:
            raise UsageError("--max-cost says nothing while all prices are 0", "give --price-per-hour as well")
        times.append(settings.max_cost / price)
    return min(times, default=None)
