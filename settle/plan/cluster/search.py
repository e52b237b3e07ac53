"""Layouts of a run over its devices, searched and ranked by steady throughput among those that fit in memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from settle.base.errors import ResourceError
from settle.base.words.amounts import billions, device_gigabytes, millions
from settle.machine.described_machine import Machine
from settle.plan.cluster.shape import DeviceLayout, Shape
from settle.plan.cluster.throughput import Rate, steady_rate
from settle.plan.memory_model import Sizing, device_sizing

USABLE = 0.94  # of a device's memory: the rest goes to fragments of the allocator
MOST_ROWS, MOST_PIPELINE, MOST_TENSOR = 16, 64, 8
ROUNDING = 1.5  # of a batch to whole micro-batches
LONG = 32768  # tokens of a sequence from which it is split over devices
# Tokens of a batch by the weights of a model, as published runs chose them (GPT-3 and Llama papers).
BATCHES = ((0.5e9, 0.5e6), (3e9, 1e6), (20e9, 2e6), (100e9, 4e6), (math.inf, 16e6))


@dataclass(frozen=True)
class RankedLayout:
    layout: DeviceLayout
    rate: Rate
    memory: Sizing


def usual_batch(parameters: float) -> float:
    """Tokens of a global batch that runs of this size use."""
    return next(tokens for limit, tokens in BATCHES if parameters <= limit)


def best_layouts(
    shape: Shape,
    machine: Machine,
    batch_tokens: float,
    sequence: int = 4096,
    precision: str = "bf16",
    number: int = 3,
    grows: float = 4.0,
) -> list[RankedLayout]:
    """Return the fastest layouts that fit, one for each grouping of the devices.

    grows: what the batch may grow by so that every replica has a sequence. Raises ResourceError where none fits, saying
    how much memory the smallest one takes.
    """
    found: dict[tuple[int, ...], RankedLayout] = {}
    least = math.inf
    for layout in _layouts(shape, machine, batch_tokens, sequence):
        if layout.tokens_per_step > grows * batch_tokens * ROUNDING:
            continue
        memory = device_sizing(shape, layout)
        least = min(least, memory.total)
        if memory.total > USABLE * machine.memory:
            continue
        rate = steady_rate(shape, machine, layout, precision)
        groups = (layout.tensor, layout.pipeline, layout.context, layout.expert, int(layout.sharded))
        if groups not in found or rate.tokens.value > found[groups].rate.tokens.value:
            found[groups] = RankedLayout(layout, rate, memory)
    if not found and math.isinf(least):
        what = f"{machine.count:,} devices have no work in a batch of {millions(batch_tokens)} tokens"
        raise ResourceError(what, "take fewer devices, or a larger batch: --batch-tokens")
    if not found:
        what = f"training {billions(shape.parameters)} weights takes {device_gigabytes(least)} a device at least"
        fix = f"{machine.label}: a device holds {device_gigabytes(machine.memory)}; take more devices, or larger ones"
        raise ResourceError(what, fix)
    return sorted(found.values(), key=lambda c: -c.rate.tokens.value)[:number]


def _layouts(shape: Shape, machine: Machine, batch_tokens: float, sequence: int) -> Iterator[DeviceLayout]:
    devices = machine.count
    for tensor in _powers(min(MOST_TENSOR, machine.node, shape.kv_heads)):
        for context in _powers(max(1, sequence // LONG)):
            for pipeline in _powers(min(MOST_PIPELINE, shape.layers // 2)):
                replicas, rest = divmod(devices, tensor * context * pipeline)
                if rest or not replicas:
                    continue
                grouping = DeviceLayout(replicas, tensor, pipeline, context, sequence=sequence)
                yield from _batches(shape, grouping, batch_tokens)


def _batches(shape: Shape, grouping: DeviceLayout, batch_tokens: float) -> Iterator[DeviceLayout]:
    sequences = batch_tokens / grouping.sequence / grouping.data
    for rows in _powers(min(MOST_ROWS, max(1, int(sequences)))):
        micro = max(1, round(sequences / rows))
        for expert in _expert_groups(shape, grouping):
            for recompute in (False, True):
                layout = replace(
                    grouping, rows=rows, micro_batches=micro, expert=expert, recompute=recompute, sharded=False
                )
                chunks = _powers(max(1, shape.layers // grouping.pipeline // 2)) if grouping.pipeline > 1 else [1]
                for virtual in chunks:
                    yield replace(layout, virtual=min(virtual, 8))
                if grouping.pipeline == 1 and grouping.data > 1:
                    yield replace(layout, sharded=True)


def _expert_groups(shape: Shape, grouping: DeviceLayout) -> list[int]:
    if not shape.experts:
        return [1]
    most = min(shape.experts, grouping.data * grouping.context * grouping.tensor, 64)
    return [size for size in _powers(most) if shape.experts % size == 0]


def _powers(most: int) -> list[int]:
    return [2**i for i in range(max(1, most).bit_length())]
