"""Bytes of a model in memory, by what they are: while it is trained on one device or many, and while it answers.

One `Sizing` for all; each function says what a kind of program keeps. Formulas that several share are at the top.

Sources: Korthikanti et al., arXiv 2205.05198 (activations, 34 s b h of a layer, pipelines in flight); Rajbhandari et
al., arXiv 1910.02054 (shards of states); Dettmers et al., QLoRA (2023). What trainers of adapters keep follows
transformers and peft over bitsandbytes, torchtune and litgpt; bench/planning_tuning.py compares it with measured rows.

Legend: n tokens of a micro-batch on a device, w or h hidden size, f feed-forward size of a token (all experts that it
uses), t tensor group, p pipeline stages.
"""

from dataclasses import dataclass, replace
from typing import Literal

from settle.library.model_shape import ModelShape
from settle.machine import Machine
from settle.plan.cluster.throughput import GATED, PLAIN, DeviceLayout, Shape
from settle.plan.fit.weight_types import weight_bytes

HALF, FULL = 2.0, 4.0  # bytes of a number in bfloat16 and in float32
CONTEXT = 0.6e9  # of the driver and the libraries' workspaces (0.45 to 0.65 GB in runtime_overheads of the tables)


@dataclass(frozen=True)
class Sizing:
    """Bytes on one device, by what they are; where they come one after the other, `peak` says what counts."""

    weights: float = 0.0
    adapters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    copies: float = 0.0  # the best weights so far, and what a save writes
    cache: float = 0.0  # keys and values
    activations: float = 0.0  # kept until the backward pass reaches them
    working: float = 0.0  # of the layer that is computed just then
    logits: float = 0.0
    overhead: float = 0.0  # of the driver, the libraries and the runtime
    peak: Literal["sum", "tuning"] = "sum"
    fragments: float = 1.0  # bytes that the allocator reserves ÷ those of tensors

    @property
    def states(self) -> float:
        """What lies there for as long as the model does."""
        return self.weights + self.adapters + self.gradients + self.optimizer + self.copies

    @property
    def tensors(self) -> float:
        """Bytes of tensors at the peak.

        In tuning the logits come first, then one layer after the other, and the gradients of all weights last.
        """
        if self.peak == "sum":
            return self.states + self.cache + self.activations + (self.working + self.logits)
        kept = self.weights + self.adapters + self.optimizer
        return kept + max(self.activations + max(self.working, self.logits), self.gradients)

    @property
    def total(self) -> float:
        return self.fragments * self.tensors + self.overhead


# --- formulas that several share ---


@dataclass(frozen=True)
class Precision:
    """Bytes of a weight, of its gradient, of what the optimizer keeps for it, and of copies of it."""

    weight: float = HALF
    gradient: float = FULL
    optimizer: float = 12.0  # a master weight and two moments
    copies: float = 0.0

    def of(self, numbers: float) -> Sizing:
        """Return the states of so many trained weights."""
        each = self.weight, self.gradient, self.optimizer, self.copies
        weights, gradients, optimizer, copies = (numbers * size for size in each)
        return Sizing(weights=weights, gradients=gradients, optimizer=optimizer, copies=copies)


MIXED = Precision()


def kept_activations(layers: float, of_layer: float, of_input: float, recompute: bool) -> tuple[float, float]:
    """Return the bytes that layers keep for the backward pass, and those of the layer that is computed again just then.

    of_layer: what a layer keeps; of_input: its input, which alone is kept where layers are recomputed.
    """
    return (layers * of_input, of_layer) if recompute else (layers * of_layer, 0.0)


# --- training from scratch on a cluster ---

LOGITS = HALF + FULL  # bytes of a logit: as computed, and in float32 for the loss
# Tokens on the fullest expert's device over the mean: 1.9 on Mixtral 8x7B from scratch, 1.2 on 8x22B fine-tuned, by
# what their peaks exceed the first step's.
IMBALANCE = 1.5
BUFFERS = 1.2e9  # NCCL's, where devices communicate


def device_sizing(
    shape: Shape,
    layout: DeviceLayout,
    precision: Precision = MIXED,
    *,
    dropout: bool = False,
    flash: bool = True,
    positions: int = 0,
) -> Sizing:
    """Size the fullest of the first and the last pipeline stage in training with shards.

    positions: learned ones, where the model has a table. Attention never holds its scores, as in FlashAttention, unless
    `flash` is false.
    """
    ends = {0, layout.pipeline - 1}
    stages = (stage_sizing(shape, layout, precision, stage, dropout, flash, positions) for stage in ends)
    return max(stages, key=lambda sizing: sizing.total)


