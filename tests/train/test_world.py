"""Many ranks train as one does: the same rows in the same order, the same losses but for rounding."""

import json
import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from settle.base.errors import ResourceError, RunError
from settle.base.run import Run
from settle.base.run.launcher import launched
from settle.data.batches import Batches
from settle.data.prepare import Corpus
from settle.machine import EnergyMeter
from settle.model.adapters.lora import LoRA
from settle.train import checkpoint as checkpoints
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamW
from settle.train.state import LoopPlan, LoopState
from settle.train.trainer import Trainer
from settle.train.world import World, process_group, single
from settle.train.world.row_share import FILE, OrderLedger, StepRows, check_order, marks_sum, share
from tests.train import ranks
from tests.train.loops import batches_of, loop_of, tiny
from tests.train.ranks import in_parts, on_ranks

PLAN = LoopPlan(
    tokens_per_step=96, sequence_length=32, warmup_steps=3, max_steps=16, decay_fraction=0.4, checkpoint_steps=8,
    micro_batches=2, evaluation_cost=1.0, until_settled=False,
)  # fmt: skip


def trainer(corpus: Corpus, world: World, adapter: LoRA | None = None) -> Trainer:
    model = tiny(corpus)
    if adapter is not None:
        model.freeze()
        adapter.apply(model, 0)
        model.train()
    return Trainer(PLAN, model, NextToken(), AdamW(), batches_of(corpus, PLAN), world)


def train(corpus: Corpus, run: Run, world: World, stop_at: int | None = None) -> list[float]:
    """Losses of all evaluations, of a run until its end or until a step."""
    torch.set_num_threads(1)
    return [e.loss for e in loop_of(trainer(corpus, world), corpus, run, stop_at=stop_at).train().state.history]


def weights(run: Run) -> bytes:
    return (checkpoints.steps(run.checkpoints)[-1] / "model.safetensors").read_bytes()


def checked(run: Run, corpus: Corpus) -> Any:
    """The run's order, held against the data: of every token, how often it was a target."""
    batches, starts = trainer(corpus, single()).batches, corpus.train.document_starts
    return check_order(
        run.path / FILE,
        batches.rows_of,
        lambda row: range(int(starts[row[0]]) + row[1], int(starts[row[0]]) + row[2]),
        corpus.train.num_tokens,
    )


def test_ranks_take_the_same_rows_and_reach_the_same_losses(corpus: Corpus, tmp_path: Path) -> None:
    one, two, again, changed = (Run.create("train", name) for name in ("one", "two", "two-b", "changed"))
    alone = train(corpus, one, single())
    for run in (two, again):
        found = on_ranks(2, tmp_path / run.name, lambda world, run=run: train(corpus, run, world))
        assert found == [found[0]] * 2, found  # every rank knows the same
        assert found[0] == pytest.approx(alone, rel=1e-5) and len(alone) > 3
        assert (run.path / FILE).read_bytes() == (one.path / FILE).read_bytes()
    assert weights(again) == weights(two)  # at the same number of ranks to the last bit
    losses = in_parts(
        ((2, 3), (1, 7), (3, 12), (2, None)), tmp_path, lambda world, stop: train(corpus, changed, world, stop)
    )
    assert losses == pytest.approx(alone, rel=1e-5)
    assert (changed.path / FILE).read_bytes() == (one.path / FILE).read_bytes()
    order = checked(changed, corpus)
    assert order.steps == 16 and order.most - order.least <= 1  # every token as often as any other


def test_dropout_is_of_the_batch_and_not_of_the_rank(corpus: Corpus, tmp_path: Path) -> None:
    """Also where a rank has no row in a batch."""

    def step(world: World) -> tuple[float, list[float]]:
        torch.set_num_threads(1)
        made = trainer(corpus, world, LoRA(rank=2, dropout=0.5))
        state = LoopState()
        losses = [made.take_step(state, 1.0).loss for _ in range(4)]
        return losses[-1], [float(p.detach().double().sum()) for p in made.model.trainable().values()]

    loss, sums = step(single())
    plain = trainer(corpus, single(), LoRA(rank=2))
    assert plain.take_step(LoopState(), 1.0).loss != loss
    few = min(len(plain.batches.rows_of(p)) for p in range(8))
    found = on_ranks(few + 1, tmp_path / "ranks", step) if few < 4 else on_ranks(3, tmp_path / "ranks", step)
    for one_loss, one_sums in found:
        assert one_loss == pytest.approx(loss, rel=1e-6) and one_sums == pytest.approx(sums, rel=1e-4, abs=1e-6)


