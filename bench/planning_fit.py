"""Fits settle/plan/fit/laws.toml on published rows, and predicts each chip from the others: `--write` keeps the result.

    python bench/planning_fit.py [FOLDER] [--write]

Least absolute relative error, no coefficient below its floor, chips weighted alike. Fit little: a law has two to seven
coefficients, chosen by the error on chips that were left out.
"""

import argparse
import datetime
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from planning_rows import Row, read_rows
from scipy.optimize import lsq_linear

from settle.plan.fit.speed import decode_terms, prefill_terms
from settle.plan.fit.weight_types import weight_bytes

LAWS = Path(__file__).parent.parent / "settle/plan/fit/laws.toml"
TABLES = Path(__file__).parent.parent.parent / "shared/planning"
DECODE = {
    "metal-2023": ("bytes", "layers"),
    "metal-2024": ("bytes", "layers"),
    "metal-2026": ("bytes", "layers"),
    "cuda-2024": ("bytes", "layers", "stacked_bytes", "stacked_layers"),
    "cuda-2025": ("bytes", "k_bytes", "layers", "ampere_layers", "older_layers", "pascal_layers", "power"),
    "cuda-ollama": ("bytes", "layers", "token"),
    "cuda-unified": ("bytes", "layers", "linear_layers"),
    "rocm-2025": ("bytes", "layers"),
    "vulkan-2025": ("bytes", "layers"),
    "vulkan-intel": ("bytes", "layers"),
    "cpu": ("bytes",),
    "pytorch": ("bytes", "layers"),
    "vllm": ("bytes", "layers"),
}
# Few mixtures lie wholly on a card: those of other builds count too.
POOLED = {"cuda-2025": ("cuda-2025", "cuda-ollama", "cuda-unified")}
MIXTURE = dict.fromkeys(DECODE, ("bytes", "layers"))
PREFILL = dict.fromkeys(DECODE, ("float32",)) | {
    "metal-2023": ("float32", "half"),
    "metal-2026": ("float32", "mixture", "accelerated_float32"),
    "cuda-2024": ("float32", "power"),
    "cuda-2025": ("float32", "older_float32", "pascal_float32", "power", "ampere_power", "mixture"),
}
# A sweep of 40 models on one M4 Pro in 2026 (llama.cpp and MLX) found 0.95 of the bandwidth and 3.4 ms for 32 layers;
# its rows are not in the tables here. The fit for today's build is drawn towards it, as by so many chips.
PRIOR = {("metal-2026", "decode"): ({"bytes": 1.05, "layers": 3.4}, 24.0)}
FLOORS = {"bytes": 0.95}  # nothing reads memory faster than it delivers; a row's own bytes are known to a few per cent


def group_weights(rows: Sequence[Row]) -> np.ndarray:
    counts = Counter(row.group for row in rows)
    return np.array([1 / counts[row.group] for row in rows])


def fit(
    terms: np.ndarray, seconds: np.ndarray, weights: np.ndarray, names: Sequence[str], law: tuple[str, str] = ("", "")
) -> np.ndarray:
    """Least absolute relative error by re-weighting, coefficients not below their floors."""
    if law in PRIOR:
        values, chips = PRIOR[law]
        drawn = terms @ np.array([values[name] for name in names])
        terms, seconds = np.vstack([terms, terms]), np.concatenate([seconds, drawn])
        weights = np.concatenate([weights, weights * chips / weights.sum()])
    matrix, target, coefficients = terms / seconds[:, None], np.ones(len(seconds)), np.zeros(len(names))
    low = np.array([FLOORS.get(name, 0.0) for name in names])
    absolute = np.ones(len(seconds))
    for _ in range(12):
        root = np.sqrt(weights / np.maximum(absolute, 0.02))
        coefficients = lsq_linear(matrix * root[:, None], target * root, bounds=(low, np.full(len(low), np.inf))).x
        absolute = np.abs(matrix @ coefficients - target)
    return coefficients


def left_out(
    terms: np.ndarray, seconds: np.ndarray, rows: Sequence[Row], names: Sequence[str], law: tuple[str, str] = ("", "")
) -> np.ndarray:
    """Predicted over actual speed, minus one: each chip from the others."""
    chips = len({row.group for row in rows})
    groups = np.array([row.group if chips > 2 else row.model for row in rows])
    errors = np.zeros(len(rows))
    for group in dict.fromkeys(groups):
        held = groups == group
        rest = [row for row, out in zip(rows, held, strict=True) if not out]
        if len(rest) <= len(names):
            errors[held] = np.nan
            continue
        coefficients = fit(terms[~held], seconds[~held], group_weights(rest), names, law)
        errors[held] = seconds[held] / (terms[held] @ coefficients) - 1
    return errors


def whole(row: Row) -> bool:
    """Whether the row's model lay wholly in the device's memory, as far as one can tell."""
    need = weight_bytes(row.shape, row.type) + row.shape.kv_bytes(8192) + 1.5e9
    return not row.offloads or need < 0.94 * row.machine.memory * row.machine.count


