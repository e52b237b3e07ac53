import dataclasses
import math
from pathlib import Path

import pytest

from settle.base.errors import ResourceError, UsageError
from settle.base.event_log import Events
from settle.base.settings import read_recipe, resolve
from settle.data.prepare import Corpus, prepare
from settle.machine import memory
from settle.plan.forecast import cost, expected_tokens, first_verdict, look_ahead
from settle.plan.memory import must_fit
from settle.plan.phases import SLACK
from settle.plan.probe import probe_new, probe_steps
from settle.plan.settings import TrainingSettings
from settle.plan.size import requested_seconds
from settle.plan.training_plan import plan_training
from settle.train.settled import DECAY_FRACTION, MIN_HISTORY, next_evaluation
from settle.train.training_plan import TrainingPlan

WORDS = ["the", "model", "reads", "line", "text", "learns", "which", "word", "comes", "next", "after", "many", "seen"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("text")
    for i in range(40):
        lines = (" ".join(WORDS[(i * 7 + j * k) % len(WORDS)] for k in range(1, 14)) for j in range(1, 60))
        (folder / f"{i}.txt").write_text(".\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(tmp_path_factory.mktemp("home")))
        return prepare([str(folder)], TrainingSettings().data, Events())


def planned(corpus: Corpus, **asked: object) -> tuple[TrainingPlan, TrainingSettings]:
    layers = [("asked", {"size": "100k", "steps": 40, "threads": 1, "dtype": "float32", **asked})]
    resolved = resolve(TrainingSettings, layers)
    return plan_training(resolved.value, resolved.origin, corpus, 0.0), resolved.value


def test_forecast_tells_every_figure_with_its_interval(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path))
    plan, settings = planned(corpus, watts=10.0, price_per_kwh=1.0, price_per_hour=36.0)
    plan, seen = probe_new(plan, corpus, settings.watts, Events())
    _, told = look_ahead(plan, corpus, seen, settings, 5.0)
    for name, figure in told.figures.items():
        assert 0 < figure.low <= figure.value <= figure.high < math.inf, name
    assert told.tokens.high == 40 * plan.loop.tokens_per_step
    assert told.energy.value == pytest.approx((told.time.value - 5.0) * 10.0)
    assert told.cost.value == pytest.approx(cost(told.energy.value, told.time.value, 1.0, 36.0))
    assert told.loss.value < math.log(corpus.tokenizer.vocab_size)


def test_a_budget_changes_nothing_before_it_is_spent(corpus: Corpus):
    """The same run stops at the same step whatever limit was named: when it evaluates, on what, and at which rate."""
    plans = [planned(corpus, steps=steps)[0] for steps in (5_000, 30_000, 200_000)]
    beside = {"max_steps": None, "checkpoint_steps": 1}
    assert len({(p.held_out_tokens, p.with_loop(**beside).loop.model_dump_json()) for p in plans}) == 1


def test_weights_decay_the_more_the_more_often_the_text_is_seen(corpus: Corpus):
    """In a step by 0.4 √passes / steps of a pass, divided by the rate; what was asked for stays."""

    def decay(**asked: object) -> float:
        plan, _ = planned(corpus, **asked)
        assert plan.origin["optimizer.weight_decay"] == "derived" and "passes" in plan.why["optimizer.weight_decay"]
        return float(plan.optimizer["weight_decay"])  # type: ignore[arg-type]  # JSON

    per_pass = corpus.train.num_tokens / planned(corpus)[0].loop.tokens_per_step
    for passes in (0.5, 4, 16):
        steps = round(passes * per_pass)
        expected = 0.4 * (steps / per_pass) ** 0.5 / per_pass / 0.02
        assert decay(steps=steps) == pytest.approx(min(1.0, expected), abs=1e-3)
    for asked in ({"optimizer": {"name": "muon", "weight_decay": 0.0}}, {"optimizer": "adamw"}):
        plan, _ = planned(corpus, steps=round(16 * per_pass), **asked)
        assert plan.optimizer["weight_decay"] == (0.0 if isinstance(asked["optimizer"], dict) else 0.1)
        assert "optimizer.weight_decay" not in plan.why


def test_the_decay_of_the_rate_is_two_passes_at_most(corpus: Corpus):
    plan, _ = planned(corpus, steps=100_000)
    assert plan.loop.longest_decay == max(100, round(2 * corpus.train.num_tokens / plan.loop.tokens_per_step))
    assert plan.loop.average == 0.1 and "memorizes" in plan.why["decay_passes"]


def test_a_recipe_file_is_the_former_recipe(corpus: Corpus):
    recipe = read_recipe(Path("recipes/former.toml"))
    del recipe["inputs"]
    plan, _ = planned(corpus, steps=100_000, **recipe)
    assert (plan.loop.average, plan.loop.longest_decay, plan.optimizer["weight_decay"]) == (0.0, None, 0.0)
    assert {plan.origin[key] for key in ("average", "decay_passes", "optimizer.weight_decay")} == {"asked"}


def test_what_does_not_fit_is_refused_and_something_proposed(corpus: Corpus):
    plan, _ = planned(corpus)
    must_fit(plan)
    width = 1 << 20
    heads = {"head_dim": width // 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    big = dataclasses.replace(plan, architecture={**plan.architecture, "hidden_size": width, **heads})
    with pytest.raises(ResourceError, match="GB of memory") as refused:
        must_fit(big)
    assert "--size" in refused.value.fix
    assert memory().available > 0


def test_a_run_is_expected_to_settle_where_the_law_flattens(corpus: Corpus):
    plan, _ = planned(corpus)
    free = dataclasses.replace(plan, loop=plan.loop.model_copy(update={"max_steps": None}))

    def loss_at(tokens: float) -> float:
        return 2 + 5 * (1 + tokens / 1e4) ** -0.5

    expected = expected_tokens(free, 1e-6, loss_at)
    assert 4e6 < expected.value < 1e7 and expected.low < expected.value < expected.high
    assert expected.low >= first_verdict(free)
    flat = expected_tokens(free, 1e-6, lambda tokens: 2.0)
    assert flat.low >= first_verdict(free) * (1 + DECAY_FRACTION) - 1  # no verdict is possible before
    assert flat.low < flat.value < flat.high
    budget = dataclasses.replace(free, loop=free.loop.model_copy(update={"seconds": 3.0}))
    assert expected_tokens(budget, 1e-6, loss_at).value == pytest.approx((1 - SLACK) * 3e6)


def test_money_is_a_time_budget(corpus: Corpus):
    from settle.machine import accelerator

    settings = TrainingSettings(max_cost=2.0, price_per_kwh=0.0, price_per_hour=4.0)
    assert requested_seconds(settings, accelerator("cpu")) == pytest.approx(1800.0)
    both = TrainingSettings(time="10m", max_cost=2.0, price_per_kwh=0.0, price_per_hour=4.0)
    assert requested_seconds(both, accelerator("cpu")) == 600.0
    energy = TrainingSettings(max_cost=2.0, price_per_kwh=0.5, watts=500.0)  # 0.25 an hour
    assert requested_seconds(energy, accelerator("cpu")) == pytest.approx(8 * 3600)
    dearer = TrainingSettings(max_cost=2.0, price_per_kwh=0.5, price_per_hour=0.25, watts=500.0)
    assert requested_seconds(dearer, accelerator("cpu")) == pytest.approx(4 * 3600)
    with pytest.raises(UsageError, match="all prices are 0"):
        requested_seconds(TrainingSettings(max_cost=2.0, price_per_kwh=0.0), accelerator("cpu"))
    assert requested_seconds(TrainingSettings(), accelerator("cpu")) is None


def test_a_probe_is_a_small_part_of_the_run():
    assert probe_steps(10_000) == 125
    assert probe_steps(1000) == 24
    assert probe_steps(100) == 10
    assert probe_steps(10**6) == 400
    assert probe_steps(5) == 4


def test_no_verdict_is_possible_before_the_first_that_the_rule_allows(corpus: Corpus) -> None:
    from types import SimpleNamespace

    from settle.train.settled import Settled

    plan, _ = planned(corpus)
    tokens, history = 0, []
    since = plan.loop.warmup_steps * plan.loop.tokens_per_step
    while True:
        history.append(SimpleNamespace(step=tokens, tokens=tokens, loss=9.0 if not tokens else 2.0, blocks=()))
        if Settled(plan.loop.tolerance, since).judge(history).state == "settled":
            break
        tokens = max(since, next_evaluation(tokens, plan.held_out_tokens)) if tokens else since
    assert tokens == first_verdict(plan)
    assert sum(e.tokens > since for e in history) == MIN_HISTORY
