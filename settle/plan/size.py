"""One dial: a size, or a time, becomes a model, a batch and a number of tokens.

What a time has room for is known from two real models, which are trained for a few steps. A step costs something for
each layer, whatever its width (calls, small products, the optimizer), and something for each FLOP. For small models the
first is most of it, and a rule of FLOPs alone would choose models far too small.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from settle.base.amounts import count, seconds
from settle.base.errors import UsageError
from settle.data.prepare import Corpus
from settle.data.tokenizer.byte_bpe import vocabulary_size
from settle.machine import Accelerator, accelerator, num_threads, power, probe_dtype
from settle.machine.measurement_cache import key, remembered
from settle.model.architectures import Architecture
from settle.model.config import default_context, tokens_per_batch
from settle.model.families import family_named
from settle.plan.loss_law import left_over, worth
from settle.plan.settings import RunSettings, TrainingSettings
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers import Optimizer

SMALLEST, LARGEST = 60_000, 2_000_000_000  # parameters that are considered
PER_UNIQUE_TOKEN = 16.0  # parameters for each token of the corpus, at most: no more were measured
REPEATS = 8.0  # passes over the text after which one more teaches little, when the size is chosen
EPOCHS = 20  # that a run without a budget is expected to take until it has settled
OVERNIGHT = 8 * 3600.0  # that it may take at most, when its size is chosen
MOST_AT_ONCE = 8192  # tokens of one micro-batch
AROUND_SECONDS = 8.0  # probe and proof before the loop, export and gate after it, of a small model
# of the models whose steps are timed
SMALL, LARGE = 150_000, 3_000_000  # parameters
TOKENS, CONTEXT = 1024, 128  # tokens of a measured step, and of each of its segments
STEPS = 4  # the first finds its memory and kernels


# --- what a step takes ---


@dataclass(frozen=True)
class Speed:
    """`layer`: seconds a layer takes in every step. `flop`: seconds of a FLOP on top of that."""

    layer: float
    flop: float

    def step(self, architecture: Architecture, tokens: int, context: int) -> float:
        """Return the seconds of an optimizer step over `tokens` tokens."""
        layers = len(architecture.options().layers)
        return self.layer * layers + self.flop * tokens * architecture.flops_per_token(context)


def measure_speed(
    architecture: type[Architecture], vocab_size: int, optimizer: Optimizer, device: Accelerator, dtype: str | None
) -> Speed:
    """Measure the speed of this family on this machine; about half a second, remembered."""
    import torch

    if dtype is None:
        dtype = probe_dtype([(TOKENS, 192, 576), (TOKENS, 192, 1024)], device, seconds=0.05).dtype
    models = [architecture.sized(size, vocab_size, CONTEXT) for size in (SMALL, LARGE)]
    name = f"step {architecture.__name__} {type(optimizer).__name__} {vocab_size} {dtype}"

    def measure() -> dict[str, float]:
        return {str(i): _best_step(model, optimizer, device.kind, dtype) for i, model in enumerate(models)}

    times = remembered(key(device.kind, torch.get_num_threads()), name, measure)
    matrix = [[len(m.options().layers), TOKENS * m.flops_per_token(CONTEXT)] for m in models]
    layer, flop = np.linalg.solve(matrix, [times["0"], times["1"]])
    if layer < 0 or flop < 0:  # the machine was busy with one of them: believe the larger one
        layer, flop = 0.0, times["1"] / matrix[1][1]
    return Speed(float(layer), float(flop))


def _best_step(architecture: Architecture, optimizer: Optimizer, device: str, dtype: str) -> float:
    import torch

    model = architecture.build(0, device)
    model.compute_dtype = getattr(torch, dtype)
    stepper, objective = optimizer.bind(model), NextToken()
    vocab_size = model.options.vocab_size
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (TOKENS + 1,), generator=random).to(device)
    bounds = torch.arange(0, TOKENS + 1, CONTEXT, dtype=torch.int32, device=device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        total, count = objective.loss(model, ids[:-1], ids[1:], bounds)
        (total / count).backward()
        stepper.step(1.0)
        float(total.detach())  # waits for the device

    return min(_timed(step) for _ in range(STEPS))


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- the dial ---


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
    """Choose the size that suits the budget and the corpus; `why` receives the reason of each number."""
    seconds = requested_seconds(settings, device)
    budget = seconds and max(seconds / 4, seconds - spent - AROUND_SECONDS)
    choice = _Choice(settings, corpus.train.num_tokens, corpus.tokenizer.vocab_size, device)
    if settings.size:
        parameters = count(settings.size)
        why["parameters"] = "the shape nearest to the size asked for"
    else:
        parameters, limit = choice.best(budget)
        why["parameters"] = f"the shape nearest to the {parameters:,} that suit {limit}"
    context, batch = choice.context(parameters), choice.batch(parameters)
    for setting, tokens in (("context", context), ("batch_tokens", batch)):
        if getattr(settings, setting) is None:
            why[setting] = f"{tokens} tokens suit a model of this size"
    expected = EPOCHS * corpus.train.num_tokens
    if not (settings.size and (settings.steps or settings.tokens)):
        most = choice.tokens_in(budget or OVERNIGHT, parameters)
        expected = max(batch, int(most if budget else min(expected, most)))
    most = settings.micro_tokens or MOST_AT_ONCE
    micro = max(part for part in range(1, min(batch, most) + 1) if batch % part == 0)
    return Size(parameters, context, batch, micro, expected, seconds)


def sizes_in(times: Sequence[float], num_tokens: int, num_bytes: int) -> list[tuple[int, int]]:
    """Return for each of some time budgets, in seconds, the parameters that suit it, and how many tokens they see.

    num_tokens, num_bytes: of a text that is not prepared yet.
    """
    choice = _Choice(TrainingSettings(), num_tokens, vocabulary_size(num_bytes), accelerator(None))
    loops = [max(seconds / 4, seconds - AROUND_SECONDS) for seconds in times]
    sizes = [choice.best(loop)[0] for loop in loops]
    return [(size, int(choice.tokens_in(loop, size))) for size, loop in zip(sizes, loops, strict=True)]


class _Choice:
    """Sizes weighed against each other by how many tokens each could see and what loss that would leave."""

    def __init__(self, settings: TrainingSettings, unique: int, vocab_size: int, device: Accelerator) -> None:
        self.settings, self.unique, self.vocab_size = settings, unique, vocab_size
        self.family = family_named(settings.architecture)
        self.device = device

    @cached_property
    def speed(self) -> Speed:
        """Measured when it is first asked for: a size with a number of steps needs no weighing."""
        optimizer = Optimizer.make(str(self.settings.optimizer.name), self.settings.optimizer.settings)
        return measure_speed(self.family, self.vocab_size, optimizer, self.device, self.settings.dtype)

    def best(self, budget: float | None) -> tuple[int, str]:
        """Return the size that leaves the least loss, and what it suits."""
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
        """Return the size that would also be the best one for the time that it takes over these tokens."""
        parameters = SMALLEST
        for _ in range(12):
            tokens_seen = tokens or (self.settings.steps or 1) * self.batch(parameters)
            parameters = self._best_in(tokens_seen / self.tokens_in(1.0, parameters))
        return parameters

    def _loss(self, parameters: int, tokens: float) -> float:
        return left_over(parameters, max(1.0, worth(tokens, self.unique, REPEATS)))

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
    """Return the time that was asked for, or that the money asked for buys here, whichever is less."""
    times = [seconds(settings.time)] if settings.time else []
    if settings.max_cost:
        watts = power(num_threads(settings.threads), settings.watts, device.kind).watts
        price = watts / 3.6e6 * settings.price_per_kwh + settings.price_per_hour / 3600
        if not price:
            raise UsageError("--max-cost says nothing while all prices are 0", "give --price-per-hour as well")
        times.append(settings.max_cost / price)
    return min(times, default=None)
