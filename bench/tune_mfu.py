"""Useful FLOP/s of LoRA steps against the ceiling that bare matrix products of the same shapes reach, in turns.

    python bench/tune_mfu.py MODEL rows.jsonl [--rounds 6] [--threads 2]

A step is the product's own (`Trainer.take_step`): forward, backward, clipping and update. Useful is what LoRA cannot do
without: the frozen products once forward and once for the gradient of their input, the adapters' three, causal
attention counted once, head and loss on supervised tokens. The ceiling is the rate of those frozen products and the
head alone, with operands that are ready, in the compute type; of two layouts of the weights the quicker one counts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from settle.base.event_log import Events
from settle.base.settings import resolve
from settle.commands.make.tune import Tune
from settle.data.batches import Batch
from settle.data.rows.prepare import prepare_rows
from settle.model.decoder import Decoder
from settle.model.pretrained import Pretrained
from settle.plan.tuning_plan import plan_tuning
from settle.train.live_run import LiveRun
from settle.train.state import LoopState

RANK = 16
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def products_of(model: Decoder) -> Iterator[tuple[int, int]]:
    """Yield (inputs, outputs) of every product of the layers; linears that read the same input are one."""
    linears = model.linears()
    for number in range(len(model.options.layers)):
        of_layer = {n.rpartition(".")[2]: m for n, m in linears.items() if f".layers.{number}." in n}
        for names in TOGETHER:
            yield of_layer[names[0]].inputs, sum(of_layer[name].outputs for name in names)


def useful(model: Decoder, batch: Batch) -> float:
    """FLOPs of one step."""
    tokens, supervised = len(batch.inputs), int((batch.targets >= 0).sum())
    frozen = sum(4.0 * tokens * i * o for i, o in products_of(model))
    first_inputs, first_outputs = next(products_of(model))
    frozen -= 2.0 * tokens * first_inputs * first_outputs  # nothing below is trained
    adapters = sum(6.0 * tokens * RANK * (m.inputs + m.outputs) for m in model.linears().values() if m.adapter)
    head = 4.0 * supervised * model.head.shape[0] * model.head.shape[1]
    lengths = torch.tensor(batch.cu_seqlens).diff().double()
    pairs = float((lengths * (lengths + 1) / 2).sum())
    attention = sum(12.0 * pairs * layer.heads * layer.head_dim for layer in model.options.layers)
    return frozen + adapters + head + attention


def ceiling(model: Decoder, batch: Batch, dtype: torch.dtype) -> tuple[float, list[Callable[[], None]]]:
    """FLOPs of the frozen products and the head, and calls that make them, one for each layout of the weights."""
    tokens, supervised = len(batch.inputs), int((batch.targets >= 0).sum())
    rows, width = model.head.shape
    shapes = [(tokens, i, o) for i, o in products_of(model)] + [(supervised, width, rows)]
    made = {s: [torch.randn(x, dtype=dtype) for x in ((s[0], s[1]), (s[2], s[1]), (s[0], s[2]))] for s in set(shapes)}
    turned = {shape: operands[1].t().contiguous() for shape, operands in made.items()}

    def rows_out() -> None:
        for shape in shapes:
            x, weight, grad = made[shape]
            x @ weight.t()
            grad @ weight

    def rows_in() -> None:
        for shape in shapes:
            x, _, grad = made[shape]
            x @ turned[shape]
            grad @ turned[shape].t()

    return sum(4.0 * n * i * o for n, i, o in shapes), [rows_out, rows_in]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    given = {
        "model": str(asked.model),
        "inputs": [str(asked.rows)],
        "batch_rows": 8,
        "steps": 64,
        "threads": asked.threads,
        "adapter": {"name": "lora", "rank": RANK},
    }
    resolved, events = resolve(Tune, [("asked", given)]), Events()
    command = resolved.value
    base = Pretrained.open(command.model)
    corpus = prepare_rows(command.inputs, base.tokenizer, command.rows, events, base.part.max_position_embeddings)
    plan = plan_tuning(command, resolved.origin, corpus, base)
    job = LiveRun.build(plan, corpus, base)
    job.model.train()
    trainer, state = job.trainer(), LoopState()
    trainer.take_step(state, 1.0)
    shares, rates = [], []
    for _ in range(asked.rounds):
        batch = job.batches.at(state.position)
        flops, calls = ceiling(job.model, batch, job.model.compute_dtype)
        before = [_seconds(call) for call in calls]
        whole = _seconds(lambda: trainer.take_step(state, 1.0))
        bare = min(*before, *(_seconds(call) for call in calls))
        rates.append((flops / bare / 1e9, useful(job.model, batch) / whole / 1e9, len(batch.inputs) / whole))
        shares.append(rates[-1][1] / rates[-1][0])
    products, steps, tokens = (statistics.median(column) for column in zip(*rates, strict=True))
    told = {
        "model": asked.model.name,
        "dtype": plan.dtype,
        "threads": asked.threads,
        "products_gflops": round(products),
        "useful_gflops": round(steps),
        "tokens_per_second": round(tokens),
        "share": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in shares],
    }
    print(json.dumps(told))


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
