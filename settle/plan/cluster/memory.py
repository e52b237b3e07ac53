"""Memory of a device in training with shards: weights, gradients and optimizer, activations in flight, logits.

Sources: Korthikanti et al., arXiv 2205.05198 (activations, 34 s b h of a layer, pipelines in flight); Rajbhandari et
al., arXiv 1910.02054 (shards of states). Attention never holds its scores, as in FlashAttention, unless told so.

Legend: n tokens of a micro-batch on a device, h hidden size, t tensor group, p pipeline stages.
"""

from dataclasses import dataclass

from settle.plan.cluster.layout import Layout
from settle.plan.cluster.shape import GATED, Shape

HALF, FULL = 2, 4  # bytes of a number in bfloat16 and in float32
LOGITS = HALF + FULL  # bytes of a logit: as computed, and in float32 for the loss
# What the device holds beside tensors: the driver's context and the libraries' workspaces (0.45 to 0.65 GB in
# runtime_overheads of the tables); NCCL's buffers come on top where devices communicate.
CONTEXT = 0.6e9
# Tokens on the fullest expert's device over the mean: 1.9 on Mixtral 8x7B from scratch, 1.2 on 8x22B fine-tuned, by
# what their peaks exceed the first step's.
IMBALANCE = 1.5
BUFFERS = 1.2e9


@dataclass(frozen=True)
class Precision:
    """Bytes of a weight, of its gradient, and of what the optimizer keeps (master weight and two moments)."""

    weight: float = HALF
    gradient: float = FULL
    optimizer: float = 12.0


MIXED = Precision()


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of tensors on the fullest device, by what they are; overhead: of the driver and the libraries beside."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    overhead: float

    @property
    def tensors(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def total(self) -> float:
        return self.tensors + self.overhead


def device_memory(
    shape: Shape,
    layout: Layout,
    precision: Precision = MIXED,
    *,
    dropout: bool = False,
    flash: bool = True,
    positions: int = 0,
) -> DeviceMemory:
    """The fullest of the first and the last pipeline stage. positions: learned ones, where the model has a table."""
    stages = (
        stage_memory(shape, layout, precision, stage, dropout, flash, positions) for stage in {0, layout.pipeline - 1}
    )
    return max(stages, key=lambda memory: memory.total)


def stage_memory(
    shape: Shape, layout: Layout, precision: Precision, stage: int, dropout: bool, flash: bool, positions: int
) -> DeviceMemory:
    """Of a device of one pipeline stage, 0 the first."""
    dense, experts = _stage_parameters(shape, layout, stage, positions)
    held = dense + experts
    if layout.sharded:
        shards = layout.data * layout.context
        gathered = 2 * max(_layer_parameters(shape, layout), shape.vocab * shape.hidden / layout.tensor)
        weights = precision.weight * (held / shards + gathered)
        gradients = precision.gradient * (held / shards) + precision.weight * gathered / 2
        optimizer = precision.optimizer * held / shards
    else:
        weights, gradients = precision.weight * held, precision.gradient * held
        spread = layout.optimizer_sharded
        replicas = layout.data * layout.context
        optimizer = precision.optimizer * (
            dense / (replicas if spread else 1) + experts / (layout.expert_replicas if spread else 1)
        )
    of_layer = layer_activations(shape, layout, dropout=dropout, flash=flash)
    tokens = layout.micro_batch_tokens
    layers = shape.layers / layout.pipeline
    in_flight = _in_flight(layout, stage)
    if layout.recompute:
        split = layout.tensor if layout.sequence_parallel else 1
        kept = HALF * tokens * shape.hidden / split
        activations = in_flight * layers * kept + of_layer
    else:
        activations = in_flight * layers * of_layer
    last = stage == layout.pipeline - 1
    logits = LOGITS * tokens * shape.vocab / layout.tensor if last else 0.0
    overhead = CONTEXT + (BUFFERS if layout.devices > 1 else 0.0)
    return DeviceMemory(weights, gradients, optimizer, activations, logits, overhead)


def _stage_parameters(shape: Shape, layout: Layout, stage: int, positions: int) -> tuple[float, float]:
    """Weights of a device that are the same on all replicas, and those of its experts."""
    layers = shape.layers / layout.pipeline
    share = shape.moe_layers / shape.layers
    of_layer = float(shape.attention_parameters) + (1 - share) * shape.ffn_matrices * shape.hidden * shape.ffn
    of_layer += share * shape.shared_experts * shape.expert_parameters
    dense = layers * of_layer / layout.tensor
    dense += layers * share * float(shape.hidden * shape.experts)  # routers, which every device holds whole
    tables = int(stage == 0) + int(stage == layout.pipeline - 1 and not (shape.tied and layout.pipeline == 1))
    dense += tables * shape.vocab * shape.hidden / layout.tensor
    dense += float(positions * shape.hidden) if stage == 0 else 0.0
    experts = layers * share * shape.experts * shape.expert_parameters / (layout.expert * layout.expert_tensor)
    return dense, experts


def _layer_parameters(shape: Shape, layout: Layout) -> float:
    return shape.block_parameters() / shape.layers / layout.tensor / max(1, layout.expert)


def layer_activations(shape: Shape, layout: Layout, *, dropout: bool = False, flash: bool = True) -> float:
    """Bytes that a layer keeps of one micro-batch for its backward pass, on one device.

    Whole on every device of a tensor group unless the sequence is split: both norms' inputs and outputs (8 h) and
    dropout masks (2 h). Split by heads: queries, keys, values and the context. Split by units: what enters the
    activation function and what leaves it.
    """
    tokens, h = layout.micro_batch_tokens, shape.hidden
    whole = (8.0 + (2.0 if dropout else 0.0)) * h / (layout.tensor if layout.sequence_parallel else 1)
    rope = shape.heads * shape.rope_dim
    if shape.kv_rank:  # keys and values unfolded for every head, and the latent ones
        kept = HALF * (4 * shape.query_width + 3 * rope) + HALF * (shape.query_rank + shape.kv_rank + shape.rope_dim)
    else:
        kept = HALF * (2 * shape.query_width + 2 * shape.kv_width)
    split = kept / layout.tensor
    if not flash:
        split += (5.0 if dropout else 4.0) * shape.heads * layout.sequence / layout.tensor
    per_unit = GATED if shape.ffn_matrices == GATED else 2
    dense_share = 1 - shape.moe_layers / shape.layers
    feed = dense_share * HALF * per_unit * shape.ffn / layout.tensor
    share = shape.moe_layers / shape.layers
    if share:
        feed += share * HALF * per_unit * shape.shared_experts * shape.expert_ffn / layout.tensor
        of_expert = HALF * (h + per_unit * shape.expert_ffn / layout.expert_tensor + h)
        split_tokens = layout.tensor if layout.sequence_parallel else 1  # each device routes its part of the sequence
        feed += (
            IMBALANCE
            * share
            * shape.active_experts
            * of_expert
            * layout.expert_tensor
            / max(split_tokens, layout.expert_tensor)
        )
    return tokens * (whole + split + feed)


def _in_flight(layout: Layout, stage: int) -> float:
    """Micro-batches whose activations a stage holds at once: 1F1B, and what interleaved chunks add at the first."""
    waiting = float(layout.pipeline - stage)
    if layout.virtual > 1 and layout.pipeline > 1:
        waiting += (layout.pipeline - 1) / layout.virtual
    return min(float(layout.micro_batches), waiting) if layout.pipeline > 1 else 1.0
