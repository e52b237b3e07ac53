"""Ranks that share out the weights train as one process does, and their checkpoints are for any number of ranks."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from settle.base.event_log import Events
from settle.base.events import Event
from settle.base.run import Run
from settle.data.prepare import Corpus
from settle.model.architectures.gemma3_text import Gemma3Text
from settle.model.architectures.llama import Llama
from settle.train import checkpoint as checkpoints
from settle.train.checkpoint import Checkpoint
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers import Optimizer
from settle.train.optimizers.adamw import AdamW
from settle.train.optimizers.muon import Muon, orthogonal
from settle.train.state import LoopState
from settle.train.trainer import StepResult, Trainer
from settle.train.world import World, single
from settle.train.world.row_share import FILE
from settle.train.world.weight_shards import ShardStore, gather, local_part, on_whole, shard, whole
from tests.train.loops import batches_of, loop_of, tiny
from tests.train.ranks import in_parts, on_ranks
from tests.train.test_world import PLAN

FAMILIES: dict[str, Any] = {"llama": Llama.TINY, "gemma3": Gemma3Text.TINY}


SHORT = PLAN.model_copy(update={"max_steps": 8, "checkpoint_steps": 4})


def trainer(
    corpus: Corpus, world: World, optimizer: Optimizer, family: str = "llama", offloads: bool = False
) -> Trainer:
    """A whole model at one rank, a shared one at many."""
    torch.set_num_threads(1)
    model = tiny(corpus, FAMILIES[family])
    if world.size > 1:
        shard(model, world, offloads)
        model.recompute = 2 if family == "gemma3" else 0  # every second layer
    return Trainer(SHORT, model, NextToken(), optimizer, batches_of(corpus, SHORT), world)


def train(corpus: Corpus, run: Run, world: World, stop_at: int | None = None) -> list[float]:
    """Losses of all evaluations, of a run until its end or until a step."""
    made = loop_of(trainer(corpus, world, Muon()), corpus, run, stop_at=stop_at)
    return [e.loss for e in made.train().state.history]


@pytest.mark.parametrize(("optimizer", "family"), [(AdamW(), "gemma3"), (Muon(weight_decay=0.1), "llama")])
def test_a_step_on_shared_weights_is_that_of_one_rank(
    optimizer: Optimizer, family: str, corpus: Corpus, tmp_path: Path
) -> None:
    """Also where a rank has no row, and where rows of weights do not divide."""
    rows = [len(batches_of(corpus, SHORT).rows_of(position)) for position in range(8)]
    assert min(rows) < 3

    def steps(world: World) -> tuple[list[float], dict[str, Any], int]:
        made, state = trainer(corpus, world, optimizer, family), LoopState()
        figures = [figure for _ in range(4) for figure in _figures(made.take_step(state, 1.0))]
        own = sum(t.numel() for t in made.stepper.state().values())
        if world.size == 1:
            return figures, {k: v.numpy() for k, v in made.weights().items()}, own
        found = gather(world, made.weights(), made.model.trainable())
        return figures, {k: v.numpy() for k, v in found.items()}, own

    alone, weights, states = steps(single())
    for size in (2, 3):
        found = on_ranks(size, tmp_path / str(size), steps)
        assert all(figures == found[0][0] for figures, _, _ in found)
        assert found[0][0] == pytest.approx(alone, rel=1e-5)
        assert found[0][1].keys() == weights.keys() and not found[1][1]
        for name, tensor in weights.items():
            assert np.allclose(found[0][1][name], tensor, rtol=1e-3, atol=2e-5), name
        assert max(own for _, _, own in found) < states / size * 1.3


def _figures(result: Any) -> tuple[float, float]:
    return result.loss, result.grad_norm


def test_in_a_half_type_gradients_are_summed_in_float32(corpus: Corpus, tmp_path: Path) -> None:
    def step(world: World) -> tuple[float, str]:
        made = trainer(corpus, single(), AdamW())
        made.model.compute_dtype = torch.bfloat16
        if world.size > 1:
            shard(made.model, world)
        made = Trainer(PLAN, made.model, made.objective, AdamW(), made.batches, world)
        state = LoopState()
        losses = [made.take_step(state, 1.0).loss for _ in range(3)]
        return losses[-1], str({local_part(p.detach()).dtype for p in made.model.parameters()})

    (alone, _), found = step(single()), on_ranks(2, tmp_path / "two", step)
    assert found[0] == found[1] and found[0][1] == "{torch.float32}"
    assert found[0][0] == pytest.approx(alone, rel=1e-3) and found[0][0] != alone


def test_a_run_goes_on_with_any_number_of_ranks(corpus: Corpus, tmp_path: Path) -> None:
    """Weights shared out or not, from one checkpoint to the next; and no file is a pickle."""
    one, two, changed = (Run.create("train", name) for name in ("one", "two", "changed"))
    alone = train(corpus, one, single())
    found = on_ranks(2, tmp_path / "two", lambda world: train(corpus, two, world))
    assert found[0] == found[1] and found[0] == pytest.approx(alone, rel=1e-5) and len(alone) > 3
    assert len(list(checkpoints.steps(two.checkpoints)[-1].glob("*.safetensors"))) >= 4
    losses = in_parts(((2, 2), (1, 5), (3, None)), tmp_path, lambda world, stop: train(corpus, changed, world, stop))
    assert losses == pytest.approx(alone, rel=1e-5)
    for run in (two, changed):
        assert (run.path / FILE).read_bytes() == (one.path / FILE).read_bytes()
    for file in (path for path in two.path.rglob("*") if path.is_file()):
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, framework="pt") as opened:
                assert opened.keys()
        else:
            assert file.suffix in (".json", ".jsonl", ".lock"), file
            [json.loads(line) for line in file.read_text().splitlines()]


def test_hosts_that_each_hold_the_whole_train_as_one_rank_does(corpus: Corpus, tmp_path: Path) -> None:
    """Four ranks on two hosts: the first host's write the checkpoints, which any number of ranks resumes."""
    alone, four, changed = (Run.create("train", name) for name in ("one", "four", "changed"))

    def hybrid(world: World, run: Run, stop_at: int | None = None) -> list[float]:
        world.is_hybrid = world.size == 4
        return train(corpus, run, world, stop_at)

    losses = train(corpus, alone, single())
    found = on_ranks(4, tmp_path / "four", lambda world: hybrid(world, four), host_size=2)
    assert found == [found[0]] * 4 and found[0] == pytest.approx(losses, rel=1e-5), found
    assert sorted(file.name for file in checkpoints.steps(four.checkpoints)[-1].glob("model*")) == [
        "model.0.safetensors", "model.1.safetensors",
    ]  # fmt: skip
    parts: list[Any] = [(4, 2, 3), (3, 3, 5), (4, 2, 7), (1, 1, None)]
    for number, (size, host_size, stop) in enumerate(parts):
        if size == 1:
            last = train(corpus, changed, single())
        else:
            part = tmp_path / f"part{number}"
            on_ranks(size, part, lambda world, stop=stop: hybrid(world, changed, stop), host_size=host_size)
    assert last == pytest.approx(losses, rel=1e-5)
    for run in (four, changed):
        assert (run.path / FILE).read_bytes() == (alone.path / FILE).read_bytes()


