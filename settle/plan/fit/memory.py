"""What a model takes in memory while it answers: weights, cache, work space, the runtime, and what is left for it."""

from dataclasses import dataclass, replace

from settle.library.model_shape import ModelShape
from settle.machine import Machine
from settle.plan.fit.weight_types import weight_bytes

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
class Need:
    """Bytes by cause, over all devices of the machine."""

    weights: float
    cache: float
    work: float
    runtime: float

    @property
    def movable(self) -> float:
        """What may also lie in the processor's memory."""
        return self.weights + self.cache

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.work + self.runtime


@dataclass(frozen=True)
class Fit:
    """need, room: bytes. share: of the layers that lie on the device, 1 where all do. fits: whether all do."""

    need: Need
    room: float
    share: float

    @property
    def fits(self) -> bool:
        return self.need.total <= self.room


def need(
    shape: ModelShape, type_name: str, machine: Machine, context: int, texts: int = 1, cache_element: float = 2.0,
    batch: int = BATCH, weights: float | None = None,
) -> Need:  # fmt: skip
    """What a model takes with room for `texts` texts of `context` tokens. cache_element: bytes of a cached number.
    weights: bytes of the file where there is one."""
    devices = max(1, machine.count)
    weights = weight_bytes(shape, type_name) + 2.0 * shape.towers if weights is None else weights
    if machine.kind == "cpu" and type_name in REPACKED:
        weights += weights - shape.table * weights / shape.parameters
    tokens = min(batch, context)
    # the widest intermediate of a layer, in float32, twice; and logits: a device reserves those of a whole batch, and
    # the processor touches only those of the last token of each text
    widest = max(shape.width * 2, shape.inner * max(1, shape.experts_used), shape.heads * shape.head_dim)
    wide = 2 * 4.0 * tokens * widest
    logits = 4.0 * shape.vocab * (texts if machine.kind == "cpu" else tokens)
    return Need(
        weights=weights,
        cache=texts * shape.kv_bytes(context, cache_element),
        work=(wide + logits) * devices,
        runtime=float(RUNTIME.get(machine.kind, RUNTIME["cuda"])) * devices + VOCABULARY * shape.vocab,
    )


def room(machine: Machine) -> float:
    """Bytes that a model may take on all devices: without what the system keeps, and what is taken already."""
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
    """Whether it fits, and how much of it does: on a card of its own memory the other layers go to the processor.
    beside: bytes of a draft that lies there too."""
    needed, there = need(shape, type_name, machine, context, texts, cache_element, BATCH, weights), room(machine)
    needed = replace(needed, work=needed.work + beside)
    share = max(0.0, min(1.0, (there - needed.work - needed.runtime) / needed.movable))
    return Fit(needed, there, share)


def longest_context(shape: ModelShape, type_name: str, machine: Machine) -> int:
    """Tokens of one text that fit beside the weights, in steps of 1,024; 0 when not even those do."""
    low, high = 0, shape.context // 1024
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fit(shape, type_name, machine, middle * 1024).fits else (low, middle - 1)
    return low * 1024
