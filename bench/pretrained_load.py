"""From a GGUF file to a model that is ready to train: settle against transformers, in turns, each in a fresh process.

    python bench/pretrained_load.py MODEL.gguf [--rounds 3] [--quantize as-is]

Ready: every weight is in memory in the form it is computed with, LoRA of rank 16 is on it, the tokenizer has encoded a
line. Both sides compute in bf16. Seconds are those of the process without the import of its libraries, which is told
apart; memory is the most that was resident, less what was resident after the imports, so pages of a mapped file count.
Needs transformers, gguf and peft (the `dev` extra).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "tuners"))

LINE = "def f(x):\n    return x"


def settle(path: Path, quantize: str | None) -> Callable[[], int]:
    import torch

    from settle.model.adapters.lora import LoRA
    from settle.model.pretrained import Pretrained

    def load() -> int:
        base = Pretrained.open(path)
        model = base.load(dtype=torch.bfloat16, quantize=quantize)
        LoRA(rank=16).apply(model)
        return len(base.tokenizer.encode(LINE)) and sum(p.numel() for p in model.trainable().values())

    return load


def transformers(path: Path, _: str | None) -> Callable[[], int]:
    import gguf  # noqa: F401
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load() -> int:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        return len(tokenizer.encode(LINE)) and sum(p.numel() for p in adapted.parameters() if p.requires_grad)

    return load


SIDES: dict[str, Callable[[Path, str | None], Callable[[], int]]] = {"settle": settle, "transformers": transformers}


def resident() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def once(side: str, path: Path, quantize: str | None) -> dict[str, Any]:
    """Load in this process."""
    from pace import forget_peak, peak_bytes

    began = time.perf_counter()
    load = SIDES[side](path, quantize)
    imported, before = time.perf_counter(), resident()
    forget_peak()
    trained = load()
    seconds = time.perf_counter() - imported
    memory = {"peak": peak_bytes() - before, "held": resident() - before}
    return {"seconds": seconds, "importing": imported - began, **memory, "trained_parameters": trained}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quantize", choices=["nf4", "as-is"])
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(once(asked.side, asked.model, asked.quantize)))
        return
    made: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(asked.rounds):
        for side in list(SIDES) if number % 2 == 0 else list(SIDES)[::-1]:
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], stdout=subprocess.PIPE)
            if done.returncode:
                raise SystemExit(f"{side} failed")
            made[side].append(json.loads(done.stdout))
            print(json.dumps({side: made[side][-1]}))
    pairs = zip(made["transformers"], made["settle"], strict=True)
    ratio = statistics.median(theirs["seconds"] / ours["seconds"] for theirs, ours in pairs)
    middle = {side: statistics.median(run["seconds"] for run in runs) for side, runs in made.items()}
    print(json.dumps({"model": asked.model.name, "seconds": middle, "ratio": ratio}))


if __name__ == "__main__":
    main()
