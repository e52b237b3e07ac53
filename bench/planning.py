"""Predictions of the planner beside published measurements, chips held out; peers' formulas on the same rows.

    python bench/planning.py [FOLDER]

FOLDER holds tables laid out as in ../shared/planning (the default). Two figures for each kind of row: `shipped`, by
the coefficients in settle/plan/fit/laws.toml, and `left out`, each chip by a law refitted without it. On tables that
the law was not fitted on, `shipped` is the figure to look at.
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from planning_fit import (
    DECODE,
    MIXTURE,
    PREFILL,
    TABLES,
    WIDEST,
    decode_rows,
    errors_of,
    kinds,
    left_out,
    matrices,
    prefill_rows,
    spread_of,
    table_of,
    table_ratio,
    whole,
)
from planning_rows import Row, Rows, read_rows, require_tables

from settle.plan.fit.speed import Z80, Rate, decode_rate, laws, prefill_rate
from settle.plan.fit.weight_types import weight_bytes
from settle.plan.memory_model import fit, need

GIB = 2**30
APPLE, CUDA = ("metal-2023", "metal-2024", "metal-2026"), ("cuda-2024", "cuda-2025", "cuda-unified")
OTHERS = ("cuda-before-2026", "cuda-ollama", "rocm-2025", "vulkan-2025", "vulkan-intel", "vulkan-apple", "cpu", "vllm")
LLMFIT_SHARE = 0.55  # llmfit's docs: tokens/s is bandwidth over size times this
Predict = Callable[[Row], float]


def shipped_decode(row: Row) -> Rate:
    return decode_rate(row.shape, row.type, row.machine, row.context // 2, law=laws().get(row.build))


def shipped_prefill(row: Row) -> Rate:
    return prefill_rate(row.shape, row.type, row.machine, laws().get(row.build), row.prompt)


def line(name: str, rows: Sequence[Row], actual: Iterable[float], predicted: Sequence[Rate]) -> None:
    if not rows:
        print(f"{name:34s} no rows")
        return
    values = np.array(list(actual))
    errors = np.array([rate.value for rate in predicted]) / values - 1
    inside = np.mean([r.low <= v <= r.high for r, v in zip(predicted, values, strict=True)])
    sizes = np.abs(errors)
    chips = len({row.group for row in rows})
    print(f"{name:34s} {len(rows):4d} rows {chips:3d} chips  mean {sizes.mean():6.1%}  median {np.median(sizes):6.1%}  "
          f"90 % {np.quantile(sizes, 0.9):6.1%}  80 % interval holds {inside:4.0%}")  # fmt: skip


def held_out(builds: Sequence[str], rows: Sequence[Row], what: str) -> np.ndarray:
    """Errors of each chip by a law without it, over the builds."""
    parts = []
    for build in builds:
        names = {"decode": DECODE, "mixture": MIXTURE, "prefill": PREFILL}[what].get(build)
        chosen = prefill_rows(rows, build) if what == "prefill" else decode_rows(rows, build, what == "mixture")
        if names and len(chosen) > len(names) + 1:
            parts.append(left_out(*matrices(chosen, names, what), chosen, names, (build, what)))
    errors = np.concatenate(parts) if parts else np.zeros(0)
    return errors[np.isfinite(errors)]


def peers(rows: Sequence[Row]) -> None:
    """Bandwidth over the size of the whole file, as most calculators have it; the same times llmfit's share."""
    if not rows:
        return
    actual = np.array([row.decode or 1 for row in rows])

    def of(predict: Predict) -> str:
        errors = np.abs(np.array([predict(row) for row in rows]) / actual - 1)
        return f"mean {errors.mean():6.1%} median {np.median(errors):6.1%}"

    print("decode, all formulas on the same rows (dense, Apple and CUDA):")
    print("   this law                  ", of(lambda row: shipped_decode(row).value))
    print("   bandwidth / size          ", of(lambda row: row.machine.bandwidth / weight_bytes(row.shape, row.type)))
    share = LLMFIT_SHARE
    print("   llmfit: that x 0.55       ",
          of(lambda row: share * row.machine.bandwidth / weight_bytes(row.shape, row.type)))  # fmt: skip