def decode_rows(rows: Sequence[Row], build: str, mixture: bool) -> list[Row]:
    builds = POOLED.get(build, (build,)) if mixture else (build,)
    return [r for r in rows if r.decode and r.build in builds and r.shape.is_mixture == mixture and whole(r)]


def prefill_rows(rows: Sequence[Row], build: str) -> list[Row]:
    """Prompts of at least 256 tokens: what is timed on shorter ones is the start."""
    return [r for r in rows if r.prefill and r.build == build and r.prompt >= 256]


def matrices(rows: Sequence[Row], names: Sequence[str], what: str) -> tuple[np.ndarray, np.ndarray]:
    if what == "prefill":
        terms = [prefill_terms(r.shape, r.type, r.machine, r.prompt) for r in rows]
        seconds = [1 / (r.prefill or 1) for r in rows]
    else:
        terms = [decode_terms(r.shape, r.type, r.machine, r.context // 2) for r in rows]
        seconds = [1 / (r.decode or 1) for r in rows]
    links = np.array([t.get("links", 0.0) for t in terms])
    return np.array([[t[name] for name in names] for t in terms]), np.array(seconds) - links


def spread_of(errors: np.ndarray) -> float:
    """A standard deviation that half the errors' quantiles agree with, so that one wrong row does not widen it."""
    logs = np.abs(np.log1p(errors[np.isfinite(errors)]))
    return float(np.quantile(logs, 0.8) / 1.2816) if len(logs) > 4 else 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=TABLES)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rows", action="store_true", help="every row that is off by more than 15 %%")
    asked = parser.parse_args()
    rows = read_rows(asked.folder).rows
    known: dict[str, dict[str, object]] = {}
    for build in DECODE:
        law: dict[str, object] = {}
        for what, names, chosen in (
            ("decode", DECODE[build], decode_rows(rows, build, False)),
            ("mixture", MIXTURE[build], decode_rows(rows, build, True)),
            ("prefill", PREFILL[build], prefill_rows(rows, build)),
        ):
            if len(chosen) <= len(names) + 1:
                continue
            terms, seconds = matrices(chosen, names, what)
            errors = left_out(terms, seconds, chosen, names, (build, what))
            coefficients = fit(terms, seconds, group_weights(chosen), names, (build, what))
            law[what] = dict(zip(names, coefficients, strict=True))
            law[f"{what}_spread"] = max(0.03, spread_of(errors))
            law["rows"] = int(str(law.get("rows", 0))) + len(chosen)
            for row, error in zip(chosen, errors, strict=True):
                if asked.rows and abs(error) > 0.15:
                    actual = row.prefill if what == "prefill" else row.decode
                    print(f"      {row.table} {row.group} {row.model} {row.type} {row.prompt} {actual} {error:+.0%}")
            fine = np.abs(errors[np.isfinite(errors)])
            chips = len({r.group for r in chosen})
            print(f"{build:13s} {what:8s} {len(chosen):3d} rows {chips:3d} chips, chip left out: "
                  f"mean {fine.mean():6.1%} median {np.median(fine):6.1%} max {fine.max():6.1%}  "
                  + " ".join(f"{n} {c:.4g}" for n, c in zip(names, coefficients, strict=True)))  # fmt: skip
        known[build] = law
    if asked.write:
        LAWS.write_text(written(known))


# A build without rows of a kind takes another build's, with its spread doubled.
BORROWED = {
    "cuda-2024": "cuda-2025", "cuda-2025": "cuda-2024", "cuda-ollama": "cuda-2025", "cuda-unified": "cuda-2025",
    "metal-2023": "metal-2026", "metal-2024": "metal-2023", "metal-2026": "metal-2023", "rocm-2025": "cuda-2025",
    "vulkan-2025": "rocm-2025", "vulkan-intel": "vulkan-2025", "cpu": "metal-2026", "pytorch": "cuda-2024",
    "vllm": "cuda-2025",
}  # fmt: skip


def written(known: dict[str, dict[str, object]]) -> str:
    lines = [
        "# Coefficients of settle/plan/fit/speed.py by build, written by bench/planning_fit.py --write: do not edit.",
        f"\ndate = {datetime.date.today()}",
    ]
    for build, law in known.items():
        lines.append(f"\n[laws.{build}]")
        for what in ("decode", "mixture", "prefill"):
            source, widen, name = law, 1.0, build
            while what not in source and name in BORROWED and widen < 8:
                name = BORROWED[name]
                source, widen = known[name], widen * 2
            coefficients, spread = source.get(what), min(0.6, float(str(source.get(f"{what}_spread", 0.3))) * widen)
            assert isinstance(coefficients, dict), (build, what)
            inside = ", ".join(f"{n} = {round(float(c), 5)}" for n, c in coefficients.items() if c or n == "bytes")
            lines += [f"{what} = {{ {inside} }}", f"{what}_spread = {round(spread, 4)}"]
        lines += [
            f"rows = {law.get('rows', 0)}",
            f'source = "published rows of {build}: llama.cpp scoreboards, community runs"',
            f"date = {datetime.date.today()}",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
