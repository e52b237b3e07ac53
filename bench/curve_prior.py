"""Fit the prior over learning curves on recorded runs, and judge its forecasts on corpora that a fit has not seen.

    python bench/curve_prior.py bench/recorded                     each corpus left out once
    python bench/curve_prior.py bench/recorded --ship              and write settle/plan/curve_prior.json
    python bench/curve_prior.py bench/recorded --sizes             fitted on the small runs, judged on the large
    python bench/curve_prior.py bench/recorded --run FOLDER …      finished runs, forecast anew by the prior that ships

The forecast before a run knows its probes; the one at half also what the run evaluated until half of its tokens. Both
are of the decayed loss at its end, or where the product's rule stopped it. "Further" is what a run that ended would
have reached with more tokens: every pair of a run's ends, by the earlier one and all that was evaluated before it. The
rivals: the probe's loss itself; and the straight line in ln D through the two longest probes.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from settle.base.event_log import read_records
from settle.base.statistics import FORECAST_LEVEL, Interval, two_sided_z, wilson
from settle.plan.loss_curve import (
    FEW_STEPS,
    ORIGIN,
    START,
    CurveFacts,
    CurveForm,
    CurvePrior,
    Observation,
    binned,
)
from settle.plan.loss_law import worth
from settle.plan.outlook import CurveStart
from settle.plan.probe import DECAY

LARGE = (900_000, 3_000_000)  # parameters and tokens from which a run counts as large
DEMO = "python"  # what `make demo` trains on: never fitted on
Z = two_sided_z(FORECAST_LEVEL)
K = 6  # coefficients of a run
RIDGE = 0.3  # prior standard deviation of what a fact moves a coefficient by
DECAY_RIDGE = 0.1  # the same of what the final decay brings, and of the rise
OCTAVES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # times the tokens that a run had: each has its factor
FEWEST_CORPORA = 8  # that an octave's factor is estimated on
NEAREST = 1.15  # times the tokens from which a later end counts as further

# What is searched: ln of each, first value and how far from it is believable; a correlation by its artanh
SEARCHED = {
    "a": (0.2, 1.5), "b": (0.05, 1.5), "g": (0.2, 1.5), "c": (0.02, 1.5), "d": (0.02, 1.5), "e": (0.03, 1.5),
    "drift": (0.02, 1.5), "noise_decayed": (0.005, 1.5), "noise_constant": (0.01, 1.5), "correlation": (1.0, 1.5),
    "between": (0.02, 1.0),
    "slowing": (0.2, 1.0), "saturation": (10.0, 1.0), "repeats": (15.0, 1.0), "rise_power": (0.5, 1.0),
    "rise_size": (0.5, 1.0), "rise_decay": (5.0, 2.0),
    "decay_steps": (60.0, 1.0), "decay_power": (1.0, 0.5),
}  # fmt: skip
FIRST, BELIEVABLE = np.log([first for first, _ in SEARCHED.values()]), np.array([s for _, s in SEARCHED.values()])
NAMES = list(SEARCHED)
FORM = slice(NAMES.index("slowing"), None)


@dataclass
class Recorded:
    """One run: what is known before it, its probes, the decayed ends that branch off it, and its evaluations.

    The evaluations are at the constant rate. target: the end that is forecast.
    """

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
            packed=row["packed"],
        )
        loop, warmup = row["loop"], 2 * row["loop"]["warmup_steps"] * row["loop"]["tokens_per_step"]
        ends = [e for e in row["ends"] if e["kind"] != "stop" or e["from"] > warmup]
        probes = [e for e in ends if e["kind"] == "probe"]
        offsets = [math.log(e["own"] / e["loss"]) for e in probes] or [0.0]
        stop = row.get("stop")
        last = [e for e in ends if e not in probes]
        if loop["max_steps"]:
            last = [e for e in last if e["kind"] == "end"]
        elif stop is not None:
            last = [e for e in last if e["from"] == stop["tokens"]]
        return cls(
            corpus=row["corpus"].removesuffix("_half"),
            name=path.stem,
            facts=facts,
            probes=[observed(e) for e in probes],
            ends=[observed(e) for e in ends if e not in probes],
            target=observed(last[-1]),
            trunk=[(t, loss) for t, loss, *_ in row["trunk"] if t],
            warmup=warmup,
            offset=offsets[-1],
        )

    def seen_until(self, share: float) -> list[Observation]:
        """Return the probes, and the run's evaluations until a share of the target's tokens."""
        until = share * self.target.tokens
        early = [(t, loss) for t, loss in self.trunk if t <= until]
        return [*self.probes, *binned(early, self.warmup, self.offset)]

    def seen_before(self, end: Observation) -> list[Observation]:
        """Return what was seen of the run when it ended there."""
        began = end.tokens * (1 - end.decay)
        early = [(t, loss) for t, loss in self.trunk if t <= 1.001 * began]
        return [*self.probes, *binned(early, self.warmup, self.offset), end]

    @cached_property
    def everything(self) -> list[Observation]:
        return [*self.probes, *self.ends, *binned(self.trunk, self.warmup, self.offset)]

    @property
    def pairs(self) -> list[tuple[Observation, Observation]]:
        """An end, and a later one."""
        return [(a, b) for a in self.ends for b in self.ends if b.tokens > NEAREST * a.tokens]


def observed(end: dict) -> Observation:
    return Observation(end["tokens"], end["loss"], 1 - end["from"] / end["tokens"] if "from" in end else DECAY)


# --- the fit ---


def form_of(logs: np.ndarray) -> CurveForm:
    return CurveForm(**dict(zip(NAMES[FORM], np.exp(logs[FORM]).tolist(), strict=True)))


def with_spreads(logs: np.ndarray, mean: np.ndarray) -> CurvePrior:
    drift, decayed, constant = np.exp(logs[K:9]).tolist()
    between = math.exp(logs[10])
    return CurvePrior(form_of(logs), mean, np.exp(logs[:K]), math.tanh(logs[9]), drift, decayed, constant, between)


@dataclass(frozen=True)
class Design:
    """What a fit computes again and again of the runs on one corpus, for one form of the curves."""

    basis: np.ndarray  # (n, K)
    by_facts: np.ndarray  # (n, K F): the basis times the facts of the run
    walk: np.ndarray  # (n, n): of the Brownian motion, per unit of drift²
    between: np.ndarray  # (n, n): of what the runs do not share, per unit of between²
    noises: np.ndarray  # (2, n): variances per unit of noise_decayed² and of noise_constant²
    y: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[Recorded], prior: CurvePrior) -> "Design":
        seen = [(run.facts, o) for run in runs for o in run.everything]
        decayed, tokens = np.array([o.decay > 0 for _, o in seen]), np.array([o.tokens for _, o in seen])
        basis = np.concatenate([prior.design(run.facts, run.everything) for run in runs])
        steps = tokens / np.array([facts.tokens_per_step for facts, _ in seen])
        x, apart = np.log(tokens / START), np.array([facts.apart(runs[0].facts) for facts, _ in seen])
        return cls(
            basis=basis,
            by_facts=np.stack([np.outer(row, f.vector()).ravel() for row, (f, _) in zip(basis, seen, strict=True)]),
            walk=np.maximum(0.0, np.minimum.outer(x, x)),
            between=np.minimum.outer(apart, apart) ** 2,
            noises=np.stack([decayed * (1 + FEW_STEPS / steps), 1.0 * ~decayed]),
            y=np.log([o.loss for _, o in seen]),
        )

    def solved(self, prior: CurvePrior, together: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Information of the mean's (K F) entries, their weighted sums, and the corpus' part of -2 ln likelihood."""
        noise = np.square([prior.noise_decayed, prior.noise_constant]) @ self.noises
        whole = self.basis @ together @ self.basis.T + prior.drift**2 * self.walk + prior.between**2 * self.between
        root = np.linalg.cholesky(whole + np.diag(noise))
        solved = np.linalg.solve(root, np.column_stack([self.by_facts, self.y]))
        inner = solved.T @ solved
        part = float(inner[-1, -1]) + 2 * float(np.log(np.diag(root)).sum())
        return inner[:-1, :-1], inner[:-1, -1], part


