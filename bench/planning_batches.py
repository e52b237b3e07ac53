"""Forecast beside measured while many texts are answered at once: tokens per second, and joules of a token.

    python bench/planning_batches.py [FOLDER]

Rows of ML.ENERGY's leaderboard (vLLM on H100 and B200) on one device. No coefficient of the forecast was fitted on
their speeds; the share of the design power was taken from them.
"""

import argparse
import collections
import csv
import math
import statistics
from pathlib import Path

from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.library.catalogue import find_known
from settle.machine import described
from settle.plan.cost import product
from settle.plan.fit.speed import decode_rate

TYPES = {"bfloat16": "bf16", "fp8": "fp8", "mxfp4": "mxfp4"}
PROMPT = 300  # tokens, which the table does not say
DEVICE_POWER = Interval(0.66, 0.45, 0.93, FORECAST_LEVEL)  # the device's part of SERVING_POWER, without its host


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("../shared/planning"))
    with (parser.parse_args().folder / "serving_energy_mlenergy.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["output_throughput_tokens_per_sec"]]
    found: dict[tuple[str, str], list[tuple[float, bool, float, bool]]] = collections.defaultdict(list)
    for row in rows:
        name = row["model_id"]
        model = find_known(name) or find_known(name.replace("-Thinking-2507", "").replace("-Instruct-2507", ""))
        if model is None or row["num_gpus"] != "1":
            continue
        machine = described(row["gpu_model"].lower() + (" sxm" if row["gpu_model"] == "H100" else ""))
        texts = max(1, round(float(row["avg_batch_size"])))
        context = PROMPT + int(float(row["avg_output_len"])) // 2
        rate = decode_rate(model.shape, TYPES[row["weight_precision"]], machine, context, texts)
        speed = Interval(rate.value, rate.low, rate.high, FORECAST_LEVEL).scaled(texts)
        taken = Interval(1 / speed.value, 1 / speed.high, 1 / speed.low, FORECAST_LEVEL)
        energy = product(taken, DEVICE_POWER).scaled(machine.watts or math.nan)
        actual, joules = float(row["output_throughput_tokens_per_sec"]), float(row["energy_per_token_joules"])
        kind = "mixture" if model.shape.is_mixture else "dense"
        found[row["gpu_model"], kind].append(
            (speed.value / actual, speed.low <= actual <= speed.high,
             energy.value / joules, energy.low <= joules <= energy.high)
        )  # fmt: skip
    print("| device | models | rows | speed, median error | inside | energy of a token, median error | inside |")
    print("|---|---|--:|--:|--:|--:|--:|")
    every = [row for some in found.values() for row in some]
    for (device, kind), of in [*sorted(found.items()), (("all", ""), every)]:
        off = [statistics.median(abs(row[i] - 1) for row in of) for i in (0, 2)]
        inside = [sum(row[i] for row in of) / len(of) for i in (1, 3)]
        print(f"| {device} | {kind} | {len(of)} | {off[0]:.0%} | {inside[0]:.0%} | {off[1]:.0%} | {inside[1]:.0%} |")


if __name__ == "__main__":
    main()