def stage_sizing(
    shape: Shape, layout: DeviceLayout, precision: Precision, stage: int, dropout: bool, flash: bool, positions: int
) -> Sizing:
    """Size a device of one pipeline stage, 0 the first."""
    of_layer = layer_activations(shape, layout, dropout=dropout, flash=flash)
    split = layout.tensor if layout.sequence_parallel else 1
    of_input = HALF * layout.micro_batch_tokens * shape.hidden / split
    in_flight = _in_flight(layout, stage) * (shape.layers / layout.pipeline)
    kept, working = kept_activations(in_flight, of_layer, of_input, layout.recompute)
    last = stage == layout.pipeline - 1
    return replace(
        _stage_states(shape, layout, precision, stage, positions),
        activations=kept + working,
        logits=LOGITS * layout.micro_batch_tokens * shape.vocab / layout.tensor if last else 0.0,
        overhead=CONTEXT + (BUFFERS if layout.devices > 1 else 0.0),
    )


def _stage_states(shape: Shape, layout: DeviceLayout, precision: Precision, stage: int, positions: int) -> Sizing:
    dense, experts = _stage_parameters(shape, layout, stage, positions)
    held, replicas = dense + experts, layout.data * layout.context
    if layout.sharded:
        layer = shape.block_parameters() / shape.layers / layout.tensor / max(1, layout.expert)
        gathered = 2 * max(layer, shape.vocab * shape.hidden / layout.tensor)
        return Sizing(
            weights=precision.weight * (held / replicas + gathered),
            gradients=precision.gradient * (held / replicas) + precision.weight * gathered / 2,
            optimizer=precision.optimizer * held / replicas,
        )
    spread = layout.optimizer_sharded
    of_optimizer = dense / (replicas if spread else 1) + experts / (layout.expert_replicas if spread else 1)
    return replace(precision.of(held), optimizer=precision.optimizer * of_optimizer)


def _stage_parameters(shape: Shape, layout: DeviceLayout, stage: int, positions: int) -> tuple[float, float]:
    """Return the weights of a device that are the same on all replicas, and those of its experts."""
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


def layer_activations(shape: Shape, layout: DeviceLayout, *, dropout: bool = False, flash: bool = True) -> float:
    """Return the bytes that a layer keeps of one micro-batch for its backward pass, on one device.

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
        crowded = IMBALANCE * share * shape.active_experts * of_expert
        feed += crowded * layout.expert_tensor / max(split_tokens, layout.expert_tensor)
    return tokens * (whole + split + feed)


def _in_flight(layout: DeviceLayout, stage: int) -> float:
    """Return the micro-batches whose activations a stage holds at once: 1F1B, and what interleaved chunks add."""
    waiting = float(layout.pipeline - stage)
    if layout.virtual > 1 and layout.pipeline > 1:
        waiting += (layout.pipeline - 1) / layout.virtual
    return min(float(layout.micro_batches), waiting) if layout.pipeline > 1 else 1.0


# --- tuning with the usual trainers ---

NF4 = 0.5 + 0.127 / 8  # bytes of a weight, doubly quantized. Source: Dettmers et al., QLoRA (2023)
INT8 = 1.0 + 4 / 4096
# Bytes that a unit of a norm keeps: RMSNorm its input and what is scaled in float32, and the result; LayerNorm, which
# plain feed-forwards go with, its input and the result.
NORM, LAYER_NORM = 10.0, 4.0
CHUNKS = 8  # of a loss that is computed in pieces
LOGIT = HALF + FULL + FULL  # bytes: as computed, in float32, and its gradient
STATE = {"adamw": 2.0, "adamw-8bit": 1.0, "sgd": 0.0}  # numbers of a weight's own size, and bytes where 8-bit
FRAGMENTS = 1.04  # of the allocator: reserved over allocated
EXPERT_LORA_LAYERS = 3


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned elsewhere."""

    method: Literal["full", "lora"] = "lora"  # every weight, or adapters over a frozen base
    bits: int = 16  # of the base's block weights
    rank: int = 16  # of adapters
    rows: int = 1  # of a micro-batch
    sequence: int = 2048  # tokens of a row
    filled: float = 1.0  # share of a micro-batch's places in use
    recompute: bool = True  # activation checkpointing
    optimizer: Literal["adamw", "adamw-8bit", "sgd"] = "adamw"
    chunked_loss: bool = False  # logits are never whole
    experts: bool = False  # adapters on experts too
    attention_only: bool = False  # adapters on queries and values alone
    devices: int = 1  # that shards lie on (FSDP, ZeRO-3)
    adapter_bytes: float = FULL  # of a weight of an adapter
    compiled: bool = False  # fused kernels keep a norm's input alone
    keeps_inputs: bool = True  # adapters that multiply what a layer receives, as LoRA does, keep it
    upcast: bool = True  # tables and norms of a quantized base lie in float32, as peft prepares it
    quantized_experts: bool = True

    @property
    def tokens(self) -> float:
        return self.rows * self.sequence * self.filled


