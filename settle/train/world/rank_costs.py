"""What a step costs on many ranks, measured before the run: a rank's part of the work, and what the ranks send each
other."""

import contextlib
import statistics
import time
from collections import Counter
from dataclasses import dataclass

from settle.base.event_log import Events
from settle.base.events import Say
from settle.train.state import LoopState
from settle.train.trainer import Trainer
from settle.train.world import World
from settle.train.world.shared_gradient import buckets
from settle.train.world.talk import Ranks, Talk

ROUNDS = 4  # pairs of steps that are compared, and one before them that finds its memory
PATIENCE = 60.0  # seconds after which one pair has to be enough
MEETINGS = 4  # in a step, of one number each: the loss, who asks to stop, what went wrong, and the clock
WAYS = 2  # a layer that is shared out is fetched for the forward pass, and again for the backward pass


class _Part(World):
    """Rank 0 of `size` ranks, of which the others are missing."""

    def __init__(self, size: int) -> None:
        self.size = size


@dataclass(frozen=True)
class RankCosts:
    """part: a rank's step ÷ one process's. talk: seconds a step. spread: standard deviation of `part`, as a share."""

    part: float
    talk: float
    spread: float

    def of_step(self, alone: float) -> float:
        """Seconds of a step, of those that it takes in one process."""
        return self.part * alone + self.talk


def rank_costs(trainer: Trainer, ranks: Ranks, events: Events) -> RankCosts:
    """Measures both, and says them, with steps of the run's own batches at a rate of zero, which leave the weights as
    they are; the optimizer's state is to be thrown away. The part is the first rank's, which gets the longest row."""
    alone = trainer.world
    parts: list[float] = []
    began = time.perf_counter()
    for turn in range(1 + ROUNDS):
        seconds = {}
        for size in (1, ranks.size) if turn % 2 else (ranks.size, 1):
            trainer.world = _Part(size)
            state = LoopState()
            state.position = turn * trainer.plan.micro_batches
            with ranks.busy() if size > 1 else contextlib.nullcontext():
                since = time.perf_counter()
                trainer.take_step(state, 0.0)
                seconds[size] = time.perf_counter() - since
        is_late = time.perf_counter() - began > PATIENCE
        if turn or is_late:
            parts.append(seconds[ranks.size] / seconds[1])
        if is_late:
            break
    trainer.world = alone
    part, talk = statistics.median(parts), ranks.talk(talk_of(trainer))
    words = f"{100 * part:.0f} % of one process's time, and {1000 * talk:,.1f} ms to send each other what it needs"
    events.emit(Say(text=f"a step of {ranks.size} ranks takes {words}"))
    return RankCosts(part, talk, statistics.pstdev(parts) / part)


def talk_of(trainer: Trainer) -> Talk:
    """What a step of the plan sends."""
    model, plan = trainer.model, trainer.plan
    device, half = model.device.type, model.compute_dtype.itemsize == 2
    if not plan.is_sharded:
        sums = [sum(tensor.numel() for tensor in bucket) for bucket in buckets(list(model.trainable().values()))]
        return Talk((*sums, *[1] * MEETINGS), (), (), half, device)
    layers = Counter[str]()
    for name, tensor in model.trainable().items():
        before, _, after = name.partition("layers.")
        layers[after.partition(".")[0] if after else ""] += tensor.numel()
    whole = tuple(layers.values()) * plan.micro_batches
    return Talk((1,) * (MEETINGS + 1), whole * WAYS, whole, half, device)
