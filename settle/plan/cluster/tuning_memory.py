"""Memory of one device while a model is tuned: base weights by type, adapters, optimizer, activations, logits.

The terms follow what the usual trainers keep (transformers and peft over bitsandbytes, torchtune, litgpt): norms in
float32, a frozen base whose linear layers keep no input, adapters and their inputs beside, logits in bfloat16, in
float32 and as a gradient unless the loss is computed in chunks. bench/planning_tuning.py compares them with measured
rows.

Legend: w hidden size, f feed-forward size of a token (all experts that it uses), n tokens of a micro-batch.
"""

from dataclasses import dataclass
from typing import Literal

from settle.library.model_shape import ModelShape
from settle.plan.cluster.shape import GATED, PLAIN, Shape

HALF, FULL = 2.0, 4.0
NF4 = 0.5 + 0.127 / 8  # bytes of a weight, doubly quantized. Source: Dettmers et al., QLoRA (2023)
INT8 = 1.0 + 4 / 4096
# Bytes that a unit of a norm keeps: RMSNorm its input and what is scaled in float32, and the result; LayerNorm, which
# plain feed-forwards go with, its input and the result.
NORM, LAYER_NORM = 10.0, 4.0
CHUNKS = 8  # of a loss that is computed in pieces
LOGIT = HALF + FULL + FULL  # bytes: as computed, in float32, and its gradient
STATE = {"adamw": 2.0, "adamw-8bit": 1.0, "sgd": 0.0}  # numbers of a weight's own size, and bytes where 8-bit
CONTEXT = 0.6e9  # of the driver and the libraries
FRAGMENTS = 1.04  # of the allocator: reserved over allocated
EXPERT_LORA_LAYERS = 3


@dataclass(frozen=True)
class Tuning:
    """method: every weight, or adapters over a frozen base. bits: of the base's block weights. rank: of adapters.
    rows, sequence: of a micro-batch, with `filled` of its places in use. recompute: activation checkpointing.
    chunked_loss: logits are never whole. experts: adapters on experts too. attention_only: adapters on queries and
    values alone. devices: that shards lie on (FSDP, ZeRO-3). adapter_bytes: of a weight of an adapter. compiled: fused
    kernels keep a norm's input alone. keeps_inputs: adapters that multiply what a layer receives, as LoRA does, keep
    it. upcast: tables and norms of a quantized base lie in float32, as peft prepares it."""

    method: Literal["full", "lora"] = "lora"
    bits: int = 16
    rank: int = 16
    rows: int = 1
    sequence: int = 2048
    filled: float = 1.0
    recompute: bool = True
    optimizer: Literal["adamw", "adamw-8bit", "sgd"] = "adamw"
    chunked_loss: bool = False
    experts: bool = False
    attention_only: bool = False
    devices: int = 1
    adapter_bytes: float = FULL
    compiled: bool = False
    keeps_inputs: bool = True
    upcast: bool = True
    quantized_experts: bool = True

    @property
    def tokens(self) -> float:
        return self.rows * self.sequence * self.filled


@dataclass(frozen=True)
class TuningMemory:
    """Bytes of one device, by what they are. activations: kept until the backward pass reaches them; working: of the
    layer that is computed again just then."""

    weights: float
    adapters: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    logits: float
    overhead: float = CONTEXT

    @property
    def tensors(self) -> float:
        """At the peak: the logits come first, then one layer after the other, and the gradients of all weights last."""
        kept = self.weights + self.adapters + self.optimizer
        return kept + max(self.activations + max(self.working, self.logits), self.gradients)

    @property
    def total(self) -> float:
        return FRAGMENTS * self.tensors + self.overhead


