"""Training FLOP/s against the ceiling that bare matrix products of the same shapes reach, in both dtypes, paired.

    python bench/mfu.py [--sizes 10M …] [--threads 2]

Products and steps take turns within a round; of each the quickest time counts, so that a busy machine hits both.
FLOPs are those of the model (causal attention counted once), without the optimizer's own; its time is counted.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from settle.machine import keep_freed_memory
from settle.model.architectures.llama import Llama
from settle.model.config import default_context
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.muon import Muon

VOCAB = 4096


def products(architecture: Llama, tokens: int, dtype: torch.dtype) -> tuple[float, Callable[[], None]]:
    """FLOPs, and a call that makes every product of linears in one forward and backward, operands ready."""
    width, inner = architecture.hidden_size, architecture.intermediate_size
    heads = architecture.num_attention_heads * architecture.head_dim
    layer = [(width, 3 * heads), (heads, width), (width, 2 * inner), (inner, width)]
    shapes = [*layer * architecture.num_hidden_layers, (width, VOCAB)]
    made = {(i, o): [torch.randn(s, dtype=dtype) for s in ((tokens, i), (o, i), (tokens, o))] for i, o in set(shapes)}

    def run() -> None:
        for shape in shapes:
            x, w, g = made[shape]
            x @ w.t()
            g @ w
            g.t() @ x

    return 6.0 * tokens * sum(i * o for i, o in shapes), run


def step(architecture: Llama, tokens: int, dtype: torch.dtype, context: int) -> tuple[float, Callable[[], None]]:
    """FLOPs, and a call that makes one optimizer step."""
    model = architecture.build(0)
    model.compute_dtype = dtype
    stepper, objective = Muon().bind(model), NextToken()
    ids = torch.randint(0, VOCAB, (tokens,))
    bounds = torch.arange(0, tokens + 1, context, dtype=torch.int32)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        loss, count = objective.loss(model, ids, ids, bounds)
        (loss / count).backward()
        stepper.step(1.0)

    return architecture.flops_per_token(context) * tokens, run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=float, nargs="*", default=[10e6, 30e6])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    # One thread: its processor time, which other processes disturb less than the clock on the wall.
    clock = time.process_time if asked.threads == 1 else time.perf_counter
    for size in asked.sizes:
        context = default_context(int(size))
        architecture = Llama.sized(int(size), VOCAB, context)
        for dtype in (torch.float32, torch.bfloat16):
            bare, whole = (
                products(architecture, asked.tokens, dtype),
                step(architecture, asked.tokens, dtype, context),
            )
            best = [float("inf")] * 2
            for _ in range(asked.rounds):
                for i, (_, run) in enumerate((bare, whole)):
                    began = clock()
                    run()
                    best[i] = min(best[i], clock() - began)
            rates = [flops / seconds / 1e9 for (flops, _), seconds in zip((bare, whole), best, strict=True)]
            print(
                json.dumps(
                    {
                        "parameters": architecture.num_parameters,
                        "width": architecture.hidden_size,
                        "layers": architecture.num_hidden_layers,
                        "context": context,
                        "tokens": asked.tokens,
                        "threads": asked.threads,
                        "dtype": str(dtype).removeprefix("torch."),
                        "products_gflops": round(rates[0]),
                        "training_gflops": round(rates[1]),
                        "share": round(rates[1] / rates[0], 3),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
