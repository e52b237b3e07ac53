"""Forecasts of training on many devices, against numbers worked out by hand and against published runs."""

import math
from dataclasses import replace

import pytest

from settle.base.errors import ResourceError, UsageError
from settle.machine.described_machine import described
from settle.plan.cluster import throughput
from settle.plan.cluster.throughput import (
    DeviceLayout,
    Shape,
    device_seconds,
    published_law,
    shape_of_size,
    shape_with_experts,
    steady_rate,
)
from settle.plan.cluster.whole_run import (
    STRETCH,
    best_interval,
    best_layouts,
    device_hours,
    forecast_run,
    goodput,
    published_runs,
    share_ends,
    work_share,
)
from settle.plan.memory_model import Precision, device_sizing, layer_activations

LLAMA_405B = Shape(126, 16384, 53248, 128, 8, 128256)
DEEPSEEK_V3 = Shape(
    61, 7168, 18432, 128, 128, 129280, 128, experts=256, active_experts=8, shared_experts=1, expert_ffn=2048,
    dense_layers=3, query_rank=1536, kv_rank=512, rope_dim=64,
)  # fmt: skip


def test_published_shapes_have_their_published_sizes():
    assert LLAMA_405B.parameters == pytest.approx(405.85e9, rel=1e-3)
    assert DEEPSEEK_V3.parameters == pytest.approx(671e9, rel=1e-3)
    assert DEEPSEEK_V3.active_parameters == pytest.approx(37.6e9, rel=0.01)


def test_operations_of_a_token_are_six_a_weight_and_half_the_attention():
    shape = Shape(2, 8, 32, 2, 2, 10, tied=True)
    matrices = 2 * (4 * 8 * 8 + 3 * 8 * 32) + 80
    assert shape.flops_per_token(16) == 6 * matrices + 6 * 2 * 8 * 16
    assert shape.flops_per_token(16, is_causal=False) == 6 * matrices + 12 * 2 * 8 * 16


@pytest.mark.parametrize("size", [1e7, 1e8, 1.5e9, 8e9, 70e9, 405e9, 1e12])
def test_a_size_becomes_a_shape_of_that_size(size):
    assert shape_of_size(size).parameters == pytest.approx(size, rel=0.06)


def test_a_mixture_has_the_sizes_asked_for():
    shape = shape_with_experts(671e9, 37e9)
    assert shape.parameters == pytest.approx(671e9, rel=0.03)
    assert shape.active_parameters == pytest.approx(37e9, rel=0.1)
    with pytest.raises(UsageError, match="active"):
        shape_with_experts(7e9, 8e9)


@pytest.mark.parametrize("size", [1, 1e15])
def test_a_size_that_is_no_transformer_is_refused(size):
    with pytest.raises(UsageError):
        shape_of_size(size)


def test_activations_of_a_layer_are_34_bytes_a_token_and_unit():
    """Korthikanti et al.: s b h (10 + 24 / t) with dropout, without the scores."""
    shape = Shape(32, 4096, 16384, 32, 32, 50000, ffn_matrices=2)
    for tensor in (1, 4):
        layout = DeviceLayout(tensor=tensor, rows=2, sequence=1024, sequence_parallel=False)
        assert layer_activations(shape, layout, dropout=True) == 2048 * 4096 * (10 + 24 / tensor)


def test_states_are_split_as_the_shards_say():
    shape = Shape(8, 1024, 4096, 8, 8, 32000)
    whole = device_sizing(shape, DeviceLayout(optimizer_sharded=False))
    held = whole.weights / 2
    assert whole.weights + whole.gradients + whole.optimizer == pytest.approx(18 * held)
    spread = device_sizing(shape, DeviceLayout(data=4))
    assert spread.optimizer == pytest.approx(12 * held / 4) and spread.weights == pytest.approx(2 * held)
    sharded = device_sizing(shape, DeviceLayout(data=4, sharded=True))
    assert sharded.optimizer == pytest.approx(12 * held / 4) and sharded.weights < 0.8 * whole.weights
    eight_bit = device_sizing(shape, DeviceLayout(), Precision(optimizer=2.0))
    assert eight_bit.optimizer == pytest.approx(2 * held)


def test_only_devices_that_talk_have_buffers():
    shape = Shape(8, 1024, 4096, 8, 8, 32000)
    one, two = (device_sizing(shape, layout) for layout in (DeviceLayout(), DeviceLayout(data=2)))
    assert two.overhead > one.overhead > 0


def test_experts_have_states_of_their_own_replicas():
    shape = shape_with_experts(8e9, 2e9)
    experts = DeviceLayout(data=4, expert=2)
    whole, spread = (device_sizing(shape, replace(experts, optimizer_sharded=on)) for on in (False, True))
    held = whole.weights / 2
    assert whole.optimizer == pytest.approx(12 * held)
    # half of the replicas hold the other half of the experts
    dense = 2 * held - shape.parameters
    assert 0 < dense < held
    assert spread.optimizer == pytest.approx(12 * (dense / 4 + (held - dense) / 2), rel=1e-3)


def test_a_first_stage_holds_a_micro_batch_for_every_stage_behind_it():
    shape = Shape(8, 1024, 4096, 8, 8, 1000)
    deep = device_sizing(shape, DeviceLayout(pipeline=4, micro_batches=16))
    few = device_sizing(shape, DeviceLayout(pipeline=4, micro_batches=2))
    assert deep.activations == pytest.approx(2 * few.activations)


