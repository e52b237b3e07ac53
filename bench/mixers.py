"""Training speed of families whose layers are not all attention, side by side with transformers in eager mode.

    python bench/mixers.py [--families lfm2 qwen3_5_text] [--hidden 512] [--layers 8] [--rounds 5] [--dtype float32]

Both train every weight of the same shape on the same tokens: forward and backward pass of 4 texts of 512 tokens, with
no optimizer. They take turns in one process on one thread, in seconds of the processor, so that the ratios stay what
they are on a busy machine; a ratio is that of a pair of turns that follow each other. Prints tokens a second of both
and the median ratio with its range, one JSON line a family; `llama` shows what part of a ratio is not the recurrences'.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from settle.model.architectures import Architecture
from settle.train.objectives.next_token import NextToken

TEXTS, LENGTH, VOCABULARY = 4, 512, 8192


def shaped(family: str, hidden: int, layers: int) -> Architecture:
    """Return a family in a shape of that width and depth, with heads of 64 numbers."""
    part = Architecture.parts()[family]
    heads = hidden // 64
    fields: dict[str, object] = {
        "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "head_dim": 64,
        "num_attention_heads": heads, "num_key_value_heads": max(1, heads // 4), "vocab_size": VOCABULARY,
        "max_position_embeddings": LENGTH, "linear_num_key_heads": heads // 2, "linear_num_value_heads": heads // 2,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    }  # fmt: skip
    return part(**{key: value for key, value in fields.items() if key in part.model_fields})


def ours(part: Architecture, dtype: torch.dtype, ids: torch.Tensor) -> Callable[[], None]:
    """Return settle's step."""
    model = part.build(0)
    model.compute_dtype = dtype
    bounds = torch.arange(0, ids.numel() + 1, LENGTH, dtype=torch.int32)
    targets = ids.roll(-1, 1).flatten()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss, count = NextToken().loss(model, ids.flatten(), targets, bounds)
        (loss / count).backward()

    return step


def theirs(part: Architecture, dtype: torch.dtype, ids: torch.Tensor) -> Callable[[], None]:
    """Return transformers' step."""
    config = part.to_hf_config()
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(ids, labels=ids, use_cache=False).loss.backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["llama", "lfm2", "qwen3_5_text"])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, asked.dtype)
    ids = torch.randint(0, VOCABULARY, (TEXTS, LENGTH), generator=torch.Generator().manual_seed(0))
    for family in asked.families:
        part = shaped(family, asked.hidden, asked.layers)
        steps = [make(part, dtype, ids) for make in (ours, theirs)]
        seconds: list[list[float]] = [[], []]
        for turn in range(asked.rounds + 1):
            for side, step in enumerate(steps):
                start = time.process_time()
                step()
                if turn:  # the first warms up
                    seconds[side].append(time.process_time() - start)
        ratios = sorted(b / a for a, b in zip(*seconds, strict=True))
        speeds = [ids.numel() / statistics.median(side) for side in seconds]
        result = {
            "family": family, "parameters": part.num_parameters, "dtype": asked.dtype,
            "ours": round(speeds[0]), "transformers": round(speeds[1]), "ratio": round(statistics.median(ratios), 2),
            "range": [round(ratios[0], 2), round(ratios[-1], 2)],
            "gflops_per_second": round(speeds[0] * part.flops_per_token(LENGTH) / 1e9, 1),
        }  # fmt: skip
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
