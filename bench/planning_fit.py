"""Fits settle/plan/fit/laws.toml on published rows, and predicts each chip from the others: `--write` keeps the result.

    python bench/planning_fit.py [FOLDER] [--write]

Least absolute relative error, no coefficient below its floor, chips weighted alike. Fit little: a law has two to seven
coefficients, chosen by the error on chips that were left out. Tables differ by more than chips do (other clients,
builds, ways to measure), so an interval is as wide as whole tables that were left out ask for.
"""

import argparse
import datetime
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from planning_rows import Row, read_rows, require_tables
from scipy.optimize import lsq_linear

from settle.plan.fit.speed import Z80, decode_terms, prefill_terms
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
WIDEST = 0.9  # a standard deviation of the logarithm: the interval spans a factor of ten
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
    terms: np.ndarray, seconds: np.ndarray, rows: Sequence[Row], names: Sequence[str], law: tuple[str, str] = ("", ""),
    by_table: bool = False,
) -> np.ndarray:  # fmt: skip
    """Return predicted over actual speed, minus one, of each chip or table from the others.

    NaN where the rest is too little for a fit.
    """
    chips = len({row.group for row in rows})
    groups = np.array([table_of(row) if by_table else row.group if chips > 2 else row.model for row in rows])
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


def table_of(row: Row) -> str:
    """Who published a row, however the files call it."""
    return row.table.removeprefix("llama.cpp-")


@dataclass(frozen=True)
class Kind:
    """Rows of one law: build and what is predicted, with the terms of the law and what they sum to."""

    build: str
    what: str
    names: Sequence[str]
    rows: Sequence[Row]

    @property
    def can_be_fitted(self) -> bool:
        return len(self.rows) > len(self.names) + 1

    def without(self, table: str) -> "Kind":
        return replace(self, rows=[row for row in self.rows if table_of(row) != table])

    def errors(self, by_table: bool = False) -> np.ndarray:
        terms, seconds = matrices(self.rows, self.names, self.what)
        return left_out(terms, seconds, self.rows, self.names, (self.build, self.what), by_table)

    def coefficients(self) -> np.ndarray:
        terms, seconds = matrices(self.rows, self.names, self.what)
        return fit(terms, seconds, group_weights(self.rows), self.names, (self.build, self.what))


def kinds(rows: Sequence[Row]) -> list[Kind]:
    """Every law that has enough rows."""
    found = []
    for build in DECODE:
        found += [
            Kind(build, "decode", DECODE[build], decode_rows(rows, build, False)),
            Kind(build, "mixture", MIXTURE[build], decode_rows(rows, build, True)),
            Kind(build, "prefill", PREFILL[build], prefill_rows(rows, build)),
        ]
    return [kind for kind in found if kind.can_be_fitted]


def widths(kind: Kind) -> tuple[float, float]:
    """Return the 80 % quantiles of absolute ln(predicted / actual) of chips and of tables left out.

    Each table has the same weight; NaN without two tables that can be left out.
    """
    by_chip = np.abs(np.log1p(kind.errors()))
    by_table = np.abs(np.log1p(kind.errors(by_table=True)))
    heavy = Counter(table_of(row) for row, error in zip(kind.rows, by_table, strict=True) if np.isfinite(error))
    weights = np.array([1 / heavy[table_of(row)] if heavy[table_of(row)] else 0.0 for row in kind.rows])
    return quantile(by_chip, np.ones(len(by_chip))), quantile(by_table, weights) if len(heavy) > 1 else math.nan


def quantile(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted 80 % quantile of the finite values; NaN of none."""
    finite = np.isfinite(values)
    if not finite.any():
        return math.nan
    order = np.argsort(values[finite])
    heavy = np.cumsum(weights[finite][order])
    return float(values[finite][order][np.searchsorted(heavy, 0.8 * heavy[-1])])


def table_ratio(found: Sequence[Kind]) -> float:
    """Return by how much a left-out table differs more than the rest of its law says.

    It is the 80 % quantile over all laws, each table with the same weight; one law alone has too few tables.
    """
    ratios, weights = [], []
    for kind in found:
        for table in dict.fromkeys(map(table_of, kind.rows)):
            rest = kind.without(table)
            if rest.can_be_fitted and math.isfinite(own := own_width(rest)):
                judged = errors_of(kind, table, rest)
                ratios.append(judged / own)
                weights.append(np.full(len(judged), 1 / len(judged)))
    return max(1.0, quantile(np.concatenate(ratios), np.concatenate(weights))) if ratios else 1.0


def errors_of(kind: Kind, table: str, rest: Kind) -> np.ndarray:
    """|ln(predicted / actual)| of a table's rows, by the law of the rest."""
    terms, seconds = matrices([row for row in kind.rows if table_of(row) == table], kind.names, kind.what)
    return np.abs(np.log(seconds / (terms @ rest.coefficients())))


def own_width(kind: Kind) -> float:
    """Return the 80 % quantile of absolute ln(predicted / actual) of what this law leaves out, chips or tables."""
    return float(np.nanmax([*widths(kind), -1.0])) if len(kind.rows) > 4 else math.nan


def spread_of(kind: Kind, ratio: float) -> float:
    """Return the standard deviation of ln(predicted / actual) whose 80 % interval holds 80 % of left-out tables."""
    own = own_width(kind)
    return ratio * (own / Z80 if math.isfinite(own) else 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=TABLES)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rows", action="store_true", help="every row that is off by more than 15 %%")
    asked = parser.parse_args()
    require_tables(asked.folder)
    rows = read_rows(asked.folder).rows
    known: dict[str, dict[str, object]] = {build: {} for build in DECODE}
    found = kinds(rows)
    ratio = table_ratio(found)
    print(f"a table differs {ratio:.2f} times as much as the rest of its law says")
    for kind in found:
        law, errors, coefficients = known[kind.build], kind.errors(), kind.coefficients()
        law[kind.what] = dict(zip(kind.names, coefficients, strict=True))
        law[f"{kind.what}_spread"] = max(0.03, spread_of(kind, ratio))
        law["rows"] = int(str(law.get("rows", 0))) + len(kind.rows)
        for row, error in zip(kind.rows, errors, strict=True):
            if asked.rows and abs(error) > 0.15:
                actual = row.prefill if kind.what == "prefill" else row.decode
                print(f"      {row.table} {row.group} {row.model} {row.type} {row.prompt} {actual} {error:+.0%}")
        fine = np.abs(errors[np.isfinite(errors)])
        chips = len({r.group for r in kind.rows})
        print(f"{kind.build:13s} {kind.what:8s} {len(kind.rows):3d} rows {chips:3d} chips, chip left out: "
              f"mean {fine.mean():6.1%} median {np.median(fine):6.1%} max {fine.max():6.1%}  "
              + " ".join(f"{n} {c:.4g}" for n, c in zip(kind.names, coefficients, strict=True)))  # fmt: skip
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
            coefficients, spread = source.get(what), min(WIDEST, float(str(source.get(f"{what}_spread", 0.3))) * widen)
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