def test_rows_are_dealt_out_whole_and_evenly(corpus: Corpus) -> None:
    batch = Batches(corpus.train, 32, 400, 0).at(3)
    for size in (1, 2, 3, 7, 40):
        parts = [share(batch, 1, rank, size) for rank in range(size)]
        tokens = np.concatenate([part.tokens for part in parts])
        assert sorted(tokens) == list(range(400)) and all(part.whole == 400 for part in parts)
        assert sum(len(part.rows) for part in parts) == len(batch.cu_seqlens) - 1
        if size < 8:
            sizes = [len(part.tokens) for part in parts]
            assert max(sizes) - min(sizes) <= 64
        for part in parts:
            assert (part.batch is None) == (len(part.rows) == 0)
            if part.batch is not None:
                assert (part.batch.inputs == batch.inputs[part.tokens]).all()
                assert (part.batch.positions == batch.positions[part.tokens]).all()
                assert part.batch.cu_seqlens[-1] == len(part.tokens)
    pairs = share(batch, 2, 0, 2)  # of preferences two segments are a row
    assert pairs.batch is not None and len(pairs.batch.cu_seqlens) - 1 == 2 * len(pairs.rows)


def test_marks_know_rows_and_not_their_order() -> None:
    rows = [(1, 0, 9), (2, 3, 30), (2, 30, 31)]
    assert marks_sum(rows) == marks_sum(rows[::-1]) != marks_sum([*rows[:2], (2, 30, 32)])
    assert (marks_sum(rows[:1]) + marks_sum(rows[1:])) % 2**64 == marks_sum(rows)
    assert len({marks_sum([(d, a, b)]) for d in range(20) for a, b in pairwise(range(40))}) == 20 * 39


def test_a_ledger_goes_back_with_its_run(tmp_path: Path) -> None:
    ledger = OrderLedger(tmp_path / FILE)
    ledger.cut(0)
    for step in range(1, 6):
        ledger.add(step, StepRows((step - 1,), 2, step))
    whole = (tmp_path / FILE).read_bytes()
    with (tmp_path / FILE).open("ab") as f:
        f.write(b'{"step": 6, "posi')  # the process was killed here
    again = OrderLedger(tmp_path / FILE)
    again.cut(3)
    for step in (4, 5):
        again.add(step, StepRows((step - 1,), 2, step))
    assert (tmp_path / FILE).read_bytes() == whole
    silent = OrderLedger(tmp_path / "none", is_kept=False)
    silent.cut(0)
    silent.add(1, StepRows())
    silent.sync()
    assert not (tmp_path / "none").exists()


def test_a_ledger_that_is_wrong_is_refused(tmp_path: Path) -> None:
    rows = {position: [(position, 0, 4), (position + 9, 0, 4)] for position in range(3)}
    ledger = OrderLedger(tmp_path / FILE)
    for position in range(3):
        ledger.add(position + 1, StepRows((position,), 2, marks_sum(rows[position])))
    found = check_order(tmp_path / FILE, rows.__getitem__, lambda row: [row[0]], 12)
    assert (found.steps, found.rows, found.least, found.most) == (3, 6, 0, 1)
    lines = (tmp_path / FILE).read_text().splitlines()
    for wrong in (
        [lines[0], lines[2]],
        [lines[0], lines[0]],
        [lines[0].replace('"rows": 2', '"rows": 1')],
        [json.dumps(json.loads(lines[0]) | {"marks": "0" * 16})],
    ):
        (tmp_path / FILE).write_text("\n".join(wrong))
        with pytest.raises(RunError):
            check_order(tmp_path / FILE, rows.__getitem__, lambda row: [row[0]], 12)


def test_what_one_rank_decides_all_do(tmp_path: Path) -> None:
    def decide(world: World) -> list[object]:
        waited = time.monotonic()
        slow = world.lead(lambda: time.sleep(0.5) or {"saved": True})
        flags = [world.any(world.rank == 1), world.any(False)]
        try:
            world.lead(_full)
        except RunError as e:
            error = e.what
        except ResourceError as e:
            error = e.what
        numbers = torch.tensor([float(world.rank)])
        world.copy([numbers])
        return [slow, time.monotonic() - waited > 0.4, flags, error, world.agree(7.5 + world.rank), float(numbers)]

    expected = [{"saved": True}, True, [True, False], "no room", 7.5, 0.0]
    assert on_ranks(2, tmp_path / "ranks", decide) == [expected, expected]
    assert single().lead(lambda: 3) == 3 and single().any(True) and single().agree(2.0) == 2.0


