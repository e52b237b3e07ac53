"""What is said beforehand of tuning the newer families, against what came: memory, time, and what a pass keeps.

    python bench/family_forecasts.py TOKENIZER.gguf [--families lfm2 gpt_oss] [--steps 8] [--settings "--adapter full"]

Each family in a shape of 70 to 200 M parameters that no fit has seen, with random weights and the tokenizer of a GGUF
file. `settle tune` runs a few steps of it on the docstrings of Python's standard library, on one thread, in a process
of its own; time and peak memory are those of its result.json. Beside that, the bytes that a forward pass keeps for the
backward pass and the operations of both are counted on 2 and 4 texts of 256 tokens, every weight trained. Prints one
JSON line a family.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from settle.base.run import Run  # noqa: E402
from settle.formats.safetensors import export_safetensors  # noqa: E402
from settle.model.architectures import Architecture  # noqa: E402
from settle.model.families import family_named  # noqa: E402
from settle.model.pretrained import Pretrained  # noqa: E402
from settle.plan.forecast_figures import entries  # noqa: E402
from settle.train.objectives.next_token import NextToken  # noqa: E402
from tests.model.architectures import test_activation_bytes  # noqa: E402
from tests.model.test_llama import packed  # noqa: E402

LENGTH = 256
BASE = {
    "hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 10, "num_attention_heads": 10,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 20, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_n_groups": 1}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
DELTA = {
    "linear_num_key_heads": 5, "linear_num_value_heads": 10, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
}  # fmt: skip
GEMMA = {  # what llama.cpp computes it with
    "intermediate_size": 2048, "num_hidden_layers": 5, "hidden_size_per_layer_input": 256, "num_sparse_layers": 5,
    "final_logit_softcapping": 30.0,
}  # fmt: skip
SHAPES: dict[str, dict[str, object]] = {
    "lfm2": BASE,
    "qwen3_5_text": BASE | DELTA,
    "falcon_h1": BASE | MAMBA,
    "granitemoehybrid": BASE | MAMBA,
    "gemma3n_text": BASE | GEMMA,
    "gpt_oss": BASE | EXPERTS | {"intermediate_size": 640, "tie_word_embeddings": False},
    "lfm2_moe": BASE | EXPERTS | {"moe_intermediate_size": 640, "num_dense_layers": 2},
    "granitemoe": BASE | EXPERTS | {"intermediate_size": 640},
}


def shaped(family: str, vocabulary: int) -> Architecture:
    """Return the family in its shape."""
    fields: dict[str, object] = SHAPES[family] | {"vocab_size": vocabulary}
    return family_named(family)(**fields)


def write_rows(out: Path, count: int = 80) -> None:
    """Write questions for a function's text, with its docstring as the answer."""
    rows: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            said = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            source = (ast.get_source_segment(text, node) or "") if said else ""
            if said and 200 < len(source) < 1200:
                turns = [{"role": "user", "content": source}, {"role": "assistant", "content": said}]
                rows.append(json.dumps({"messages": turns}))
    out.write_text("\n".join(rows[:: len(rows) // count][:count]) + "\n", encoding="utf-8")


def counted(part: Architecture) -> dict[str, float]:
    """Return what a pass keeps and computes, each ÷ what is said of it."""
    model, test_activation_bytes.LENGTH = part.build(0), LENGTH
    more, less = (test_activation_bytes.kept_bytes(model, rows, part.vocab_size) for rows in (4, 2))
    inputs, targets, bounds = packed([LENGTH] * 2, part.vocab_size)
    with FlopCounterMode(display=False) as counter:
        NextToken().loss(model, inputs, targets.abs(), bounds)[0].backward()
    return {
        "kept": (more - less) / (part.activation_bytes_per_token(LENGTH, 4) * LENGTH * 2),
        "operations": counter.get_total_flops() / (part.flops_per_token(LENGTH) * LENGTH * 2),
    }


def tuned(folder: Path, rows: Path, name: str, settings: list[str]) -> dict[str, object]:
    """Tune for a few steps and return each figure's forecast, actual value, error and whether it was inside."""
    command = [sys.executable, "-m", "settle", "tune", str(folder), str(rows), "--name", name, "--no-compare"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    found: dict[str, object] = {}
    for entry in entries([Run.find(name)]):  # also of a run that learned nothing in so few steps, which ends with 1
        if entry.figure in ("time", "peak_memory"):
            ends = [entry.forecast.value, entry.forecast.low, entry.forecast.high]
            found[entry.figure] = {
                "forecast": [float(f"{end:.4g}") for end in ends], "actual": float(f"{entry.actual:.4g}"),
                "error": round(entry.error, 3), "inside": entry.inside,
            }  # fmt: skip
    return found or {"failed": done.stderr[-1500:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--families", nargs="+", default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--settings", default="--batch-rows 2", help="further settings of `settle tune`")
    asked = parser.parse_args()
    tokenizer = Pretrained.open(asked.tokenizer).tokenizer
    settings = ["--steps", str(asked.steps), "--threads", "1", *asked.settings.split()]
    with tempfile.TemporaryDirectory() as home:
        os.environ["SETTLE_HOME"] = home
        rows = Path(home, "rows.jsonl")
        write_rows(rows)
        for family in asked.families:
            part = shaped(family, tokenizer.vocab_size)
            weights = {name: p.detach() for name, p in part.build(0).named_parameters()}
            folder = export_safetensors(part, weights, tokenizer, Path(home, family), "bf16")
            del weights
            result: dict[str, object] = {"family": family, "parameters": part.num_parameters}
            result |= tuned(folder, rows, family.replace("_", "-"), settings)
            result |= {name: round(ratio, 3) for name, ratio in counted(part).items()}
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
