"""How long a training step takes here, for a model of any size: two real models are trained for a few steps.

A step costs something for each layer, whatever its width (calls, small products, the optimizer), and something for
each FLOP. For small models the first is most of it, and a rule of FLOPs alone would choose models far too small.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from settle.machine import Accelerator, probe_dtype
from settle.machine.measurement_cache import key, remembered
from settle.model.architectures import Architecture
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers import Optimizer

SMALL, LARGE = 150_000, 3_000_000  # parameters
TOKENS, CONTEXT = 1024, 128  # tokens of a measured step, and of each of its segments
STEPS = 4  # the first finds its memory and kernels


@dataclass(frozen=True)
class Speed:
    """`layer`: seconds a layer takes in every step. `flop`: seconds of a FLOP on top of that."""

    layer: float
    flop: float

    def step(self, architecture: Architecture, tokens: int, context: int) -> float:
        """Seconds of an optimizer step over `tokens` tokens."""
        layers = len(architecture.options().layers)
        return self.layer * layers + self.flop * tokens * architecture.flops_per_token(context)


def measure_speed(
    architecture: type[Architecture], vocab_size: int, optimizer: Optimizer, device: Accelerator, dtype: str | None
) -> Speed:
    """The speed of this family on this machine; about half a second, remembered."""
    import torch

    if dtype is None:
        dtype = probe_dtype([(TOKENS, 192, 576), (TOKENS, 192, 1024)], device, seconds=0.2).dtype
    models = [architecture.sized(size, vocab_size, CONTEXT) for size in (SMALL, LARGE)]
    name = f"step {architecture.__name__} {type(optimizer).__name__} {vocab_size} {dtype}"

    def measure() -> dict[str, float]:
        return {str(i): _best_step(model, optimizer, device.kind, dtype) for i, model in enumerate(models)}

    times = remembered(key(device.kind, torch.get_num_threads()), name, measure)
    matrix = [[len(m.options().layers), TOKENS * m.flops_per_token(CONTEXT)] for m in models]
    layer, flop = np.linalg.solve(matrix, [times["0"], times["1"]])
    if layer < 0 or flop < 0:  # the machine was busy with one of them: believe the larger one
        layer, flop = 0.0, times["1"] / matrix[1][1]
    return Speed(float(layer), float(flop))


def _best_step(architecture: Architecture, optimizer: Optimizer, device: str, dtype: str) -> float:
    import torch

    model = architecture.build(0, device)
    model.compute_dtype = getattr(torch, dtype)
    stepper, objective = optimizer.bind(model), NextToken()
    vocab_size = model.options.vocab_size
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (TOKENS + 1,), generator=random).to(device)
    bounds = torch.arange(0, TOKENS + 1, CONTEXT, dtype=torch.int32, device=device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        total, count = objective.loss(model, ids[:-1], ids[1:], bounds)
        (total / count).backward()
        stepper.step(1.0)
        float(total.detach())  # waits for the device

    return min(_timed(step) for _ in range(STEPS))


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
