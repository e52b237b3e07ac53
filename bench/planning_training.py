"""Training throughput: the law fitted on published tables, and judged on configurations that it was not fitted on.

    python bench/planning_training.py [FOLDER]            # FOLDER of tables, by default ../shared/planning
    python bench/planning_training.py --write             # fit on everything and write settle/plan/cluster/law.toml

Groups are whole: a model on an accelerator in a number format is held out with all its rows.
"""

import argparse
import csv
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from planning_rows import require_tables
from scipy.optimize import least_squares

from settle.machine.described_machine import Machine, described
from settle.plan.cluster import throughput
from settle.plan.cluster.throughput import PLAIN, DeviceLayout, Law, Shape, device_seconds, doublings, published_law

FOLDER = Path(__file__).parents[2] / "shared" / "planning"
MPT_VOCAB = 50368
MPT = {
    "125m": (12, 768), "350m": (24, 1024), "760m": (24, 1536), "1b": (24, 2048), "3b": (32, 2560), "7b": (32, 4096),
    "13b": (40, 5120), "30b": (48, 7168), "70b": (64, 8192),
}  # fmt: skip
# Of the models' own configurations.
SHAPES = {
    "LLAMA3_8B": Shape(32, 4096, 14336, 32, 8, 128256),
    "LLAMA3_70B": Shape(80, 8192, 28672, 64, 8, 128256),
    "LLAMA31_405B": Shape(126, 16384, 53248, 128, 8, 128256),
    "LLAMA3.1_405B": Shape(126, 16384, 53248, 128, 8, 128256),
    "DeepSeekV3": Shape(
        61, 7168, 18432, 128, 128, 129280, 128, experts=256, active_experts=8, shared_experts=1, expert_ffn=2048,
        dense_layers=3, query_rank=1536, kv_rank=512, rope_dim=64,
    ),
    "Kimi_K2": Shape(
        61, 7168, 18432, 64, 64, 163840, 128, experts=384, active_experts=8, shared_experts=1, expert_ffn=2048,
        dense_layers=1, query_rank=1536, kv_rank=512, rope_dim=64,
    ),
    "GPT OSS 120B": Shape(36, 2880, 2880, 64, 8, 201088, 64, experts=128, active_experts=4, expert_ffn=2880),
    "GPT OSS 20B": Shape(24, 2880, 2880, 64, 8, 201088, 64, experts=32, active_experts=4, expert_ffn=2880),
    "Qwen3_235B_a22B": Shape(94, 4096, 12288, 64, 4, 151936, 128, experts=128, active_experts=8, expert_ffn=1536),
    "Qwen3_30B_a3B": Shape(48, 2048, 6144, 32, 4, 151936, 128, experts=128, active_experts=8, expert_ffn=768),
}  # fmt: skip
CHIPS = {"h100_80gb": "h100 sxm", "a100_80gb": "a100 sxm 80gb", "a100_40gb": "a100 sxm 40gb"}
PRIOR = {
    "matmul_bf16": (0.75, 0.15), "matmul_fp8": (0.58, 0.2), "matmul_fp4": (0.42, 0.3), "attention": (0.4, 0.3),
    "elementwise_plain": (200.0, 0.5), "elementwise_fused": (100.0, 0.5), "exposed_node": (0.3, 0.7),
    "exposed_network": (2.0, 0.7), "exposed_tensor": (0.5, 0.7), "stragglers": (0.015, 0.7),
}  # fmt: skip
EXPERTS_PRIOR = {
    "experts": (0.5, 0.4),
    "all_to_all_node": (0.4, 0.8),
    "all_to_all_network": (0.3, 0.8),
    "routing": (30.0, 0.8),
}
DEVICE_STD, RESIDUAL_STD = 0.15, 0.08
SHARES = {"matmul_bf16", "matmul_fp8", "matmul_fp4", "attention", "experts"}  # whose terms are inverse to them
TRANSFERS = {"exposed_node", "exposed_network", "exposed_tensor", "all_to_all_node", "all_to_all_network"}
FEWEST_GROUPS = 8  # to fit on the others
SILENT = 1e12  # a share at which its term is nothing


