"""Training throughput of a steady run: device-seconds a token from what the shape, the device and the layout say.

A step is split into what bounds it: products of matrices at a share of the data sheet's rate, attention, the
elementwise work between them at the memory's rate, and the communication that nothing hides. The few shares are fitted
on published tables (law.toml; bench/planning_training.py fits and judges them with whole configurations held out).

Legend: L layers, h hidden size, a heads, k key-value heads, d head size, f feed-forward size, V vocabulary, E experts,
s sequence length.
"""

import functools
import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from settle.base.errors import UsageError
from settle.base.statistics import Interval
from settle.machine.described_machine import Machine

# --- a transformer and its layout ---

EXPERTS_A_TOKEN = 8  # routed ones, as DeepSeek-V3, Kimi K2 and Qwen3 have
GATED, PLAIN = 3, 2  # matrices of a feed-forward block


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only transformer."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int = 0
    tied: bool = False  # input and output embedding are one matrix
    ffn_matrices: int = GATED
    experts: int = 0  # routed ones of a layer, 0 where it is dense
    active_experts: int = 0  # that a token uses
    shared_experts: int = 0  # that every token uses
    expert_ffn: int = 0  # feed-forward size of an expert
    dense_layers: int = 0  # without experts, at the bottom
    query_rank: int = 0  # query_rank, kv_rank, rope_dim: of multi-head latent attention, 0 where there is none
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
        """Weights of one layer's attention."""
        h, q = self.hidden, self.query_width
        if not self.kv_rank:
            return h * (2 * q + 2 * self.kv_width)
        rope = self.heads * self.rope_dim
        queries = h * self.query_rank + self.query_rank * (q + rope) if self.query_rank else h * (q + rope)
        return queries + h * (self.kv_rank + self.rope_dim) + self.kv_rank * 2 * q + q * h

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert of one layer."""
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
        """The layout as people write it: "DP128 TP8 PP16"."""
        sizes = {"DP": self.data, "TP": self.tensor, "PP": self.pipeline, "CP": self.context, "EP": self.expert}
        groups = " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1)
        return (groups or "one device") + (" FSDP" if self.sharded else "") + (" recompute" if self.recompute else "")


def shape_of_size(parameters: float, vocab: int = 128256) -> Shape:
    """Shape a dense model of about so many weights as published ones are: h/L near 100, gated 3.5 h, d = 128.

    Raises UsageError for a size that no transformer has.
    """
    if not 1e6 <= parameters <= 1e14:
        raise UsageError(f"{parameters:.3g} parameters", "give a size between 1m and 100t, such as --params 1.5b")
    vocab = min(vocab, max(4096, int(parameters / 20000)))

    def shape(hidden: int) -> Shape:
        # hidden size over layers: 64 of small models, 128 of large ones (Llama 3: 128 at 4096 and 16384, 102 at 8192)
        layers = max(2, round(hidden / min(128.0, max(48.0, 48.0 + hidden / 60.0))))
        heads = max(1, hidden // 128)
        kv_heads = 8 if heads > 8 and heads % 8 == 0 else heads
        ffn = -(-int(3.5 * hidden) // 256) * 256
        return Shape(layers, hidden, ffn, heads, kv_heads, vocab, tied=parameters < 2e9)

    sizes = [*range(128, 1024, 64), *range(1024, 2048, 256), *range(2048, 65537, 1024)]
    best = min(map(shape, sizes), key=lambda shape: abs(math.log(shape.parameters / parameters)))
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


# --- throughput ---

PCIE = 25e9  # bytes per second to the next device where there is no faster link
ETHERNET = 1.25e9  # between machines without a named network: 10 Gb/s
RATES = {"fp8": "float8", "fp4": "float4"}
BYTES = 2  # of an activation and of a weight in flight
COLLECTIVES = 4  # of a layer: two forward, two backward
GATHERS = 3  # of sharded weights in a micro-batch: forward, backward, and their gradients scattered


class Law(BaseModel):
    """The fitted shares of what data sheets promise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: str
    source: str
    matmul_bf16: float  # of the dense rate, by number format, that products of matrices reach
    matmul_fp8: float
    matmul_fp4: float
    attention: float  # of the bfloat16 rate
    # bytes moved for a token, a layer and a hidden unit, in plain PyTorch; then with fused kernels
    elementwise_plain: float
    elementwise_fused: float
    # share of a communication's time that nothing hides: of gathers within a node, between nodes, and of collectives of
    # a tensor group
    exposed_node: float
    exposed_network: float
    exposed_tensor: float
    stragglers: float  # time added for every doubling of the devices past one node, where the slowest decides
    experts: float  # rate of their products ÷ that of dense ones
    all_to_all_node: float  # exposed share within a node; then between nodes
    all_to_all_network: float
    routing: float  # bytes of a token's permutation, per expert and hidden unit
    device: dict[str, float]  # by generation or name, what a kind reaches relative to the mean
    log_std_dense: float  # of a steady rate's error
    log_std_experts: float
    log_std_unknown: float


