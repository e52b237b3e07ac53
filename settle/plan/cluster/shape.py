"""A transformer that is to be trained: its weights, the operations of a token, and how it is spread over devices.

Legend: L layers, h hidden size, a heads, k key-value heads, d head size, f feed-forward size, V vocabulary, E experts,
s sequence length.
"""

import math
from dataclasses import dataclass, replace

from settle.base.errors import UsageError

EXPERTS_A_TOKEN = 8  # routed ones, as DeepSeek-V3, Kimi K2 and Qwen3 have
GATED, PLAIN = 3, 2  # matrices of a feed-forward block


@dataclass(frozen=True)
class Shape:
    """layers, hidden, ffn, heads, kv_heads, head_dim, vocab: the sizes of a decoder-only transformer.

    tied: whether input and output embedding are one matrix. ffn_matrices: 3 where the feed-forward is gated, else 2.
    experts: routed experts of a layer, 0 where it is dense; active_experts: those that a token uses; shared_experts:
    those that every token uses; expert_ffn: their feed-forward size; dense_layers: layers without experts at the
    bottom. query_rank, kv_rank, rope_dim: of multi-head latent attention, 0 where there is none.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int = 0
    tied: bool = False
    ffn_matrices: int = GATED
    experts: int = 0
    active_experts: int = 0
    shared_experts: int = 0
    expert_ffn: int = 0
    dense_layers: int = 0
    query_rank: int = 0
    kv_rank: int = 0
    rope_dim: int = 0

    @property
    def query_width(self) -> int:
        """Numbers of all query heads of a token, without a rotary part of its own."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def kv_width(self) -> int:
        """Numbers of all key heads of a token."""
        return self.kv_heads * (self.head_dim or self.hidden // self.heads)

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def attention_parameters(self) -> int:
        """Of one layer."""
        h, q = self.hidden, self.query_width
        if not self.kv_rank:
            return h * (2 * q + 2 * self.kv_width)
        rope = self.heads * self.rope_dim
        queries = h * self.query_rank + self.query_rank * (q + rope) if self.query_rank else h * (q + rope)
        return queries + h * (self.kv_rank + self.rope_dim) + self.kv_rank * 2 * q + q * h

    @property
    def expert_parameters(self) -> int:
        """Of one expert of one layer."""
        return self.ffn_matrices * self.hidden * self.expert_ffn

    def block_parameters(self, active: bool = False) -> int:
        """Matrix weights of all layers; active: only those that a token is multiplied with."""
        dense = (self.layers - self.moe_layers) * self.ffn_matrices * self.hidden * self.ffn
        used = (self.active_experts if active else self.experts) + self.shared_experts
        routed = self.moe_layers * (used * self.expert_parameters + self.hidden * self.experts)
        return self.layers * self.attention_parameters + dense + routed

    @property
    def parameters(self) -> int:
        """All weights: embeddings, blocks and norms."""
        tables = (1 if self.tied else 2) * self.vocab * self.hidden
        return self.block_parameters() + tables + (2 * self.layers + 1) * self.hidden

    @property
    def active_parameters(self) -> int:
        """Weights that a token passes: with one table, as published sizes count it."""
        return self.block_parameters(active=True) + self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: active blocks and the output table."""
        return self.block_parameters(active=True) + self.vocab * self.hidden

    def flops_per_token(self, sequence: int, is_causal: bool = True) -> float:
        """Operations of one training step for one token: forward and twice as many backward.

        Source: 6 N + 12 L a d s of Chowdhery et al., PaLM (2022), appendix B, half the attention where it is causal.
        """
        attention = 12.0 * self.layers * (self.query_width + self.heads * self.rope_dim / 2) * sequence
        return 6.0 * self.matmul_parameters + attention * (0.5 if is_causal else 1.0)


@dataclass(frozen=True)
class DeviceLayout:
    """The groups of devices that a run is spread over, its batch, and what is computed again."""

    data: int = 1  # data, tensor, pipeline and context are sizes of groups, whose product is the number of devices
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1  # devices that the experts of a layer are spread over, within data x context x tensor
    # weights, gradients and optimizer lie in shards over the data group and are gathered layer by layer (FSDP, ZeRO-3)
    sharded: bool = False
    rows: int = 1  # sequences of a micro-batch
    sequence: int = 4096  # tokens of each
    micro_batches: int = 1  # of a step and replica
    virtual: int = 1  # model chunks of a pipeline stage
    recompute: bool = False  # activation checkpointing of every layer
    optimizer_sharded: bool = True  # the optimizer's state is spread over the replicas (ZeRO-1)
    expert_tensor: int = 1  # tensor group of an expert
    sequence_parallel: bool = True  # norms and residuals are split over the tensor group too

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def tokens_per_step(self) -> int:
        return self.data * self.rows * self.micro_batches * self.sequence

    @property
    def expert_replicas(self) -> int:
        """Devices that hold the same experts."""
        return max(1, self.data * self.context * self.tensor // (self.expert * self.expert_tensor))

    @property
    def micro_batch_tokens(self) -> float:
        """Tokens of a micro-batch that one device of a context group holds."""
        return self.rows * self.sequence / self.context

    @property
    def bubble(self) -> float:
        """Idle time of a pipeline over its work: (p - 1) / (m v). Source: Narayanan et al., arXiv 2104.04473."""
        return (self.pipeline - 1) / (self.micro_batches * self.virtual)

    @property
    def label(self) -> str:
        """As people write it: "DP128 TP8 PP16"."""
        named = (
            ("DP", self.data),
            ("TP", self.tensor),
            ("PP", self.pipeline),
            ("CP", self.context),
            ("EP", self.expert),
        )
        groups = " ".join(f"{name}{size}" for name, size in named if size > 1)
        return (groups or "one device") + (" FSDP" if self.sharded else "") + (" recompute" if self.recompute else "")


def shape_of_size(parameters: float, vocab: int = 128256) -> Shape:
    """Shape a dense model of about so many weights as published ones are: h/L near 100, gated 3.5 h, d = 128.

    Raises UsageError for a size that no transformer has.
    """
    if not 1e6 <= parameters <= 1e14:
        raise UsageError(f"{parameters:.3g} parameters", "give a size between 1m and 100t, such as --params 1.5b")
    vocab = min(vocab, max(4096, int(parameters / 20000)))
    best: Shape | None = None
    for hidden in _hidden_sizes():
        layers = max(2, round(hidden / _aspect(hidden)))
        heads = max(1, hidden // 128)
        kv_heads = 8 if heads > 8 and heads % 8 == 0 else heads
        ffn = -(-int(3.5 * hidden) // 256) * 256
        shape = Shape(layers, hidden, ffn, heads, kv_heads, vocab, tied=parameters < 2e9)
        if best is None or _apart(shape, parameters) < _apart(best, parameters):
            best = shape
    assert best is not None
    per_layer = best.block_parameters() / best.layers
    tables = best.parameters - best.block_parameters()
    return replace(best, layers=max(2, round((parameters - tables) / per_layer)))


def shape_with_experts(parameters: float, active: float, vocab: int = 128256) -> Shape:
    """Shape a mixture of about so many weights, of which a token uses `active`: 8 routed experts a token.

    Raises UsageError for a mixture that uses more than it has, or a size that no transformer has.
    """
    if not 0 < active < parameters:
        raise UsageError(
            f"{active / 1e9:.4g} billion of {parameters / 1e9:.4g} billion weights are active",
            "give fewer active than there are in all",
        )
    dense = shape_of_size(active, vocab)
    expert_ffn = max(64, dense.ffn // EXPERTS_A_TOKEN)
    shape = replace(dense, experts=EXPERTS_A_TOKEN, active_experts=EXPERTS_A_TOKEN, expert_ffn=expert_ffn)
    missing = (parameters - shape.parameters) / (shape.layers * shape.expert_parameters)
    return replace(shape, experts=EXPERTS_A_TOKEN + max(0, 8 * round(missing / 8)))


def _aspect(hidden: int) -> float:
    """Hidden size over layers: 64 of small models, 128 of large ones (Llama 3: 128 at 4096 and 16384, 102 at 8192)."""
    return min(128.0, max(48.0, 48.0 + hidden / 60.0))


def _hidden_sizes() -> list[int]:
    return [*range(128, 1024, 64), *range(1024, 2048, 256), *range(2048, 65537, 1024)]


def _apart(shape: Shape, parameters: float) -> float:
    return abs(math.log(shape.parameters / parameters))
