"""Memory of Megatron-LM's functional tests, predicted beside their golden peaks, for rows above 8 GiB.

    python bench/planning_megatron.py [FOLDER]     # of tables, by default ../shared/planning

The peak is of the last rank, which writes the log. Two things the table does not say are taken from elsewhere: how many
devices a release test runs on (the power of two whose weights, gradients and optimizer come nearest to what the table
says stays allocated), and the vocabulary of its tokenizer. Rows that are not one decoder (vision, T5, BERT, Mamba
hybrids), that do reinforcement learning, or that lack sizes are listed and not judged.
"""

import argparse
import re
import statistics
from pathlib import Path

import numpy as np
from planning_rows import require_tables
from planning_training import FOLDER, _read

from settle.plan.cluster.throughput import GATED, PLAIN, DeviceLayout, Shape
from settle.plan.memory_model import MIXED, stage_sizing

GIB = 2**30
LEAST = 8.0  # GiB
VOCAB = {"gpt3_15b": 256000, "mixtral": 32000, "llama3": 128256, "deepseek": 129280, "gpt3_345m": 50257}
OTHERS = re.compile(
    r"mimo|llava|multimodal|hybrid|mamba|grpo|rl_|t5|bert|retro|nemotron3|mtp|cudagraph|fsdp|offload|proxy"
)


def rows(folder: Path) -> tuple[list[tuple[str, float, float]], list[str]]:
    """Judged: name, golden and predicted GiB. And the names of those that are not."""
    judged, left = [], []
    for r in _read(folder / "megatron_memory_golden.csv"):
        golden = float(r["mem_max_alloc_gib"] or 0)
        name = f"{r['case']} {r['env']}"
        if golden <= LEAST:
            continue
        if (
            OTHERS.search(r["case"])
            or r["family"] in ("mimo", "t5", "bert", "hybrid")
            or not (r["layers"] and r["hidden"])
        ):
            left.append(f"{name} {golden:.1f} GiB")
            continue
        judged.append((name, golden, predicted(r)))
    return judged, left


def predicted(r: dict[str, str]) -> float:
    """GiB of the last rank."""
    shape, held = shape_of(r), float(r["mem_alloc_gib"] or 0)
    groups = _int(r["tp"]) * _int(r["pp"]) * _int(r["cp"])
    least = max(groups, _int(r["pp"]) * _int(r["ep"]) * _int(r["etp"], _int(r["tp"]) if shape.experts else 1))
    worlds = [groups * 2**i for i in range(10) if groups * 2**i >= least]
    found = []
    for world in worlds:
        layout = layout_of(r, world // groups, bool(shape.experts))
        positions = 0 if "release" in r["case"] or "rope" in r["case"] else layout.sequence
        memory = stage_sizing(shape, layout, MIXED, layout.pipeline - 1, "release" not in r["case"], True, positions)
        states = (memory.weights + memory.gradients + memory.optimizer) / GIB
        found.append((abs(states - held), memory.tensors / GIB))
    return min(found)[1]


def shape_of(r: dict[str, str]) -> Shape:
    heads, hidden, experts = _int(r["heads"]), _int(r["hidden"]), _int(r["experts"], 0)
    vocab = next((v for k, v in VOCAB.items() if k in r["case"]), 50304)
    vocab = _int(r["vocab"], vocab)
    multiple = 128 * _int(r["tp"])
    return Shape(
        _int(r["layers"]), hidden, _int(r["ffn"], 4 * hidden), heads, _int(r["kv_groups"], heads),
        -(-vocab // multiple) * multiple, tied=r["untied"] != "True",
        ffn_matrices=GATED if r["swiglu"] == "True" else PLAIN, experts=experts,
        active_experts=_int(r["topk"], 1) if experts else 0, expert_ffn=_int(r["ffn"], 4 * hidden) if experts else 0,
    )  # fmt: skip


def layout_of(r: dict[str, str], replicas: int, has_experts: bool) -> DeviceLayout:
    first = re.search(r"\d+$", r["gbs"].split()[0].rpartition(":")[2])
    batch = int(first[0]) if first else 8
    layers, pipeline = _int(r["layers"]), _int(r["pp"])
    of_chunk = _int(r["layers_per_vp_stage"], 0)
    return DeviceLayout(
        replicas, _int(r["tp"]), pipeline, _int(r["cp"]), _int(r["ep"]), sharded=False, rows=_int(r["mbs"]),
        sequence=_int(r["seq"]), micro_batches=max(1, batch // (_int(r["mbs"]) * replicas)),
        virtual=max(1, layers // pipeline // of_chunk) if of_chunk else 1,
        recompute=r["recompute"] == "full", optimizer_sharded=r["dist_opt"] == "True",
        expert_tensor=_int(r["etp"], _int(r["tp"]) if has_experts else 1),
        sequence_parallel=r["seq_parallel"] == "True",
    )  # fmt: skip


def _int(text: str, default: int = 1) -> int:
    return int(float(text)) if text else default


def main(folder: Path | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    options = parser.parse_args() if folder is None else parser.parse_args([str(folder)])
    require_tables(options.folder)
    judged, left = rows(options.folder)
    errors = [value / golden - 1 for _, golden, value in judged]
    for (name, golden, value), error in zip(judged, errors, strict=True):
        print(f"{name[:70]:70} {golden:8.2f} {value:8.2f} {error:+7.1%}")
    print(*(f"not judged: {name}" for name in left), sep="\n")
    if errors:
        sizes = np.abs(errors)
        print(
            f"{len(errors)} rows judged, {len(left)} not; mean {statistics.mean(sizes):.1%}, "
            f"median {statistics.median(sizes):.1%}, most {max(sizes):.1%}"
        )


if __name__ == "__main__":
    main()
