"""Rotary frequencies (arXiv:2104.09864) and the ways in which families stretch them to longer contexts.

d: rotated width of a head, even. Pair i of a head turns by position · frequency i.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from settle.base.errors import FormatError
from settle.model.config import Rope

_NEEDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_OTHER_YARN: dict[str, float] = {"mscale": 1, "mscale_all_dim": 0}
_OLD_CONTEXTS = [8192, *(1 << power for power in range(6, 18))]


class RopeScaling(BaseModel):
    """`rope_scaling` of a `config.json`.

    linear: every frequency divided by `factor` (arXiv:2306.15595). llama3: only the slow ones, with a ramp between
    (Llama 3.1's model card). longrope: each its own factor, one list for short texts, one for long (arXiv:2402.13753).
    yarn: the slow ones, with a ramp over the pairs, and larger scores (arXiv:2309.00071).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rope_type: Literal["linear", "llama3", "longrope", "yarn"] = Field(description="how frequencies are stretched")
    factor: float | None = Field(None, gt=0, description="how much longer the context became")
    low_freq_factor: float | None = Field(None, gt=0, description="llama3: slower than this is divided in full")
    high_freq_factor: float | None = Field(None, gt=0, description="llama3: faster than this is left alone")
    original_max_position_embeddings: int | None = Field(None, gt=0, description="tokens of context before")
    short_factor: tuple[float, ...] | None = Field(None, description="longrope: a divisor for each frequency")
    long_factor: tuple[float, ...] | None = Field(None, description="longrope: the same, beyond the old context")
    attention_factor: float | None = Field(None, gt=0, description="longrope, yarn: times cos and sin; None derives it")
    beta_fast: float | None = Field(
        None, gt=0, description="yarn: turns in the old context that leave a pair alone; 32"
    )
    beta_slow: float | None = Field(None, gt=0, description="yarn: turns up to which a pair is divided in full; 1")
    truncate: bool = Field(True, description="yarn: whether its ramp begins and ends at whole pairs")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [key for key in _NEEDS[self.rope_type] if getattr(self, key) is None]
        if missing:
            raise ValueError(f"rope_scaling {self.rope_type} needs {missing[0]}")
        return self

    @classmethod
    def from_hf(cls, config: Mapping[str, object] | None) -> Self | None:
        """Read `rope_scaling` or `rope_parameters` in any of their spellings; None for plain rotations.

        Raises FormatError for an unsupported kind.
        """
        config = config or {}
        kind = config.get("rope_type") or config.get("type") or "default"
        if kind == "default":
            return None
        kind = "longrope" if kind == "su" else kind
        if kind not in _NEEDS:
            raise FormatError(f"rope_scaling of type {kind!r} is not supported", f"supported are: {', '.join(_NEEDS)}")
        if other := next((key for key in _OTHER_YARN if config.get(key) not in (None, _OTHER_YARN[key])), None):
            raise FormatError(f"rope_scaling with {other} is not supported", "its default is")
        known = {key: config[key] for key in cls.model_fields if config.get(key) is not None}
        return cls.model_validate(known | {"rope_type": kind})

    def to_hf(self) -> dict[str, object]:
        """Return the `rope_scaling` of a `config.json`, under the new and the old name of its type."""
        left_out = {"truncate"} if self.truncate else set()
        return {"type": self.rope_type, **self.model_dump(mode="json", exclude_none=True, exclude=left_out)}


def rope_options(width: int, theta: float, context: int, scaling: RopeScaling | None) -> Rope:
    """Return the rotation of a layer. width: rotated numbers of a head; context: tokens of the longest text."""
    if scaling is None:
        return Rope(theta, rotary_dim=width)
    frequencies = _frequencies(width, theta, divisors(scaling, width, theta, context))
    if scaling.rope_type != "longrope":
        return Rope(theta, frequencies, width, attention_factor(scaling, context))
    return Rope(
        theta,
        frequencies,
        rotary_dim=width,
        attention_factor=attention_factor(scaling, context),
        long_frequencies=_frequencies(width, theta, scaling.long_factor or ()),
        long_after=scaling.original_max_position_embeddings or context,
    )


def divisors(scaling: RopeScaling, width: int, theta: float, context: int) -> tuple[float, ...]:
    """Return what plain frequencies are divided by, (d/2,); for longrope, in texts within the old context."""
    if scaling.rope_type == "longrope":
        return scaling.short_factor or ()
    factor = scaling.factor or 1.0
    if scaling.rope_type == "linear":
        return (factor,) * (width // 2)
    if scaling.rope_type == "yarn":
        return tuple(1 / (ramp / factor + 1 - ramp) for ramp in _yarn_ramps(scaling, width, theta, context))
    low, high = scaling.low_freq_factor or 1.0, scaling.high_freq_factor or 4.0
    old = scaling.original_max_position_embeddings or context
    turns = [old * frequency / (2 * math.pi) for frequency in _frequencies(width, theta)]  # in the old context
    ramps = [min(1.0, max(0.0, (turn - low) / (high - low))) for turn in turns]
    return tuple(1 / ((1 - ramp) / factor + ramp) for ramp in ramps)


def _yarn_ramps(scaling: RopeScaling, width: int, theta: float, context: int) -> list[float]:
    """Return for each pair (d/2,) whether it is divided: 0 not at all, 1 in full."""
    old = scaling.original_max_position_embeddings or context
    turns = (scaling.beta_fast or 32.0, scaling.beta_slow or 1.0)
    first, last = (width * math.log(old / (turn * 2 * math.pi)) / (2 * math.log(theta)) for turn in turns)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    low, high = max(first, 0), min(last, width - 1)
    return [min(1.0, max(0.0, (pair - low) / max(high - low, 1e-3))) for pair in range(width // 2)]


def attention_factor(scaling: RopeScaling, context: int) -> float:
    """Return what longrope and yarn multiply cos and sin by; 1 for the others."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.rope_type == "yarn":
        return yarn_attention_factor(scaling.factor or 1.0)
    if scaling.rope_type != "longrope":
        return 1.0
    old = scaling.original_max_position_embeddings or context
    factor = scaling.factor or context / old
    return math.sqrt(1 + math.log(factor) / math.log(old)) if factor > 1 else 1.0


def yarn_attention_factor(factor: float) -> float:
    """Return what yarn multiplies cos and sin by where nothing else is said; llama.cpp always does."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def no_rope(width: int) -> Rope:
    """Return the rotation of a layer without positions. width: of a head."""
    return Rope(frequencies=(0.0,) * (width // 2))


def _frequencies(width: int, theta: float, by: Sequence[float] | None = None) -> tuple[float, ...]:
    """Angle a position of each pair, (d/2,)."""
    plain = [theta ** (-2 * i / width) for i in range(width // 2)]
    return tuple(f / b for f, b in zip(plain, by or [1.0] * len(plain), strict=True))


def llama3_scaling(freqs: Sequence[float], width: int, theta: float) -> RopeScaling:
    """Return the `rope_scaling` behind a GGUF file's rope_freqs (d/2,), which keeps only its results.

    Raises FormatError for divisors that are not those of a Llama 3.
    """
    factor = round(max(freqs, default=1.0), 3)
    for old in _OLD_CONTEXTS:
        scaling = RopeScaling(
            rope_type="llama3",
            factor=factor,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=old,
        )
        own = divisors(scaling, width, theta, old)
        if len(own) == len(freqs) and all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(own, freqs, strict=True)):
            return scaling
    raise FormatError("its rope_freqs are not those of a Llama 3", "use the model's safetensors")