def memory_report(rows: Sequence[Row]) -> None:
    """Peak memory where it is told, and whether a model ran or ran out of memory."""
    told = [row for row in rows if row.memory_gib and row.build != "pytorch"]
    here = [row for row in rows if row.memory_gib and row.build == "pytorch"]
    for name, chosen in (("memory, llama.cpp and MLX", told), ("memory, PyTorch (litgpt)", here)):
        if not chosen:
            continue
        actual = np.array([row.memory_gib or 1 for row in chosen])
        formulas: dict[str, Predict] = {
            "this": lambda row: need(row.shape, row.type, row.machine, row.context).total / GIB,
            "accelerate estimate-memory (x 1.2)": lambda row: 1.2 * weight_bytes(row.shape, row.type) / GIB,
            "gpu_poor (weights, KV, 650 MB)": lambda row: (weight_bytes(row.shape, row.type) + 650e6 +
                2.0 * row.shape.layers * 2 * row.shape.heads * row.shape.head_dim * row.context) / GIB,
            "llmfit (weights x 1.1 + 0.5 GB)": lambda row: (1.1 * weight_bytes(row.shape, row.type) + 0.5e9) / GIB,
        }  # fmt: skip
        for formula, predict in formulas.items():
            errors = np.abs(np.array([predict(row) for row in chosen]) / actual - 1)
            print(f"{name:28s} {formula:36s} {len(chosen):4d} rows  mean {errors.mean():6.1%}"
                  f"  median {np.median(errors):6.1%}  90 % {np.quantile(errors, 0.9):6.1%}")  # fmt: skip
    judged = [row for row in rows if row.fits is not None]
    if judged:
        says = [fit(row.shape, row.type, row.machine, row.context).fits for row in judged]
        ran = sum(bool(row.fits) for row in judged)
        false_fits = [row for row, yes in zip(judged, says, strict=True) if yes and not row.fits]
        false_not = [row for row, yes in zip(judged, says, strict=True) if not yes and row.fits]
        print(
            f"fits: {len(judged)} rows ({ran} ran, {len(judged) - ran} out of memory): "
            f"false fits {len(false_fits)}, false 'does not' {len(false_not)} ({len(false_not) / max(1, ran):.0%})"
        )
        for row in false_fits + false_not:
            print(f"   {row.machine.label} {row.model} {row.type} context {row.context}, ran: {row.fits}")  # fmt: skip


def tables_report(rows: Sequence[Row]) -> None:
    """Each published table by laws, and by intervals, that were fitted without it."""
    found = kinds(rows)
    held: list[tuple[str, str, int, float]] = []
    for kind in found:
        ratio = table_ratio([one for one in found if one.build != kind.build])
        for table in dict.fromkeys(map(table_of, kind.rows)):
            rest = kind.without(table)
            if not rest.can_be_fitted:
                continue
            errors, spread = errors_of(kind, table, rest), min(WIDEST, spread_of(rest, ratio))
            inside = float(np.mean(errors <= Z80 * spread))
            held.append((f"{kind.build} {kind.what}", table, len(errors), inside))
            name = f"{kind.build:13s} {kind.what:8s} without {table:16s}"
            print(
                f"   {name} {len(errors):3d} rows  median error {np.median(errors):4.0%}  "
                f"80 % within {math.exp(Z80 * spread):.2f} x  inside {inside:4.0%}"
            )
    counts, shares = np.array([n for *_, n, _ in held]), np.array([share for *_, share in held])
    print(f"tables left out: {len(held)}, {counts.sum()} rows; the 80 % interval "
          f"holds {np.average(shares, weights=counts):.0%} of the rows, {shares.mean():.0%} by table")  # fmt: skip


def speed_report(found: Rows) -> None:
    rows = found.rows
    dense = [r for r in rows if r.decode and not r.shape.is_mixture and whole(r)]
    mixtures = [r for r in rows if r.decode and r.shape.is_mixture and whole(r)]
    for name, builds in (("Apple", APPLE), ("CUDA", CUDA), ("others", OTHERS)):
        for what, chosen in (("dense", dense), ("mixture", mixtures)):
            part = [row for row in chosen if row.build in builds]
            line(
                f"decode {what}, {name}, shipped",
                part,
                [r.decode or 1 for r in part],
                [shipped_decode(r) for r in part],
            )
            errors = np.abs(held_out(builds, rows, "decode" if what == "dense" else "mixture"))
            if len(errors):
                print(
                    f"{'':34s} left out: {len(errors)} rows  mean {errors.mean():6.1%}  median {np.median(errors):6.1%}"
                )
        part = [row for row in rows if row.build in builds and row in prefill_rows(rows, row.build)]
        line(f"prefill, {name}, shipped", part, [r.prefill or 1 for r in part], [shipped_prefill(r) for r in part])
        errors = np.abs(held_out(builds, rows, "prefill"))
        if len(errors):
            print(f"{'':34s} left out: {len(errors)} rows  mean {errors.mean():6.1%}  median {np.median(errors):6.1%}")
    tables_report(rows)
    peers([row for row in dense if row.build in APPLE + CUDA])
    print("rows that do not count:", dict(found.left_out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=TABLES)
    folder = parser.parse_args().folder
    require_tables(folder)
    found = read_rows(folder)
    speed_report(found)
    memory_report(found.rows)
    for name in ("planning_training", "planning_runs", "planning_megatron", "planning_tuning"):
        print(f"\n# {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py")), str(folder)], check=False)


if __name__ == "__main__":
    main()
