"""What the one dial becomes, number by number: sizes, batches, budgets, speeds, types, origins and reasons."""

from types import SimpleNamespace
from typing import Any

import pytest

from settle.base.errors import UsageError
from settle.machine import accelerator
from settle.model.architectures.llama import Llama
from settle.model.config import default_context, tokens_per_batch
from settle.plan import size as sizes
from settle.plan import size as speeds
from settle.plan import training_plan
from settle.plan.loss_law import left_over, worth
from settle.plan.settings import TrainingSettings
from settle.plan.size import (
    AROUND_SECONDS,
    CONTEXT,
    EPOCHS,
    LARGEST,
    OVERNIGHT,
    PER_UNIQUE_TOKEN,
    REPEATS,
    SMALLEST,
    TOKENS,
    choose_size,
    measure_speed,
)
from settle.plan.training_plan import choose_dtype, origins, require_dtype
from settle.train.optimizers.adamw import AdamW
from tests.fake_time import set_time
from tests.plan.test_size import FAST, corpus

CPU: Any = accelerator("cpu")


class Family:
    """An architecture of which only the number of parameters counts: building thousands of real ones takes seconds."""

    @staticmethod
    def sized(parameters: int, vocab_size: int, context: int) -> Any:
        layers = [None] * max(2, round(parameters**0.25 / 10))
        return SimpleNamespace(options=lambda: SimpleNamespace(layers=layers), flops_per_token=lambda _: 6 * parameters)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "measure_speed", lambda *_: FAST)
    monkeypatch.setattr(sizes, "family_named", lambda name: Family)


def chosen(unique: int = 10**9, spent: float = 0.0, **asked: Any) -> tuple[sizes.Size, dict[str, str]]:
    why: dict[str, str] = {}
    return choose_size(TrainingSettings(**asked), corpus(unique), CPU, spent, why), why


def seconds_of(tokens: float, size: int) -> float:
    """Seconds of so many tokens with a model of that size."""
    context, batch = default_context(size), tokens_per_batch(size)
    return tokens / batch * FAST.step(Family.sized(size, 1024, context), batch, context)


# --- sizes ---


def weighed(unique: int) -> sizes._Choice:
    made = corpus(unique)
    return sizes._Choice(TrainingSettings(), made.train.num_tokens, made.tokenizer.vocab_size, CPU)


@pytest.mark.parametrize(("budget", "spent", "left"), [("1h", 100.0, 3500 - AROUND_SECONDS), ("1m", 50.0, 15.0)])
def test_a_time_is_a_number_of_tokens(budget: str, spent: float, left: float) -> None:
    """What reading, proof and export leave of it, or a quarter of it where they would take more."""
    size, why = chosen(spent=spent, size="300k", time=budget)
    assert (size.parameters, size.seconds) == (300_000, {"1h": 3600.0, "1m": 60.0}[budget])
    assert seconds_of(size.expected_tokens, 300_000) == pytest.approx(left, rel=1e-4)
    assert why["parameters"] == "the shape nearest to the size asked for"


@pytest.mark.parametrize("budget", [60.0, 3600.0, OVERNIGHT])
def test_the_best_size_for_a_time_leaves_the_least_loss(budget: float) -> None:
    """Of sizes that are 15 % apart."""
    unique = 10**9
    best = weighed(unique)._best_in(budget)

    def left(size: int) -> float:
        return left_over(size, max(1.0, worth(budget / seconds_of(1.0, size), unique, REPEATS)))

    ladder = [int(SMALLEST * 1.15**i) for i in range(75)]
    assert ladder[-2] < LARGEST <= ladder[-1] * 1.15 and best == min(ladder, key=left)


def test_without_a_budget_a_run_takes_its_passes_or_a_night() -> None:
    few, why = chosen(unique=100_000)
    assert few.expected_tokens == EPOCHS * 100_000 and few.seconds is None
    assert few.parameters == PER_UNIQUE_TOKEN * 100_000
    assert why["parameters"].endswith("suit the corpus")
    many, why = chosen(unique=10**12)
    assert seconds_of(many.expected_tokens, many.parameters) == pytest.approx(OVERNIGHT, rel=1e-4)
    assert why["parameters"].endswith("suit a night on this machine")
    assert chosen(unique=10)[0].parameters == SMALLEST
    stepped, _ = chosen(unique=10**12, size="1M", steps=10)
    assert stepped.expected_tokens == EPOCHS * 10**12  # what ends it is the number of steps


def test_a_number_of_steps_or_tokens_takes_the_size_that_is_best_for_its_time() -> None:
    size, why = chosen(tokens="200M")
    assert why["parameters"].endswith("suit the number of tokens")
    assert size.parameters == weighed(10**9)._best_in(seconds_of(2e8, size.parameters))
    steps, why = chosen(steps=20_000)
    assert why["parameters"].endswith("suit the number of tokens")
    assert steps.parameters == weighed(10**9)._best_in(seconds_of(20_000 * steps.tokens_per_step, steps.parameters))
    assert chosen(time="10m", tokens="200M")[1]["parameters"].endswith("by the speed measured here")