def best_mean(prior: CurvePrior, designs: Sequence[Design], facts: int) -> tuple[CurvePrior, float]:
    """Fit the mean by generalized least squares under the prior's spreads.

    Returns the prior with the mean's covariance, and -2 ln of the penalized likelihood.
    """
    size, scale = K * facts, np.full((K, facts), RIDGE)
    scale[:, 0] = scale[0] = 100.0  # what a coefficient is on average is free, and so is how the level depends on facts
    scale[3, 1:], scale[4, 1:] = DECAY_RIDGE, 1e-3  # how it comes with the steps is alike for all
    scale[5, 0], scale[5, 1:] = 0.1, DECAY_RIDGE
    precision, weighted, total = np.diag(1 / scale.ravel() ** 2), np.zeros(size), 0.0
    together = prior.together(CurveFacts(1, 1, 1.0, 2, 1, [(1.0, 1.0)]))
    for design in designs:
        information, sums, part = design.solved(prior, together)
        precision += information
        weighted += sums
        total += part
    mean = np.linalg.solve(precision, weighted)
    objective = total - float(weighted @ mean) + float(np.linalg.slogdet(precision)[1])  # restricted likelihood
    return replace(prior, mean=mean.reshape(K, -1), mean_covariance=np.linalg.inv(precision)), objective


