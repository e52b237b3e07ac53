"""The loop with an adapter: checkpoints hold nothing else, and resuming changes nothing, to the last bit."""

import pytest
import torch
from torch import Tensor

from settle.base.event_log import Events
from settle.base.run import Run
from settle.data.prepare import Corpus
from settle.model.adapters.dora import DoRA
from settle.model.adapters.lora import LoRA
from settle.train import checkpoint as checkpoints
from settle.train.loop import Loop
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamW
from settle.train.trainer import Trainer
from tests.train.loops import batches_of, loop_of, tiny
from tests.train.test_loop import PLAN


def adapted_loop(corpus: Corpus, run: Run, method: LoRA, stop_at: int | None = None) -> Loop:
    model = tiny(corpus)
    method.apply(model, seed=1)
    trainer = Trainer(PLAN, model, NextToken(), AdamW(), batches_of(corpus, PLAN))
    return loop_of(trainer, corpus, run, stop_at=stop_at, held_out=256)


@pytest.mark.parametrize("method", [LoRA(rank=2, dropout=0.2, lr_ratio=4.0), DoRA(rank=2)], ids=["lora", "dora"])
def test_resume_is_byte_identical_and_keeps_only_the_adapter(corpus: Corpus, method: LoRA) -> None:
    ends: list[dict[str, Tensor]] = []
    for stops in ((None,), (5, 19, None)):
        run = Run.create("tune", f"run{len(stops)}")
        for stop in stops:
            made = adapted_loop(corpus, run, method, stop)
            outcome = made.train()
        assert not outcome.interrupted
        saved = checkpoints.load_newest(run.checkpoints, Events())
        assert saved is not None and saved.model.keys() == made.trainer.model.trainable().keys() == outcome.best.keys()
        assert all(".adapter." in name for name in saved.model)
        ends.append({name: p.detach().clone() for name, p in made.trainer.model.trainable().items()})
    whole, resumed = ends
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