@pytest.mark.parametrize(("batch", "micro"), [(8192, 8192), (16384, 8192), (10_000, 5000), (9001, 9001 // 9001)])
def test_a_micro_batch_is_the_largest_part_that_goes_through_at_once(batch: int, micro: int) -> None:
    size, why = chosen(size="1M", batch_tokens=batch, context=64)
    assert (size.tokens_per_step, size.micro_tokens, size.context) == (batch, micro, 64)
    assert "batch_tokens" not in why and "context" not in why
    assert {"batch_tokens", "context"} <= chosen(size="1M")[1].keys()


def test_a_short_time_still_has_one_step() -> None:
    size, _ = chosen(size="1G", time="1s")
    assert size.expected_tokens == size.tokens_per_step


# --- speeds ---


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Steps that take `layer` seconds a layer and `flop` a FLOP, as far as `extra` does not say otherwise."""
    true: dict[str, Any] = {"layer": 0.01, "flop": 1e-11, "extra": [0.0, 0.0], "names": []}

    def best_step(part: Any, optimizer: Any, device: str, dtype: str) -> float:
        flops = TOKENS * part.flops_per_token(CONTEXT)
        return float(true["layer"] * len(part.options().layers) + true["flop"] * flops + true["extra"].pop(0))

    def remembered(key: Any, name: str, measure: Any) -> Any:
        true["names"].append(name)
        return measure()

    monkeypatch.setattr(speeds, "_best_step", best_step)
    monkeypatch.setattr(speeds, "remembered", remembered)
    monkeypatch.setattr(speeds, "probe_dtype", lambda *_, seconds: SimpleNamespace(dtype="bfloat16"))
    return true


def test_two_models_tell_the_layers_from_the_flops(timed: dict[str, Any]) -> None:
    speed = measure_speed(Llama, 512, AdamW(), CPU, "float32")
    assert (speed.layer, speed.flop) == pytest.approx((0.01, 1e-11))
    assert timed["names"] == ["step Llama AdamW 512 float32"]
    timed["extra"] = [0.0, 0.0]
    measure_speed(Llama, 512, AdamW(), CPU, None)
    assert timed["names"][1] == "step Llama AdamW 512 bfloat16"


@pytest.mark.parametrize("disturbed", [[5.0, 0.0], [0.0, 5.0]])
def test_where_one_of_them_was_disturbed_the_larger_is_believed(timed: dict[str, Any], disturbed: list[float]) -> None:
    timed["extra"] = list(disturbed)
    speed = measure_speed(Llama, 512, AdamW(), CPU, "float32")
    large = Llama.sized(speeds.LARGE, 512, CONTEXT)
    took = 0.01 * large.num_hidden_layers + 1e-11 * TOKENS * large.flops_per_token(CONTEXT) + disturbed[1]
    assert speed.layer == 0.0 and speed.step(large, TOKENS, CONTEXT) == pytest.approx(took)


def test_a_step_is_timed_by_its_quickest(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 0.3, 0.2, 0.4])
    monkeypatch.setattr(speeds, "_timed", lambda work: next(times))
    assert speeds._best_step(Llama.TINY, AdamW(), "cpu", "float32") == 0.2
    assert next(times, None) is None
    clock = iter([10.0, 12.5])
    monkeypatch.undo()
    set_time(monkeypatch, speeds, perf_counter=lambda: next(clock))
    assert speeds._timed(lambda: None) == 2.5


# --- types and origins ---


def test_a_type_is_taken_as_asked_or_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    probed = SimpleNamespace(dtype="bfloat16", why="measured: twice as fast")
    monkeypatch.setattr(training_plan, "probe_dtype", lambda products, device, seconds: probed)
    why: dict[str, str] = {}
    assert choose_dtype("float32", CPU, [], why) == "float32" and not why
    assert choose_dtype(None, CPU, [], why) == "bfloat16" and why == {"dtype": "measured: twice as fast"}


def test_a_type_has_the_name_that_torch_gives_it() -> None:
    assert [TrainingSettings(dtype=name).dtype for name in ("bf16", "fp32", None)] == ["bfloat16", "float32", None]


def test_a_type_that_a_device_does_not_compute_in_well_is_refused() -> None:
    device: Any = SimpleNamespace(kind="cuda", dtypes=("bfloat16",))
    for fine in (None, "float32", "bfloat16"):
        require_dtype(fine, device)
    with pytest.raises(UsageError, match="float16 is not for cuda"):
        require_dtype("float16", device)


def test_every_number_has_its_origin() -> None:
    why = {"threads": "measured on the run's own step", "warmup_steps": "2 % of 20 passes", "dtype": "measured: faster"}
    origin = {"dtype": "asked", "optimizer.lr": "recipe", "seed": "default"}
    groups = {"optimizer": {"lr": 1e-3, "eps": 1e-8}}
    found = origins(origin, TrainingSettings(), why, groups)
    assert found == {
        "dtype": "asked", "seed": "default", "optimizer.lr": "recipe", "optimizer.eps": "default",
        "threads": "measured", "warmup_steps": "derived",
    }  # fmt: skip
