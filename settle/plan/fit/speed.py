"""How fast a model reads and writes on a machine: a law of a few terms, each with its coefficient from published rows.

Seconds of a token are a sum of terms: the bytes read over the memory's speed, a cost for every layer, the operations
over the design power (a card slows down to stay within it), and for prompts the operations over the arithmetic rate.
laws.toml holds the coefficients by build of the runtime, fitted by bench/planning_fit.py, with the spread of held-out
chips; `settle.plan.fit.here` refits two of them on this machine. Docs: docs/method.md.
"""

import datetime
import functools
import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.library.model_shape import ModelShape
from settle.machine import Machine
from settle.plan.fit.weight_types import Matrices, layer_weights, read_bytes, read_seconds, written_seconds

STACKED = ("A100", "A800", "A30", "H100", "H800", "H200", "GH200", "H20", "V100", "TITAN V", "P100", "GV100")
NEWER = ("ada", "blackwell-2", "blackwell", "blackwell-nvl72")
WATTS = 300.0  # of a device whose design power nobody says
LINK_SECONDS = 5e-5  # for each further device that the layers lie on: activations are handed over once a token
HOST_BANDWIDTH = 50e9  # bytes per second of a desktop's memory, where layers that do not fit are computed
BATCH_SPREAD = 0.4  # of the logarithm, beside that of one text: servers differ in what they do between two steps
# The chance that a proposed token is right: drafts of T5, LaMDA and GPT-like models (arXiv:2211.17192, table 3).
ACCEPTED = Interval(0.7, 0.55, 0.82, FORECAST_LEVEL)
MOST_PROPOSED = 16  # tokens at a time
BUS_BANDWIDTH, PROMPT_BATCH = 16e9, 512  # bytes per second between a card and the processor's memory; tokens at once


class Law(BaseModel):
    """Coefficients of one build of llama.cpp."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decode: dict[str, float]
    decode_spread: float = Field(gt=0)
    mixture: dict[str, float]
    mixture_spread: float = Field(gt=0)
    prefill: dict[str, float]
    prefill_spread: float = Field(gt=0)
    rows: int = Field(ge=0)
    source: str = Field(min_length=1)
    date: datetime.date


@dataclass(frozen=True)
class Rate:
    """Tokens per second with the ends of an 80 % interval. why: what it is based on."""

    value: float
    low: float
    high: float
    why: str


Z80 = 1.2816  # of a normal distribution: 80 % lie within so many standard deviations


@functools.cache
def laws() -> dict[str, Law]:
    """Every law, by the name of its build."""
    with Path(__file__).with_name("laws.toml").open("rb") as file:
        return {name: Law.model_validate(law) for name, law in tomllib.load(file)["laws"].items()}


def law_name(machine: Machine) -> str:
    """Return the build that users run today on such a machine."""
    if machine.kind == "cuda" and machine.is_unified:
        return "cuda-unified"
    return {"mps": "metal-2026", "cuda": "cuda-2025", "rocm": "rocm-2025", "cpu": "cpu"}.get(
        machine.kind, "vulkan-intel"
    )


def decode_rate(
    shape: ModelShape, type_name: str, machine: Machine, context: int = 512, batch: int = 1, law: Law | None = None,
    matrices: Matrices | None = None,
) -> Rate:  # fmt: skip
    """Return the tokens per second written at `context` tokens, of each of `batch` texts at once.

    matrices: of a file that is here, which a processor's law depends on.
    """
    law = law or laws()[law_name(machine)]
    terms = decode_terms(shape, type_name, machine, context, batch, matrices)
    coefficients, spread = (law.mixture, law.mixture_spread) if shape.is_mixture else (law.decode, law.decode_spread)
    seconds = _sum(terms, coefficients)
    if batch > 1:
        seconds += (batch - 1) * further_seconds(shape, type_name, machine, law)
        spread = math.hypot(spread, BATCH_SPREAD)
    return _rate(1 / seconds, spread, law)


def prefill_rate(
    shape: ModelShape, type_name: str, machine: Machine, law: Law | None = None, prompt: int = 512,
    matrices: Matrices | None = None,
) -> Rate:  # fmt: skip
    """Tokens of a prompt of `prompt` tokens read per second."""
    law = law or laws()[law_name(machine)]
    seconds = _sum(prefill_terms(shape, type_name, machine, prompt, matrices), law.prefill)
    return _rate(1 / seconds, law.prefill_spread * (1.5 if shape.is_mixture else 1.0), law)


def first_token_seconds(prefill: Rate, decode: Rate, prompt: int) -> float:
    """Seconds until the first token of an answer to a prompt of so many tokens."""
    return prompt / prefill.value + 1 / decode.value


def drafted(decode: Rate, draft: Rate, each: float, accepted: Interval = ACCEPTED) -> Rate:
    """Return the rate with a draft that proposes as many tokens at a time as is fastest (arXiv:2211.17192).

    each: seconds that a proposed token computes in the model. accepted: the chance that one is right.
    """

    def rate(share: float, of: float, proposals: float) -> float:
        tokens = [(number, sum(share**i for i in range(number + 1))) for number in range(1, MOST_PROPOSED + 1)]
        return max(tokens_of / (1 / of + number * (each + 1 / proposals)) for number, tokens_of in tokens)

    return Rate(
        rate(accepted.value, decode.value, draft.value),
        rate(accepted.low, decode.low, draft.low),
        rate(accepted.high, decode.high, draft.high),
        f"{decode.why}; with a draft, {accepted.low:.0%} to {accepted.high:.0%} of its tokens right",
    )


def further_seconds(shape: ModelShape, type_name: str, machine: Machine, law: Law | None = None) -> float:
    """Seconds that each further token computes, of those that are read together."""
    return _sum(batch_terms(shape, type_name, machine), (law or laws()[law_name(machine)]).prefill)


def offloaded(decode: Rate, share: float, read: float, host_bandwidth: float = HOST_BANDWIDTH) -> Rate:
    """With `share` of the layers computed by the processor from its own memory. read: bytes a token reads in all."""
    seconds = (1 - share) / decode.value + share * read / host_bandwidth
    factor = 1 / seconds / decode.value
    return replace(decode, value=decode.value * factor, low=decode.low * factor * 0.7, high=decode.high * factor * 1.3,
                   why=f"{share:.0%} of the layers in the processor's memory")  # fmt: skip


def streamed(prefill: Rate, share: float, weights: float) -> Rate:
    """Prompts with `share` of the weights in the processor's memory: they cross the bus once for every batch."""
    factor = 1 / (1 + prefill.value * share * weights / (BUS_BANDWIDTH * PROMPT_BATCH))
    why = f"{share:.0%} of the layers in the processor's memory"
    return Rate(prefill.value * factor, prefill.low * factor * 0.5, prefill.high * factor * 1.5, why)


