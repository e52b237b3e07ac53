"""A plan made live: the model, data and optimizer that it names, ready for the loop."""

from dataclasses import dataclass
from typing import Any

import torch

from settle.base.events import Events
from settle.base.registry import part
from settle.base.run import Run
from settle.data.batches import Batch, Batches, held_out_batches
from settle.data.prepare import Corpus
from settle.model.architectures import Architecture, Decoder
from settle.plan.training import TrainingPlan
from settle.train.loop import Loop
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from settle.train.stopping import Stopping

EVALUATION_BLOCK = 2048  # tokens: many blocks make the standard error of a mean believable


@dataclass
class TrainingJob:
    """What a plan names, built."""

    plan: TrainingPlan
    corpus: Corpus
    architecture: Architecture
    model: Decoder
    objective: Objective
    optimizer: Optimizer
    batches: Batches
    held_out: list[Batch]

    @classmethod
    def build(cls, plan: TrainingPlan, corpus: Corpus) -> "TrainingJob":
        torch.set_num_threads(plan.loop.threads)
        architecture: Any = part("model/architectures", plan.architecture_name)(**plan.architecture)
        model = architecture.build(plan.loop.seed, plan.device)
        model.compute_dtype = getattr(torch, plan.dtype)
        loop = plan.loop
        micro = loop.tokens_per_step // loop.micro_batches
        block = min(EVALUATION_BLOCK, max(loop.sequence_length, corpus.held_out.num_tokens // 32))
        return cls(
            plan=plan,
            corpus=corpus,
            architecture=architecture,
            model=model,
            objective=part("train/objectives", plan.objective)(),  # type: ignore[arg-type]
            optimizer=part("train/optimizers", plan.optimizer_name)(**plan.optimizer),  # type: ignore[arg-type]
            batches=Batches(corpus.train, loop.sequence_length, micro, loop.seed),
            held_out=list(held_out_batches(corpus.held_out, loop.sequence_length, block, plan.held_out_tokens)),
        )

    def loop(self, run: Run, events: Events, stopping: Stopping) -> Loop:
        return Loop(
            self.plan.loop,
            self.model,
            self.objective,
            self.optimizer,
            self.batches,
            self.held_out,
            self.corpus.tokenizer.byte_length,
            run,
            events,
            stopping,
        )
