"""Fit the prior over learning curves on recorded runs, and judge its forecasts on corpora that a fit has not seen.

    python bench/curve_prior.py bench/recorded                     development corpora, each left out once
    python bench/curve_prior.py bench/recorded --ship              and write settle/plan/curve_prior.json
    python bench/curve_prior.py bench/recorded --judge             the judgement corpora, by the prior that ships

The forecast before a run knows its probes (the ends up to an eighth of its length); the one at half also what the run
evaluated until half of its tokens. Both are of the loss at the end of the longest decayed run. The rivals: the probe's
loss itself; the former law (2026-11-25, least squares over twenty runs), refitted on the same runs; and the straight
line in ln D through the two longest probes.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from settle.base.statistics import FORECAST_LEVEL, Interval, two_sided_z, wilson
from settle.plan.loss_curve import ORIGIN, CurveFacts, CurvePrior, Observation, binned, recorded
from settle.plan.loss_law import worth

PROBE_SHARE = 0.13  # ends up to this share of the run are its probes
Z = two_sided_z(FORECAST_LEVEL)
SLOWINGS = (0.1, 0.2, 0.35)
RIDGE = 0.3  # prior standard deviation of what a fact moves a coefficient by
# ln of: spread of a, b, g, c, d; drift; noise of a decayed and of a constant observation. Last, artanh of a correlation
FIRST = np.append(np.log([0.2, 0.05, 0.2, 0.02, 0.02, 0.02, 0.005, 0.01]), 0.0)


@dataclass(frozen=True)
class Recorded:
    """One run: what is known before it, its decayed ends by length, and its evaluations at the constant rate."""

    corpus: str
    name: str
    facts: CurveFacts
    ends: list[Observation]
    trunk: list[tuple[float, float]]
    warmup: float
    offset: float  # of the trunk's sample from that of the ends, by the probes: ln L

    @classmethod
    def read(cls, path: Path) -> "Recorded":
        row = json.loads(path.read_text())
        facts = CurveFacts(
            parameters=row["parameters"],
            unique=row["unique"],
            bytes_per_token=row["bytes"] / row["unique"],
            vocab_size=row["vocabulary"],
            tokens_per_step=row["loop"]["tokens_per_step"],
            ngrams=[tuple(pair) for pair in row["ngrams"]],
        )
        loop, ends = row["loop"], row["ends"]
        most = PROBE_SHARE * ends[-1]["tokens"]
        offsets = [math.log(e["own"] / e["loss"]) for e in ends if e["tokens"] <= most] or [0.0]
        return cls(
            corpus=row["corpus"],
            name=path.stem,
            facts=facts,
            ends=[Observation(e["tokens"], e["loss"], decayed=True) for e in ends],
            trunk=[(t, loss) for t, loss, *_ in row["trunk"]],
            warmup=2 * loop["warmup_steps"] * loop["tokens_per_step"],
            offset=offsets[-1],
        )

    @property
    def probes(self) -> list[Observation]:
        most = PROBE_SHARE * self.ends[-1].tokens
        return [e for e in self.ends if e.tokens <= most]

    def seen_until(self, share: float) -> list[Observation]:
        """The probes, and the run's evaluations until that share of its tokens."""
        until = share * self.ends[-1].tokens
        early = [(t, loss) for t, loss in self.trunk if t <= until]
        return [*self.probes, *binned(early, self.warmup, self.offset)]

    @property
    def everything(self) -> list[Observation]:
        return [*self.ends, *binned(self.trunk, self.warmup, self.offset)]


def is_judged(corpus: str) -> bool:
    return int(hashlib.sha256(corpus.encode()).hexdigest(), 16) % 4 == 0


# --- the fit ---


def with_spreads(slowing: float, logs: np.ndarray, mean: np.ndarray) -> CurvePrior:
    spreads, correlation = np.exp(logs[:8]), math.tanh(logs[8])
    return CurvePrior(slowing, mean, spreads[:5], correlation, float(spreads[5]), float(spreads[6]), float(spreads[7]))


def best_mean(prior: CurvePrior, runs: Sequence[Recorded]) -> tuple[CurvePrior, float]:
    """The mean by generalized least squares under the prior's spreads, and -2 ln of the penalized likelihood."""
    facts = len(runs[0].facts.vector())
    size, scale = 5 * facts, np.full((5, facts), RIDGE)
    scale[:, 0] = scale[0] = 100.0  # what a coefficient is on average is free, and so is how the level depends on facts
    scale[3:, 1:] = 1e-3  # what the decay brings is alike for all
    precision, weighted, total = np.diag(1 / scale.ravel() ** 2), np.zeros(size), 0.0
    for run in runs:
        seen = run.everything
        whole = prior.covariance(run.facts, seen)
        design = np.kron(prior.design(run.facts, seen), run.facts.vector()[None, :])
        y = np.log([o.loss for o in seen])
        solved = np.linalg.solve(whole, np.column_stack([design, y]))
        precision += design.T @ solved[:, :-1]
        weighted += design.T @ solved[:, -1]
        total += float(y @ solved[:, -1]) + float(np.linalg.slogdet(whole)[1])
    mean = np.linalg.solve(precision, weighted)
    objective = total - float(weighted @ mean) + float(np.linalg.slogdet(precision)[1])  # restricted likelihood
    return replace(prior, mean=mean.reshape(5, -1)), objective


