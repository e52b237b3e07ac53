"""How many rows of a tuning run go through the model at once, by bytes worked out by hand; and the rates of a plan."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from settle.base.choice import Choice
from settle.base.errors import ResourceError, UsageError
from settle.base.settings import resolve
from settle.model.adapters.lora import NARROW, LoRA
from settle.model.architectures.llama import Llama
from settle.model.families import of_hf_config
from settle.plan import tuning_plan
from settle.plan.settings import TuningSettings
from settle.plan.tuning_plan import RATES, ROOM, _check_quantize, _evaluation_cost, _Fit, _objective, plan_tuning
from settle.train.optimizers import Optimizer
from tests.model.architectures.test_gpt_oss import GPT_OSS_20B

LAYERS, INSIDE, TABLES, ADAPTED = 4, 1_000_000, 200_000, 5_000  # the last: numbers of the adapter
PER_TOKEN = 1000.0  # bytes of activations


@dataclass
class Shape:
    """An architecture of four layers, the last of which is wider, that notes what it is asked."""

    num_parameters: int = INSIDE + TABLES
    num_non_embedding_parameters: int = INSIDE
    tie_word_embeddings: bool = False
    asked: list[tuple[int, int, Any]] = field(default_factory=list)

    def options(self) -> Any:
        return SimpleNamespace(layers=[SimpleNamespace(width=width) for width in (8, 8, 8, 16)])

    def linears(self) -> dict[str, tuple[int, int]]:
        return {"q_proj": (8, 8)}

    def activation_bytes_per_token(self, context: int, number: int, adapter: Any, is_flash: bool) -> float:
        self.asked.append((context, number, adapter))
        return PER_TOKEN


ADAPTER: Any = SimpleNamespace(kept_numbers=lambda linears: {"q_proj": 3}, num_parameters=lambda linears: ADAPTED)


def fit(free: float = 1e12, adapter: Any = ADAPTER, dtype: str = "float32", beside: float = 0.0, **asked: Any) -> _Fit:
    """Of rows of 2 × 50 inputs, the longest of which has 2 × 80 tokens."""
    lengths = SimpleNamespace(max=lambda: 80)
    store = SimpleNamespace(segments_per_row=2, num_inputs=5000, num_rows=50, lengths=lengths)
    base: Any = SimpleNamespace(part=Shape(), name="base", kinds={"Q4_K": 600_000, "F32": 60_000})
    corpus: Any = SimpleNamespace(train=store)
    device: Any = SimpleNamespace(kind="cpu", memory_free=free)
    objective: Any = SimpleNamespace(bytes_beside=lambda number: beside * number)
    return _Fit(TuningSettings(batch_rows=8, **asked), corpus, base, device, dtype, adapter, objective)


@pytest.mark.parametrize(
    ("asked", "dtype", "adapter", "weights"),
    [
        ({}, "float32", None, 1_200_000 * (4 + 4 + 8 + 4)),
        ({}, "bfloat16", None, 1_200_000 * (4 + 4 + 8 + 4 + 2)),
        ({}, "float32", ADAPTER, 1_200_000 * 4 + ADAPTED * 20),
        ({}, "bfloat16", ADAPTER, 1_200_000 * 2 + ADAPTED * 20),
        ({"quantize": "nf4"}, "bfloat16", ADAPTER, 1_000_000 * 0.52 + 200_000 * 2 + ADAPTED * 20),
        ({"quantize": "as-is"}, "bfloat16", ADAPTER, 660_000 + ADAPTED * 20 + 100_000 * 2),
    ],
)
def test_weights_take_the_bytes_of_their_types(asked: dict[str, Any], dtype: str, adapter: Any, weights: float) -> None:
    made = fit(adapter=adapter, dtype=dtype, **asked)
    assert made._weights() == pytest.approx(weights)
    number = 4 if dtype == "float32" else 2
    assert made.needed(3, 0) == pytest.approx(weights + 300 * PER_TOKEN)
    assert made.needed(1, 0) == pytest.approx(weights + 160 * PER_TOKEN)  # the longest row has to go through
    assert made.needed(3, 1) == pytest.approx(weights + 300 * (PER_TOKEN / LAYERS + number * 16 * LAYERS))
    assert fit(adapter=adapter, dtype=dtype, beside=1e6, **asked).needed(3, 0) == pytest.approx(
        weights + 300 * PER_TOKEN + number * 1e6
    )
    shape: Any = made.base.part
    assert set(map(str, shape.asked)) == {str((100, number, None if adapter is None else {"q_proj": 3}))}


def room_for(rows: int, recompute: int = 0) -> float:
    """Free memory that just suffices."""
    return fit().needed(rows, recompute) / ROOM * 1.000001


@pytest.mark.parametrize(
    ("free", "asked", "chosen", "why"),
    [
        (room_for(8), {}, (8, 0), ("the whole batch at once", "memory suffices")),
        (room_for(4), {}, (4, 0), ("more do not fit in memory at once", "memory suffices")),
        (room_for(7), {}, (4, 0), ("more do not fit in memory at once", "memory suffices")),  # parts of eight rows
        (room_for(1), {}, (1, 0), ("more do not fit in memory at once", "memory suffices")),
        (room_for(1, 1), {}, (1, 1), ("more do not fit in memory at once", "memory is short otherwise")),
        (room_for(8), {"recompute": True}, (8, 1), ("the whole batch at once", None)),
        (room_for(8), {"recompute": False}, (8, 0), ("the whole batch at once", None)),
    ],
)
def test_as_many_rows_as_fit(
    free: float, asked: dict[str, Any], chosen: tuple[int, int], why: tuple[str, str | None]
) -> None:
    reasons: dict[str, str] = {}
    assert fit(free, **asked).choose(reasons) == chosen
    assert (reasons["micro_rows"], reasons.get("recompute")) == why


def test_no_more_tokens_at_once_than_kernels_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_plan, "MOST_AT_ONCE", 400)
    reasons: dict[str, str] = {}
    assert fit().choose(reasons) == (4, 0) and reasons["micro_rows"] == "400 tokens at once at most"
    monkeypatch.setattr(tuning_plan, "MOST_AT_ONCE", 50)  # less than a row: one at a time
    assert fit().choose({}) == (1, 0)


def test_what_the_machine_has_free_counts_where_the_device_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_plan, "memory", lambda: SimpleNamespace(available=room_for(4)))
    made = fit()
    made.device = SimpleNamespace(kind="cpu", memory_free=None)  # type: ignore[assignment]
    assert made.choose({}) == (4, 0)


@pytest.mark.parametrize(
    ("adapter", "asked", "beside", "proposed"),
    [
        (None, {}, 0.0, "--adapter lora"),
        (ADAPTER, {}, 0.0, "--quantize as-is"),
        (ADAPTER, {"quantize": "nf4"}, 0.0, "--rows.max-tokens 80"),
        (None, {}, 1e9, "--cache"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    adapter: Any, asked: dict[str, Any], beside: float, proposed: str
) -> None:
    made = fit(1000.0, adapter, beside=beside, **asked)
    with pytest.raises(ResourceError, match=f"needs about {made.needed(1, 1) / 1e9:,.1f} GB") as refused:
        made.choose({})
    assert proposed in refused.value.fix


def test_a_base_of_numbers_is_proposed_in_nf4() -> None:
    made = fit(1000.0, ADAPTER)
    made.base.kinds = {"F32": 10}  # type: ignore[misc]
    with pytest.raises(ResourceError) as refused:
        made.choose({})
    assert "--quantize nf4" in refused.value.fix


def test_gpt_oss_as_it_is_published_takes_little_more_than_its_file() -> None:
    """Its file, the output table as numbers, and an adapter of its attention; dense, it would take 42 GB."""
    made, part = fit(adapter=LoRA(rank=16), dtype="bfloat16", quantize="as-is"), of_hf_config(GPT_OSS_20B)
    made.base = SimpleNamespace(part=part, kinds={"MXFP4": 10_150_000_000, "BF16": 1_960_000_000})  # type: ignore[assignment]
    table, adapted = part.vocab_size * part.hidden_size, LoRA(rank=16).num_parameters(part.linears())
    assert adapted == 7_962_624  # of four linears in each of 24 layers
    assert made._weights() == pytest.approx(12.11e9 + 2 * table + 20 * adapted)


# --- what goes together ---


def test_trained_weights_are_not_quantized_and_as_is_needs_quantized_ones() -> None:
    quantized, plain = (SimpleNamespace(name="base", kinds=kinds) for kinds in ({"F32": 1, "Q4_K": 9}, {"F32": 10}))
    for kind in (None, "nf4", "as-is"):
        _check_quantize(kind, "lora", quantized)  # type: ignore[arg-type]
    _check_quantize("nf4", "lora", plain)  # type: ignore[arg-type]
    _check_quantize(None, "full", plain)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot be quantized"):
        _check_quantize("nf4", "full", quantized)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no quantized weights: they are F32"):
        _check_quantize("as-is", "lora", plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "named", "adapter", "objective"),
    [
        ("preference", None, "lora", "dpo"),
        ("chat", None, "full", "next_token"),
        ("chat", "next_token", "lora", "next_token"),
        ("chat", "dpo", "lora", "does not learn from rows of one answer"),
        ("preference", "dpo", "full", "compares with the base"),
        ("preference", None, "full", "compares with the base"),
    ],
)
def test_rows_choose_their_objective(kind: str, named: str | None, adapter: str, objective: str) -> None:
    why: dict[str, str] = {}
    corpus: Any = SimpleNamespace(kind=kind)
    if " " in objective:
        with pytest.raises(UsageError, match=objective):
            _objective(Choice("train/objectives", named), corpus, adapter, None, why)  # type: ignore[arg-type]
        return
    assert _objective(Choice("train/objectives", named), corpus, adapter, None, why)[0] == objective  # type: ignore[arg-type]
    assert ("objective.name" in why) == (named is None)


# --- the whole plan ---


def planned(home: Any, part: Any = Llama.TINY, kind: str = "chat", **asked: Any) -> Any:
    """The plan of 120 rows of about 50 tokens, for a tiny model that others trained."""
    lengths = SimpleNamespace(max=lambda: 80)

    def store(rows: int) -> Any:
        return SimpleNamespace(
            num_rows=rows, num_documents=rows, num_inputs=50 * rows, segments_per_row=1, lengths=lengths
        )

    corpus: Any = SimpleNamespace(kind=kind, train=store(120), selection=store(12))
    source = SimpleNamespace(path=home / "base.gguf", sha256="a" * 64)
    base: Any = SimpleNamespace(part=part, name="base", source=source, kinds={"F32": 10})
    layers = [("asked", {"threads": 1, "device": "cpu", "dtype": "float32", **asked})]
    resolved = resolve(TuningSettings, layers)
    return plan_tuning(resolved.value, resolved.origin, corpus, base)


def test_decisions_are_learned_faster_and_by_the_last_layers(home: Any) -> None:
    """Few rows of one token each; over a base that is wide as over others."""
    rates = {64: 8.0, 512: 8.0, 1024: 4.0, 8192: 1.0}
    for width, times in rates.items():
        part = Llama.TINY.model_copy(update={"hidden_size": width})
        plan = planned(home, part=part, kind="decision", objective={"name": "decision", "labels": [1, 2]})
        assert plan.optimizer["lr"] == pytest.approx(times * LoRA.LEARNING_RATE)
        assert plan.tuning.adapter["targets"] == "last-third" and plan.origin["adapter.targets"] == "derived"
    named = planned(home, kind="decision", objective={"name": "decision", "labels": [1]}, adapter={"targets": "q_proj"})
    assert named.tuning.adapter["targets"] == ["q_proj"]
    whole = planned(home, kind="decision", objective={"name": "decision", "labels": [1, 2]}, adapter="full")
    assert whole.optimizer["lr"] == RATES["full"]["lr"]


def test_a_tuning_plan_has_the_rates_of_what_it_trains(home: Any) -> None:
    adapter = planned(home)
    width = Llama.TINY.hidden_size
    assert adapter.optimizer["lr"] == LoRA.LEARNING_RATE * NARROW / width > LoRA.LEARNING_RATE
    assert adapter.origin["optimizer.lr"] == "derived" and adapter.optimizer["weight_decay"] == 0.0
    assert (adapter.optimizer["beta2"], adapter.optimizer["eps"]) == (0.99, 1e-8)
    wide = planned(home, part=Llama.TINY.model_copy(update={"hidden_size": 2 * NARROW}))
    assert wide.optimizer["lr"] == LoRA.LEARNING_RATE
    whole = planned(home, adapter="full")
    assert {key: whole.optimizer[key] for key in RATES["full"]} == RATES["full"]
    assert planned(home, optimizer={"name": "adamw", "lr": 0.5}).optimizer["lr"] == 0.5
    muon = planned(home, optimizer="muon")
    assert muon.optimizer == Optimizer.make("muon", {}).model_dump()  # which has defaults for every model
    assert (adapter.optimizer_name, muon.optimizer_name) == ("adamw", "muon")


def test_a_tuning_plan_holds_its_base_its_adapter_and_its_rows(home: Any) -> None:
    plan = planned(home, adapter={"name": "lora", "rank": 2}, steps=40, time="10m", quantize="nf4", recompute=True)
    tuning = plan.tuning
    assert (tuning.base, tuning.base_name, tuning.base_sha256) == (str(home / "base.gguf"), "base", "a" * 64)
    assert tuning.adapter_name == "lora" and tuning.adapter["rank"] == 2 and tuning.quantize == "nf4"
    assert (tuning.rows, tuning.recompute) == (8, 1) and plan.loop.micro_batches == 1
    assert (plan.loop.max_steps, plan.loop.seconds) == (40, 600.0)
    assert plan.architecture_name == "llama" and plan.objective == "next_token" and plan.dtype == "float32"
    assert plan.held_out_tokens == 12 * 50 and plan.loop.evaluation_cost == _evaluation_cost(
        SimpleNamespace(train=SimpleNamespace(num_inputs=6000)),
        600,  # type: ignore[arg-type]
    )
    assert plan.origin["adapter.rank"] == "asked" and plan.origin["adapter.alpha"] == "default"
    assert plan.origin["warmup_steps"] == "derived" and plan.origin["dtype"] == "asked"
    assert planned(home, adapter="full").tuning.adapter == {}


def test_the_type_is_measured_at_the_products_of_a_micro_batch(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def choose(asked: str | None, device: Any, products: list[tuple[int, int, int]], why: Any) -> str:
        seen.append(products[0][0])
        return "float32"

    monkeypatch.setattr(tuning_plan, "choose_dtype", choose)
    for rows in (8, 1, 1000):
        planned(home, batch_rows=rows)
    assert seen == [400, 50, tuning_plan.MOST_AT_ONCE]
