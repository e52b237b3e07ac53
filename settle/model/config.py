"""What a family of decoders may ask of the layers, as plain numbers: a family translates its `config.json` into these.

Letters: N tokens, D hidden width, F feed-forward width, H query heads, K key/value heads, d head width, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple


@dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv:2104.09864); Hugging Face's pairing: number i turns with i + rotary_dim / 2.

    theta: base of the frequencies when none are given. frequencies (rotary_dim / 2,): angle per position of each pair,
    scaling (linear, llama3 …) already in it. rotary_dim: numbers of a head that turn, all by default.
    is_interleaved: number 2i turns with 2i + 1 instead (GLM). attention_factor: multiplies what is turned (longrope).
    long_frequencies: used instead of `frequencies` in segments longer than `long_after` tokens (longrope). Frequencies
    of zero: a layer without positions.
    """

    theta: float = 10000.0
    frequencies: tuple[float, ...] | None = None
    rotary_dim: int | None = None
    attention_factor: float = 1.0
    long_frequencies: tuple[float, ...] | None = None
    long_after: int | None = None
    is_interleaved: bool = False

    @property
    def turns(self) -> bool:
        """Whether positions matter."""
        return self.frequencies is None or any(self.frequencies)


# linears of a layer that weigh experts, or streams
ROUTERS = ("mlp.gate", "mlp.shared_expert_gate", "modality_router", "prediction_coefs", "correction_coefs")


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: the `top` of `num` router outputs, after a softmax, or each after a sigmoid.

    inner: feed-forward width of one expert. normalised: the chosen ones are rescaled to sum 1. biased: experts are
    chosen by their chances plus numbers of the file that are never trained (arXiv:2408.15664). scale: multiplies what
    the chosen ones add. shared: width of a feed-forward that every token meets, 0 for none; shared_gate: whether a
    sigmoid of a linear multiplies what that adds. linear_bias: the router and the experts' linears have biases.
    only_named: only adapters that name the experts' linears adapt them.
    """

    num: int
    top: int
    inner: int
    normalised: bool = True
    sigmoid: bool = False
    biased: bool = False
    scale: float = 1.0
    shared: int = 0
    shared_gate: bool = False
    linear_bias: bool = False
    only_named: bool = False

    def parameters(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the names, in a layer of that width, and shapes of its parameters."""
        shapes: dict[str, tuple[int, ...]] = {"mlp.gate.weight": (self.num, width)}
        if self.biased:
            shapes["mlp.expert_bias.weight"] = (self.num,)
        for expert in range(self.num):
            shapes |= _gated(f"mlp.experts.{expert}", width, self.inner)
        if self.shared:
            shapes |= _gated("mlp.shared_expert", width, self.shared)
        if self.shared_gate:
            shapes["mlp.shared_expert_gate.weight"] = (1, width)
        if self.linear_bias:
            shapes |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items() if len(shape) > 1}
        return shapes


