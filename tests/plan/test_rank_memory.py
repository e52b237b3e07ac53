"""What ranks that share out the weights need, and what cannot be shared out."""

from dataclasses import replace
from typing import Any

import pytest

from settle.base.errors import UsageError
from settle.model.architectures.llama import Llama
from settle.model.architectures.qwen3_moe import Qwen3Moe
from settle.plan.forecast import rank_memory
from settle.plan.settings import TrainingSettings
from settle.plan.training_plan import require_sharding
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
    needed = {size: rank_memory(plan, size) for size in (1, 2, 4, 8)}
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
    require_sharding(TrainingSettings(), part, architecture, is_whole)
    asked = TrainingSettings(sharding="full")
    if not words:
        require_sharding(asked, part, architecture, is_whole)
        return
    with pytest.raises(UsageError, match=words) as error:
        require_sharding(asked, part, architecture, is_whole)
    assert "leave --sharding out" in str(error.value.fix)