def fit(
    runs: Sequence[Recorded], slowing: float, start: np.ndarray, rounds: int
) -> tuple[CurvePrior, float, np.ndarray]:
    """Coordinate search over the logarithms of the spreads; each corpus counts once, whatever its number of runs."""
    empty = np.zeros((5, len(runs[0].facts.vector())))

    def cost(logs: np.ndarray) -> float:
        # spreads of some nats and noise of some percent are all that is believable
        pull = float(np.sum(((logs - FIRST) / 1.5) ** 2))
        return best_mean(with_spreads(slowing, logs, empty), runs)[1] + pull

    logs, step = start.copy(), np.full(len(start), 0.5)
    best = cost(logs)
    for _ in range(rounds):
        for i in range(len(logs)):
            for sign in (1, -1):
                tried = logs.copy()
                tried[i] += sign * step[i]
                value = cost(tried)
                if value < best:
                    logs, best = tried, value
                    step[i] *= 1.3
                    break
            else:
                step[i] /= 2
    return best_mean(with_spreads(slowing, logs, empty), runs)[0], best, logs


def fit_all(runs: Sequence[Recorded], rounds: int = 5) -> tuple[CurvePrior, np.ndarray]:
    fits = [fit(runs, slowing, FIRST, rounds) for slowing in SLOWINGS]
    for slowing, (_, value, _) in zip(SLOWINGS, fits, strict=True):
        print(f"slowing {slowing}: -2 ln likelihood {value:.1f}")
    prior, _, logs = min(fits, key=lambda f: f[1])
    return prior, logs


# --- judgement ---


@dataclass(frozen=True)
class Score:
    """A forecast of one run beside what came."""

    run: Recorded
    told: Interval
    actual: float

    @property
    def error(self) -> float:
        return self.actual / self.told.value - 1

    @property
    def inside(self) -> bool:
        return self.told.contains(self.actual)

    @property
    def z(self) -> float:
        """|ln of actual ÷ expected| in standard deviations."""
        return abs(math.log(self.actual / self.told.value)) / self.told.log_std


def scored(prior: CurvePrior, run: Recorded) -> tuple[Score, Score]:
    """Before the run and at half of it."""
    end = run.ends[-1]
    before = prior.after(run.facts, run.probes, end.tokens)
    half = prior.after(run.facts, run.seen_until(0.5), end.tokens, under_way=True)
    return Score(run, before, end.loss), Score(run, half, end.loss)


def left_out(runs: Sequence[Recorded], slowing: float, logs: np.ndarray) -> Iterator[tuple[Score, Score]]:
    """Each corpus by a fit on the others: means and spreads are fitted anew."""
    for corpus in sorted({run.corpus for run in runs}):
        prior, _, _ = fit([run for run in runs if run.corpus != corpus], slowing, logs, 2)
        yield from (scored(prior, run) for run in runs if run.corpus == corpus)


def widening(scores: Sequence[Score]) -> float:
    """By what the spread has to be multiplied for the level to hold on the runs left out (split conformal, with its
    correction for their number; Lei et al. 2018, JASA 113:1094)."""
    ordered = sorted(score.z for score in scores)
    rank = min(len(ordered), math.ceil((len(ordered) + 1) * FORECAST_LEVEL))
    return max(1.0, ordered[rank - 1] / Z)


def widened(scores: Sequence[Score]) -> list[Score]:
    """Each with the widening that the other corpora ask for."""
    out = []
    for score in scores:
        factor = widening([s for s in scores if s.run.corpus != score.run.corpus])
        out.append(replace(score, told=Interval.log_normal(score.told.value, score.told.log_std * factor)))
    return out


def rivals(run: Recorded) -> dict[str, float]:
    end, probes = run.ends[-1], run.probes
    told = {"the probe's own loss": probes[-1].loss}
    if len(probes) > 1:
        a, b = probes[-2:]
        x = [math.log(worth(o.tokens, run.facts.unique)) for o in (a, b, end)]
        told["line through two probes"] = b.loss + (b.loss - a.loss) / (x[1] - x[0]) * (x[2] - x[1])
    return told


