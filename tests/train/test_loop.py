"""The loop when training goes wrong, and that stopping and resuming changes nothing, to the last bit."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from settle.base.event_log import Events
from settle.base.events import Event
from settle.base.run import Run
from settle.data.prepare import Corpus
from settle.machine import resource_usage
from settle.train import checkpoint as checkpoints
from settle.train.loop import Loop
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers import Optimizer
from settle.train.optimizers.adamw import AdamW
from settle.train.recovery import MAX_ROLLBACKS
from settle.train.state import LoopPlan, Outcome
from settle.train.trainer import Trainer
from settle.train.verdict import verdict
from tests.records import into
from tests.train.loops import batches_of, loop_of, tiny

PLAN = LoopPlan(
    tokens_per_step=64, sequence_length=32, warmup_steps=3, max_steps=30, decay_fraction=0.4, checkpoint_steps=8
)  # fmt: skip


class Poison(NextToken):
    """The loss of the batches at some positions is no number, as of a row that overflows."""

    def batch_loss(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        total, count = super().batch_loss(model, batch)
        bad = any((batch.inputs == b).all() for b in POISONED if len(b) == len(batch.inputs))
        return (total * float("nan") if bad else total), count


POISONED: list[Any] = []


def loop(
    corpus: Corpus, run: Run, events: list[Event], stop_at: int | None = None, plan: LoopPlan = PLAN, **rates: float
) -> Loop:
    trainer = Trainer(plan, tiny(corpus), Poison(), AdamW(**rates), batches_of(corpus, plan))
    heard = Events(listeners=[into(events)])
    return loop_of(trainer, corpus, run, heard, stop_at, held_out=512, decode=corpus.tokenizer.decode)


def ended(outcome: Outcome, made: Loop) -> tuple[dict[str, Tensor], list[int], int]:
    assert not outcome.interrupted
    return (
        {k: v.clone() for k, v in made.trainer.model.state_dict().items()},
        outcome.state.skipped,
        outcome.state.position,
    )


@pytest.fixture
def poisoned(corpus: Corpus) -> Any:
    POISONED[:] = [batches_of(corpus, PLAN).at(p).inputs for p in (5, 21)]
    yield
    POISONED.clear()


def test_rehearsals_change_no_bit(corpus):
    """The loop takes them to say what its number of threads costs."""
    made, other = (loop(corpus, Run.create("train", name), []) for name in ("plain", "rehearsed"))
    plain = ended(made.train(), made)
    step = other.trainer.take_step

    def rehearsed(state, multiplier):
        other.trainer.rehearse(updates=False)
        return step(state, multiplier)

    other.trainer.take_step = rehearsed
    weights, *rest = ended(other.train(), other)
    assert rest == list(plain[1:])
    assert all(torch.equal(weights[name], plain[0][name]) for name in weights)


def test_an_updating_rehearsal_leaves_the_weights(corpus):
    model = loop(corpus, Run.create("train", "x"), []).trainer.model
    for optimizer in (AdamW(), Optimizer.make("muon", {})):
        trainer = Trainer(PLAN, model, NextToken(), optimizer, batches_of(corpus, PLAN))
        before = trainer.weights()
        trainer.rehearse(updates=True)
        assert all(torch.equal(before[name], after) for name, after in trainer.weights().items())
        assert all(p.grad is None for p in model.parameters())


def test_what_a_run_says_as_it_goes(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of each step, the tokens until then, what it takes, and a sample at the start and in the middle."""
    monkeypatch.setattr(resource_usage, "SAMPLE_SECONDS", 0.0)
    events: list[Event] = []
    made, samples = loop(corpus, Run.create("train", "a"), events, stop_at=17), []
    made.session = replace(made.session, sample=lambda step, moment: samples.append((step, moment)))
    state = made.train().state
    taken = [e for e in events if e["kind"] == "step"]
    assert [e["step"] for e in taken] == list(range(1, 18))
    assert [e["tokens"] for e in taken] == [64 * n for n in range(1, 18)]
    base = made.trainer.base_lr
    assert [e["lr"] for e in taken[:5]] == pytest.approx([base * share for share in (0.25, 0.5, 0.75, 1.0, 1.0)])
    assert samples == [(0, "start"), (15, "middle")] and state.is_past_half
    usage = [e for e in events if e["kind"] == "usage"]
    assert [(e["step"], e["tokens"]) for e in usage] == [(e["step"], e["tokens"]) for e in taken]
    assert all(e["memory"] > 1e8 for e in usage)
    assert all(e["tokens_per_second"] > 0 for e in taken) and len(state.train_losses) == 17
    seconds = sum(64 / e["tokens_per_second"] for e in taken)
    assert seconds <= state.seconds < seconds + 60


