"""Fit the prior over learning curves on recorded runs, and judge its forecasts on corpora that a fit has not seen.

    python bench/curve_prior.py bench/recorded                     development corpora, each left out once
    python bench/curve_prior.py bench/recorded --ship              and write settle/plan/curve_prior.json
    python bench/curve_prior.py bench/recorded --judge             the judgement corpora, by the prior that ships
    python bench/curve_prior.py bench/recorded --sizes             fitted on the small runs, judged on the large
    python bench/curve_prior.py bench/recorded --run FOLDER        a finished run, forecast anew by the prior that ships

The forecast before a run knows its probes; the one at half also what the run evaluated until half of its tokens. Both
are of the decayed loss at its end, or where the product's rule stopped it. The rivals: the probe's loss itself; the
former law (2026-11-25, least squares over twenty runs), refitted on the same runs; and the straight line in ln D
through the two longest probes.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from settle.base.event_log import read_records
from settle.base.statistics import FORECAST_LEVEL, Interval, two_sided_z, wilson
from settle.plan.loss_curve import ORIGIN, CurveFacts, CurvePrior, Observation, binned, recorded
from settle.plan.loss_law import worth
from settle.plan.outlook import CurveStart
from settle.plan.probe import DECAY

PROBE_SHARE = 0.13  # ends up to this share of a short run are its probes
LARGE = (200_000, 500_000)  # parameters and tokens from which a run counts as large
DEMO = "python"  # what `make demo` trains on: never fitted on
Z = two_sided_z(FORECAST_LEVEL)
SLOWINGS = (0.1, 0.2, 0.35)
DECAY_RIDGE = 0.03  # the same of what the final decay brings
RIDGE = 0.3  # prior standard deviation of what a fact moves a coefficient by
# ln of: spread of a, b, g, c, d; drift; noise of a decayed and of a constant observation; the decay's power. Last,
# artanh of a correlation
FIRST = np.append(np.log([0.2, 0.05, 0.2, 0.02, 0.02, 0.02, 0.005, 0.01, 0.5]), 0.0)


@dataclass(frozen=True)
class Recorded:
    """One run: what is known before it, its probes, the decayed ends that branch off it, and its evaluations at the
    constant rate. target: the end that is forecast."""

    corpus: str
    name: str
    facts: CurveFacts
    probes: list[Observation]
    ends: list[Observation]
    target: Observation
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
        loop, warmup = row["loop"], 2 * row["loop"]["warmup_steps"] * row["loop"]["tokens_per_step"]
        ends = [e for e in row["ends"] if e["kind"] != "stop" or e["from"] > warmup]
        probes = [e for e in ends if is_probe(e, ends[-1]["tokens"])]
        offsets = [math.log(e["own"] / e["loss"]) for e in probes] or [0.0]
        stop = row.get("stop")
        last = [e for e in ends if not is_probe(e, ends[-1]["tokens"])]
        if loop["max_steps"]:
            last = [e for e in last if e["kind"] in ("branch", "end")]
        elif stop is not None:
            last = [e for e in last if e["from"] == stop["tokens"]]
        return cls(
            corpus=row["corpus"],
            name=path.stem,
            facts=facts,
            probes=[observed(e, loop) for e in probes],
            ends=[observed(e, loop) for e in ends if e not in probes],
            target=observed(last[-1], loop),
            trunk=[(t, loss) for t, loss, *_ in row["trunk"] if t],
            warmup=warmup,
            offset=offsets[-1],
        )

    def seen_until(self, share: float) -> list[Observation]:
        """The probes, and the run's evaluations until that share of the target's tokens."""
        until = share * self.target.tokens
        early = [(t, loss) for t, loss in self.trunk if t <= until]
        return [*self.probes, *binned(early, self.warmup, self.offset)]

    @property
    def everything(self) -> list[Observation]:
        return [*self.probes, *self.ends, *binned(self.trunk, self.warmup, self.offset)]


def is_probe(end: dict, longest: float) -> bool:
    """Whether it was trained by itself, as before a run; in the short runs of 27 November, up to a share of the run."""
    return end["kind"] == "probe" or (end["kind"] in ("alone", "branch") and end["tokens"] <= PROBE_SHARE * longest)


def observed(end: dict, loop: dict) -> Observation:
    decay = loop["decay_fraction"] if end["kind"] == "end" else DECAY
    if end["kind"] == "stop":
        decay = 1 - end["from"] / end["tokens"]
    return Observation(end["tokens"], end["loss"], decay)


def is_judged(corpus: str) -> bool:
    return corpus == DEMO or int(hashlib.sha256(corpus.encode()).hexdigest(), 16) % 4 == 0


# --- the fit ---


def with_spreads(slowing: float, logs: np.ndarray, mean: np.ndarray) -> CurvePrior:
    spreads, correlation = np.exp(logs[:9]), math.tanh(logs[9])
    return CurvePrior(slowing, mean, spreads[:5], correlation, *map(float, spreads[5:]))


@dataclass(frozen=True)
class Design:
    """What a fit computes again and again of one run, for one slowing and one power of the decay."""

    basis: np.ndarray  # (n, 5)
    apart: np.ndarray  # (n, n): of the Brownian motion, per unit of drift²
    noises: np.ndarray  # (2, n): variances per unit of noise_decayed² and of noise_constant²
    facts: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, run: Recorded, prior: CurvePrior) -> "Design":
        seen = run.everything
        none = replace(prior, spread=np.zeros(5), drift=0.0, noise_decayed=0.0, noise_constant=0.0)

        def alone(**part: float) -> np.ndarray:
            return replace(none, **part).covariance(run.facts, seen)

        return cls(
            basis=prior.design(run.facts, seen),
            apart=alone(drift=1.0),
            noises=np.stack([np.diag(alone(noise_decayed=1.0)), np.diag(alone(noise_constant=1.0))]),
            facts=run.facts.vector(),
            y=np.log([o.loss for o in seen]),
        )

    def solved(self, prior: CurvePrior) -> tuple[np.ndarray, np.ndarray, float]:
        """Information of the mean's (5 F) entries, their weighted sums, and the run's part of -2 ln likelihood."""
        noise = np.square([prior.noise_decayed, prior.noise_constant]) @ self.noises
        whole = self.basis @ prior.together @ self.basis.T + prior.drift**2 * self.apart + np.diag(noise)
        wide = np.column_stack([self.basis, self.y])
        solved = np.linalg.solve(whole, wide)
        inner = wide.T @ solved
        information = np.kron(inner[:5, :5], np.outer(self.facts, self.facts))
        part = float(inner[5, 5]) + float(np.linalg.slogdet(whole)[1])
        return information, np.kron(inner[:5, 5], self.facts), part


def best_mean(prior: CurvePrior, designs: Sequence[Design]) -> tuple[CurvePrior, float]:
    """The mean by generalized least squares under the prior's spreads, and -2 ln of the penalized likelihood."""
    facts = len(designs[0].facts)
    size, scale = 5 * facts, np.full((5, facts), RIDGE)
    scale[:, 0] = scale[0] = 100.0  # what a coefficient is on average is free, and so is how the level depends on facts
    scale[3, 1:], scale[4, 1:] = DECAY_RIDGE, 1e-3  # how it comes with the steps is alike for all
    precision, weighted, total = np.diag(1 / scale.ravel() ** 2), np.zeros(size), 0.0
    for design in designs:
        information, sums, part = design.solved(prior)
        precision += information
        weighted += sums
        total += part
    mean = np.linalg.solve(precision, weighted)
    objective = total - float(weighted @ mean) + float(np.linalg.slogdet(precision)[1])  # restricted likelihood
    return replace(prior, mean=mean.reshape(5, -1)), objective