def former_law(runs: Sequence[Recorded], run: Recorded) -> float:
    """r(z) (base + length ln(D'/100k) + packing ln(bytes per token / 3)), slowing 0.2, least squares on the others."""

    def row(r: Recorded, probe: Observation) -> tuple[np.ndarray, float]:
        short, long = (worth(o.tokens, r.facts.unique) for o in (probe, r.ends[-1]))
        reach = -math.expm1(-0.2 * math.log(long / short)) / 0.2
        facts = np.array([1, math.log(short / 1e5), math.log(r.facts.bytes_per_token / 3)])
        return reach * facts, math.log(probe.loss / r.ends[-1].loss)

    rows = [row(r, p) for r in runs if r.corpus != run.corpus for p in r.probes]
    solved, *_ = np.linalg.lstsq(np.array([r for r, _ in rows]), np.array([y for _, y in rows]), rcond=None)
    return run.probes[-1].loss * math.exp(-float(row(run, run.probes[-1])[0] @ solved))


def summary(name: str, scores: Sequence[Score]) -> str:
    errors = [abs(s.error) for s in scores]
    inside = wilson([s.inside for s in scores])
    return (
        f"| {name} | {len(scores)} | {np.median(errors):.1%} | {np.quantile(errors, 0.9):.1%} | {max(errors):.1%} | "
        f"{np.median([s.error for s in scores]):+.1%} | {inside.value:.0%} ({inside.low:.0%} to {inside.high:.0%}) | "
        f"{np.median([s.told.log_std for s in scores]) * Z:.1%} |"
    )


def report(pairs: Sequence[tuple[Score, Score]]) -> None:
    print("\n| forecast | runs | median error | 90 % | largest | bias | inside the 80 % interval | half its width |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    print(summary("before the run", [p[0] for p in pairs]))
    print(summary("at half of it", [p[1] for p in pairs]))
    print("\n| run | parameters | probes, k tokens | end | before | actual | error | at half | error |")
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|")
    for before, half in pairs:
        run, marks = before.run, ["" if s.inside else " ✗" for s in (before, half)]
        probes = ", ".join(f"{p.tokens / 1e3:.0f}" for p in run.probes)
        print(
            f"| {run.name} | {run.facts.parameters / 1e3:.0f} k | {probes} | {run.ends[-1].tokens / 1e3:.0f} k | "
            f"{before.told.value:.3f} | {before.actual:.3f} | {before.error:+.1%}{marks[0]} | {half.told.value:.3f} | "
            f"{half.error:+.1%}{marks[1]} |"
        )


def calibration(pairs: Sequence[tuple[Score, Score]]) -> None:
    """How many runs lie inside intervals of other levels, were they of the same form."""
    print("\n| level | before the run | at half of it |\n|--:|--:|--:|")
    for level in (0.5, 0.8, 0.9, 0.95):
        shares = [np.mean([pair[i].z <= two_sided_z(level) for pair in pairs]) for i in (0, 1)]
        print(f"| {level:.0%} | {shares[0]:.0%} | {shares[1]:.0%} |")


def compare(runs: Sequence[Recorded], others: Sequence[Recorded]) -> None:
    """Rivals on the same runs; the former law refitted on `others`."""
    errors: dict[str, list[float]] = {}
    for run in runs:
        for name, value in (rivals(run) | {"former law, refitted": former_law(others, run)}).items():
            errors.setdefault(name, []).append(abs(run.ends[-1].loss / value - 1))
    print("\n| rival, before the run | runs | median error | largest |\n|---|--:|--:|--:|")
    for name, values in errors.items():
        print(f"| {name} | {len(values)} | {np.median(values):.1%} | {max(values):.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path)
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--judge", action="store_true")
    asked = parser.parse_args()
    every = [Recorded.read(path) for path in sorted(asked.recorded.glob("*.json"))]
    development = [run for run in every if not is_judged(run.corpus) and run.probes]
    if asked.judge:
        judged = [run for run in every if is_judged(run.corpus) and run.probes]
        pairs = [scored(recorded(), run) for run in judged]
        report(pairs)
        calibration(pairs)
        compare(judged, development)
        return
    prior, logs = fit_all(development)
    pairs = list(left_out(development, prior.slowing, logs))
    scores = [widened([pair[i] for pair in pairs]) for i in (0, 1)]
    report(list(zip(*scores, strict=True)))
    calibration(list(zip(*scores, strict=True)))
    compare(development, development)
    prior = replace(prior, widening=tuple(widening([pair[i] for pair in pairs]) for i in (0, 1)))
    print(f"\n{prior}")
    if asked.ship:
        ORIGIN.write_text(json.dumps(prior.to_json(), indent=1) + "\n")


if __name__ == "__main__":
    main()
