"""`settle tune` on the bench's work, one step at a time: the command as it is, heard through its events.

Settings of its own are the command's (`{"dtype": "bfloat16"}`). A step's seconds are those that the run itself counts
for it: no evaluation, no checkpoint, and no waiting for the other side. The run ends after the last step asked for.
"""

import importlib.metadata
import os
from typing import Any

from pace import Pace, arguments

from settle.base.event_log import Events
from settle.base.events import Event, PlanReady, ProofCheck, Step
from settle.commands.make.tune import Tune
from settle.data.batches import RowBatches
from settle.data.rows.prepare import RowCorpus, prepare_rows
from settle.library.pretrained import open_pretrained

SEED = 1


class Steps:
    """A listener that holds the run until it may go on."""

    def __init__(self, pace: Pace, steps: int, order: list[int], counts: list[tuple[int, int]]) -> None:
        self.pace, self.steps, self.order, self.counts = pace, steps, order, counts
        self.plan: dict[str, Any] = {}
        self.begun = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, PlanReady):
            self.plan = dict(event.values)
        elif isinstance(event, ProofCheck) and not self.begun and event.passed:
            # the first thing after the model is there, and before the first step
            self.begun = True
            facts = {
                name: self.plan.get(name) for name in ("dtype", "warmup_steps", "adapter", "optimizer", "recompute")
            }
            version = {"settle-lm": _version(), "torch": importlib.metadata.version("torch")}
            self.pace.ready(versions=version, order=self.order, warmup=self.plan["warmup_steps"], plan=facts)
            self.pace.begin()
        elif isinstance(event, Step):
            self._step(event)

    def _step(self, event: Step) -> None:
        number = event.step
        self.pace.end()
        self.pace.seconds = self.plan["batch_tokens"] / event.tokens_per_second
        self.pace.report(event.loss, *self.counts[number - 1])
        if number == self.steps:
            self.pace.done()
            os._exit(0)  # what follows, settling and handing over, no peer does
        self.pace.begin()


def _version() -> str:
    try:
        return importlib.metadata.version("settle-lm")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        from settle import __version__

        return __version__


def drawn(corpus: RowCorpus, batch: int, steps: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the rows in the order they are drawn, and (tokens, supervised tokens) of each step."""
    batches = RowBatches(corpus.train, batch, SEED)
    order, counts = [], []
    for step in range(steps):
        documents = [document for document, _, _ in batches.rows_of(step)]
        order += [int(corpus.train.origin(document).rpartition(":")[2]) - 1 for document in documents]
        lengths = sum(int(corpus.train.lengths[document]) for document in documents)
        counts.append((lengths, sum(int(corpus.train.mask(document).sum()) for document in documents)))
    return order, counts


def main() -> None:
    pace, asked = Pace(), arguments()
    os.environ["SETTLE_HOME"] = str(asked.work / "home")
    command = Tune(
        model=str(asked.model),
        inputs=[str(asked.rows)],
        seed=SEED,
        steps=max(64, 2 * asked.steps),  # so that the rate has not begun to fall
        batch_rows=asked.batch,
        threads=asked.threads,
        adapter={"name": "lora", "rank": asked.rank, "alpha": asked.alpha},
        optimizer={"name": "adamw", "lr": asked.lr, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
        **asked.settings,
    )
    base = open_pretrained(command.model)
    context = base.part.max_position_embeddings
    corpus = prepare_rows(command.inputs, base.tokenizer, command.rows, Events(), context)
    order, counts = drawn(corpus, asked.batch, asked.steps)
    code = command.run(Events(listeners=[Steps(pace, asked.steps, order, counts)]))
    raise SystemExit(f"settle tune ended, code {code}, before its last step")


if __name__ == "__main__":
    main()