def tuning_sizing(shape: ModelShape, tuning: Tuning) -> Sizing:
    """Size one device in a step after the first, when the optimizer's state is there."""
    number = adapter_parameters(shape, tuning) if tuning.method == "lora" else 0.0
    weights = base_bytes(shape, tuning) / tuning.devices
    if tuning.method == "full" and tuning.devices > 1:  # accelerate keeps shards of trained weights in float32
        weights *= FULL / HALF
    trained = number if tuning.method == "lora" else float(shape.parameters)
    size = tuning.adapter_bytes if tuning.method == "lora" else FULL if tuning.devices > 1 else HALF
    states = STATE[tuning.optimizer] * (1.0 * 2 if tuning.optimizer == "adamw-8bit" else size)
    gathered = 2 * HALF * max(shape.parameters / shape.layers, shape.table) if tuning.devices > 1 else 0.0
    largest_matrix = float(shape.width * max(shape.inner, shape.heads * shape.head_dim))
    unpacked = HALF * largest_matrix if tuning.bits < 16 else 0.0
    kept, working = kept_activations(
        shape.layers, layer_bytes(shape, tuning), HALF * shape.width, recompute=tuning.recompute
    )
    return Sizing(
        weights=weights + gathered + unpacked,
        adapters=number * tuning.adapter_bytes / tuning.devices,
        gradients=trained * size / tuning.devices,
        optimizer=trained * states / tuning.devices,
        activations=kept * tuning.tokens,
        working=working * tuning.tokens,
        logits=LOGIT * tuning.tokens * shape.vocab / (CHUNKS if tuning.chunked_loss else 1),
        overhead=CONTEXT,
        peak="tuning",
        fragments=FRAGMENTS,
    )


def base_bytes(shape: ModelShape, tuning: Tuning) -> float:
    """Return the bytes of the base in memory: embeddings and output stay in half precision whatever the bits are."""
    if tuning.bits >= 16:
        return HALF * shape.parameters
    tables = shape.table * (1 if shape.tied else 2) + shape.lookup
    each = {8: INT8, 4: NF4}[tuning.bits]
    experts = 0.0
    if shape.is_mixture and not tuning.quantized_experts:
        experts = float(min(shape.parameters - tables, shape.parameters - shape.beside_experts))
    of_tables = (FULL if tuning.upcast else HALF) * tables
    return of_tables + HALF * experts + each * max(0.0, shape.parameters - tables - experts)


def adapter_parameters(shape: ModelShape, tuning: Tuning) -> float:
    """Return the numbers of LoRA: rank x (inputs + outputs) of every adapted matrix."""
    w, q, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if tuning.attention_only:
        return tuning.rank * shape.layers * (w + q + w + kv)
    attention = (w + q) + 2 * (w + kv) + (q + w)
    feed = float(EXPERT_LORA_LAYERS * (w + shape.inner))
    feed *= shape.experts if shape.is_mixture and tuning.experts else float(not shape.is_mixture)
    return tuning.rank * shape.layers * (attention + feed)


def layer_bytes(shape: ModelShape, tuning: Tuning) -> float:
    """Return the bytes that one layer keeps of a token for its backward pass."""
    w, q, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    f, is_gated = _feed_forward(shape)
    norms = 2 * (NORM if is_gated and not tuning.compiled else LAYER_NORM) * w
    kept = norms + HALF * (2 * q + 2 * kv) + (3 if is_gated else 1) * HALF * f
    if tuning.method == "full":
        return kept + HALF * (2 * w + f)
    if not tuning.keeps_inputs:
        return kept
    inputs = 2 * w if tuning.attention_only else 5 * w + q + (0 if shape.is_mixture else f)
    return kept + tuning.adapter_bytes * inputs


def _feed_forward(shape: ModelShape) -> tuple[float, bool]:
    """Return the units that a token passes in a layer, and whether they are gated, by the weights left for them."""
    w = shape.width
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tables = shape.table * (1 if shape.tied else 2) + shape.lookup
    left = (shape.active - min(tables, shape.active)) / shape.layers - w * (2 * q + 2 * kv)
    if shape.is_mixture:
        return float(shape.inner * shape.experts_used), True
    if not shape.inner:
        return max(0.0, left / (3 * w)), True
    return float(shape.inner), left / (w * shape.inner) > 2.4


def training_shape(shape: ModelShape) -> Shape:
    """Return the model in the numbers that training's throughput is counted with."""
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


# --- a model that answers ---

