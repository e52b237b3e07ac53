"""What a probe makes of the steps that it sees, and when a forecast is made anew, by numbers worked out by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from settle.base.event_log import Events
from settle.base.events import DecayStarted, Eval, Event, LossForecast, Progress, Resumed, Rollback, Step
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.plan import outlook
from settle.plan import probe as probes
from settle.plan.outlook import CurveStart, Outlook
from settle.plan.probe import DECAY, ENOUGH_SECONDS, EVALUATED_TOKENS, probe
from settle.train.evaluation import Evaluation
from settle.train.live_run import EVALUATION_BLOCK
from settle.train.training_plan import TrainingPlan
from tests.fake_time import set_time
from tests.plan.test_look_ahead import STEP_TOKENS, plan
from tests.plan.test_loss_curve import FACTS

TIMES = [9.0, 5.0, 1.0, 3.0, 2.0, 2.0, 1.0, 3.0]  # seconds of each step
PEAKS = [100, 200, 300, 400, 500, 600, 650, 700]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Notes the plan that is probed and the samples that are evaluated; nothing is trained."""
    noted: dict[str, Any] = {"samples": []}

    def build(plan: TrainingPlan, corpus: Any) -> Any:
        noted["plan"] = plan

        def loop(run: Any, events: Events, stopping: Any) -> Any:
            def train() -> Any:
                for number, seconds in enumerate(TIMES, 1):
                    rate = STEP_TOKENS / seconds
                    events.emit(Step(step=number, tokens=0, loss=1.0, lr=1.0, grad_norm=1.0, tokens_per_second=rate))
                return SimpleNamespace(state=SimpleNamespace(step=len(TIMES)))

            assert run.checkpoints.is_dir() and not stopping()
            return SimpleNamespace(train=train)

        chosen = plan.with_threads(3, "measured: three")
        noted["job"] = SimpleNamespace(
            plan=chosen, model=None, objective=None, choose_threads=lambda: None, loop=loop, trainer=lambda: trainer
        )
        return noted["job"]

    def rehearse(updates: bool) -> None:
        noted["clock"] += noted["step"].pop(0)

    trainer = SimpleNamespace(rehearse=rehearse)

    def evaluate(model: Any, objective: Any, sample: Any, step: int, tokens: int) -> Evaluation:
        noted["samples"].append((sample.num_tokens, step, tokens))
        noted["clock"] += 2.0
        return Evaluation(step, tokens, [4.0, 5.0][len(noted["samples"]) - 1], 0.25, None, ())

    def held_out(store: Any, length: int, block: int, limit: int) -> Any:
        assert length == 32 and block == EVALUATION_BLOCK
        return [SimpleNamespace(targets=range(limit))]

    noted["clock"], peaks = 0.0, iter(PEAKS)
    monkeypatch.setattr(probes, "LiveRun", SimpleNamespace(build=build))
    monkeypatch.setattr(probes, "PeakMemory", lambda: reader)
    reader = SimpleNamespace(read=lambda: next(peaks))
    monkeypatch.setattr(probes, "resident", lambda: 650)
    monkeypatch.setattr(probes, "evaluate", evaluate)
    monkeypatch.setattr(probes, "held_out_batches", held_out)
    monkeypatch.setattr(probes, "blocks", lambda plan, store, limit: [SimpleNamespace(targets=range(limit))])
    set_time(monkeypatch, probes, perf_counter=lambda: noted["clock"])
    return noted


CORPUS: Any = SimpleNamespace(selection=None, tokenizer=SimpleNamespace(byte_length=None))


def test_a_probe_s_figures_are_of_its_later_steps(made: dict[str, Any]) -> None:
    progress: list[Event] = []
    found = probe(plan(warmup_steps=50), CORPUS, 8, 30.0, Events(listeners=[progress.append]))
    later = TIMES[2:]  # the first quarter finds its memory
    assert found.step_seconds == pytest.approx(2.0)
    spread = math.sqrt(sum((t - 2.0) ** 2 for t in later) / len(later))
    assert found.step_spread == pytest.approx(spread / 2.0)
    assert found.steps == 8
    assert (found.memory, found.memory_growth) == (700, 700 - 500)  # over the last doubling of the steps
    assert (found.watts, found.watts_source) == (pytest.approx(30.0), "asked")
    assert (found.after, found.stderr, found.offset) == (4.0, 0.25, pytest.approx(math.log(5 / 4)))
    assert (found.threads, found.why_threads) == (3, "measured: three")
    assert made["samples"] == [(8 * STEP_TOKENS, 8, 8 * STEP_TOKENS), (100, 8, 8 * STEP_TOKENS)]
    assert found.evaluation_seconds == pytest.approx(2.0 / (8 * STEP_TOKENS))
    assert [e.done for e in progress if isinstance(e, Progress)] == [*range(1, 9), 8]
    assert all(e.total == 8 for e in progress if isinstance(e, Progress))


