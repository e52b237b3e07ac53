"""A loop over a corpus of a few words, as tests train it: whole, in parts, or on many ranks."""

from typing import Any

from settle.base.event_log import Events
from settle.base.run import Run
from settle.data.batches import Batches, held_out_batches
from settle.data.prepare import Corpus
from settle.model.architectures import Architecture
from settle.model.architectures.llama import Llama
from settle.model.decoder import Decoder
from settle.train.evaluation import HeldOut
from settle.train.loop import Loop
from settle.train.recovery import LoopSession
from settle.train.state import LoopPlan
from settle.train.trainer import Trainer


def tiny(corpus: Corpus, architecture: Architecture = Llama.TINY) -> Decoder:
    return architecture.model_copy(update={"vocab_size": corpus.tokenizer.vocab_size}).build(0)


def batches_of(corpus: Corpus, plan: LoopPlan) -> Batches:
    return Batches(corpus.train, plan.sequence_length, plan.tokens_per_step // plan.micro_batches, 0)


def loop_of(
    trainer: Trainer,
    corpus: Corpus,
    run: Run,
    events: Events | None = None,
    stop_at: int | None = None,
    held_out: int = 400,
    **session: Any,
) -> Loop:
    """stop_at: the step in which somebody asks to stop. held_out: tokens. session: fields of a `LoopSession`."""
    batches = list(held_out_batches(corpus.held_out, trainer.plan.sequence_length, 64, held_out))
    stopping = {"stopping": lambda: stop_at is not None and made.state.step >= stop_at}
    told = LoopSession(run, events or Events(), **stopping | session)
    made = Loop(trainer, HeldOut(batches, corpus.tokenizer.byte_length), told)
    return made
