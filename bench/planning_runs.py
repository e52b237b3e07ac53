"""Device-hours of published training runs: each held out, and the share that runs get of a steady rate.

python bench/planning_runs.py [FOLDER]              # runs of the folder's tables, each held out in turn
python bench/planning_runs.py FOLDER --frozen       # the shipped constants on these tables, nothing fitted
python bench/planning_runs.py --write               # settle/plan/cluster/published_runs.toml from all of them
"""

import argparse
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from planning_rows import require_tables
from planning_training import FOLDER, SHAPES, _read

from settle.base.errors import ResourceError
from settle.base.statistics import Interval
from settle.machine.described_machine import Machine, described
from settle.plan.cluster import whole_run
from settle.plan.cluster.throughput import Shape, shape_of_size, shape_with_experts
from settle.plan.cluster.whole_run import best_layouts, usual_batch

# A chip as tables write it → as settle names it; without a row of its own: its numbers by hand.
CHIPS = {
    "A100-40": "a100 sxm 40gb", "A100 SXM4 40": "a100 sxm 40gb", "A100": "a100 sxm 80gb", "A800": "a100 sxm 80gb",
    "GH200": "gh200", "H100": "h100 sxm", "H800": "h100 sxm", "H200": "h200 sxm", "B200": "b200", "GB200": "gb200",
    "TPU v3": "memory=32gb bandwidth=900gb/s tflops=123 link=100gb/s", "TPU v4": "tpu v4", "TPU v5e": "tpu v5e",
    "TPU v5p": "tpu v5p", "V100": "v100 sxm2 32gb", "MI250X": "mi250x",
}  # fmt: skip
FIRST_YEAR = 2021  # of Epoch's runs that are asked for: older ones are other networks
PLAUSIBLE = (0.04, 0.75)  # of the data sheet's rate: outside the row mixes two runs, or counts other tokens
USUAL_DAYS = 30  # of a run whose number of devices is not known
SIZE = 20e9
PENALTY = 1.0
LEAST_HOURS = 24.0
FEWEST = 12  # runs, to hold one out


@dataclass(frozen=True)
class Published:
    name: str
    parameters: float
    active: float
    tokens: float
    hours: float
    machine: Machine
    source: str


def read_runs(folder: Path) -> list[Published]:
    """Every run with weights, tokens, a known chip and device-hours, once."""
    runs: dict[str, Published] = {}
    for run in (*_yaml(folder), *_checked(folder), *_epoch(folder)):
        key = re.sub(r"\W|production|llm360|baserun|lambda|100*0$", "", run.name.lower())
        same = [k for k, other in runs.items() if k == key or _same(run, other)]
        if not same:
            runs[key] = run
    return list(runs.values())


def _same(one: Published, other: Published) -> bool:
    """Whether two tables have the same run under two names."""
    near = abs(math.log(one.hours / other.hours)) < 0.03 and abs(math.log(one.parameters / other.parameters)) < 0.1
    return near and one.machine.name == other.machine.name


def _yaml(folder: Path) -> list[Published]:
    path = folder / "published_runs.yaml"
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    found = []
    for r in rows:
        active = r.get("active_b") or r.get("params_b")
        hours = r.get("gpu_hours") or (r.get("gpus") or 0) * _wall_hours(r)
        hours = hours or (r.get("gpu_hours_per_t_tokens") or 0) * (r.get("tokens_b") or 0) / 1000
        if not isinstance(active, int | float) or not r.get("tokens_b") or not hours:
            continue
        if "->" in str(r.get("gpu", "")) or "increment" in r["run"]:
            continue  # several chips in turn, or tokens of a longer sequence on top of another run
        found.append(
            _published(
                r["run"], float(r["params_b"]) * 1e9, active * 1e9, r["tokens_b"] * 1e9, float(hours), str(r["gpu"]),
                r.get("gpus"), r["source"],
            )
        )  # fmt: skip
    return [run for run in found if run]


def _wall_hours(r: dict[str, float]) -> float:
    return float(r.get("hours") or 24 * (r.get("days") or 0) or (r.get("minutes") or 0) / 60)