def fit(
    runs: Sequence[Recorded], slowing: float, start: np.ndarray, rounds: int
) -> tuple[CurvePrior, float, np.ndarray]:
    """Coordinate search over the logarithms of the spreads; each corpus counts once, whatever its number of runs."""
    empty, designs = np.zeros((5, len(runs[0].facts.vector()))), {}

    def fitted(logs: np.ndarray) -> tuple[CurvePrior, float]:
        prior = with_spreads(slowing, logs, empty)
        if prior.decay_power not in designs:
            designs[prior.decay_power] = [Design.of(run, prior) for run in runs]
        return best_mean(prior, designs[prior.decay_power])

    def cost(logs: np.ndarray) -> float:
        # spreads of some nats and noise of some percent are all that is believable
        return fitted(logs)[1] + float(np.sum(((logs - FIRST) / 1.5) ** 2))

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
    return fitted(logs)[0], best, logs


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
    end = run.target
    before = prior.after(run.facts, run.probes, end.tokens, end.decay)
    half = prior.after(run.facts, run.seen_until(0.5), end.tokens, end.decay, under_way=True)
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
    end, probes = run.target, run.probes
    told = {"the probe's own loss": probes[-1].loss}
    if len(probes) > 1:
        a, b = probes[-2:]
        x = [math.log(worth(o.tokens, run.facts.unique)) for o in (a, b, end)]
        told["line through two probes"] = b.loss + (b.loss - a.loss) / (x[1] - x[0]) * (x[2] - x[1])
    return told


