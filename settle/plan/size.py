"""One dial: a size, or a time, becomes a model, a batch and a number of tokens."""

import math
from dataclasses import dataclass

from settle.base.errors import UsageError
from settle.data.prepare import Corpus
from settle.machine import Accelerator, cores, power, probe_dtype
from settle.model import sizing
from settle.plan.amounts import count, seconds
from settle.plan.settings import TrainingSettings

TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, arXiv 2203.15556
SHARE_OF_CEILING = 0.4  # of what matrix products reach here, by whole steps of small models
OVERNIGHT = 8 * 3600.0
MOST_AT_ONCE = 8192  # tokens of one micro-batch
HAND_OVER_SECONDS = 6.0  # proof before, export and gate after the loop


@dataclass(frozen=True)
class Size:
    """What the dial stands at."""

    parameters: int
    context: int
    tokens_per_step: int
    micro_tokens: int
    expected_tokens: int
    seconds: float | None  # the loop's budget


def choose_size(
    settings: TrainingSettings, corpus: Corpus, device: Accelerator, spent: float, why: dict[str, str]
) -> Size:
    """The size that suits the budget and the corpus; `why` is told the reason of each number."""
    budget = None
    if asked := asked_seconds(settings, device):
        budget = max(asked / 4, asked - spent - HAND_OVER_SECONDS)
    unique = corpus.train.num_tokens
    width = 256
    rate = max(probe_dtype([(2048, width, 3 * width), (2048, width, 4 * width)], device, seconds=0.3).rates.values())
    flops = rate * SHARE_OF_CEILING * (budget or OVERNIGHT)
    if settings.size:
        parameters = count(settings.size)
        why["parameters"] = "the shape nearest to the size asked for"
    else:
        by_time = math.sqrt(flops / 6 / TOKENS_PER_PARAMETER)
        by_corpus = unique / 2
        parameters = int(min(by_time, by_corpus))
        limit = "the time" if by_time < by_corpus else "the corpus"
        why["parameters"] = f"the shape nearest to the {parameters:,} that {limit} allows"
    context = settings.context or sizing.context(parameters)
    batch = settings.batch_tokens or sizing.tokens_per_batch(parameters)
    for key, tokens in (("context", context), ("batch_tokens", batch)):
        if getattr(settings, key) is None:
            why[key] = f"{tokens} tokens suit a model of this size"
    expected = max(batch, int(flops / (6 * parameters)))
    micro = max(part for part in range(1, min(batch, MOST_AT_ONCE) + 1) if batch % part == 0)
    return Size(parameters, context, batch, micro, expected, budget)


def asked_seconds(settings: TrainingSettings, device: Accelerator) -> float | None:
    """The time that was asked for, or that the money asked for buys here, whichever is less."""
    times = [seconds(settings.time)] if settings.time else []
    if settings.max_cost:
        watts = power(settings.threads or cores().usable, settings.watts, device.kind).watts
        price = watts / 3.6e6 * settings.price_per_kwh + settings.price_per_hour / 3600
        if not price:
            raise UsageError("--max-cost says nothing while all prices are 0", "give --price-per-hour as well")
        times.append(settings.max_cost / price)
    return min(times, default=None)