def fit(runs: Sequence[Recorded], start: np.ndarray, rounds: int, step: float = 0.5) -> tuple[CurvePrior, np.ndarray]:
    """Coordinate search over the logarithms of spreads and form, beginning with steps of `step`."""
    empty, designs = np.zeros((K, len(runs[0].facts.vector()))), dict[bytes, list[Design]]()
    corpora: dict[str, list[Recorded]] = {}
    for run in runs:
        corpora.setdefault(run.corpus, []).append(run)

    def fitted(logs: np.ndarray) -> tuple[CurvePrior, float]:
        prior, key = with_spreads(logs, empty), logs[FORM].tobytes()
        if key not in designs:
            designs[key] = [Design.of(some, prior) for some in corpora.values()]
        return best_mean(prior, designs[key], empty.shape[1])

    def cost(logs: np.ndarray) -> float:
        return fitted(logs)[1] + float(np.sum(((logs - FIRST) / BELIEVABLE) ** 2))

    logs, steps = start.copy(), np.full(len(start), step)
    best = cost(logs)
    for _ in range(rounds):
        for i in range(len(logs)):
            for sign in (1, -1):
                tried = logs.copy()
                tried[i] += sign * steps[i]
                value = cost(tried)
                if value < best:
                    logs, best = tried, value
                    steps[i] *= 1.3
                    break
            else:
                steps[i] /= 2
    prior = fitted(logs)[0]
    return replace(prior, most_passes=max(run.ends[-1].tokens / run.facts.unique for run in runs if run.ends)), logs


# --- judgement ---


@dataclass(frozen=True)
class Score:
    """A forecast of one run beside what came. times: of the tokens that it had, where it had ended before."""

    run: Recorded
    expected: Interval
    actual: float
    times: float = 1.0

    @property
    def error(self) -> float:
        return self.actual / self.expected.value - 1

    @property
    def inside(self) -> bool:
        return self.expected.contains(self.actual)

    @property
    def z(self) -> float:
        """|ln of actual ÷ expected| in standard deviations."""
        return abs(math.log(self.actual / self.expected.value)) / self.expected.log_std

    def widened(self, factor: float) -> "Score":
        expected = self.expected
        return replace(self, expected=Interval.log_normal(expected.value, expected.log_std * factor))


@dataclass(frozen=True)
class Scores:
    """Of some runs: before each, at half of it, and of what it would have reached further on."""

    before: list[Score]
    half: list[Score]
    further: list[Score]

    @classmethod
    def of(cls, prior: CurvePrior, runs: Sequence[Recorded]) -> "Scores":
        before, half, further = list[Score](), list[Score](), list[Score]()
        for run in runs:
            end = run.target
            seen = run.seen_until(0.5)
            before.append(Score(run, prior.after(run.facts, run.probes, end.tokens, end.decay), end.loss))
            half.append(Score(run, prior.after(run.facts, seen, end.tokens, end.decay, under_way=True), end.loss))
            for early, late in run.pairs:
                factor = prior.further_widening(run.facts, early.tokens, late.tokens) if prior.further else 1.0
                if factor is not None:
                    seen = run.seen_before(early)
                    expected = prior.after(run.facts, seen, late.tokens, late.decay, widening=factor)
                    further.append(Score(run, expected, late.loss, late.tokens / early.tokens))
        return cls(before, half, further)

    def widened(self) -> "Scores":
        """Each with the factors that the other corpora ask for; further ones only where these reach."""
        further = list[Score]()
        for score in self.further:
            factors = dict(octaves(apart(self.further, score)))
            factor = next((f for most, f in factors.items() if score.times <= most), None)
            further += [] if factor is None else [score.widened(factor)]
        before, half = ([s.widened(widening(apart(some, s))) for s in some] for some in (self.before, self.half))
        return Scores(before, half, further)


def apart(scores: Sequence[Score], one: Score) -> list[Score]:
    """Those of other corpora."""
    return [score for score in scores if score.run.corpus != one.run.corpus]