def decode_terms(
    shape: ModelShape, type_name: str, machine: Machine, context: int, batch: int = 1, matrices: Matrices | None = None
) -> dict[str, float]:
    """Seconds of a token, or of one of each text of a batch, by what causes them.

    A batch reads the weights once, of a mixture the experts that any of its tokens chose, and each text's own cache.
    """
    weights = read_bytes(shape, type_name)
    if batch > 1 and shape.is_mixture:
        chosen = 1 - (1 - shape.experts_used / shape.experts) ** batch
        spared = 1 - shape.beside_experts / max(1, shape.active)
        weights *= 1 + spared * (chosen * shape.experts / shape.experts_used - 1)
    seconds = (weights + batch * shape.kv_bytes(context)) / machine.bandwidth
    layers = shape.layers / 32 * 1e-3
    generation, stacked = machine.generation, any(name in machine.name for name in STACKED)
    is_ampere = generation == "ampere" and not stacked
    is_older = machine.kind == "cuda" and generation not in (*NEWER, "here", "by hand") and not is_ampere
    return {
        "bytes": seconds,
        "matrices": written_seconds(shape, type_name, machine, matrices) if machine.kind == "cpu" else 0.0,
        "k_bytes": seconds * ("_k" in type_name),
        "stacked_bytes": seconds * stacked,
        "layers": layers,
        "ampere_layers": layers * is_ampere,
        "older_layers": layers * is_older,
        "pascal_layers": layers * (generation == "pascal"),
        "stacked_layers": layers * stacked,
        "linear_layers": shape.linear_layers / 32 * 1e-3,
        "power": 2e-11 * shape.read / (machine.watts or WATTS),
        "token": 1e-3,
        "links": (machine.count - 1) * LINK_SECONDS,
    }


def batch_terms(shape: ModelShape, type_name: str, machine: Machine) -> dict[str, float]:
    """Return the seconds that each further text of a batch computes, at the rate of a prompt.

    The weights were read already, and a mixture's experts are counted among what is read.
    """
    terms = prefill_terms(shape, type_name, machine, 0)
    return {name: seconds for name, seconds in terms.items() if name not in ("start", "mixture")}


def prefill_terms(
    shape: ModelShape, type_name: str, machine: Machine, prompt: int = 512, matrices: Matrices | None = None
) -> dict[str, float]:
    """Seconds of one token of a prompt, by what causes them."""
    operations = 2.0 * max(shape.active - shape.table * (1 if shape.tied else 2) - shape.lookup, shape.active // 4)
    attention = 2.0 * (shape.layers - shape.linear_layers) * prompt * shape.heads * shape.head_dim  # half, as causal
    generation = machine.generation
    if machine.kind == "cpu":
        operations += 2.0 * layer_weights(shape)
    float32 = machine.flops.get("float32") or machine.matrix_flops
    is_newer = generation in NEWER or generation == "ampere"
    return {
        "float32": (operations + attention) / float32,
        "matrices": read_seconds(shape, type_name, machine, matrices) + attention / float32,
        "older_float32": (operations + attention) / float32 * (not is_newer),
        "pascal_float32": (operations + attention) / float32 * (generation == "pascal"),
        "accelerated_float32": (operations + attention) / float32 * (generation in ("apple-m5", "apple-m6")),
        "half": (operations + attention) / float32 * (type_name in ("f16", "bf16")),
        "mixture": operations / float32 * shape.is_mixture,
        "power": (operations + attention) / ((machine.watts or WATTS) * 1e12),
        "ampere_power": (operations + attention) / ((machine.watts or WATTS) * 1e12) * (generation == "ampere"),
        "start": shape.layers / 32 * 1e-3 / max(1, prompt),
    }


def _sum(terms: dict[str, float], coefficients: dict[str, float]) -> float:
    return sum(coefficients.get(name, 1.0 if name == "links" else 0.0) * seconds for name, seconds in terms.items())


def _rate(value: float, spread: float, law: Law) -> Rate:
    wide = 2.718281828 ** (Z80 * spread)
    return Rate(value, value / wide, value * wide, f"{law.source}, {law.rows} rows")
