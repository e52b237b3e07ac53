"""A plan made live: the model, data and optimizer that it names, ready for the loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from settle.base.events import Events
from settle.base.registry import part
from settle.base.run import Run
from settle.data.batches import Batch, Batches, held_out_batches
from settle.data.prepare import Corpus
from settle.machine import keep_freed_memory
from settle.model.architectures import Architecture, Decoder
from settle.plan.training import TrainingPlan
from settle.train.checkpoint import Weights
from settle.train.evaluation import evaluate
from settle.train.loop import Loop, LoopPlan, State
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from settle.train.stopping import Stopping

IDENTITY = (
    "architecture_name", "architecture", "objective", "optimizer_name", "optimizer",
    "device", "dtype", "held_out_tokens", "loop", "corpus",
)  # fmt: skip
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
        keep_freed_memory()
        architecture: Any = part("model/architectures", plan.architecture_name)(**plan.architecture)
        model = architecture.build(plan.loop.seed, plan.device)
        model.compute_dtype = getattr(torch, plan.dtype)
        loop = plan.loop
        micro = loop.tokens_per_step // loop.micro_batches
        return cls(
            plan=plan,
            corpus=corpus,
            architecture=architecture,
            model=model,
            objective=part("train/objectives", plan.objective)(),  # type: ignore[arg-type]
            optimizer=part("train/optimizers", plan.optimizer_name)(**plan.optimizer),  # type: ignore[arg-type]
            batches=Batches(corpus.train, loop.sequence_length, micro, loop.seed),
            held_out=_blocks(corpus, loop, plan.held_out_tokens),
        )

    def identity(self) -> dict[str, Any]:
        """Everything that must not change between sessions, as plan.json holds it."""
        record = self.plan.to_json() | {"corpus": self.corpus.fingerprint}
        return {key: record[key] for key in IDENTITY}

    def loop(
        self, run: Run, events: Events, stopping: Stopping, spending: Callable[[], dict[str, float]] = dict
    ) -> Loop:
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
            self.identity(),
            spending,
            self.corpus.tokenizer.decode,
        )

    def judge(self, weights: Weights, state: State) -> dict[str, float]:
        """The evaluation of `weights` on all held-out text, or as much as a twentieth of the run's time allows.

        The loop looks at a sample, and picks the best of many looks; this is the figure to quote.
        """
        self.model.load_trainable(weights)
        loop = self.plan.loop
        affordable = 3 * loop.tokens_per_step * state.step // 20  # a forward pass is a third of a step
        limit = max(self.plan.held_out_tokens, affordable)
        batches = _blocks(self.corpus, loop, limit)
        tokens = state.best_step * loop.tokens_per_step
        byte_length = self.corpus.tokenizer.byte_length
        seen = evaluate(self.model, self.objective, batches, byte_length, state.best_step, tokens)
        return {k: getattr(seen, k) for k in ("step", "tokens", "loss", "stderr", "bits_per_byte")}


def _blocks(corpus: Corpus, loop: LoopPlan, limit: int) -> list[Batch]:
    """At most `limit` held-out tokens, in blocks: sixteen at least, since their spread is how sure a loss is."""
    block = min(EVALUATION_BLOCK, max(loop.sequence_length, min(limit, corpus.held_out.num_tokens) // 16))
    return list(held_out_batches(corpus.held_out, loop.sequence_length, block, limit))