def left_out(runs: Sequence[Recorded], logs: np.ndarray, report: Callable[[str], None]) -> Scores:
    """Each corpus by a fit on the others: means, spreads and form are fitted anew."""
    all_scores = Scores([], [], [])
    for corpus in sorted({run.corpus for run in runs}):
        prior, _ = fit([run for run in runs if run.corpus not in (corpus, DEMO)], logs, 2, 0.15)
        scores = Scores.of(prior, [run for run in runs if run.corpus == corpus])
        report(f"{corpus}: {', '.join(f'{s.error:+.1%}' for s in scores.before)}")
        all_scores.before.extend(scores.before)
        all_scores.half.extend(scores.half)
        all_scores.further.extend(scores.further)
    return all_scores


def widening(scores: Sequence[Score]) -> float:
    """Return the factor of the spread with which the level holds on the runs left out.

    Split conformal, with its correction for their number (Lei et al. 2018, JASA 113:1094).
    """
    ordered = sorted(score.z for score in scores)
    rank = min(len(ordered), math.ceil((len(ordered) + 1) * FORECAST_LEVEL))
    return ordered[rank - 1] / Z


def octaves(scores: Sequence[Score]) -> Iterator[tuple[float, float]]:
    """(most times the tokens, widening), as far as there are corpora to estimate it on; never falling."""
    least, factor = 1.0, 1.0
    for most in OCTAVES:
        inside = [score for score in scores if least < score.times <= most]
        if len({score.run.corpus for score in inside}) < FEWEST_CORPORA:
            return
        factor, least = max(factor, widening(inside)), most
        yield most, factor


def rivals(run: Recorded) -> dict[str, float]:
    end, probes = run.target, run.probes
    values = {"the probe's own loss": probes[-1].loss}
    if len(probes) > 1:
        a, b = probes[-2:]
        x = [math.log(worth(o.tokens, run.facts.unique)) for o in (a, b, end)]
        values["line through two probes"] = b.loss + (b.loss - a.loss) / (x[1] - x[0]) * (x[2] - x[1])
    return values


def share(inside: Sequence[bool]) -> str:
    of = wilson(inside)
    return f"{of.value:.0%} ({of.low:.0%} to {of.high:.0%})"


def summary(name: str, scores: Sequence[Score]) -> str:
    errors = [abs(s.error) for s in scores]
    return (
        f"| {name} | {len(scores)} | {np.median(errors):.1%} | {np.quantile(errors, 0.9):.1%} | {max(errors):.1%} | "
        f"{np.median([s.error for s in scores]):+.1%} | {share([s.inside for s in scores])} | "
        f"{np.median([s.expected.log_std for s in scores]) * Z:.1%} |"
    )


