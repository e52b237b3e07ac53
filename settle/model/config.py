"""What a family of decoders may ask of the layers, as plain numbers: a family translates its `config.json` into these.

Letters: N tokens, D hidden width, F feed-forward width, H query heads, K key/value heads, d head width, V vocabulary.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv:2104.09864); Hugging Face's pairing: number i turns with i + rotary_dim / 2.

    theta: base of the frequencies when none are given. frequencies (rotary_dim / 2,): angle per position of each pair,
    scaling (linear, llama3 …) already in it. rotary_dim: numbers of a head that turn, all by default.
    attention_factor: multiplies what is turned (longrope). long_frequencies: used instead of `frequencies` in
    segments longer than `long_after` tokens (longrope).
    """

    theta: float = 10000.0
    frequencies: tuple[float, ...] | None = None
    rotary_dim: int | None = None
    attention_factor: float = 1.0
    long_frequencies: tuple[float, ...] | None = None
    long_after: int | None = None


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: softmax over `num` router outputs, the `top` largest, rescaled to sum 1 when `normalised`.

    inner: feed-forward width of one expert.
    """

    num: int
    top: int
    inner: int
    normalised: bool = True


@dataclass(frozen=True)
class LayerOptions:
    """One decoder layer.

    qkv_bias, out_bias, mlp_bias: biases of the linears. head_norms: RMS norms of each query and key head before they
    turn (Qwen3, Gemma 3). sandwich_norms: norms also behind both branches, named as in Gemma 2. norm_offset: a norm
    multiplies by offset + weight (Gemma: 1). activation: of the gate, "silu" or "gelu_tanh". soft_cap: scores become
    cap · tanh(score / cap). window: a query sees itself and the window - 1 tokens before it. query_scale: of the
    scores, d^-0.5 by default. fused: one `qkv_proj` and one `gate_up_proj` own the weights (Phi-3).
    """

    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope: Rope = Rope()
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    sandwich_norms: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"
    soft_cap: float | None = None
    window: int | None = None
    query_scale: float | None = None
    fused: bool = False
    experts: Experts | None = None


@dataclass(frozen=True)
class DecoderOptions:
    """A whole decoder.

    embedding_scale: multiplies the looked-up rows, rounded to the compute type first (Gemma: √D). logit_soft_cap: as
    `LayerOptions.soft_cap`, of the logits.
    """

    vocab_size: int
    layers: tuple[LayerOptions, ...]
    tied: bool
    embedding_scale: float | None = None
    logit_soft_cap: float | None = None
