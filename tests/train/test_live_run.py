"""What selects the weights never judges them."""

from dataclasses import replace

import numpy as np
import pytest

from settle.base.event_log import Events
from settle.base.settings import resolve
from settle.data.prepare import Corpus, prepare
from settle.plan.settings import TrainingSettings
from settle.plan.training_plan import plan_training
from settle.train import live_run
from settle.train.evaluation import HeldOut, evaluate
from settle.train.live_run import EVALUATION_BLOCK, LiveRun, blocks
from settle.train.state import LoopState
from settle.train.thread_choice import LONGEST
from settle.train.training_plan import TrainingPlan

TEXT = " ".join(f"line {i} of {i * i % 97} words is read by nobody but {i % 13} people." for i in range(1500))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(tmp_path_factory.mktemp("home")))
        return prepare([str(folder)], TrainingSettings().data, Events())


def planned(corpus: Corpus, **asked: object) -> TrainingPlan:
    layers = [("asked", {"size": "60k", "steps": 8, "threads": 1, "dtype": "float32", **asked})]
    resolved = resolve(TrainingSettings, layers)
    return plan_training(resolved.value, resolved.origin, corpus, 0.0)


@pytest.mark.parametrize("asked", [{}, {"time": "5m"}])
def test_what_selects_the_weights_never_judges_them(corpus: Corpus, asked: dict[str, object]) -> None:
    """The loop evaluates selection text, and the final figure is read off held-out text, with a time budget too."""
    plan = planned(corpus, **asked)
    job = LiveRun.build(plan, corpus)
    selecting = np.concatenate([batch.targets for batch in job.selection])
    assert corpus.tokenizer.decode(selecting).strip() in corpus.tokenizer.decode(corpus.selection.tokens[1:])
    state = LoopState(step=8)
    weights = job.trainer().weights()
    judged = job.judge(weights, state)
    tokens = HeldOut(blocks(plan, corpus.held_out, job.judged_tokens(8)), corpus.tokenizer.byte_length)
    assert judged["loss"] == pytest.approx(evaluate(job.model, job.objective, tokens, 0, 0).loss, abs=1e-6)

    other = LiveRun.build(plan, replace(corpus, held_out=corpus.train))  # only the judgement changes
    for ours, theirs in zip(job.selection, other.selection, strict=True):
        assert np.array_equal(ours.targets, theirs.targets)
    assert other.judge(weights, state)["loss"] != judged["loss"]


def test_a_twentieth_of_the_run_s_time_may_judge_it(corpus: Corpus) -> None:
    """A forward pass is a third of a step. A short run reads as much as an evaluation does, at least."""
    plan = planned(corpus)
    job = LiveRun.build(plan, corpus)
    assert job.judged_tokens(1) == plan.held_out_tokens > 3 * plan.loop.tokens_per_step // 20
    assert job.judged_tokens(1000) == 1000 * 3 * plan.loop.tokens_per_step // 20 > plan.held_out_tokens
    weights, few = job.trainer().weights(), job.judge(job.trainer().weights(), LoopState(step=8))
    all_of_it = job.judge(weights, LoopState(step=10**6, best_step=7))
    assert 0 < few["held_out_share"] < 0.99 < all_of_it["held_out_share"] <= 1.0
    assert (all_of_it["step"], all_of_it["tokens"]) == (7, 7 * plan.loop.tokens_per_step)
    assert all_of_it["stderr"] < few["stderr"]


def test_a_number_of_threads_is_free_unless_somebody_asked_for_it(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(corpus)
    for origin, asked, free in (("default", False, True), ("measured", False, True), ("asked", False, False),
                                ("recipe", False, False), ("default", True, False)):  # fmt: skip
        monkeypatch.setattr(live_run, "is_asked", lambda asked=asked: asked)
        job = LiveRun.build(replace(plan, origin={"threads": origin}), corpus)
        assert job._threads_are_free() == free, (origin, asked)


def test_blocks_are_sixteen_at_least_and_no_longer_than_makes_their_spread_believable(corpus: Corpus) -> None:
    plan, store = planned(corpus), corpus.train
    length = plan.loop.sequence_length
    few = blocks(plan, store, 16 * length)
    assert len(few) == 16 and sum(len(b.targets) for b in few) == 16 * length
    less = blocks(plan, store, 4 * length)
    assert len(less) == 4  # a block is a whole sequence
    longest = blocks(replace(plan, loop=plan.loop.model_copy(update={"sequence_length": 64})), store, 10**9)
    assert max(len(b.targets) for b in longest) == min(EVALUATION_BLOCK, store.num_tokens // 16)


@pytest.mark.parametrize(
    ("most", "budget", "longest"), [(1, None, None), (4, None, LONGEST), (4, 100.0, 2.0), (4, 1e5, LONGEST)]
)
def test_threads_are_chosen_where_there_is_a_choice_in_a_share_of_the_time(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, most: int, budget: float | None, longest: float | None
) -> None:
    asked: list[tuple[int, float]] = []
    monkeypatch.setattr(live_run, "is_asked", lambda: False)
    monkeypatch.setattr(live_run, "num_threads", lambda: most)
    monkeypatch.setattr(live_run, "choose_threads", lambda trainer, *rest: asked.append(rest) or (2, "measured: two"))
    job = LiveRun.build(replace(planned(corpus), origin={}).with_loop(seconds=budget), corpus)
    job.choose_threads()
    assert asked == ([(most, longest)] if longest else []) and job.plan.loop.threads == (2 if longest else 1)