def report(scores: Scores) -> None:
    print("\n| forecast | n | median error | 90 % | largest | bias | inside the 80 % interval | half its width |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, some in (("before the run", scores.before), ("at half of it", scores.half)):
        print(summary(name, some))
    if scores.further:
        print(summary("further, all pairs", scores.further))
    least = 1.0
    for most in OCTAVES:
        if some := [s for s in scores.further if least < s.times <= most]:
            print(summary(f"further, {least:g} to {most:g} times ({len({s.run.corpus for s in some})} corpora)", some))
        least = most
    by_run = {s.run.name: [t.inside for t in scores.further if t.run is s.run] for s in scores.further}
    if by_run:
        mean = np.mean([np.mean(inside) for inside in by_run.values()])
        print(f"\nfurther, mean of the shares of {len(by_run)} runs: {mean:.0%}")
    print(
        "\n| run | parameters | probes, k tokens | end | before | actual | error | at half | error | further inside |"
    )
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|--:|")
    for before, half in zip(scores.before, scores.half, strict=True):
        run, marks = before.run, ["" if s.inside else " ✗" for s in (before, half)]
        probes, inside = ", ".join(f"{p.tokens / 1e3:.0f}" for p in run.probes), by_run.get(run.name, [])
        print(
            f"| {run.name} | {run.facts.parameters / 1e3:.0f} k | {probes} | {run.target.tokens / 1e3:.0f} k | "
            f"{before.expected.value:.3f} | {before.actual:.3f} | {before.error:+.1%}{marks[0]} | "
            f"{half.expected.value:.3f} | {half.error:+.1%}{marks[1]} | {sum(inside)} of {len(inside)} |"
        )


def calibration(scores: Scores) -> None:
    """How many runs lie inside intervals of other levels, were they of the same form."""
    print("\n| level | before the run | at half of it |\n|--:|--:|--:|")
    for level in (0.5, 0.8, 0.9, 0.95):
        shares = [np.mean([s.z <= two_sided_z(level) for s in some]) for some in (scores.before, scores.half)]
        print(f"| {level:.0%} | {shares[0]:.0%} | {shares[1]:.0%} |")


def compare(runs: Sequence[Recorded]) -> None:
    """Rivals on the same runs."""
    errors: dict[str, list[float]] = {}
    for run in runs:
        for name, value in rivals(run).items():
            errors.setdefault(name, []).append(abs(run.target.loss / value - 1))
    print("\n| rival, before the run | runs | median error | largest |\n|---|--:|--:|--:|")
    for name, values in errors.items():
        print(f"| {name} | {len(values)} | {np.median(values):.1%} | {max(values):.1%} |")


def by_size(runs: Sequence[Recorded]) -> None:
    """Fitted on runs of fewer parameters and tokens than LARGE, judged on the others: an extrapolation."""
    small = [r for r in runs if r.facts.parameters < LARGE[0] and r.target.tokens < LARGE[1]]
    prior, _ = fit(small, FIRST, 8)
    below = f"{LARGE[0]:,} parameters and {LARGE[1]:,} tokens"
    print(f"\n{len(small)} runs below {below}; judged on the other {len(runs) - len(small)}:")
    report(replace(Scores.of(prior, [run for run in runs if run not in small]), further=[]))


def finished(folder: Path) -> tuple[float, bool, float, bool]:
    """Forecast a finished run of the product again, before it and at half of it: (error, inside) of each."""
    start = CurveStart.from_json(json.loads((folder / "forecast.json").read_text())["curve"])
    assert start is not None
    actual = json.loads((folder / "result.json").read_text())["actual"]
    evaluations = [e for e in read_records(folder / "events.jsonl") if e["kind"] == "eval" and not e.get("whole")]
    early = [(e["tokens"], e["loss"]) for e in evaluations if 0 < e["tokens"] <= actual["tokens"] / 2]
    found = []
    for loss in (start.loss(actual["tokens"]), start.loss_under_way(early, actual["tokens"])):
        found += [actual["loss"] / loss.value - 1, loss.contains(actual["loss"])]
    words = [f"{error:+.1%}, {'inside' if inside else 'outside'}" for error, inside in (found[:2], found[2:])]
    size = f"{start.facts.parameters:,} parameters, {actual['tokens']:,} tokens"
    print(f"{folder.parent.parent.name}/{folder.name}: {size}, {actual['loss']:.3f}; {words[0]}; at half {words[1]}")
    return found[0], found[1], found[2], found[3]


def read_all(folder: Path) -> list[Recorded]:
    """Return a folder's training runs that have probes."""
    runs = [Recorded.read(path) for path in sorted(folder.glob("*.json")) if not path.name.startswith("tune-")]
    return [run for run in runs if run.probes]


def _to_json(prior: CurvePrior) -> dict[str, object]:
    """Return the form of curve_prior.json; six digits of each number."""
    values = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(prior).items()}
    values["form"] = asdict(prior.form)
    rounded: dict[str, object] = json.loads(json.dumps(values), parse_float=lambda text: float(f"{float(text):.6g}"))
    return rounded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path)
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--run", type=Path, nargs="+", default=[])
    asked = parser.parse_args()
    if asked.run:
        before, inside, half, half_inside = zip(*map(finished, asked.run), strict=True)
        for when, errors, held in (("before", before, inside), ("at half", half, half_inside)):
            print(f"{when}: median error {np.median(np.abs(errors)):.1%}, inside {sum(held)} of {len(held)}")
        return
    runs = read_all(asked.recorded)
    if asked.sizes:
        by_size(runs)
        return
    prior, logs = fit([run for run in runs if run.corpus != DEMO], FIRST, 12)
    scores = left_out(runs, logs, print)
    judged = scores.widened()
    report(judged)
    calibration(judged)
    compare(runs)
    factors = widening(scores.before), widening(scores.half)
    prior = replace(prior, widening=factors, further=tuple(octaves(scores.further)))
    print(f"\nwidening {factors}, further {prior.further}, passes up to {prior.most_passes:.0f}, {prior.form}")
    if asked.ship:
        ORIGIN.write_text(json.dumps(_to_json(prior), indent=1) + "\n")


if __name__ == "__main__":
    main()