MIB, GIB = 2**20, 2**30
# What the runtime takes on the device beside weights, cache and work space: the driver's context and its kernels.
# llama.cpp's --fit leaves 1024 MiB free on a device; Ollama's Metal minimum is 512 MiB, its CUDA one 457 MiB.
RUNTIME = {"cuda": 560 * MIB, "rocm": 700 * MIB, "xpu": 700 * MIB, "mps": 400 * MIB, "cpu": 57 * MIB}
VOCABULARY = 210.0  # bytes of the process for each token of the vocabulary; measured on the processor, two models
REPACKED = ("q4_0", "iq4_nl")  # types whose matrices llama.cpp copies for the processor, beside the mapped file
MARGIN = 0.03  # of the device's memory that stays free: fragments, and what else draws the screen
BATCH = 512  # tokens that llama.cpp computes at once
# Metal's recommendedMaxWorkingSetSize by memory, where it cannot be queried: up to 32 GB, up to 96 GB, beyond; read
# from llama.cpp logs (2023 to 2026), the lower value where they differ.
APPLE_SHARE = ((32, 0.667), (96, 0.75), (10**6, 0.80))
SYSTEM = 1.5 * GIB  # what a system of its own keeps where memory is shared and nothing was measured


@dataclass(frozen=True)
class Fit:
    """How a model fits on the devices of a machine, all together."""

    need: Sizing
    room: float  # bytes
    share: float  # of the layers that lie on the device, 1 where all do

    @property
    def fits(self) -> bool:
        return self.need.total <= self.room


def served(shape: ModelShape, weights: float, context: int, kind: str = "cpu", element: float = 2.0) -> Sizing:
    """Size a model that has loaded `weights` bytes and keeps one text of `context` tokens.

    element: bytes of a cached number.
    """
    runtime = float(RUNTIME.get(kind, RUNTIME["cuda"])) + VOCABULARY * shape.vocab
    return Sizing(weights=weights, cache=shape.kv_bytes(context, element), overhead=runtime)


def need(
    shape: ModelShape, type_name: str, machine: Machine, context: int, texts: int = 1, cache_element: float = 2.0,
    batch: int = BATCH, weights: float | None = None,
) -> Sizing:  # fmt: skip
    """Size a model over all devices of a machine, with room for `texts` texts of `context` tokens.

    weights: bytes of the file where there is one.
    """
    devices = max(1, machine.count)
    weights = weight_bytes(shape, type_name) + 2.0 * shape.towers if weights is None else weights
    if machine.kind == "cpu" and type_name in REPACKED:
        weights += weights - shape.table * weights / shape.parameters
    tokens = min(batch, context)
    # the widest intermediate of a layer, in float32, twice; and logits: a device reserves those of a whole batch, and
    # the processor touches only those of the last token of each text
    widest = max(shape.width * 2, shape.inner * max(1, shape.experts_used), shape.heads * shape.head_dim)
    one = served(shape, weights, context, machine.kind, cache_element)
    return replace(
        one,
        cache=texts * one.cache,
        working=2 * 4.0 * tokens * widest * devices,
        logits=4.0 * shape.vocab * (texts if machine.kind == "cpu" else tokens) * devices,
        overhead=float(RUNTIME.get(machine.kind, RUNTIME["cuda"])) * devices + VOCABULARY * shape.vocab,
    )


def room(machine: Machine) -> float:
    """Return the bytes that a model may take on all devices: without what the system keeps, and what is taken."""
    if machine.measured:
        free = machine.memory if machine.free is None else machine.free
        return min(machine.memory, free) * (1 - MARGIN)
    if machine.kind == "mps":
        share = next(share for limit, share in APPLE_SHARE if machine.memory <= limit * GIB)
        return machine.memory * share
    if machine.is_unified:
        return max(0.0, machine.memory - SYSTEM) * (1 - MARGIN)
    return machine.memory * (1 - MARGIN) * machine.count


def fit(
    shape: ModelShape, type_name: str, machine: Machine, context: int, texts: int = 1, cache_element: float = 2.0,
    weights: float | None = None, beside: float = 0.0,
) -> Fit:  # fmt: skip
    """Return whether a model fits, and how much of it does.

    On a card of its own memory the other layers go to the processor. beside: bytes of a draft that lies there too.
    """
    needed, there = need(shape, type_name, machine, context, texts, cache_element, BATCH, weights), room(machine)
    needed = replace(needed, working=needed.working + beside)
    fixed = needed.working + needed.logits, needed.overhead
    movable = needed.weights + needed.cache  # what may also lie in the processor's memory
    share = max(0.0, min(1.0, (there - fixed[0] - fixed[1]) / movable))
    return Fit(needed, there, share)


def longest_context(shape: ModelShape, type_name: str, machine: Machine) -> int:
    """Return the tokens of one text that fit beside the weights, in steps of 1,024; 0 when not even those do."""
    low, high = 0, shape.context // 1024
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fit(shape, type_name, machine, middle * 1024).fits else (low, middle - 1)
    return low * 1024
