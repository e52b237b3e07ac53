"""What ranks that share out the weights need, and what cannot be shared out."""

from dataclasses import replace
from typing import Any

import pytest

from settle.base.errors import UsageError
from settle.model.architectures.llama import Llama
from settle.model.architectures.qwen3_moe import Qwen3Moe
from settle.plan.memory import rank_memory
from settle.plan.settings import TrainingSettings
from settle.plan.training_plan import require_sharding, sharding
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from tests.plan.test_plan_numbers import PLAN

SHAPE = Llama.TINY.model_copy(update={"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8})


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_more_ranks_need_less_each(name: str) -> None:
    optimizer = Optimizer.part(name)()
    plan = replace(
        PLAN,
        architecture=SHAPE.model_dump(),
        architecture_name="llama",
        optimizer_name=name,
        optimizer=optimizer.model_dump(),
        dtype="float32",
    )
    needed = {size: rank_memory(plan, size).device for size in (1, 2, 4, 8)}
    assert not rank_memory(plan, 2).host
    assert sorted(needed.values(), reverse=True) == list(needed.values())
    stepper = optimizer.bind(SHAPE.build(0))
    state = sum(tensor.nbytes for tensor in stepper.state().values())
    # two ranks hold half of weights, gradients, state and best weights each, and of what a save copies
    assert needed[1] - needed[2] >= (4 * 4 * SHAPE.num_parameters + 2 * state) / 2
    assert needed[8] > SHAPE.num_parameters / 8 * 16


@pytest.mark.parametrize(
    ("objective", "architecture", "is_whole", "words"),
    [
        ("next_token", SHAPE, False, "every weight"),
        ("dpo", SHAPE, True, "objective"),
        ("next_token", Qwen3Moe.TINY, True, "mixture of experts"),
        ("next_token", SHAPE, True, ""),
    ],
)
def test_what_cannot_be_shared_out_is_refused(objective: str, architecture: Any, is_whole: bool, words: str) -> None:
    part = Objective.part(objective)
    require_sharding(TrainingSettings(), part, architecture, "cpu", is_whole)
    asked = TrainingSettings(sharding="full")
    if not words:
        require_sharding(asked, part, architecture, "cpu", is_whole)
        return
    with pytest.raises(UsageError, match=words) as error:
        require_sharding(asked, part, architecture, "cpu", is_whole)
    assert "leave --sharding out" in str(error.value.fix)


def test_offloading_needs_a_card_and_weights_that_are_shared_out() -> None:
    part = Objective.part("next_token")
    require_sharding(TrainingSettings(sharding="hybrid", offload=True), part, SHAPE, "cuda", True)
    for asked, device, words in (
        (TrainingSettings(offload=True), "cuda", "--sharding full"),
        (TrainingSettings(sharding="full", offload=True), "cpu", "where there is a card"),
    ):
        with pytest.raises(UsageError) as error:
            require_sharding(asked, part, SHAPE, device, True)
        assert words in str(error.value.fix)
    settings = (TrainingSettings(sharding=kind) for kind in ("none", "full", "hybrid"))  # type: ignore[arg-type]
    assert [list(sharding(asked).values()) for asked in settings] == [
        [False, False, False], [True, False, False], [True, True, False],
    ]  # fmt: skip


def test_a_hybrid_rank_holds_its_share_of_its_host_and_offloading_moves_it() -> None:
    plan = replace(
        PLAN, architecture=SHAPE.model_dump(), architecture_name="llama", optimizer_name="adamw", optimizer={},
        dtype="float32",
    )  # fmt: skip
    hybrid = plan.with_loop(is_sharded=True, is_hybrid=True)
    states = SHAPE.num_parameters * (16 + 2 * 8)
    assert rank_memory(hybrid, 8, 2).device - rank_memory(hybrid, 8, 8).device == pytest.approx(
        states * (1 / 2 - 1 / 8)
    )
    assert rank_memory(hybrid, 8, 8) == rank_memory(plan, 8)
    card = replace(plan, device="cuda")
    plain, offloaded = rank_memory(card, 4), rank_memory(card.with_loop(offloads=True), 4)
    assert plain.device + plain.host == rank_memory(plan, 4).device and plain.host > 0
    assert plain.device - offloaded.device == pytest.approx(SHAPE.num_parameters / 4 * 16)
    assert "on its card and" in offloaded.words(4) and "host's memory" not in rank_memory(plan, 4).words(4)