def test_memory_of_megatron_on_eight_devices_comes_out_as_measured():
    """gpt3_7b_tp4_pp1_memory_speed on H100: 53.2 GiB at most (its golden values)."""
    shape = Shape(32, 4096, 16384, 32, 8, 131584, ffn_matrices=2)
    layout = DeviceLayout(2, 4, rows=2, sequence=8192, micro_batches=2, sequence_parallel=False)
    memory = device_sizing(shape, layout, dropout=True, positions=8192)
    assert memory.tensors / 2**30 == pytest.approx(53.2, rel=0.05)


def test_time_is_split_into_parts_that_grow_with_their_cause():
    shape, machine = shape_of_size(8e9), described("64x h100 sxm")
    plain = device_seconds(shape, machine, DeviceLayout(data=64, sharded=True, rows=2))
    again = device_seconds(shape, machine, DeviceLayout(data=64, sharded=True, rows=2, recompute=True))
    assert again["matrix products"] > 1.2 * plain["matrix products"]
    piped = device_seconds(shape, machine, DeviceLayout(data=8, pipeline=8, micro_batches=8))
    assert piped["pipeline bubble"] == pytest.approx(
        7 / 8 * sum(v for k, v in piped.items() if k not in ("pipeline bubble", "stragglers"))
    )
    adapters = device_seconds(shape, machine, DeviceLayout(data=64), trained=0.0)
    assert adapters["matrix products"] == pytest.approx(4 / 6 * plain["matrix products"], rel=0.05)


def test_float8_is_faster_where_the_device_has_it_and_no_slower_elsewhere():
    shape, layout = shape_of_size(8e9), DeviceLayout(rows=2)
    for name, gains in (("h100 sxm", True), ("a100 sxm 80gb", False)):
        machine = described(name)
        half = steady_rate(shape, machine, layout).tokens.value
        assert (steady_rate(shape, machine, layout, "fp8").tokens.value > 1.2 * half) == gains


def test_an_unknown_device_has_a_wider_interval():
    shape = shape_of_size(1e9)
    known = steady_rate(shape, described("h100 sxm"), DeviceLayout()).tokens
    other = steady_rate(shape, described("rtx 3090"), DeviceLayout()).tokens
    assert other.log_std > known.log_std == pytest.approx(published_law().log_std_dense)


def test_layouts_fit_use_every_device_and_the_fastest_is_first():
    machine = described("64x h100 sxm")
    found = best_layouts(shape_of_size(70e9), machine, 4e6)
    assert all(c.layout.devices == 64 and c.memory.total < machine.memory for c in found)
    assert [c.rate.tokens.value for c in found] == sorted((c.rate.tokens.value for c in found), reverse=True)
    with pytest.raises(ResourceError, match="billion weights"):
        best_layouts(shape_of_size(70e9), described("rtx 4090"), 4e6)


def test_daly_is_young_for_short_pauses_and_the_best_of_its_neighbours():
    assert best_interval(1e-3, 1e4) == pytest.approx(math.sqrt(2 * 1e-3 * 1e4), rel=0.01)
    best = best_interval(30, 7200)
    shares = [work_share(30, 7200, 600, best * factor) for factor in (0.5, 1.0, 2.0)]
    assert shares[1] == max(shares)
    assert work_share(30, 1e9, 600) == pytest.approx(1, abs=1e-3) and work_share(30, 60, 86400) == 0


def test_weights_that_are_shared_out_are_gathered_and_others_are_not():
    machine, law, shape = described("8x h100 sxm"), published_law(), shape_of_size(8e9)

    def seconds(machine, **layout):
        return throughput._communication(shape, machine, DeviceLayout(rows=2, sequence=1024, **layout), law)

    assert seconds(machine, data=8) == seconds(machine, data=1, sharded=True) == 0
    weights = throughput.GATHERS * throughput.BYTES * shape.parameters
    assert seconds(machine, data=8, sharded=True) == pytest.approx(
        weights * law.exposed_node / machine.interconnect / 2048
    )
    many = described("16x h100 sxm")
    assert seconds(many, data=16) == pytest.approx(weights * law.exposed_node / many.network / 2048)


def test_goodput_of_llama_3_is_above_nine_tenths_with_some_four_hundred_failures():
    found = goodput(405e9, 16384, 54 * 86400)
    assert found.failures.contains(419) and found.share.contains(0.92)
    assert sum(found.lost.values()) == pytest.approx(1 - found.share.value, abs=1e-9) and min(found.lost.values()) > 0
    by_hand = goodput(175e9, 1024, 30 * 86400, per_device_day=15.6e-3 / 8, by_hand=True)
    assert by_hand.share.value < 0.8


def test_a_further_run_lies_inside_with_the_probability_said():
    logs = tuple(i / 100 - 0.5 for i in range(100))  # residuals lie around nothing
    low, high = share_ends(logs)
    assert low == pytest.approx(STRETCH * ((0.1 * 101 - 1) / 100 - 0.5), abs=1e-9)
    assert high == pytest.approx(STRETCH * ((0.9 * 101 - 1) / 100 - 0.5), abs=1e-9)


def test_a_frontier_run_takes_what_the_published_one_took():
    run = forecast_run(LLAMA_405B, 15.6e12, described("16384x h100 sxm"), batch_tokens=16e6)
    assert run.device_hours.contains(30.84e6) and run.device_hours.high / run.device_hours.low < 3.6
    assert run.days.value == pytest.approx(run.device_hours.value / 16384 / 24)
    assert run.chance_within(run.days.low) < 0.2 < 0.8 < run.chance_within(run.days.high * 1.1)
    assert run.chance_within(1e-6) == 0 and run.chance_within(1e9) == 1


def test_hours_grow_with_what_the_published_runs_lost():
    dense = device_hours(shape_of_size(published_runs().size), 1000.0)
    assert dense.value == pytest.approx(1000 / math.exp(published_runs().centre), rel=0.02)
    assert 1000 < dense.value < 3000 and dense.low < dense.value < dense.high