@pytest.mark.parametrize(
    ("loop", "steps", "warmup"),
    [({"warmup_steps": 50}, 8, 2), ({"warmup_steps": 1}, 8, 1), ({"warmup_steps": 50}, 3, 1)],
)  # fmt: skip
def test_a_probe_is_a_short_run_with_a_schedule_of_its_own(
    made: dict[str, Any], loop: dict[str, Any], steps: int, warmup: int
) -> None:
    probe(plan(**loop), CORPUS, steps)
    probed = made["plan"].loop
    assert (probed.max_steps, probed.seconds, probed.warmup_steps) == (steps, None, warmup)
    assert probed.decay_fraction == DECAY and not probed.until_settled and probed.checkpoint_steps > steps
    assert probed.is_refit and made["plan"].held_out_tokens == probed.sequence_length  # nothing is read on the way


@pytest.mark.parametrize(
    ("budget", "step", "seconds"),
    [(20.0, None, 0.25), (60.0, None, 0.75), (600.0, 0.02, ENOUGH_SECONDS), (600.0, 0.1, 2.4), (600.0, 5.0, 7.5),
     (36_000.0, 0.1, 2.4)],
)  # fmt: skip
def test_a_probe_takes_a_share_of_the_time_and_no_more_than_the_fewest_steps_need(
    made: dict[str, Any], budget: float, step: float | None, seconds: float
) -> None:
    made["step"] = [100.0, step] if step else []  # the first finds its memory
    probe(plan(warmup_steps=50, seconds=budget), CORPUS, 60)
    assert not made["step"]
    assert made["job"].plan.loop.seconds == pytest.approx(seconds)