def former_law(runs: Sequence[Recorded], run: Recorded) -> float:
    """r(z) (base + length ln(D'/100k) + packing ln(bytes per token / 3)), slowing 0.2, least squares on the others."""

    def row(r: Recorded, probe: Observation) -> tuple[np.ndarray, float]:
        short, long = (worth(o.tokens, r.facts.unique) for o in (probe, r.target))
        reach = -math.expm1(-0.2 * math.log(long / short)) / 0.2
        facts = np.array([1, math.log(short / 1e5), math.log(r.facts.bytes_per_token / 3)])
        return reach * facts, math.log(probe.loss / r.target.loss)

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
            f"| {run.name} | {run.facts.parameters / 1e3:.0f} k | {probes} | {run.target.tokens / 1e3:.0f} k | "
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
            errors.setdefault(name, []).append(abs(run.target.loss / value - 1))
    print("\n| rival, before the run | runs | median error | largest |\n|---|--:|--:|--:|")
    for name, values in errors.items():
        print(f"| {name} | {len(values)} | {np.median(values):.1%} | {max(values):.1%} |")


def by_size(runs: Sequence[Recorded]) -> None:
    """Fitted on runs of fewer parameters and tokens than LARGE, judged on the others: an extrapolation."""
    small = [r for r in runs if r.facts.parameters < LARGE[0] and r.target.tokens < LARGE[1]]
    prior, _ = fit_all(small)
    below = f"{LARGE[0]:,} parameters and {LARGE[1]:,} tokens"
    print(f"\n{len(small)} runs below {below}; judged on the other {len(runs) - len(small)}:")
    report([scored(prior, run) for run in runs if run not in small])


def finished(folder: Path) -> None:
    """A run of the product, forecast anew: before it, and when its decay began."""
    curve = dict(json.loads((folder / "forecast.json").read_text())["curve"])
    loop = json.loads((folder / "plan.json").read_text())["loop"]
    facts = CurveFacts(**curve["facts"])
    probes = [Observation(probe["tokens"], probe["loss"], DECAY) for probe in curve["probes"]]
    events = list(read_records(folder / "events.jsonl"))
    begun = next(e for e in events if e["kind"] == "decay")["step"] * loop["tokens_per_step"]
    actual = json.loads((folder / "result.json").read_text())["actual"]
    trunk = [
        (e["tokens"], e["loss"])
        for e in events
        if e["kind"] == "eval" and not e.get("whole") and 0 < e["tokens"] <= begun
    ]
    start = CurveStart(facts, probes, curve["offset"], curve["stderr"], curve["since"], 1 - begun / actual["tokens"])
    print(f"actual {actual['loss']:.3f} after {actual['tokens']:,} tokens, {start.decay:.0%} of them decay")
    for name, loss in (
        ("before the run", start.loss(actual["tokens"])),
        ("at the decay's beginning", start.loss_under_way(trunk, actual["tokens"])),
    ):
        print(f"{name}: {loss.value:.3f} ({loss.low:.3f} to {loss.high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path)
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--run", type=Path)
    asked = parser.parse_args()
    if asked.run:
        finished(asked.run)
        return
    paths = [path for path in sorted(asked.recorded.glob("*.json")) if not path.name.startswith("tune-")]
    every = [Recorded.read(path) for path in paths]
    development = [run for run in every if not is_judged(run.corpus) and run.probes]
    if asked.judge:
        judged = [run for run in every if is_judged(run.corpus) and run.probes]
        pairs = [scored(recorded(), run) for run in judged]
        report(pairs)
        calibration(pairs)
        compare(judged, development)
        return
    if asked.sizes:
        by_size(development)
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
