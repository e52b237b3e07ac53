"""What the machine can compute: matrix products per dtype, and how fast memory is copied. Measured, remembered.

Letters: M rows (tokens), K inputs, N outputs of one product y (M, N) = x (M, K) @ w (N, K).T; 2·M·K·N operations.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from settle.machine.cores import Accelerator, accelerator
from settle.machine.measurement_cache import key, remembered

Shape = tuple[int, int, int]  # (M, K, N)

# The half precisions cost casts and care; they must be clearly faster to be worth it.
WORTH_IT = 1.15

# Rows of one product; with more, only the time grows, not the rate.
MOST_OPERATIONS = 6e9
# A dtype that a processor lacks may be computed a hundred times slower: a product this small finds it out first.
FEW_OPERATIONS = 1e7
HOPELESS = 4.0


@dataclass(frozen=True)
class DtypeProbe:
    """`dtype` is what to compute in; `rates` is operations per second of a linear layer's forward and backward."""

    dtype: str
    rates: dict[str, float]

    @property
    def why(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e9:,.3g} GFLOP/s" for name, rate in self.rates.items())
        return f"measured here at the planned shapes: {rates}"


def ceiling(
    shapes: Sequence[Shape], dtype: str = "float32", device: Accelerator | None = None, seconds: float = 1.0
) -> float:
    """Return the most operations per second that bare matrix products of these shapes reach on all cores.

    The rate is the sum of operations ÷ the sum of the best times. Remembered per machine, shapes and dtype.
    """
    import torch

    device = device or accelerator("cpu")
    name = f"ceiling {dtype} {_spelled(shapes)}"

    def measure() -> float:
        rounds = []
        for m, k, n in dict.fromkeys(shapes):
            x = torch.randn(m, k, device=device.kind).to(getattr(torch, dtype))
            w = torch.randn(n, k, device=device.kind).to(getattr(torch, dtype))
            rounds.append(_timed(partial(torch.nn.functional.linear, x, w), device.kind))
        best = dict(zip(dict.fromkeys(shapes), _best_times(rounds, seconds), strict=True))
        return sum(2.0 * m * k * n for m, k, n in shapes) / sum(best[shape] for shape in shapes)

    with torch.no_grad():
        return float(remembered(key(device.kind, torch.get_num_threads()), name, measure))


def probe_dtype(shapes: Sequence[Shape], device: Accelerator | None = None, seconds: float = 1.0) -> DtypeProbe:
    """Choose the dtype to compute in: the fastest at these shapes, float32 unless another is clearly faster.

    What is timed is what training does: a linear layer's forward and both its backward products on activations of
    that dtype with master weights in float32, so that the casts of the weights and their gradient are paid for.
    Dtypes take turns, so that a busy moment of the machine hits all of them. Remembered per machine and shapes.
    """
    import torch

    device = device or accelerator()

    def measure() -> dict[str, float]:
        first = _cut(shapes[0], FEW_OPERATIONS)
        small = _rates([first], device.dtypes, device.kind, 0.0)
        hopeful = [d for d in device.dtypes if small[d] * HOPELESS > small[device.dtypes[0]]]
        return small | _rates([_cut(s, MOST_OPERATIONS) for s in shapes], hopeful, device.kind, seconds)

    name = f"training {' '.join(device.dtypes)} {_spelled(shapes)}"
    rates = remembered(key(device.kind, torch.get_num_threads()), name, measure)
    fastest = max(rates, key=rates.__getitem__)
    safe = device.dtypes[0]
    return DtypeProbe(fastest if rates[fastest] >= WORTH_IT * rates[safe] else safe, rates)


def _rates(shapes: Sequence[Shape], dtypes: Sequence[str], device: str, seconds: float) -> dict[str, float]:
    """Operations per second of a linear layer's forward and backward in each dtype, over all the shapes."""
    times = dict.fromkeys(dtypes, 0.0)
    for shape in shapes:
        rounds = [_training_round(shape, dtype, device) for dtype in dtypes]
        for dtype, best in zip(dtypes, _best_times(rounds, seconds / len(shapes)), strict=True):
            times[dtype] += best
    operations = sum(6.0 * m * k * n for m, k, n in shapes)
    return {dtype: operations / spent for dtype, spent in times.items()}


def _cut(shape: Shape, operations: float) -> Shape:
    """Return the shape with no more rows than these operations need, and no fewer than a handful."""
    m, k, n = shape
    return min(m, max(64, int(operations / (6 * k * n)))), k, n


def bandwidth(device: Accelerator | None = None, seconds: float = 0.3) -> float:
    """Bytes per second that memory moves in a plain copy, read and written bytes both counted."""
    import torch

    device = device or accelerator("cpu")

    def measure() -> float:
        source = torch.ones(32 << 20, dtype=torch.float32, device=device.kind)  # 128 MiB: beyond usual caches
        target = torch.empty_like(source)
        (best,) = _best_times([_timed(lambda: target.copy_(source), device.kind)], seconds)
        return 2.0 * source.nbytes / best

    return float(remembered(key(device.kind, torch.get_num_threads()), "bandwidth", measure))


def _training_round(shape: Shape, dtype: str, device: str) -> Callable[[], float]:
    import torch

    m, k, n = shape
    compute = getattr(torch, dtype)
    x = torch.randn(m, k, device=device).to(compute)
    w = torch.randn(n, k, device=device)
    gradient = torch.randn(m, n, device=device).to(compute)

    def once() -> None:  # by hand: a gradient given to autograd has it import a second of symbolic mathematics
        cast = w.to(compute)
        torch.nn.functional.linear(x, cast)
        gradient @ cast
        (gradient.mT @ x).to(w.dtype)

    return _timed(once, device)


def _timed(work: Callable[[], object], device: str) -> Callable[[], float]:
    """Return a function that does the work once and returns its seconds, the device's queue emptied."""
    import torch

    def once() -> float:
        start = time.perf_counter()
        work()
        if device in ("cuda", "mps"):
            getattr(torch, device).synchronize()
        return time.perf_counter() - start

    return once


def _best_times(rounds: Sequence[Callable[[], float]], seconds: float) -> list[float]:
    """Return the shortest time of each, in turns for about `seconds`: the first warms up, the second counts."""
    best = [float("inf")] * len(rounds)
    end = time.perf_counter() + seconds
    turns = 0
    while turns < 2 or time.perf_counter() < end:
        for i, once in enumerate(rounds):
            spent = once()
            best[i] = min(best[i], spent) if turns else float("inf")
        turns += 1
    return best


def _spelled(shapes: Sequence[Shape]) -> str:
    return " ".join("x".join(map(str, shape)) for shape in shapes)
