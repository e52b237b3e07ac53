"""The forecast of a card's memory against torch's memory tracker, on a card that is not there.

A training step of each shape runs on fake tensors (`tests/pretend_card`, sizes alone) while torch's MemTracker
(torch.distributed._tools.mem_tracker) counts the bytes of all live storages; its peak stands beside what `settle train`
and `settle tune` forecast before anything is allocated (`settle/plan/memory.needed`).

    python bench/gpu_memory.py --device cuda

As in bench/gpu_trace.py "cuda" needs torch's CUDA build and neither card nor driver.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu_trace import without_driver  # noqa: E402  beside this file

if TYPE_CHECKING:
    from settle.model.architectures import Architecture
    from settle.train.trainer import Trainer


@dataclass(frozen=True)
class Shape:
    """parameters: of the family's shape nearest to it. tokens: of a micro-batch, in rows of `context`."""

    family: str
    parameters: int
    vocabulary: int
    context: int
    tokens: int
    dtype: str = "bfloat16"
    optimizer: str = "muon"


SHAPES = (
    Shape("llama", 30_000_000, 16_384, 512, 8192),
    Shape("llama", 120_000_000, 32_768, 1024, 8192),
    Shape("qwen3", 350_000_000, 50_304, 2048, 8192),
    Shape("phi3", 90_000_000, 32_064, 4096, 8192, optimizer="adamw"),
    Shape("mistral", 700_000_000, 32_768, 4096, 4096),
    Shape("gemma3_text", 200_000_000, 65_536, 1024, 4096),
    Shape("llama", 120_000_000, 32_768, 1024, 8192, dtype="float32"),
)


def step_of(shape: Shape, device: str, is_fake: bool = False) -> tuple["Trainer", "Architecture"]:
    """Return a trainer of the shape, whose micro-batches are all full rows of one token."""
    import torch

    from settle.data.batches import Batch
    from settle.model.architectures import Architecture
    from settle.train.objectives.next_token import NextToken
    from settle.train.optimizers import Optimizer
    from tests.pretend_card.works import Bench

    part = Architecture.part(shape.family).sized(shape.parameters, shape.vocabulary, shape.context)
    rows = shape.tokens // shape.context
    ends = np.arange(rows + 1, dtype=np.int32) * shape.context
    inputs = np.zeros(shape.tokens, np.int64)
    batch = Batch(inputs, inputs, ends, np.tile(np.arange(shape.context), rows))
    model = part.skeleton(device) if is_fake else part.build(1, device)
    model.compute_dtype = getattr(torch, shape.dtype)
    trainer = Bench(part, device).trainer(model, NextToken(), Optimizer.make(shape.optimizer, {}), micro_batches=1)
    trainer.batches.at = lambda position: batch  # type: ignore[method-assign]
    return trainer, part


def step_bytes(part: "Architecture", shape: Shape) -> int:
    """Return what the planner's terms give for a step.

    Weights, gradients, the optimizer's state, the copy that is computed with, and activations
    (`settle/plan/memory.needed` without what a card's host holds).
    """
    from settle.train.optimizers import Optimizer

    number = 4 if shape.dtype == "float32" else 2
    state = Optimizer.make(shape.optimizer, {}).bytes_per_parameter()
    weights = part.num_parameters * (4 + 4 + state + (number if number < 4 else 0))
    is_flash = shape.dtype != "float32"  # as on cards since Ampere
    return int(weights + shape.tokens * part.activation_bytes_per_token(shape.context, number, is_flash=is_flash))


def measured(shape: Shape, device: str) -> tuple[int, int, int]:
    """(peak bytes of a second step, bytes that are forecast, parameters)."""
    from torch.distributed._tools.mem_tracker import MemTracker

    from settle.train.state import LoopState
    from tests.pretend_card import pretend_card

    with pretend_card(device, numbers=False):
        trainer, part = step_of(shape, device, is_fake=True)
        state, tracker = LoopState(), MemTracker()
        trainer.take_step(state, 1.0)
        tracker.track_external(trainer.model, *trainer.stepper.state().values())
        with tracker:
            trainer.take_step(state, 1.0)
        peak = tracker.get_tracker_snapshot("peak")
    total = max(sum(v for k, v in kinds.items() if str(k).endswith("Total")) for kinds in peak.values())
    return total, step_bytes(part, shape), part.num_parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "meta"], default="meta")
    parser.add_argument("--shapes", type=int, nargs="*", default=range(len(SHAPES)), help="numbers of the shapes")
    asked = parser.parse_args()
    import torch

    if asked.device == "cuda" and not torch.cuda.is_available():
        without_driver()
    print("| family | parameters | tokens × context | type | optimizer | tracker, GB | forecast, GB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for number in asked.shapes:
        shape = SHAPES[number]
        peak, expected, parameters = measured(shape, asked.device)
        cells = [shape.family, f"{parameters / 1e6:,.0f} M", f"{shape.tokens:,} × {shape.context:,}", shape.dtype]
        cells += [shape.optimizer, f"{peak / 1e9:.2f}", f"{expected / 1e9:.2f}", f"{expected / peak:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
