"""Memory of tuning: predicted beside what trainers measured, by table.

    python bench/planning_tuning.py [FOLDER]     # of tables, by default ../shared/planning

Nothing is fitted to these rows but the two constants that settle/plan/memory_model.py names (what a norm keeps
and what a logit takes); rows whose configuration is not complete are counted, not guessed.
"""

import argparse
import ast
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from planning_rows import require_tables
from planning_training import FOLDER, _read

from settle.library.catalogue import find_known
from settle.library.model_shape import ModelShape
from settle.plan.memory_model import Tuning, tuning_sizing

GIB = 2**30
LLAMA_3B = "Llama-3.2-3B"
# Methods of peft that change no product of matrices, so that nothing is kept for them.
INPUTLESS = {"BEFT", "MISS", "P_TUNING", "PROMPT_TUNING", "PREFIX_TUNING", "TRAINABLE_TOKENS", "LN_TUNING", "GLORA"}


# Of models that tables have and the catalogue does not: their config.json.
OTHERS = {
    "afm-4.5b": ModelShape(
        parameters=4619000000, active=4619000000, layers=36, width=2560, heads=20, kv_heads=4, head_dim=128,
        vocab=128004, context=65536, inner=18432,
    ),
    "glm-4.7-flash": ModelShape(
        parameters=30000000000, active=3300000000, layers=47, width=2048, heads=20, kv_heads=20, head_dim=256,
        vocab=154880, context=202752, inner=1536, experts=64, experts_used=4, latent=576,
    ),
    "magistral-small-2509": ModelShape(
        parameters=24000000000, active=24000000000, layers=40, width=5120, heads=32, kv_heads=8, head_dim=128,
        vocab=131072, context=131072, inner=32768,
    ),
    "voxtral-mini-3b-2507": ModelShape(
        parameters=4270000000, active=4270000000, layers=30, width=3072, heads=32, kv_heads=8, head_dim=128,
        vocab=131072, context=131072, inner=8192, tied=True,
    ),
}  # fmt: skip


def find_shape(name: str) -> ModelShape | None:
    """Of the catalogue, or of the few above."""
    known = find_known(name) if name else None
    return known.shape if known else OTHERS.get(name.rpartition("/")[2].lower())


def axolotl(folder: Path) -> list[tuple[str, float, float]]:
    """Name, measured and predicted GiB. A row of two values is two configurations: experts out and in."""
    found = []
    for r in _read(folder / "finetune_axolotl.csv"):
        shape = find_shape(r["base_model"])
        values = [float(v) for v in r["mem_values_gb"].split()]
        words = r["text"].lower()
        if (
            shape is None
            or not r["mbs"]
            or re.search(r"it is possible|partnered|offload", words)
            or "vision" in words
            or "-VL-" in r["base_model"]
        ):
            continue
        quantized = r["load_in_4bit"] == "True" or r["adapter"] == "qlora"
        wanted = (
            [not re.search(r"no (target )?experts", words), True]
            if len(values) > 1
            else ["target experts" in words and "no target" not in words]
        )
        for value, experts in zip(values, wanted if len(values) > 1 else wanted, strict=False):
            if len(values) > 1:
                experts = value == max(values) and "expert" in words
            tuning = Tuning(
                method="full" if r["adapter"] == "full" else "lora",
                bits=4 if quantized else 8 if r["load_in_8bit"] == "True" else 16,
                rank=int(r["lora_r"] or 16), rows=int(r["mbs"]), sequence=int(r["seq"]),
                filled=1.0 if r["sample_packing"] == "True" else 0.3,
                recompute=r["gc"] == "True" or "fsdp" in r["config"],
                optimizer="adamw-8bit" if "8bit" in r["optimizer"] else "adamw", chunked_loss=r["cce"] == "True",
                experts=experts, quantized_experts=quantized and "gpt-oss" not in r["base_model"],
                devices=_devices(words, value),
            )  # fmt: skip
            found.append((f"axolotl {r['base_model']} {r['adapter']}", value, tuning_sizing(shape, tuning).total / GIB))
            _note_rules(value * tuning.devices, shape, tuning)
    return found


def _devices(words: str, value: float) -> int:
    """Of "8x48GB @ ~36GiB/GPU or 4x80GB @ ~46GiB/GPU": those beside the value."""
    for number, of in re.findall(r"(\d+)x\d+gb @ ~?\s*(\d+(?:\.\d+)?)", words):
        if float(of) == value:
            return int(number)
    return 1