@functools.cache
def published_law() -> Law:
    with Path(__file__).with_name("law.toml").open("rb") as file:
        return Law.model_validate(tomllib.load(file))


@dataclass(frozen=True)
class Rate:
    """The throughput of a steady run."""

    tokens: Interval  # per second and device
    mfu: float  # share of the device's bfloat16 rate that the model's own operations make up
    parts: dict[str, float]  # share of the time by cause


def steady_rate(
    shape: Shape,
    machine: Machine,
    layout: DeviceLayout,
    precision: str = "bf16",
    *,
    fused: bool = True,
    trained: float = 1.0,
    law: Law | None = None,
) -> Rate:
    """Return the tokens per second and device while nothing fails.

    trained: share of the weights that get a gradient; adapters leave out the products for the others.
    """
    law = law or published_law()
    parts = device_seconds(shape, machine, layout, precision, fused=fused, trained=trained, law=law)
    seconds = sum(parts.values())
    flops = shape.flops_per_token(layout.sequence) * (4 + 2 * trained) / 6
    known = machine.generation in law.device or machine.name in law.device
    spread = law.log_std_experts if shape.experts else law.log_std_dense
    spread = spread if known else math.hypot(spread, law.log_std_unknown)
    return Rate(
        tokens=Interval.log_normal(1 / seconds, spread),
        mfu=flops / seconds / machine.matrix_flops,
        parts={name: part / seconds for name, part in parts.items()},
    )


def device_seconds(
    shape: Shape,
    machine: Machine,
    layout: DeviceLayout,
    precision: str = "bf16",
    *,
    fused: bool = True,
    trained: float = 1.0,
    is_causal: bool = True,
    law: Law | None = None,
) -> dict[str, float]:
    """Seconds of one device for a token of training, by what they go into."""
    law = law or published_law()
    own = law.device.get(machine.name, law.device.get(machine.generation, 1.0))
    again = 4 / 3 if layout.recompute else 1.0
    share = (4 + 2 * trained) / 6 + (again - 1)  # of the three passes of a full step
    half = machine.matrix_flops * law.matmul_bf16 * own
    share_of_rate = {"bf16": law.matmul_bf16, "fp8": law.matmul_fp8, "fp4": law.matmul_fp4}[precision]
    special = 0.0 if precision == "bf16" else machine.flops.get(RATES[precision], 0.0)
    rate = (special * share_of_rate if special else machine.matrix_flops * law.matmul_bf16) * own
    experts = shape.moe_layers * shape.active_experts * shape.expert_parameters
    table = shape.vocab * shape.hidden
    dense = shape.matmul_parameters - table - experts
    width = shape.query_width + shape.heads * shape.rope_dim / 2
    attention = (6.0 if is_causal else 12.0) * shape.layers * width * layout.sequence * again
    elementwise = law.elementwise_fused if fused else law.elementwise_plain
    moved = elementwise * shape.layers * shape.hidden * again
    routed = law.routing * shape.moe_layers * shape.active_experts * shape.hidden
    work = {
        "matrix products": 6 * dense * share / rate + 6 * table * share / half,
        "experts": 6 * experts * share / (rate * law.experts),
        "attention": attention / (machine.matrix_flops * law.attention * own),
        "elementwise": (moved + routed) / (machine.bandwidth * own),
    }
    work["communication"] = _communication(shape, machine, layout, law)
    work["pipeline bubble"] = layout.bubble * sum(work.values())
    work["stragglers"] = law.stragglers * doublings(machine, layout) * sum(work.values())
    return {name: seconds for name, seconds in work.items() if seconds > 0}


def doublings(machine: Machine, layout: DeviceLayout) -> float:
    """How often the devices of one node have to be doubled."""
    return math.log2(max(1.0, layout.devices / min(machine.node, 8)))


def _communication(shape: Shape, machine: Machine, layout: DeviceLayout, law: Law) -> float:
    """Device-seconds a token that transfers take and computation does not hide."""
    link = machine.interconnect or PCIE
    network = machine.network or ETHERNET
    spans = layout.devices > machine.node
    weights = GATHERS * BYTES * shape.parameters / (layout.tensor * layout.pipeline)
    seconds = 0.0
    if layout.sharded and layout.data > 1:
        between = law.exposed_network / (network * min(machine.node, 8)) if spans else 0.0
        seconds += weights * (law.exposed_node / link + between) / layout.micro_batch_tokens
    elif layout.data > 1 and spans:
        of_step = layout.micro_batch_tokens * layout.micro_batches
        seconds += weights * law.exposed_node / network / of_step
    if layout.tensor > 1:
        moved = COLLECTIVES * BYTES * 2 * shape.layers * shape.hidden * (layout.tensor - 1)
        seconds += moved * law.exposed_tensor / (link if layout.tensor <= machine.node else network)
    if layout.expert > 1:
        moved = COLLECTIVES * BYTES * shape.moe_layers * shape.active_experts * shape.hidden
        outside = max(0.0, 1 - machine.node / layout.expert)
        seconds += moved * (law.all_to_all_node / link + outside * law.all_to_all_network / network)
    return seconds