@dataclass(frozen=True)
class Row:
    """One published rate, with the group that is held out together."""

    table: str
    group: tuple[str, ...]
    shape: Shape
    machine: Machine
    layout: DeviceLayout
    precision: str
    fused: bool
    causal: bool
    tokens: float  # per second and device
    flops: float  # of a token, as the table counts them


def read_rows(folder: Path) -> list[Row]:
    return [*_llm_foundry(folder), *_megatron_bridge(folder), *_megatron(folder)]


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _llm_foundry(folder: Path) -> list[Row]:
    rows = []
    for r in _read(folder / "throughput_llmfoundry.csv"):
        size = r["model"].lower().split("-")[1]
        if size not in MPT or r["gpu"] not in CHIPS:
            continue
        layers, hidden = MPT[size]
        gpus, sequence = int(r["gpus"]), int(r["seq"])
        shape = Shape(layers, hidden, 4 * hidden, hidden // 64, hidden // 64, MPT_VOCAB, tied=True, ffn_matrices=PLAIN)
        layout = DeviceLayout(
            data=gpus, sharded=True, rows=int(r["mbs"]), sequence=sequence, micro_batches=int(r["grad_accum"] or 1),
            recompute=r["act_ckpt"] == "True",
        )  # fmt: skip
        machine = described(f"{gpus}x {CHIPS[r['gpu']]}")
        group = ("llm-foundry", size, r["gpu"])
        tokens = float(r["tok_s_gpu"])
        rows.append(Row("llm-foundry", group, shape, machine, layout, "bf16", False, False, tokens, 0.0))
    return rows


def _megatron_bridge(folder: Path) -> list[Row]:
    rows = []
    for r in _read(folder / "throughput_megatron_bridge.csv"):
        name = re.sub(r" \(.*", "", r["model"])
        if name not in SHAPES or r["task"] != "Pre-Training" or "tokendrop" in r["model"]:
            continue
        chip = r["system"].removeprefix("DGX-")
        said = r["precision"].upper()
        precision = "fp4" if "FP4" in said else "fp8" if "FP8" in said else "bf16"
        gpus, tensor, pipeline, context = (_count(r[k]) for k in ("gpus", "tp", "pp", "cp"))
        replicas = max(1, gpus // (tensor * pipeline * context))
        layout = DeviceLayout(
            data=replicas, tensor=tensor, pipeline=pipeline, context=context, expert=_count(r["ep"]),
            sharded=int(re.match(r"\d*", r["fsdp"])[0] or 0) > 1, rows=_count(r["mbs"]), sequence=int(r["seq"]),
            micro_batches=max(1, _count(r["gbs"]) // (_count(r["mbs"]) * replicas)), virtual=_count(r["vp"]),
        )  # fmt: skip
        shape = SHAPES[name]
        table = "megatron-bridge experts" if shape.experts else "megatron-bridge dense"
        group = (table, name, chip, precision)
        machine = described(f"{gpus}x {chip.lower()}")
        tokens = float(r["tok_s_gpu"])
        rows.append(Row(table, group, shape, machine, layout, precision, True, True, tokens, 0.0))
    return rows


def _megatron(folder: Path) -> list[Row]:
    """Return Megatron's own tables on clusters: operations a second, from which tokens a second follow.

    Those of 2021 count the recomputed forward pass.
    """
    rows = []
    for r in _read(folder / "throughput_misc.csv"):
        known = {"megatron-lm-h100-r0.8": "h100 sxm", "megatron-sc21-a100": "a100 sxm 80gb"}
        again = r["set"] == "megatron-sc21-a100"
        if r["set"] == "llama3-405b" and r["seq"] == "8192":
            chip, shape, virtual = "h100 sxm", SHAPES["LLAMA31_405B"], 8
            batch = 16e6 / 8192
        elif r["set"] in known and r["layers"]:
            chip, hidden, heads, virtual = known[r["set"]], int(r["hidden"]), int(r["heads"]), 1
            shape = Shape(
                int(r["layers"]), hidden, 4 * hidden, heads, heads, int(r["vocab"]), tied=True, ffn_matrices=PLAIN
            )
            batch = float(r["gbs"])
        else:
            continue
        gpus, tensor, pipeline = int(r["gpus"]), _count(r["tp"]), _count(r["pp"])
        replicas = gpus // (tensor * pipeline)
        layout = DeviceLayout(
            replicas, tensor, pipeline, sequence=int(r["seq"]), micro_batches=max(1, round(batch / replicas)),
            virtual=virtual, recompute=again,
        )  # fmt: skip
        flops = shape.flops_per_token(layout.sequence, is_causal=r["set"] == "llama3-405b") * (4 / 3 if again else 1)
        tokens = float(r["tflops_gpu"]) * 1e12 / flops
        group = ("clusters", r["set"], r["model"])
        machine = described(f"{gpus}x {chip}")
        rows.append(Row("clusters", group, shape, machine, layout, "bf16", True, False, tokens, 0.0))
    return rows


def _count(text: str) -> int:
    found = re.match(r"\d+", text or "")
    return max(1, int(found[0])) if found else 1


def log_error(row: Row, law: Law) -> float:
    """Logarithm of predicted over published tokens per second."""
    return -math.log(_seconds(row, law) * row.tokens)


def fit(rows: Sequence[Row]) -> Law:
    """Fit the logarithms by penalized least squares: dense rows first, then what experts add.

    A group counts as a few rows however many it has, since its rows repeat one configuration.
    """
    start = published_or_prior()
    dense = [row for row in rows if not row.shape.experts]
    devices = sorted({_kind(row.machine) for row in dense})
    law = _solve(dense, start, PRIOR, devices)
    experts = [row for row in rows if row.shape.experts]
    unseen = sorted({_kind(row.machine) for row in experts} - set(devices))
    return _solve(experts, law, EXPERTS_PRIOR, unseen) if experts else law


def published_or_prior() -> Law:
    prior = {name: value for name, (value, _) in (PRIOR | EXPERTS_PRIOR).items()}
    return Law(date="", source="", device={}, log_std_dense=0.1, log_std_experts=0.2, log_std_unknown=0.2, **prior)


def _kind(machine: Machine) -> str:
    return machine.name


def _solve(rows: Sequence[Row], start: Law, prior: dict[str, tuple[float, float]], devices: Sequence[str]) -> Law:
    """Every term is proportional to one constant or to its inverse: the terms are computed once, at a constant of 1."""
    names = list(prior)
    stretch = np.array([doublings(row.machine, row.layout) for row in rows])
    slows = names.index("stragglers") if "stragglers" in names else None
    centre = np.array([math.log(prior[name][0]) for name in names] + [0.0] * len(devices))
    spread = np.array([prior[name][1] for name in names] + [DEVICE_STD] * len(devices))
    sizes = Counter(row.group for row in rows)
    weight = np.array([min(1.0, 1.5 / math.sqrt(sizes[row.group])) for row in rows])
    none = {name: SILENT if name in SHARES else 0.0 for name in names}
    rest = np.array([_seconds(row, start.model_copy(update=none)) for row in rows])
    terms = np.stack([[_seconds(row, start.model_copy(update=none | {n: 1.0})) for row in rows] for n in names], 1)
    terms -= rest[:, None]
    sign = np.array([-1.0 if name in SHARES else 1.0 for name in names])
    computes = np.array([name not in TRANSFERS for name in names])
    own = np.array([[row.machine.name == device for device in devices] for row in rows], float).reshape(len(rows), -1)
    log_tokens = np.log([row.tokens for row in rows])

    def residuals(x: np.ndarray) -> np.ndarray:
        factors = np.exp(sign * x[: len(names)])
        device = np.exp(-own @ x[len(names) :])
        work = (terms[:, computes] * factors[computes]).sum(1) * device
        seconds = rest + work + (terms[:, ~computes] * factors[~computes]).sum(1)
        seconds = seconds if slows is None else seconds * (1 + math.exp(x[slows]) * stretch)
        errors = np.log(seconds) + log_tokens
        return np.concatenate([errors * weight / RESIDUAL_STD, (x - centre) / spread])

    x = least_squares(residuals, centre).x
    values = {name: float(math.exp(v)) for name, v in zip(names, x, strict=False)}
    return start.model_copy(
        update=values | {"device": start.device | dict(zip(devices, np.exp(x[len(names) :]).tolist(), strict=True))}
    )


def _seconds(row: Row, law: Law) -> float:
    parts = device_seconds(
        row.shape, row.machine, row.layout, row.precision, fused=row.fused, is_causal=row.causal, law=law
    )
    return sum(parts.values())


def held_out(rows: Sequence[Row], key: Callable[[Row], object]) -> dict[str, list[tuple[Row, float]]]:
    """Errors of every row by a law that has not seen its group, by table."""
    errors: dict[str, list[tuple[Row, float]]] = defaultdict(list)
    for group in sorted({key(row) for row in rows}, key=str):
        law = fit([row for row in rows if key(row) != group])
        for row in rows:
            if key(row) == group:
                errors[row.table].append((row, log_error(row, law)))
    return errors


def summarize(errors: dict[str, list[tuple[Row, float]]], law: Law | None = None) -> None:
    print(
        "| table | rows | groups | median error | 90th percentile | inside the 80 % interval |"
        "\n|---|---|---|---|---|---|"
    )
    for table, pairs in sorted(errors.items()):
        sizes = [abs(math.expm1(e)) for _, e in pairs]
        reach = 1.2816 * np.array([_spread(row, law) for row, _ in pairs])
        inside = np.mean(np.abs([e for _, e in pairs]) <= reach)
        groups = len({row.group for row, _ in pairs})
        print(
            f"| {table} | {len(pairs)} | {groups} | {statistics.median(sizes):.1%} | {np.quantile(sizes, 0.9):.1%} "
            f"| {inside:.0%} |"
        )


def _spread(row: Row, law: Law | None) -> float:
    law = law or published_law()
    return law.log_std_experts if row.shape.experts else law.log_std_dense


def write(law: Law, errors: dict[str, list[tuple[Row, float]]], path: Path) -> None:
    """law.toml, with the spread of held-out errors: from the quantile that an 80 % interval has to reach."""

    def spread(is_experts: bool) -> float:
        sizes = [abs(e) for pairs in errors.values() for row, e in pairs if bool(row.shape.experts) == is_experts]
        return float(np.quantile(sizes, 0.8)) / 1.2816

    law = law.model_copy(update={"log_std_dense": spread(False), "log_std_experts": spread(True)})
    lines = [
        "# What training reaches of the data sheet, fitted by `python bench/planning_training.py --write`.",
        'date = "2026-11-28"',
        'source = "llm-foundry README@8c8dd48f7, Megatron-Bridge performance summary@067f987df"',
        *(f"{name} = {value:.4g}" for name, value in law.model_dump().items() if isinstance(value, float)),
        "",
        "[device]",
        *(f'"{name}" = {value:.4g}' for name, value in sorted(law.device.items())),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(folder: Path | None = None) -> None:
    """Print the shipped constants on the folder's rows, and each configuration by constants fitted without it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--groups", action="store_true")
    options = parser.parse_args() if folder is None else parser.parse_args([str(folder)])
    require_tables(options.folder)
    rows = read_rows(options.folder)
    law = published_law()
    shipped: dict[str, list[tuple[Row, float]]] = defaultdict(list)
    for row in rows:
        shipped[row.table].append((row, log_error(row, law)))
    print("shipped constants:")
    summarize(shipped)
    errors = held_out(rows, lambda row: row.group) if len({row.group for row in rows}) > FEWEST_GROUPS else {}
    if options.write:
        write(fit(rows), errors, Path(throughput.__file__).with_name("law.toml"))
        throughput.published_law.cache_clear()
    if errors:
        print("each configuration by constants fitted without it:")
        summarize(errors)
    for pairs in errors.values() if options.groups else ():
        by_group = defaultdict(list)
        for row, e in pairs:
            by_group[row.group].append(e)
        for group, values in by_group.items():
            print("  ", *group, len(values), f"{math.expm1(statistics.mean(values)):+.1%}")


if __name__ == "__main__":
    main()