def peft(folder: Path) -> list[tuple[str, float, float]]:
    """Llama 3.2 3B, 4 rows of at most 768 tokens, on one card. Values are peaks of the allocator."""
    shape, found = find_shape(LLAMA_3B), []
    for r in _read(folder / "finetune_peft_metamathqa.csv"):
        full = r["peft_type"] == "" or "full" in r["name"]
        keeps = r["peft_type"] not in INPUTLESS
        targets = r["targets"]
        named = ast.literal_eval(targets) if targets.startswith("[") else []
        tuning = Tuning(
            method="full" if full else "lora", rank=int(float(r["r"] or 8)), rows=int(r["mbs"]),
            sequence=int(r["max_seq"]), recompute=r["gc"] == "True", attention_only=len(named) <= 3,
            keeps_inputs=keeps,
        )  # fmt: skip
        assert shape is not None
        found.append((f"peft {r['name']}", float(r["mem_max_gib"]), tuning_sizing(shape, tuning).tensors / GIB))
        _note_rules(float(r["mem_max_gib"]), shape, tuning)
    return found


def listed(folder: Path) -> list[tuple[str, float, float]]:
    """Return torchtune's and litgpt's rows with their configuration, of finetune_memory.yaml."""
    path = folder / "finetune_memory.yaml"
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    found = []
    for r in rows:
        shape = find_shape(re.sub(r" [\d.]+B$", "", str(r.get("model", ""))))
        value = r.get("peak_mem_gib") or (
            float(r["peak_mem_gb"]) / 1.073741824 if _is_number(r.get("peak_mem_gb")) else None
        )
        if shape is None or not _is_number(value) or not r.get("mbs"):
            continue
        words = str(r.get("technique", ""))
        sequence = r.get("seq") or r.get("seq_longest")
        if (
            not sequence
            or "offload" in words
            or r["tool"] not in ("torchtune", "litgpt")
            or "2 x" in str(r.get("hardware"))
        ):
            continue
        cumulative = r["tool"] == "torchtune"
        order = [
            "baseline",
            "+packed",
            "+compile",
            "+chunked",
            "+activation checkpointing",
            "+optimizer",
            "+activation off",
            "+8-bit",
        ]
        place = next((i for i, key in enumerate(order) if words.startswith(key)), len(order))
        method = str(r["method"])
        tuning = Tuning(
            method="full" if method == "full" else "lora", bits=4 if "nf4" in method else 16, rank=8,
            rows=int(r["mbs"]), sequence=int(sequence), filled=0.08 if cumulative and place == 0 else 1.0,
            recompute=place >= 4 if cumulative else False, chunked_loss=cumulative and place >= 3,
            optimizer="adamw-8bit" if place == 7 else "adamw", attention_only=not cumulative, adapter_bytes=2.0,
            upcast=False, compiled=cumulative and place >= 2,
        )  # fmt: skip
        memory = tuning_sizing(shape, tuning)
        if 5 <= place <= 7 and method == "full":  # a gradient is used up as soon as it is there
            memory = replace(memory, gradients=0.0)
        found.append((f"{r['tool']} {r['model']} {method} {words[:28]}", float(value), memory.tensors / GIB))
        _note_rules(float(value), shape, tuning)
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


RULES: dict[str, list[float]] = {}  # errors of what others compute, of the rows read so far


def _note_rules(value: float, shape: ModelShape, tuning: Tuning) -> None:
    for name, guess in rules(shape, tuning.method, tuning.bits).items():
        RULES.setdefault(name, []).append(abs(guess / value - 1))


def rules(shape: ModelShape, method: str, bits: int) -> dict[str, float]:
    """Return GiB as others compute them.

    accelerate's estimate-memory (weights, four times that for Adam), LLaMA-Factory's table (bytes a weight), and
    gpu_poor's 650 MB of CUDA plus weights, gradients and optimizer.
    """
    weights = shape.parameters * {16: 2.0, 8: 1.0, 4: 0.5}[bits] / GIB
    full = method == "full"
    return {
        "accelerate": weights * (4 if full else 1.2),
        "LLaMA-Factory": shape.parameters * (8.0 if full else {16: 2.2, 8: 1.25, 4: 0.7}[bits]) / GIB,
        "gpu_poor": weights * (4 if full else 1.0) + 0.65,
    }


def main(folder: Path | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    options = parser.parse_args() if folder is None else parser.parse_args([str(folder)])
    require_tables(options.folder)
    for name, rows in (
        ("axolotl", axolotl(options.folder)),
        ("peft", peft(options.folder)),
        ("listed", listed(options.folder)),
    ):
        errors = []
        for row, value, predicted in rows:
            errors.append(predicted / value - 1)
            print(f"{row[:64]:64} {value:8.2f} {predicted:8.2f} {errors[-1]:+7.1%}")
        if errors:
            sizes = np.abs(errors)
            print(
                f"{name}: {len(rows)} rows, median {statistics.median(sizes):.1%}, "
                f"90th percentile {np.quantile(sizes, 0.9):.1%}\n"
            )
    for name, sizes in RULES.items():
        print(f"{name}: median {statistics.median(sizes):.1%}, 90th percentile {np.quantile(sizes, 0.9):.1%}")


if __name__ == "__main__":
    main()