def _checked(folder: Path) -> list[Published]:
    """Return runs whose operations are published, with the weights that the name says."""
    found = []
    for r in _read(folder / "check_implied_mfu.csv"):
        size = re.search(r"(\d+(?:\.\d+)?)B", r["run"])
        parameters = float(size[1]) * 1e9 if size else 1.88e9 if "nanochat" in r["run"] else 0.0
        if parameters:
            tokens = float(r["flop_est"]) / (6 * parameters)
            found.append(
                _published(r["run"], parameters, parameters, tokens, float(r["gpu_hours"]), r["gpu"], None, "implied")
            )
    return [run for run in found if run]


def _epoch(folder: Path) -> list[Published]:
    found = []
    for r in _read(folder / "published_runs_epoch.csv"):
        if r["confidence"] != "Confident" or "," in r["hardware"] or int(r["date"][:4]) < FIRST_YEAR:
            continue
        if not (r["params"] and r["tokens"] and r["chip_hours"]):
            continue
        parameters, tokens = float(r["params"]), float(r["tokens"]) * float(r["epochs"] or 1)
        if float(r["flop"] or 0) and abs(math.log(6 * parameters * tokens / float(r["flop"]))) > math.log(1.6):
            continue  # a mixture of experts, an encoder, or more tokens than the row has
        found.append(
            _published(
                r["model"], parameters, parameters, tokens, float(r["chip_hours"]), r["hardware"],
                float(r["quantity"] or 0), "Epoch AI (CC BY)",
            )
        )  # fmt: skip
    return [run for run in found if run]


