"""How fast a model reads and writes on a machine: a law of a few terms, each with its coefficient from published rows.

Seconds of a token are a sum of terms: the bytes read over the memory's speed, a cost for every layer, the operations
over the design power (a card slows down to stay within it), and for prompts the operations over the arithmetic rate.
laws.toml holds the coefficients by build of the runtime, fitted by bench/planning_fit.py, with the spread of held-out
chips; `settle.plan.fit.here` refits two of them on this machine. Docs: docs/method.md.
"""

import datetime
import functools
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from settle.library.model_shape import ModelShape
from settle.machine import Machine
from settle.plan.fit.weight_types import read_bytes

STACKED = ("A100", "A800", "A30", "H100", "H800", "H200", "GH200", "H20", "V100", "TITAN V", "P100", "GV100")
NEWER = ("ada", "blackwell-2", "blackwell", "blackwell-nvl72")
WATTS = 300.0  # of a device whose design power nobody says
LINK_SECONDS = 5e-5  # for each further device that the layers lie on: activations are handed over once a token
HOST_BANDWIDTH = 50e9  # bytes per second of a desktop's memory, where layers that do not fit are computed

BUS_BANDWIDTH, PROMPT_BATCH = 16e9, 512  # bytes per second between a card and the processor's memory; tokens at once


class Law(BaseModel):
    """Coefficients of one build. decode, mixture, prefill: by name of the term. spread: standard deviation of the
    logarithm of actual over predicted, of chips that were held out. source, date: of the rows; rows: how many.
    """

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
    """The build that a person runs today on such a machine."""
    if machine.kind == "cuda" and machine.is_unified:
        return "cuda-unified"
    return {"mps": "metal-2026", "cuda": "cuda-2025", "rocm": "rocm-2025", "cpu": "cpu"}.get(
        machine.kind, "vulkan-intel"
    )


def decode_rate(
    shape: ModelShape, type_name: str, machine: Machine, context: int = 512, batch: int = 1, law: Law | None = None
) -> Rate:
    """Tokens written per second and text at `context` tokens, of each of `batch` texts at once."""
    law = law or laws()[law_name(machine)]
    terms = decode_terms(shape, type_name, machine, context, batch)
    coefficients, spread = (law.mixture, law.mixture_spread) if shape.is_mixture else (law.decode, law.decode_spread)
    return _rate(1 / _sum(terms, coefficients), spread, law)


def prefill_rate(
    shape: ModelShape, type_name: str, machine: Machine, law: Law | None = None, prompt: int = 512
) -> Rate:
    """Tokens of a prompt of `prompt` tokens read per second."""
    law = law or laws()[law_name(machine)]
    seconds = _sum(prefill_terms(shape, type_name, machine, prompt), law.prefill)
    return _rate(1 / seconds, law.prefill_spread * (1.5 if shape.is_mixture else 1.0), law)


def first_token_seconds(prefill: Rate, decode: Rate, prompt: int) -> float:
    """Seconds until the first token of an answer to a prompt of so many tokens."""
    return prompt / prefill.value + 1 / decode.value


def drafted(decode: Rate, draft: Rate, accepted: float, proposed: int) -> Rate:
    """With a draft model: arXiv:2211.17192. accepted: chance that a proposed token is right, `proposed` at a time."""
    tokens = (1 - accepted ** (proposed + 1)) / (1 - accepted) if accepted < 1 else proposed + 1
    seconds = 1 / decode.value + proposed / draft.value
    return replace(decode, value=tokens / seconds, low=tokens / seconds * decode.low / decode.value,
                   high=tokens / seconds * decode.high / decode.value, why="with a draft model")  # fmt: skip


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


def decode_terms(shape: ModelShape, type_name: str, machine: Machine, context: int, batch: int = 1) -> dict[str, float]:
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
        "k_bytes": seconds * ("_k" in type_name),
        "stacked_bytes": seconds * stacked,
        "layers": layers,
        "ampere_layers": layers * is_ampere,
        "older_layers": layers * is_older,
        "pascal_layers": layers * (generation == "pascal"),
        "stacked_layers": layers * stacked,
        "linear_layers": shape.linear_layers / 32 * 1e-3,
        "power": 2e-11 * shape.read * batch / (machine.watts or WATTS),
        "token": 1e-3,
        "links": (machine.count - 1) * LINK_SECONDS,
    }


def prefill_terms(shape: ModelShape, type_name: str, machine: Machine, prompt: int = 512) -> dict[str, float]:
    """Seconds of one token of a prompt, by what causes them."""
    operations = 2.0 * max(shape.active - shape.table * (1 if shape.tied else 2) - shape.lookup, shape.active // 4)
    attention = 2.0 * (shape.layers - shape.linear_layers) * prompt * shape.heads * shape.head_dim  # half, as causal
    generation = machine.generation
    float32 = machine.flops.get("float32") or machine.matrix_flops
    is_newer = generation in NEWER or generation == "ampere"
    return {
        "float32": (operations + attention) / float32,
        "older_float32": (operations + attention) / float32 * (not is_newer),
        "pascal_float32": (operations + attention) / float32 * (generation == "pascal"),
        "accelerated_float32": (operations + attention) / float32 * (generation in ("apple-m5", "apple-m6")),
        "half": (operations + attention) / float32 * (type_name in ("f16", "bf16")),
        "mixture": operations / float32 * shape.is_mixture,
        "power": (operations + attention) / ((machine.watts or WATTS) * 1e12),
        "ampere_power": (operations + attention) / ((machine.watts or WATTS) * 1e12) * (generation == "ampere"),
        "start": shape.layers / 32 * 1e-3 / prompt,
    }


def _sum(terms: dict[str, float], coefficients: dict[str, float]) -> float:
    return sum(coefficients.get(name, 1.0 if name == "links" else 0.0) * seconds for name, seconds in terms.items())


def _rate(value: float, spread: float, law: Law) -> Rate:
    wide = 2.718281828 ** (Z80 * spread)
    return Rate(value, value / wide, value * wide, f"{law.source}, {law.rows} rows")