def test_a_hybrid_step_clips_by_the_norm_of_one_rank_and_gathers_each_row_once(corpus: Corpus, tmp_path: Path) -> None:
    """With AdamW, recomputed layers and rows of weights that do not divide; offloaded too, as far as a CPU shows it."""

    def steps(world: World) -> tuple[list[float], float]:
        world.is_hybrid = world.size > 1
        made, state = trainer(corpus, world, AdamW(), "gemma3", offloads=world.size > 1), LoopState()
        figures = [figure for _ in range(3) for figure in _figures(made.take_step(state, 1.0))]
        if world.size == 1:
            return figures, sum(float(tensor.double().abs().sum()) for tensor in made.weights().values())
        assert made.model.device.type == "cpu" == made.model.computes_on.type  # type: ignore[union-attr]
        found = gather(world, made.weights(), made.model.trainable())
        return figures, sum(float(tensor.double().abs().sum()) for tensor in found.values())

    alone, weights = steps(single())
    found = on_ranks(6, tmp_path / "six", steps, host_size=3)
    assert all(figures == found[0][0] for figures, _ in found)
    assert found[0][0] == pytest.approx(alone, rel=1e-5) and found[0][1] == pytest.approx(weights, rel=1e-5)


def test_a_step_that_goes_wrong_is_taken_back_on_all_ranks(corpus: Corpus, tmp_path: Path) -> None:
    def poisoned(world: World, run: Run) -> tuple[list[float], list[int], list[str]]:
        made, seen = trainer(corpus, world, Muon()), list[str]()
        take = made.take_step

        def step(state: LoopState, multiplier: float) -> StepResult:
            bad = state.step == 5 and not state.rollbacks
            result = take(state, multiplier)
            return StepResult(float("nan"), result.grad_norm, 0, result.rows) if bad else result

        made.take_step = step  # type: ignore[method-assign]
        events = Events(listeners=[lambda event: seen.append(event.kind)])
        state = loop_of(made, corpus, run, events).train().state
        return [e.loss for e in state.history], state.skipped, [kind for kind in seen if kind == "rollback"]

    one, two = (Run.create("train", name) for name in ("one", "two"))
    alone = poisoned(single(), one)
    found = on_ranks(2, tmp_path / "two", lambda world: poisoned(world, two))
    assert alone[2] == ["rollback"] and alone[1]
    for losses, *rest in found:
        assert losses == pytest.approx(alone[0], rel=1e-5) and rest == list(alone[1:])
    assert (one.path / FILE).read_bytes() == (two.path / FILE).read_bytes()