def tuning_memory(shape: ModelShape, tuning: Tuning) -> TuningMemory:
    """Of a step after the first, when the optimizer's state is there."""
    number = adapter_parameters(shape, tuning) if tuning.method == "lora" else 0.0
    weights = base_bytes(shape, tuning) / tuning.devices
    if tuning.method == "full" and tuning.devices > 1:  # accelerate keeps shards of trained weights in float32
        weights *= FULL / HALF
    trained = number if tuning.method == "lora" else float(shape.parameters)
    size = tuning.adapter_bytes if tuning.method == "lora" else FULL if tuning.devices > 1 else HALF
    states = STATE[tuning.optimizer] * (1.0 * 2 if tuning.optimizer == "adamw-8bit" else size)
    of_layer = layer_bytes(shape, tuning)
    kept = HALF * shape.width if tuning.recompute else of_layer
    table = shape.table
    gathered = 2 * HALF * max(shape.parameters / shape.layers, table) if tuning.devices > 1 else 0.0
    unpacked = HALF * _largest_matrix(shape) if tuning.bits < 16 else 0.0
    return TuningMemory(
        weights=weights + gathered + unpacked,
        adapters=number * tuning.adapter_bytes / tuning.devices,
        gradients=trained * size / tuning.devices,
        optimizer=trained * states / tuning.devices,
        activations=shape.layers * kept * tuning.tokens,
        working=of_layer * tuning.tokens if tuning.recompute else 0.0,
        logits=LOGIT * tuning.tokens * shape.vocab / (CHUNKS if tuning.chunked_loss else 1),
    )


def base_bytes(shape: ModelShape, tuning: Tuning) -> float:
    """Of the base as it lies in memory: embeddings and output stay in half precision whatever the bits are."""
    if tuning.bits >= 16:
        return HALF * shape.parameters
    tables = shape.table * (1 if shape.tied else 2) + shape.lookup
    each = {8: INT8, 4: NF4}[tuning.bits]
    experts = 0.0
    if shape.is_mixture and not tuning.quantized_experts:
        experts = float(min(shape.parameters - tables, shape.parameters - shape.beside_experts))
    return (
        (FULL if tuning.upcast else HALF) * tables
        + HALF * experts
        + each * max(0.0, shape.parameters - tables - experts)
    )


def adapter_parameters(shape: ModelShape, tuning: Tuning) -> float:
    """Of LoRA: rank x (inputs + outputs) of every adapted matrix."""
    w, q, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if tuning.attention_only:
        return tuning.rank * shape.layers * (w + q + w + kv)
    attention = (w + q) + 2 * (w + kv) + (q + w)
    feed = float(EXPERT_LORA_LAYERS * (w + shape.inner))
    feed *= shape.experts if shape.is_mixture and tuning.experts else float(not shape.is_mixture)
    return tuning.rank * shape.layers * (attention + feed)


def layer_bytes(shape: ModelShape, tuning: Tuning) -> float:
    """Bytes that one layer keeps of a token for its backward pass."""
    w, q, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    f, is_gated = _feed_forward(shape)
    kept = (
        2 * (NORM if is_gated and not tuning.compiled else LAYER_NORM) * w
        + HALF * (2 * q + 2 * kv)
        + (3 if is_gated else 1) * HALF * f
    )
    if tuning.method == "full":
        return kept + HALF * (2 * w + f)
    if not tuning.keeps_inputs:
        return kept
    inputs = 2 * w if tuning.attention_only else 5 * w + q + (0 if shape.is_mixture else f)
    return kept + tuning.adapter_bytes * inputs


def _feed_forward(shape: ModelShape) -> tuple[float, bool]:
    """Units that a token passes in a layer, and whether they are gated, by the weights that are left for them."""
    w = shape.width
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tables = shape.table * (1 if shape.tied else 2) + shape.lookup
    left = (shape.active - min(tables, shape.active)) / shape.layers - w * (2 * q + 2 * kv)
    if shape.is_mixture:
        return float(shape.inner * shape.experts_used), True
    if not shape.inner:
        return max(0.0, left / (3 * w)), True
    return float(shape.inner), left / (w * shape.inner) > 2.4


def _largest_matrix(shape: ModelShape) -> float:
    return float(shape.width * max(shape.inner, shape.heads * shape.head_dim))


def training_shape(shape: ModelShape) -> Shape:
    """The same model in the numbers that training's throughput is counted with."""
    units, is_gated = _feed_forward(shape)
    return Shape(
        layers=shape.layers,
        hidden=shape.width,
        ffn=0 if shape.is_mixture else round(units),
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        vocab=shape.vocab,
        head_dim=shape.head_dim,
        tied=shape.tied,
        ffn_matrices=GATED if is_gated else PLAIN,
        experts=shape.experts if shape.is_mixture else 0,
        active_experts=shape.experts_used if shape.is_mixture else 0,
        expert_ffn=shape.inner if shape.is_mixture else 0,
    )
