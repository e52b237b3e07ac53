"""Memory of a run of settle: what training a model takes here, and what one of several ranks takes."""

import math
from collections import Counter
from dataclasses import dataclass, replace

from settle.base.errors import ResourceError
from settle.base.words.amounts import gigabytes, megabytes
from settle.machine import memory, resident
from settle.model.architectures import Architecture
from settle.model.families import of_plan
from settle.model.layers.attention import keeps_no_probabilities
from settle.plan.memory_model import Precision
from settle.train.optimizers import Optimizer
from settle.train.training_plan import TrainingPlan

WEIGHT = 4  # bytes of a trained number, of its gradient, and of a sum over ranks


def must_fit(plan: TrainingPlan) -> None:
    """Raise ResourceError, before anything is allocated, when the run will not fit in memory; propose what will.

    What counts: weights, gradients, optimizer state, the best weights, a checkpoint being made, and the activations of
    one micro-batch.
    """
    if plan.device != "cpu":
        return
    need, have = resident() + needed(plan), memory().available
    if need <= have + resident():
        return
    scale = (have * 0.8) / max(1, needed(plan))
    architecture = of_plan(plan.architecture_name, plan.architecture)
    fits = int(architecture.num_parameters * scale)
    raise ResourceError(
        f"this run needs about {gigabytes(need)} of memory and {gigabytes(have)} are free",
        _what_fits(plan, architecture.num_parameters, fits),
    )


def _what_fits(plan: TrainingPlan, parameters: int, fits: int) -> str:
    """Return what to ask for instead: a shorter context where that was asked for, else a smaller model."""
    if plan.origin.get("context") not in (None, "default", "derived", "measured") or fits >= parameters:
        return "ask for a shorter --context, or fewer --batch-tokens"
    shown = f"{fits // 1_000_000}M" if fits >= 1_000_000 else f"{max(1, fits // 1000)}k"
    return f"--size {shown} would fit, or fewer --batch-tokens"


def precision(state: float, cast: float = 0.0, is_saved: bool = True) -> Precision:
    """Return the bytes that training here takes for each weight, which is trained in fp32.

    state: of the optimizer; cast: of the copy that is computed with. Copies: the best weights, and those of weights and
    state that a save writes.
    """
    return Precision(WEIGHT + cast, WEIGHT, state, WEIGHT + (WEIGHT + state if is_saved else 0.0))


def needed(plan: TrainingPlan) -> int:
    """Return the bytes that training takes beyond what the process holds already."""
    architecture = of_plan(plan.architecture_name, plan.architecture)
    state = Optimizer.make(plan.optimizer_name, plan.optimizer).bytes_per_parameter()
    states = precision(state, cast=0.0 if plan.dtype == "float32" else 2.0).of(architecture.num_parameters)
    micro = plan.loop.tokens_per_step // plan.loop.micro_batches
    return int(replace(states, activations=micro * _activations(plan, architecture)).total)


def _activations(plan: TrainingPlan, architecture: Architecture) -> float:
    """Return the bytes that a token of a micro-batch keeps for the backward pass."""
    is_flash = keeps_no_probabilities(plan.device, plan.dtype)
    return architecture.activation_bytes_per_token(plan.loop.sequence_length, _bytes(plan.dtype), is_flash=is_flash)


def _bytes(dtype: str) -> int:
    return WEIGHT if dtype == "float32" else 2


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank holds at most."""

    device: float  # where it computes
    host: float = 0.0  # in the host's memory, where it computes on a card

    def words(self, size: int) -> str:
        """Return the sentence for the user. size: number of ranks."""
        beside = f" on its card and {megabytes(self.host)} of its host's memory" if self.host else ""
        return f"each of {size} ranks needs about {megabytes(self.device)}{beside} for the model while it trains"


def rank_memory(plan: TrainingPlan, size: int, host_size: int | None = None) -> RankMemory:
    """Return what one of `size` ranks holds at most while it trains, beyond what the process holds before the model.

    host_size: ranks of a host, among which a hybrid plan shares out the weights.

    Its rows of weights, gradients, optimizer state and best weights, and the copy that a save writes; what is whole at
    once; and activations.
    """
    architecture = of_plan(plan.architecture_name, plan.architecture)
    optimizer = Optimizer.make(plan.optimizer_name, plan.optimizer)
    loop, number = plan.loop, _bytes(plan.dtype)
    layers = Counter[int]()
    shapes = architecture.parameters()
    for name, shape in shapes.items():
        if ".layers." in name:
            layers[int(name.split(".layers.")[1].split(".")[0])] += math.prod(shape)
    layer, total = max(layers.values()), sum(map(math.prod, shapes.values()))
    among = (host_size or size) if loop.is_hybrid else size
    rows = precision(optimizer.bytes_per_parameter()).of(total / among)
    trained = rows.states - rows.copies
    # tables: as they came and as they are read, their gradient, and that of the loss on the way to it
    tables = (total - layers.total()) * (3 * number + 2 * WEIGHT)
    # two layers, since the next one is on its way, one of them as it came; folded weights; gradients, and their sum
    whole = layer * (5 * number + 2 * WEIGHT)
    step = optimizer.bytes_of_step(Counter((x.outputs, x.inputs) for x in architecture.linears().values()), among)
    micro = loop.tokens_per_step // loop.micro_batches
    tokens = min(micro, max(loop.sequence_length, micro / size))  # a row stays whole
    once = tables + whole + tokens * _activations(plan, architecture)
    if plan.device == "cpu":
        return RankMemory(trained + rows.copies + max(once, step))
    if loop.offloads:
        return RankMemory(once, trained + rows.copies + step)
    return RankMemory(trained + max(once, step), rows.copies)