def _gated(module: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a gated feed-forward's matrices."""
    shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    return {f"{module}.{half}_proj.weight": shape for half, shape in shapes.items()}


class LinearShape(NamedTuple):
    """The shape of a linear. only_named: whether only adapters that name it adapt it, as one that weighs experts."""

    outputs: int
    inputs: int
    only_named: bool = False


@dataclass(frozen=True)
class RecurrenceOptions:
    """A recurrence of a layer; its kind is its class. module: its name in a layer, as in Hugging Face."""

    module: ClassVar[str]

    def parameters(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the names, below `module`, and shapes of its parameters in a layer of that width."""
        raise NotImplementedError

    @property
    def products(self) -> float:
        """Multiply-adds a token between its linears that no parameter takes part in."""
        return 0.0

    def kept(self, width: int) -> int:
        """Return the numbers a token that its backward pass needs, behind the norm: its rows, and what is mixed."""
        raise NotImplementedError


@dataclass(frozen=True)
class ShortConvolution(RecurrenceOptions):
    """A gated convolution over the last `kernel` tokens (LFM2). bias: of its linears and its convolution."""

    module: ClassVar[str] = "conv"
    kernel: int = 3
    bias: bool = False

    def parameters(self, width: int) -> dict[str, tuple[int, ...]]:
        shapes = {"in_proj": (3 * width, width), "conv": (width, 1, self.kernel), "out_proj": (width, width)}
        weights: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in shapes.items()}
        return weights | {f"{name}.bias": shape[:1] for name, shape in shapes.items() if self.bias}

    def kept(self, width: int) -> int:
        return 4 * width


@dataclass(frozen=True)
class DeltaNet(RecurrenceOptions):
    """A gated delta net (arXiv:2412.06464): a matrix of `key_dim` · `value_dim` for each of `value_heads`.

    key_heads: divides the value heads, which share keys and queries. kernel: tokens that the convolution before sees.
    fused: two linears own what it reads, with the rows of one key head after another (Qwen3-Next).
    """

    module: ClassVar[str] = "linear_attn"
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4
    fused: bool = False

    @property
    def keys(self) -> int:
        """Width of all keys."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all values."""
        return self.value_heads * self.value_dim

    @property
    def inward(self) -> dict[str, int]:
        """Names and outputs of the linears that read the layer's input: z for gates, b for β, a for α."""
        mixed, heads = 2 * self.keys + self.values, self.value_heads
        if self.fused:
            return {"in_proj_qkvz": mixed + self.values, "in_proj_ba": 2 * heads}
        return {"in_proj_qkv": mixed, "in_proj_z": self.values, "in_proj_b": heads, "in_proj_a": heads}

    def parameters(self, width: int) -> dict[str, tuple[int, ...]]:
        return {
            "conv1d.weight": (2 * self.keys + self.values, 1, self.kernel),
            "dt_bias": (self.value_heads,),
            "A_log": (self.value_heads,),
            "norm.weight": (self.value_dim,),
            "out_proj.weight": (width, self.values),
            **{f"{name}.weight": (rows, width) for name, rows in self.inward.items()},
        }

    @property
    def products(self) -> float:
        return (
            3.0 * self.value_heads * self.key_dim * self.value_dim
        )  # what is held there, what is written, what is read

    def kept(self, width: int) -> int:
        return 2 * self.keys + 3 * self.values + 2 * self.value_heads


@dataclass(frozen=True)
class Mamba2(RecurrenceOptions):
    """A state space (arXiv:2405.21060): a matrix of `state` · `head_dim` for each of `heads`.

    groups: of heads, which share what a token writes and reads by. kernel: tokens that the convolution before sees.
    norm: of each group, before the gate or behind it. scales: of gates, inputs, keys, queries and steps (Falcon-H1).
    """

    module: ClassVar[str] = "mamba"
    heads: int
    head_dim: int
    state: int
    groups: int = 1
    kernel: int = 4
    bias: bool = False
    conv_bias: bool = True
    norm: Literal["none", "before gate", "behind gate"] = "behind gate"
    scales: tuple[float, ...] = ()

    @property
    def inner(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    @property
    def mixed(self) -> int:
        """Channels of the convolution: inputs, keys and queries."""
        return self.inner + 2 * self.groups * self.state

    @property
    def parts(self) -> tuple[int, ...]:
        """Widths of what `in_proj` gives: gates, inputs, keys, queries, steps."""
        shared = self.groups * self.state
        return self.inner, self.inner, shared, shared, self.heads

    def parameters(self, width: int) -> dict[str, tuple[int, ...]]:
        rows = sum(self.parts)
        biases: dict[str, tuple[int, ...]] = {"conv1d.bias": (self.mixed,)} if self.conv_bias else {}
        biases |= {"in_proj.bias": (rows,), "out_proj.bias": (width,)} if self.bias else {}
        norm: dict[str, tuple[int, ...]] = {} if self.norm == "none" else {"norm.weight": (self.inner,)}
        return {
            "dt_bias": (self.heads,),
            "A_log": (self.heads,),
            "D": (self.heads,),
            "in_proj.weight": (rows, width),
            "conv1d.weight": (self.mixed, 1, self.kernel),
            "out_proj.weight": (width, self.inner),
            **norm,
            **biases,
        }

    @property
    def products(self) -> float:
        return 2.0 * self.inner * self.state  # what is written, what is read

    def kept(self, width: int) -> int:
        return sum(self.parts) + self.inner


@dataclass(frozen=True)
class Streams:
    """Several residual streams, of which a layer computes the first (Gemma 3n). laurel: rank of a branch beside it."""

    number: int
    laurel: int

    def parameters(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of a layer's parameters that they need."""
        return {
            "altup.correct_output_scale": (width,),
            "altup.correction_coefs.weight": (self.number, self.number),
            "altup.prediction_coefs.weight": (self.number**2, self.number),
            "altup.modality_router.weight": (self.number, width),
            "altup.router_norm.weight": (width,),
            "laurel.linear_left.weight": (self.laurel, width),
            "laurel.linear_right.weight": (width, self.laurel),
            "laurel.post_laurel_norm.weight": (width,),
        }


@dataclass(frozen=True)
class LayerOptions:
    """One decoder layer.

    attends: whether it has attention; attention_gates: whether each number it mixes has a gate, from rows of `q_proj`
    behind each head's queries. mixer_scales: of what attention and a recurrence beside it add. gate_scale: of the
    feed-forward's gate, before the activation. recurrence: what mixes its tokens in attention's place, or beside it.

    qkv_bias, out_bias, mlp_bias: biases of the linears. head_norms: RMS norms of each query and key head before they
    turn (Qwen3, Gemma 3). whole_norms: the same of all query heads together, and of all key heads (OLMo 2). pre_norms:
    norms before both branches. sandwich_norms: norms behind both branches, named as in Gemma 2. norm_offset: a norm
    multiplies by offset + weight (Gemma: 1). centred_norms: norms subtract the mean and have a bias (LayerNorm);
    norm_bias, norm_weight: without it (Cohere), without both (OLMo). shared_norm: one norm before both branches.
    parallel: the feed-forward reads what attention reads, not what attention has added to (GPT-NeoX). residual_scale:
    multiplies what both branches add. gated: the feed-forward has a gate. activation: of the gate, or of all, "silu",
    "gelu", "gelu_tanh" or "clamped_swiglu" (gpt-oss). clip_qkv: queries, keys and values stay within it. soft_cap:
    scores become cap · tanh(score / cap). window: a query sees itself and the window - 1 tokens before it. sinks: each
    query head has a score that takes part in its softmax and has no value (gpt-oss). query_scale: of the scores, d^-0.5
    by default. fused, fused_gate_up: one `qkv_proj`, one `gate_up_proj` owns the weights (Phi-3). fused_by_head:
    `qkv_proj` holds query, key and value of one head after another (GPT-NeoX).

    Gemma 4: value_norms: value heads are normed too, without a weight. lends: name under which later layers find this
    one's keys and values; borrows: the name under which it finds those it reads in the place of its own.
    per_layer_input: width of what each token gives to this layer alone, 0 for nothing. has_scalar: what leaves the
    layer is multiplied by a number of the file that is never trained. Gemma 3n: sparsity: gates below this quantile of
    a normal distribution as wide as a token's gates are zero, and the others less by it. streams: what a layer reads
    and writes, one by default.
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
    whole_norms: bool = False
    pre_norms: bool = True
    sandwich_norms: bool = False
    norm_offset: float = 0.0
    centred_norms: bool = False
    norm_bias: bool = True
    norm_weight: bool = True
    shared_norm: bool = False
    parallel: bool = False
    residual_scale: float = 1.0
    gated: bool = True
    activation: str = "silu"
    clip_qkv: float | None = None
    soft_cap: float | None = None
    sinks: bool = False
    window: int | None = None
    query_scale: float | None = None
    fused: bool = False
    fused_gate_up: bool = False
    fused_by_head: bool = False
    experts: Experts | None = None
    attends: bool = True
    attention_gates: bool = False
    recurrence: RecurrenceOptions | None = None
    mixer_scales: tuple[float, float] = (1.0, 1.0)
    gate_scale: float = 1.0
    value_norms: bool = False
    lends: str = ""
    borrows: str = ""
    per_layer_input: int = 0
    has_scalar: bool = False
    sparsity: float = 0.0
    streams: Streams | None = None

    def attention_parameters(self) -> dict[str, tuple[int, ...]]:
        """Return names in a layer and shapes of what attention has."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {"qkv": query + 2 * key} if self.fused else {"q": query * (1 + self.attention_gates), "k": key, "v": key}
        shapes: dict[str, tuple[int, ...]] = {f"self_attn.{x}_proj.weight": (n, self.width) for x, n in rows.items()}
        shapes["self_attn.o_proj.weight"] = (self.width, query)
        shapes |= {"self_attn.sinks": (self.heads,)} if self.sinks else {}
        biased = [*(rows if self.qkv_bias else ()), *("o" * self.out_bias)]
        shapes |= {f"self_attn.{x}_proj.bias": shapes[f"self_attn.{x}_proj.weight"][:1] for x in biased}
        widths = (query, key) if self.whole_norms else (self.head_dim,) * 2 if self.head_norms else ()
        return shapes | {f"self_attn.{x}_norm.weight": (n,) for x, n in zip("qk", widths, strict=False)}

    def feed_forward_parameters(self) -> dict[str, tuple[int, ...]]:
        """Return names in a layer and shapes of what a feed-forward without experts has."""
        reads = ("gate_up",) if self.gated and self.fused_gate_up else ("gate", "up") if self.gated else ("up",)
        rows = self.inner * (2 if len(reads[0]) > 4 else 1)
        shapes: dict[str, tuple[int, ...]] = {f"mlp.{x}_proj.weight": (rows, self.width) for x in reads}
        shapes["mlp.down_proj.weight"] = (self.width, self.inner)
        if self.mlp_bias:
            shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
        return shapes

    def norms(self) -> tuple[str, ...]:
        """Return the names of the norms around its branches."""
        names = ("input_layernorm",) * self.pre_norms + ("post_attention_layernorm",) * (not self.shared_norm)
        if self.sandwich_norms:
            names += ("pre_feedforward_layernorm",) * self.pre_norms + ("post_feedforward_layernorm",)
        return names

    def norm_parameters(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of what a norm of the stream has."""
        kinds = ("weight",) * self.norm_weight + ("bias",) * (self.centred_norms and self.norm_bias)
        return {f"{name}.{kind}": (self.width,) for kind in kinds}


@dataclass(frozen=True)
class DecoderOptions:
    """A whole decoder.

    embedding_scale: multiplies the looked-up rows, rounded to the compute type first (Gemma: √D). logit_soft_cap: as
    `LayerOptions.soft_cap`, of the logits. logit_scale: multiplies the logits, by way of the final norm.
    per_layer_rows: rows of the table of `LayerOptions.per_layer_input`, 0 for as many as the vocabulary has.
    """

    vocab_size: int
    layers: tuple[LayerOptions, ...]
    tied: bool
    embedding_scale: float | None = None
    logit_soft_cap: float | None = None
    logit_scale: float = 1.0
    per_layer_rows: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether a layer reads nothing but the stream behind the one before it."""
        return not any(layer.borrows or layer.per_layer_input for layer in self.layers)


@dataclass(frozen=True)
class Shape:
    """Dimensions of a decoder: hidden `width`, feed-forward `inner`, `layers`, `heads` of `head_dim`.

    Of the shapes that are made from one number only the smallest was measured (bench/recipe.py); the rest is
    extrapolated.
    """

    width: int
    inner: int
    layers: int
    heads: int
    head_dim: int
    tied: bool

    def parameters(self, vocab_size: int) -> int:
        """All trainable numbers with a table of `vocab_size` rows."""
        matrices = self.layers * self.width * (4 * self.heads * self.head_dim + 3 * self.inner)
        norms = (2 * self.layers + 1) * self.width
        return matrices + norms + (1 if self.tied else 2) * vocab_size * self.width


def shape_of_width(width: int) -> Shape:
    """Return the shape a width gets: layers grow with it slowly, F ≈ 8/3 D in whole cache lines."""
    layers = max(2, round(width / 64))
    head_dim = 64 if width % 64 == 0 else 32
    return Shape(width, round(width * 8 / 3 / 64) * 64, layers, width // head_dim, head_dim, tied=False)


def default_shape(num_parameters: int, vocab_size: int) -> Shape:
    """Return the shape whose number of parameters comes nearest to `num_parameters` (by ratio)."""
    widths = [*range(32, 256, 32), *range(256, 8193, 64)]
    return min(map(shape_of_width, widths), key=lambda s: abs(math.log(s.parameters(vocab_size) / num_parameters)))


def default_context(num_parameters: int) -> int:
    """Tokens of context for a model of this size."""
    return 128 if num_parameters < 4e6 else 256 if num_parameters < 30e6 else 512


def tokens_per_batch(num_parameters: int) -> int:
    """Tokens in one optimizer step, a power of two.

    Small models learn most from many small steps (bench/recipe.py, "batch / 2, same tokens"). Muon's iteration costs
    about 5 · D / N of a step's FLOPs, so larger models take larger batches to keep that under a third.
    """
    return 1 << round(math.log2(max(1024.0, 1400 * (num_parameters / 1e6) ** 0.75)))