def test_matrices_are_worked_on_whole(tmp_path: Path) -> None:
    matrices = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    work = lambda m: orthogonal(m, 4, torch.float32)  # noqa: E731

    def rows(world: World) -> Any:
        holder = torch.nn.Linear(3, 7, bias=False)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(holder, mesh=init_device_mesh("cpu", (world.size,)))
        own = local_part(holder.weight.detach())
        start = world.rank * 3
        return on_whole(matrices[:, start : start + len(own)], 7, holder.weight, work).numpy()

    found = on_ranks(3, tmp_path / "three", rows)
    assert np.allclose(np.concatenate(found, axis=1), work(matrices).numpy(), atol=1e-6)


def test_one_rank_can_use_the_model_alone_while_it_is_whole(corpus: Corpus, tmp_path: Path) -> None:
    """And the next step is as if it had not."""

    def sample(world: World) -> list[float]:
        made, state = trainer(corpus, world, AdamW()), LoopState()
        inputs, bounds = torch.arange(9), torch.tensor([0, 9], dtype=torch.int32)
        made.take_step(state, 1.0)
        sums: list[float] = []
        with whole(made.model), torch.no_grad():
            if world.rank == 0:
                sums = [float(made.model(inputs, bounds).double().sum()) for _ in range(2)]
        return [made.take_step(state, 1.0).loss, *sums]

    alone, found = sample(single()), on_ranks(2, tmp_path / "two", sample)
    assert found[0] == pytest.approx(alone, rel=1e-5) and found[1] == [found[0][0]]


def made(step: int, rank: int, size: int = 40) -> Checkpoint:
    values = torch.arange(step, step + size * 3, dtype=torch.float32).view(size, 3)
    start = rank * (size // 2)
    own = values[start : start + size // 2]
    return Checkpoint(step, {"w": own}, {"adam.mean.w": own + 1, "adam.count": torch.tensor(7.0)}, None, {"step": step})


def test_a_save_beside_the_training_keeps_what_was_saved(tmp_path: Path) -> None:
    """The training changes the tensors at once."""

    def work(world: World) -> list[str]:
        seen: list[Event] = []
        store = ShardStore(tmp_path, 10, Events(listeners=[seen.append]), world)
        for step in (10, 20):
            checkpoint = made(step, world.rank)
            assert store.save(checkpoint, lambda: False, wait=False)
            checkpoint.model["w"].zero_()
        assert store.flush() and store.newest() is not None
        return [event.kind for event in seen]

    found = on_ranks(2, tmp_path / "ranks", work)
    assert found == [["checkpoint"] * 2] * 2, found
    both = checkpoints.load(tmp_path, 20)
    assert torch.equal(both.model["w"], torch.arange(20.0, 140.0).view(40, 3)) and both.optimizer["adam.count"] == 7
    assert torch.equal(checkpoints.load(tmp_path, 20, rank=1, size=3).model["w"], both.model["w"][14:28])


def test_a_rank_that_is_killed_within_a_save_leaves_the_one_before(tmp_path: Path) -> None:
    def work(world: World) -> None:
        store = ShardStore(tmp_path, 10, Events(), world)
        store.save(made(10, world.rank), lambda: False, wait=True)
        if world.rank == 1:
            written = checkpoints.write

            def killed(*args: Any) -> Any:
                written(*args)
                os.kill(os.getpid(), signal.SIGKILL)

            checkpoints.write = killed
        store.save(made(20, world.rank), lambda: False, wait=True)

    found = on_ranks(2, tmp_path / "ranks", work)
    assert found[1] == -signal.SIGKILL
    assert [path.name for path in checkpoints.steps(tmp_path)] == ["00000010"]
    newest = ShardStore(tmp_path, 10, Events(), single()).newest()
    assert newest is not None and newest.step == 10 and len(newest.model["w"]) == 40
    assert not list(tmp_path.glob(".0*"))
    (tmp_path / "00000010" / "model.1.safetensors").unlink()  # half of the rows are no checkpoint
    with pytest.raises(checkpoints.CheckpointError):
        checkpoints.load(tmp_path, 10)


def test_ranks_wait_for_room_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(150_000))

    def work(world: World) -> list[object]:
        texts: list[str] = []

        def hear(event: Event) -> None:
            texts.append(str(event.model_dump().get("text", "")))
            if "the disk is full" in texts[-1]:
                (small_disk / "ballast").unlink()

        store = ShardStore(small_disk, 10, Events(listeners=[hear] if world.rank == 0 else []), world)
        big = made(20, world.rank, size=8000)
        saved = [store.save(big, lambda: False, wait=False), store.flush(), store.save(big, lambda: False, wait=True)]
        return [saved, sum("room again" in text for text in texts)]

    began = time.monotonic()
    found = on_ranks(2, tmp_path / "ranks", work)
    assert found == [[[True, False, True], 1], [[True, False, True], 0]], found
    assert [path.name for path in small_disk.iterdir()] == ["00000020"] and time.monotonic() - began < 60