def test_a_probe_reads_as_much_as_it_trained_on_within_bounds(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for tokens, read in ((100, 2 * EVALUATION_BLOCK), (10**6, EVALUATED_TOKENS)):
        made["samples"].clear()
        monkeypatch.setattr(probes, "PeakMemory", lambda: SimpleNamespace(read=lambda: 1))
        monkeypatch.setattr("tests.plan.test_probe_figures.STEP_TOKENS", tokens)
        probe(plan(tokens_per_step=tokens), CORPUS, 8)
        assert made["samples"][0][0] == read


# --- the forecast made anew ---


decays: list[float | None] = []  # share of the decay that each forecast was made with, once it is known


@pytest.fixture
def made_anew(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """(evaluations, tokens of the end) of each forecast."""
    asked: list[tuple[int, float]] = []
    decays.clear()

    def loss_under_way(self: CurveStart, evaluations: Any, tokens: float, decay: float | None) -> Interval:
        decays.append(decay)
        asked.append((len(evaluations), tokens))
        return Interval(2.0, 1.5, 2.5, FORECAST_LEVEL)

    monkeypatch.setattr(outlook.CurveStart, "loss_under_way", loss_under_way)
    return asked


def followed(expected: float, since: float = 150.0) -> tuple[Outlook, list[LossForecast]]:
    """Of a run with 10 tokens a step that is expected to see so many."""
    seen: list[LossForecast] = []
    log = Events(listeners=[lambda e: seen.append(e) if isinstance(e, LossForecast) else None])
    return Outlook(CurveStart(FACTS, [], 0.0, 0.0, since, 0.4), expected, 10, log), seen


def at(tokens: int, whole: bool = False) -> Eval:
    return Eval(step=tokens // 10, tokens=tokens, loss=3.0, stderr=0.1, whole=whole)


def test_a_forecast_is_made_anew_after_three_evaluations_and_a_tenth_more_tokens(
    made_anew: list[tuple[int, float]],
) -> None:
    watching, seen = followed(1000.0)
    for tokens in (0, 100, 150, 160, 170, 180, 190, 197, 199, 218, 219):
        watching(at(tokens))
    watching(at(300, whole=True))  # the evaluation of the result is none of the run's
    assert [forecast.tokens for forecast in seen] == [180, 199, 219]
    assert [forecast.step for forecast in seen] == [18, 19, 21]
    early, first = followed(1000.0, since=0.0)
    for tokens in (2, 3, 10, 11):  # exactly a tenth more
        early(at(tokens))
    assert [forecast.tokens for forecast in first] == [10, 11]
    assert all(forecast.end_tokens == 1000 and forecast.loss == 2.0 for forecast in seen)
    assert made_anew[0] == (5, 1000.0)
    assert (seen[0].low, seen[0].high) == (1.5, 2.5)


def test_a_run_past_its_end_is_expected_to_see_a_decay_more(made_anew: list[tuple[int, float]]) -> None:
    watching, seen = followed(1000.0)
    for tokens in (490, 495, 500, 505, 800, 801, 2000):
        watching(at(tokens))
    assert [(f.tokens, f.end_tokens) for f in seen] == [(500, 1000), (800, 1000), (2000, 2500)]
    assert watching.figures() == {"tokens": 500, "end_tokens": 1000, "loss": {"value": 2.0, "low": 1.5, "high": 2.5}}
    watching(DecayStarted(step=200, until=260, why="settled"))
    assert (seen[-1].step, seen[-1].tokens, seen[-1].end_tokens) == (200, 2000, 2600)
    assert decays[:-1] == [None] * 3 and decays[-1] == pytest.approx(60 / 260)
    watching(at(2600))
    assert len(seen) == 4 and followed(1000.0)[0].figures() is None


def test_a_decay_that_a_resume_undoes_is_forgotten(made_anew: list[tuple[int, float]]) -> None:
    for step, goes_on in ((21, True), (22, False)):
        watching, seen = followed(1000.0)
        for tokens in (160, 170, 180, 210):
            watching(at(tokens))
        watching(DecayStarted(step=22, until=60, why="settled"))
        watching(Resumed(step=step, until=None, most_steps=None, by_clock=False, seconds=1.0))
        before = len(seen)
        watching(at(400))
        assert (len(seen) > before) == goes_on


def test_a_resumed_outlook_knows_what_the_events_say(made_anew: list[tuple[int, float]]) -> None:
    def said(tokens: int) -> LossForecast:
        return LossForecast(step=1, tokens=tokens, end_tokens=1000, loss=tokens / 100, low=1.0, high=9.0)

    earlier = [at(0), at(160), at(175), at(170), said(170), at(900, whole=True), said(500), said(501), at(501)]
    watching, seen = followed(1000.0)
    watching.resume(earlier)
    figures = watching.figures()
    assert figures is not None and figures["tokens"] == 500  # the last that was made by half of the run
    watching(at(540))
    watching(at(560))  # a tenth more than the 501 of the latest
    assert [f.tokens for f in seen] == [560]
    assert made_anew == [(5, 1000.0)]  # 160, 170, which came after a rollback, 501, 540, 560
    decaying, none = followed(1000.0)
    decaying.resume([at(160), at(170), at(180), DecayStarted(step=19, until=30, why="settled"), at(190)])
    decaying(at(250))
    assert not none and decaying.tokens == 300.0


def test_what_says_nothing_is_not_forecast_from(
    made_anew: list[tuple[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, seen = followed(1000.0, since=500.0)
    watching(DecayStarted(step=3, until=60, why="budget"))  # before there was an evaluation
    other, also = followed(1000.0, since=500.0)
    other(at(500))
    other(DecayStarted(step=51, until=60, why="budget"))
    assert not seen and not also and not made_anew
    nothing = Interval(math.nan, math.nan, math.nan, FORECAST_LEVEL)
    monkeypatch.setattr(outlook.CurveStart, "loss_under_way", lambda *_: nothing)
    third, never = followed(1000.0, since=0.0)
    for tokens in (10, 20, 30, 40):
        third(at(tokens))
    assert not never and third.figures() is None


@pytest.mark.parametrize("back", [Rollback(step=40, loss=9.0, to_step=20), Resumed(step=20)])
def test_an_earlier_session_counts_as_far_as_it_was_kept(
    back: Rollback | Resumed, made_anew: list[tuple[int, float]]
) -> None:
    watching, seen = followed(1000.0, since=0.0)
    watching.resume([*map(at, (100, 200, 300, 400)), back])
    watching(at(500))
    assert [forecast.tokens for forecast in seen] == [500] and made_anew == [(3, 1000.0)]
