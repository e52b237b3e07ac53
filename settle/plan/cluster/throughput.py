"""Training throughput of a steady run: device-seconds a token from what the shape, the device and the layout say.

A step is split into what bounds it: products of matrices at a share of the data sheet's rate, attention, the
elementwise work between them at the memory's rate, and the communication that nothing hides. The few shares are fitted
on published tables (law.toml; bench/planning_training.py fits and judges them with whole configurations held out).
"""

import functools
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from settle.base.statistics import Interval
from settle.machine.described_machine import Machine
from settle.plan.cluster.shape import DeviceLayout, Shape

PCIE = 25e9  # bytes per second to the next device where there is no faster link
ETHERNET = 1.25e9  # between machines without a named network: 10 Gb/s
RATES = {"bf16": "bfloat16", "fp8": "float8", "fp4": "float4"}
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
    """Return the constants that come with settle."""
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
    rate = _matmul_rate(machine, precision, law) * own
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


def _matmul_rate(machine: Machine, precision: str, law: Law) -> float:
    """Operations per second of products in this number format; bfloat16's where the device has no faster one."""
    share = {"bf16": law.matmul_bf16, "fp8": law.matmul_fp8, "fp4": law.matmul_fp4}[precision]
    own = machine.flops.get(RATES[precision])
    return own * share if own and precision != "bf16" else machine.matrix_flops * law.matmul_bf16


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