def _published(
    name: str,
    parameters: float,
    active: float,
    tokens: float,
    hours: float,
    chip: str,
    devices: float | None,
    source: str,
) -> Published | None:
    named = next((v for k, v in CHIPS.items() if k in chip), None)
    if named is None:
        return None
    number = int(devices) if devices else 2 ** max(3, round(math.log2(hours / 24 / USUAL_DAYS)))
    number = max(1, number // 8 * 8)
    machine = described(f"{number}x {named}")
    implied = 6 * active * tokens / (hours * 3600 * machine.matrix_flops)
    return (
        Published(name, parameters, active, tokens, hours, machine, source)
        if PLAUSIBLE[0] < implied < PLAUSIBLE[1]
        else None
    )


def shape_of(run: Published) -> Shape:
    if run.active < 0.7 * run.parameters:
        return shape_with_experts(run.parameters, run.active)
    known = [shape for shape in SHAPES.values() if abs(shape.parameters / run.parameters - 1) < 0.02]
    return known[0] if known else shape_of_size(run.parameters)


def clean_hours(run: Published) -> float:
    """Return device-hours of steady steps alone, in the fastest layout that fits.

    The number of nodes is the whole number nearest to the run's devices that divides.
    """
    shape = shape_of(run)
    machine = replace(run.machine, count=2 ** round(math.log2(run.machine.count)))
    try:
        layouts = best_layouts(shape, machine, usual_batch(run.parameters))
    except ResourceError:  # it did fit, in a layout that is not searched (offloaded, or spread over more dimensions)
        layouts = best_layouts(shape, replace(machine, memory=8 * machine.memory), usual_batch(run.parameters))
    return run.tokens / layouts[0].rate.tokens.value / 3600


def fit(runs: Sequence[Published], clean: Sequence[float]) -> tuple[np.ndarray, list[float]]:
    """Fit centre, slope with size and what experts add, of the logarithm of the share.

    The residual of each run is by a fit without it, so that their spread is that of a further run.
    """
    y = np.array([math.log(c / run.hours) for run, c in zip(runs, clean, strict=True)])
    x = np.array([features(run) for run in runs])
    residuals = []
    for i in range(len(runs)):
        rest = np.arange(len(runs)) != i
        residuals.append(float(y[i] - x[i] @ _solve(x[rest], y[rest])))
    return _solve(x, y), residuals


def is_watched(run: Published) -> bool:
    """Whether it ran for a day at least: a benchmark of an hour loses nothing, and says nothing of runs that do."""
    return run.hours / run.machine.count >= LEAST_HOURS


def features(run: Published) -> list[float]:
    shape = shape_of(run)
    return [1.0, math.log(shape.active_parameters / SIZE), float(shape.experts > 0)]


def _solve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Huber weights: the hours of a card that counts several models are no rate of one."""
    beta = np.array([np.median(y), 0.0, 0.0])
    for _ in range(30):
        w = np.minimum(1.0, 0.4 / np.maximum(np.abs(y - x @ beta), 1e-9))
        beta = np.linalg.solve(x.T @ (x * w[:, None]) + np.diag([0.0, PENALTY, PENALTY]), x.T @ (w * y))
    return beta


def main(folder: Path | None = None) -> None:
    """Each run by the shipped shares, and by shares of the other runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args() if folder is None else parser.parse_args([str(folder)])
    require_tables(options.folder)
    runs = read_runs(options.folder)
    clean = [clean_hours(run) for run in runs]
    shipped = [whole_run.device_hours(shape_of(run), hours) for run, hours in zip(runs, clean, strict=True)]
    for run, interval in zip(runs, shipped, strict=True):
        ends = (f"{end:12,.0f}" for end in (run.hours, interval.low, interval.value, interval.high))
        print(f"{run.name[:34]:34}", *ends, "" if interval.contains(run.hours) else "outside")
    summarize("shipped shares", runs, shipped)
    if len(runs) > FEWEST:
        summarize("each run held out", runs, [_without({i}, i, runs, clean) for i in range(len(runs))])
        makers = [maker(run) for run in runs]
        groups = [{j for j, other in enumerate(makers) if other == one} for one in makers]
        held_out = [_without(group, i, runs, clean) for i, group in enumerate(groups)]
        summarize("each maker held out", runs, held_out)
        inside = [held_out[i].contains(run.hours) for i, run in enumerate(runs)]
        by_maker = {one: [yes for yes, of in zip(inside, makers, strict=True) if of == one] for one in makers}
        print("   by maker: " + ", ".join(f"{one} {sum(yes)}/{len(yes)}" for one, yes in sorted(by_maker.items())))
    if options.write:
        write(runs, clean)


def maker(run: Published) -> str:
    """Return the first word of a run's name: who makes several runs makes them alike."""
    return re.split(r"[\s\-\d.]", run.name.lower().replace("amazon ", ""))[0]


def _without(held: set[int], i: int, runs: list[Published], clean: list[float]) -> Interval:
    """Return the interval of run i from those that are not `held` out."""
    rest = [j for j in range(len(runs)) if j not in held and is_watched(runs[j])]
    beta, residuals = fit([runs[j] for j in rest], [clean[j] for j in rest])
    low, high = whole_run.share_ends(tuple(sorted(residuals)))
    hours = clean[i] / math.exp(np.array(features(runs[i])) @ beta)
    return Interval(hours, hours / math.exp(high), hours / math.exp(low), 0.8)


def summarize(what: str, runs: list[Published], intervals: list[Interval]) -> None:
    if not runs:
        print(f"{what}: no runs")
        return
    inside = [interval.contains(run.hours) for run, interval in zip(runs, intervals, strict=True)]
    widths = [interval.high / interval.low for interval in intervals]
    errors = [abs(interval.value / run.hours - 1) for run, interval in zip(runs, intervals, strict=True)]
    print(
        f"{what}: {len(runs)} runs, inside the 80 % interval {np.mean(inside):.0%}, "
        f"median width x{statistics.median(widths):.2f}, median error {statistics.median(errors):.0%}"
    )


def write(runs: list[Published], clean: list[float]) -> None:
    clean = [hours for run, hours in zip(runs, clean, strict=True) if is_watched(run)]
    runs = [run for run in runs if is_watched(run)]
    (centre, slope, experts), residuals = fit(runs, clean)
    lines = [
        "# Published training runs: logarithm of what they got of a steady rate, less what size",
        "# explains. Written by `python bench/planning_runs.py --write`. Rows of Epoch AI: epoch.ai, CC BY 4.0.",
        'date = "2026-11-28"',
        f"centre = {centre:.3f}\nslope = {slope:.3f}\nexperts = {experts:.3f}\nsize = {SIZE:.3g}\nruns = [",
    ]
    for run, residual in sorted(zip(runs, residuals, strict=True), key=lambda pair: pair[1]):
        source = run.source.replace('"', "'").split(";")[0][:90]
        lines.append(f'  {{ name = "{run.name}", log_share = {residual:.3f}, source = "{source}" }},')
    path = Path(whole_run.__file__).with_name("published_runs.toml")
    path.write_text("\n".join([*lines, "]"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