def test_the_order_ledger_names_each_step_by_the_number_it_has_in_the_events(corpus: Corpus) -> None:
    """The first step is 1 and took the first micro-batch; a checkpoint of a step has the lines until that one."""
    run, events = Run.create("train", "a"), []
    made = loop(corpus, run, events, stop_at=17)
    made.train()
    lines = [json.loads(line) for line in (run.path / "order.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [e["step"] for e in events if e["kind"] == "step"] == [*range(1, 18)]
    assert [line["positions"] for line in lines] == [[n] for n in range(17)]
    assert [line["rows"] for line in lines] == [len(made.trainer.batches.rows_of(n)) for n in range(17)]


def test_a_first_batch_that_is_bad_is_named_and_never_drawn_again(corpus: Corpus) -> None:
    POISONED[:] = [batches_of(corpus, PLAN).at(0).inputs]
    try:
        state = loop(corpus, Run.create("train", "a"), [], stop_at=2).train().state
    finally:
        POISONED.clear()
    assert state.skipped == [0] and [b.position for b in state.rollbacks[0].batches] == [0] and state.position == 3


def test_a_poisoned_batch_is_named_and_never_drawn_again(corpus: Corpus, poisoned: Any) -> None:
    events: list[Event] = []
    made = loop(corpus, Run.create("train", "a"), events)
    whole, skipped, position = ended(made.train(), made)
    assert skipped == [5, 21] and position == PLAN.max_steps + 2
    rollbacks = [e for e in events if e["kind"] == "rollback"]
    assert [(e["step"], e["to_step"]) for e in rollbacks] == [(5, 0), (20, 16)]
    row = rollbacks[0]["batches"][0]["rows"][0]
    assert row["source"].partition(":")[0].endswith(".txt") and 0 < len(row["text"]) <= 80
    assert row["text"] in corpus.tokenizer.decode(corpus.train.document(row["document"]))
    assert all(torch.isfinite(v).all() for v in whole.values())

    # stopped at any step, before, between and after the bad batches, it ends the same
    for stop_at in (3, 7, 19, 23):
        run = Run.create("train", f"stop{stop_at}")
        assert loop(corpus, run, [], stop_at).train().interrupted
        again = loop(corpus, run, [])
        weights, seen, at = ended(again.train(), again)
        assert (seen, at) == (skipped, position)
        assert all(torch.equal(v, whole[k]) for k, v in weights.items()), stop_at


def test_a_rate_at_which_nothing_can_be_learned_ends_as_diverged_with_the_batch(corpus: Corpus) -> None:
    events: list[Event] = []
    run = Run.create("train", "a")
    made = loop(corpus, run, events, lr=1e30, table_lr=1e30)
    outcome = made.train()
    assert outcome.state.stop == "diverged" and len(outcome.state.rollbacks) == MAX_ROLLBACKS + 1
    told = verdict(outcome.state, PLAN, 1.0)
    assert told.verdict == "diverged" and ".txt:" in told.why
    assert all(torch.isfinite(v).all() for v in outcome.best.values())
    # what lies on disk is whole and finite, and a resume knows that it is over
    again = loop(corpus, run, [], lr=1e30, table_lr=1e30).train()
    assert again.state.stop == "diverged" and again.state.rollbacks == outcome.state.rollbacks


def test_a_run_stopped_at_every_step_ends_as_one_that_was_not(corpus: Corpus) -> None:
    plan = PLAN.model_copy(update={"average": 0.2})
    made = loop(corpus, Run.create("train", "whole"), [], plan=plan)
    outcome = made.train()
    whole, *_ = ended(outcome, made)
    run = Run.create("train", "parts")
    for step in range(1, 30, 3):
        assert loop(corpus, run, [], step, plan).train().interrupted
        kept = [int(p.name) for p in checkpoints.steps(run.checkpoints)]
        assert len(kept) <= checkpoints.KEEP + 1 and kept[-1] == step
    last = loop(corpus, run, [], plan=plan)
    after = last.train()
    weights, *_ = ended(after, last)
    assert all(torch.equal(v, whole[k]) for k, v in weights.items())
    assert all(torch.equal(v, made.trainer.average[k]) for k, v in last.trainer.average.items())
    assert after.state.averaged == outcome.state.averaged
    assert all(torch.equal(v, outcome.best[k]) for k, v in after.best.items())