@pytest.mark.parametrize(("of_host", "joules"), [(2, 7.0), (1, 14.0)])
def test_energy_is_that_of_all_ranks_and_a_host_s_counter_is_read_once(
    of_host: int, joules: float, tmp_path: Path, quick_pulse: None
) -> None:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "energy_uj").write_text("5000000\n")

    def used(world: World) -> list[float]:
        said = {"RANK": world.rank, "WORLD_SIZE": 2, "LOCAL_RANK": world.rank % of_host, "LOCAL_WORLD_SIZE": of_host}
        os.environ.update({name: str(value) for name, value in {**said, "MASTER_PORT": 9, "MASTER_ADDR": "h"}.items()})
        launched.cache_clear()
        meter = EnergyMeter(root=tmp_path)
        spending = world.spending(lambda: {"seconds": 1.0, "joules": meter.read().joules})
        world.agree(0.0)
        if world.rank == 0:
            (zone / "energy_uj").write_text("12000000\n")
        world.agree(0.0)
        time.sleep(0.8)  # some signs
        found = spending()
        assert found["seconds"] == 1.0 and "joules" not in world.spending(dict)()
        return [found["joules"]]

    found = on_ranks(2, tmp_path / "ranks", used)
    assert found[0] == [joules]
    alone = {"joules": 3.0}
    assert single().spending(lambda: alone)() is alone


def test_clocks_that_differ_by_minutes_do_not_part_the_ranks(corpus: Corpus, tmp_path: Path) -> None:
    """A time budget is spent by rank 0's clock alone, whichever side the others' are on."""

    def budgeted(world: World, run: Run, ahead: float) -> list[int]:
        torch.set_num_threads(1)
        made = trainer(corpus, world)
        made.plan = made.plan.model_copy(update={"seconds": 300.0, "max_steps": 6})
        elapsed = lambda: 1.0 + ahead * world.rank  # noqa: E731
        state = loop_of(made, corpus, run, held_out=200, elapsed=elapsed).train().state
        return [state.step, state.schedule.decay_start or 0]

    for name, ahead in (("ahead", 900.0), ("behind", -900.0)):
        run = Run.create("train", name)
        found = on_ranks(2, tmp_path / name, lambda world, run=run, ahead=ahead: budgeted(world, run, ahead))
        assert found == [[6, 4]] * 2, found


def _full() -> None:
    raise ResourceError("no room", "make some")


@pytest.fixture
def quick_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life, answers and last words take less time than between machines."""
    monkeypatch.setattr(process_group, "BEAT", 0.2)
    monkeypatch.setattr(process_group, "ANSWER", 1.5)
    monkeypatch.setattr(ranks, "LAST_WORD", 1.0)


def test_ranks_that_hang_within_a_shared_step_show_where(tmp_path: Path, quick_pulse: None) -> None:
    """All have come there: nobody knows who is late."""

    def fall(world: World) -> str:
        for step in (1, 2):
            world.at_step(step)
            world.sum([torch.ones(1)])
        with world.together("gradient"):
            if world.rank == 1:
                _hang_here()
            torch.distributed.all_reduce(torch.ones(1))
        return "went on"

    assert on_ranks(2, tmp_path / "ranks", fall, limit=1.0) == [1, 1]
    said = (tmp_path / "ranks" / "0.fault").read_text()
    assert "(gradient)" in said and "rank 1 is in step 2, here:" in said and "_hang_here" in said
    assert "every rank came" in said


@pytest.mark.parametrize("how", ["killed", "hangs", "stopped"])
def test_a_rank_that_is_lost_or_hangs_is_named(
    how: str, tmp_path: Path, quick_pulse: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "killed":
        monkeypatch.setattr(ranks, "LAST_WORD", 60.0)  # the other one ends by itself, on a busy machine later

    def fall(world: World) -> str:
        world.at_step(1)
        world.sum([torch.ones(1)])
        world.at_step(2)
        if world.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.6)  # it has said in which step it is
            if how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            _hang_here()
        try:
            world.sum([torch.ones(1)])
        except RunError as e:
            return e.what
        return "went on"

    began = time.monotonic()
    found = on_ranks(2, tmp_path / "ranks", fall, limit=1.0)
    if how == "killed":
        assert found[1] == -signal.SIGKILL and "rank 0 lost the others at step 2" in str(found[0])
        return
    assert found[0] == 1 and time.monotonic() - began < 30
    said = (tmp_path / "ranks" / "0.fault").read_text()
    assert "rank 0 waited" in said and "rank 1 hangs in step 2" in said
    assert ("_hang_here" in said) == (how == "hangs") and ("does not answer" in said) == (how == "stopped")


def _hang_here() -> None:
    time.sleep(600)
