import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from settle.train.recovery import steps_astray
from settle.train.settled import (
    ASK_EVERY,
    CHANCE,
    EVALUATION_COST,
    LONG_HISTORY,
    LONGEST_REST,
    MIN_HISTORY,
    REACH,
    Settled,
    decay_tokens,
    frequency_loss,
    gain_for,
    next_evaluation,
    sample_size,
    trend_of,
)
from settle.train.settled.trend import Window

SAMPLE = 1000


@dataclass(frozen=True)
class Look:
    step: int
    tokens: int
    loss: float
    blocks: tuple[float, ...] = ()


def looks(true: Callable[[float], float], until: int, noise: float = 0.0, seed: int = 0, start: int = 0) -> list[Look]:
    rng = np.random.default_rng(seed)
    at, found = start, [Look(0, 0, true(0.0))]
    while (at := next_evaluation(at, SAMPLE)) <= until:
        found.append(Look(at // 100, at, true(at) + noise * rng.normal()))
    return found


def power(t: float, exponent: float = 0.5, scale: float = 1e4) -> float:
    return 2.0 + 5.0 * (1 + t / scale) ** -exponent


def gain(true: Callable[[float], float], t: float) -> float:
    return (true(t) - true(1.1 * t)) / true(t)


def first_verdict(history: list[Look], rule: Settled) -> tuple[str, Look]:
    for n in range(1, len(history) + 1):
        state = rule.judge(history[:n]).state if rule.asks(history[:n]) else "improving"
        if state != "improving":
            return state, history[n - 1]
    return "improving", history[-1]


def test_settles_when_less_is_to_be_had_than_the_tolerance():
    history = looks(power, 20_000_000, noise=0.005)
    state, at = first_verdict(history, Settled(0.005))
    assert state == "settled"
    assert gain(power, at.tokens) < 0.005
    assert gain(power, at.tokens / 3) > 0.005  # and not long after


def test_a_verdict_is_said_at_one_in_fifty_and_no_sooner():
    """Of the askings around the stop: each whose chance is higher continues, however little is expected."""
    history = looks(power, 9_000_000, noise=0.005)
    asked = [n for n in range(180, len(history) + 1) if Settled(0.005).asks(history[:n])]
    judged = [(trend_of(history[1:n], 0.005).chance, Settled(0.005).judge(history[:n]).state) for n in asked]  # type: ignore[union-attr]
    assert all((state == "settled") == (chance < CHANCE) for chance, state in judged)
    assert any(CHANCE < chance < 0.5 for chance, _ in judged) and judged[-1][1] == "settled"


def test_a_smaller_tolerance_trains_longer():
    history = looks(power, 30_000_000, noise=0.002)
    stops = [first_verdict(history, Settled(t))[1].tokens for t in (0.01, 0.005, 0.002)]
    assert stops == sorted(stops) and stops[0] < stops[2] / 3


def test_a_loss_that_falls_to_nothing_settles_there_and_not_on_the_way():
    """The line through a loss that halves again and again ends below nothing: that is no gain of less than nothing."""

    def learned_by_heart(tokens: float) -> float:
        return 1e-5 + 4.0 * 2 ** -(tokens / 100_000)

    history = looks(learned_by_heart, 3_000_000)
    state, at = first_verdict(history, Settled(0.005))
    assert state == "settled" and at.loss < 0.01
    for n in range(MIN_HISTORY + 1, len(history), 8):
        judged = Settled(0.005).judge(history[:n])
        assert judged.gain.low <= judged.gain.value <= judged.gain.high, n
        if gain(learned_by_heart, history[n - 1].tokens) * history[n - 1].loss > 0.005 * 0.01:
            assert judged.state == "improving", n


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_interval_covers_the_true_gain(correlation: float):
    """On straight lines in ln(tokens) with noise that lasts: neither too narrow nor too wide."""
    rng = np.random.default_rng(1)
    tokens = [int(1000 * 1.02**k) for k in range(100)]
    noise = rng.normal(size=(400, 100))
    for i in range(1, 100):
        noise[:, i] = correlation * noise[:, i - 1] + math.sqrt(1 - correlation**2) * noise[:, i]
    posterior = Window(tokens).posterior(3 - 0.1 * np.log(tokens) + 0.01 * noise)
    low, high = posterior.quantile(0.025), posterior.quantile(0.975)
    true = 0.1 * math.log(1.1)
    assert np.mean((low < true) & (true < high)) > 0.9
    assert np.median(high - low) < (1 + 2 * correlation) * true
    assert np.mean(high < true) < 0.04


@pytest.mark.parametrize("margin", [1.2, 1.5])
def test_a_run_that_never_settles_is_hardly_ever_stopped(margin: float):
    """Every evaluation of 150 runs whose gain stays a little above the tolerance, with noise that lasts."""
    rng = np.random.default_rng(2)
    tokens = np.array([int(1000 * 1.02**k) for k in range(230)])
    noise = rng.normal(size=(150, len(tokens)))
    for i in range(1, len(tokens)):
        noise[:, i] = 0.9 * noise[:, i - 1] + math.sqrt(1 - 0.81) * noise[:, i]
    exponent = -math.log1p(-margin * 0.005) / math.log(1.1)
    losses = 6 * (tokens / 1000.0) ** -exponent * (1 + 0.004 * noise)
    stopped = np.zeros(len(losses), bool)
    for last in range(60, len(tokens), 5):
        inside = np.flatnonzero(tokens[: last + 1] >= REACH * tokens[last])
        posterior = Window(tokens[inside].tolist()).posterior(losses[:, inside])
        stopped |= posterior.above(0.005 * posterior.loss) < CHANCE
    assert stopped.mean() <= 0.025


def test_a_wave_and_a_faster_fall_are_seen():
    """Curves that no straight line fits: the gain at their ends lies inside, though their mean slope is another."""
    tokens = np.array([int(1000 * 1.02**k) for k in range(116)])
    x = np.log(tokens / 1000)
    noise = 0.001 * np.random.default_rng(3).normal(size=(20, len(tokens)))
    for curve in (lambda x: 4 - 0.1 * x - 0.04 * np.sin(4 * x), lambda x: 4 - 0.02 * np.exp(x)):
        posterior = Window(tokens.tolist()).posterior(curve(x) + noise)
        gain = curve(x[-1]) - curve(x[-1] + math.log(1.1))
        assert np.mean((posterior.quantile(0.025) < gain) & (gain < posterior.quantile(0.975))) >= 0.8


def test_blocks_that_disagree_widen_the_interval():
    tokens = [int(1000 * 1.02**k) for k in range(40)]
    rng = np.random.default_rng(2)
    slopes = 0.1 + 0.1 * rng.normal(size=16)
    noise = 1e-4 * rng.normal(size=40)
    history = [
        Look(t, t, 3 - 0.1 * math.log(t) + e, (3.0 - 0.1 * math.log(t),) * 16)
        for t, e in zip(tokens, noise, strict=True)
    ]
    uneven = [replace(e, blocks=tuple(3 - s * math.log(e.tokens) for s in slopes)) for e in history]
    even, wide = trend_of(history, 0.005), trend_of(uneven, 0.005)
    assert even and wide
    expected = slopes.std(ddof=1) / 4 * math.log(1.1)
    assert even.sample_stderr == pytest.approx(0.0, abs=1e-9)
    assert wide.sample_stderr * wide.loss == pytest.approx(expected, rel=0.1)
    assert wide.gain.high > even.gain.high and wide.chance > even.chance


def test_a_shared_error_of_all_evaluations_changes_nothing():
    """The sample is the same every time, so what makes it harder than other text must not matter."""
    history = looks(power, 3_000_000, noise=0.005)
    shifted = [replace(e, loss=e.loss + 1.0) for e in history]
    before, after = trend_of(history[1:], 0.005), trend_of(shifted[1:], 0.005)
    assert before and after
    assert after.gain.high * after.loss == pytest.approx(before.gain.high * before.loss, rel=1e-4)


def test_overfitting_names_the_best_evaluation():
    def curve(t: float) -> float:
        return power(t) + 0.8 * max(0.0, math.log((t + 1) / 300_000))

    history = looks(curve, 3_000_000, noise=0.002)
    verdict = Settled(0.005).judge(history)
    assert verdict.state == "overfitting"
    assert verdict.evidence["best_tokens"] == pytest.approx(300_000, rel=0.1)
    assert verdict.gain.value < 0 and verdict.gain.high < 0


def test_nothing_learned_is_broken():
    flat = [Look(i * 100, i * 10_000, 6.9 + 0.001 * math.sin(i)) for i in range(60)]
    verdict = Settled().judge(flat)
    assert verdict.state == "broken" and "untrained" in verdict.why


def test_a_slow_starter_is_not_broken():
    """A loss that rests at the untrained model's level for 2,000 steps and then falls."""

    def slow(t: float) -> float:
        return 2 + 5 / (1 + (t / 300_000) ** 1.5)

    history = looks(slow, 20_000_000, noise=0.01)
    assert first_verdict(history, Settled())[0] == "settled"
    assert Settled().judge(looks(lambda t: 7.0, 400_000, noise=0.01)).state == "improving"


def test_stuck_at_token_frequencies_is_broken_only_after_a_long_rest():
    def stuck(t: float) -> float:
        return 5.5 + 1.4 * math.exp(-t / 20_000)

    history = looks(stuck, 4_000_000, noise=0.001)
    state, at = first_verdict(history, Settled(floor=5.45))
    assert state == "broken"
    resting = looks(lambda t: stuck(t) - 2 * (1 - math.exp(-((t / 600_000) ** 4))), 150_000, noise=0.001)
    assert Settled(floor=5.45).judge(resting).state == "improving"


def test_too_few_evaluations_give_no_verdict():
    judgement = Settled().judge([Look(0, 0, 7.0), Look(1, 100, 7.0)])
    assert judgement.state == "improving" and math.isnan(judgement.gain.high)


def test_what_came_before_the_constant_rate_is_not_looked_at():
    history = looks(lambda t: 9.0 if t < 200_000 else power(t), 2_000_000, noise=0.002)
    line = Settled(since_tokens=200_000).judge(history).evidence["line"]
    assert line["start_tokens"] > 200_000


def test_evaluating_costs_little_and_gets_rarer():
    at, looked, previous = 0, 0, 0
    gaps = []
    while at < 20_000_000:
        at = next_evaluation(at, SAMPLE)
        looked += 1
        gaps.append(at - previous)
        previous = at
        assert looked * SAMPLE / 3 <= (EVALUATION_COST + 0.001) * at
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(0.02 * at, rel=0.03)
    assert looked > MIN_HISTORY


@pytest.mark.parametrize(("unique", "parameters"), [(2_000_000, 10**8), (10**9, 5_000_000)])
def test_a_verdict_is_possible_within_an_epoch_or_ten_tokens_a_parameter(unique: int, parameters: int):
    at = 0
    for _ in range(MIN_HISTORY):
        at = next_evaluation(at, sample_size(unique, parameters))
    assert at == pytest.approx(min(unique, 10 * parameters), rel=0.05)


def test_decay_is_a_share_of_what_was_seen():
    """A quarter, as docs/settled.md says: what bench/settled.py measured it with."""
    assert decay_tokens(2_000_000) == 500_000 and decay_tokens(10) == 2


@pytest.mark.parametrize("kappa", [0.1, 0.4, 0.8])
def test_gain_of_a_further_hour_covers_power_laws(kappa: float):
    history = looks(lambda t: power(t, kappa, 1e3), 1_000_000, noise=0.002)
    gain = gain_for(history, 3_000_000)
    true = 1 - power(4_000_000, kappa, 1e3) / power(1_000_000, kappa, 1e3)
    assert gain.contains(true) and gain.low < gain.value < gain.high


def test_the_gain_of_a_further_hour_is_never_more_than_the_loss():
    """A student nears its teacher: the loss falls towards nothing."""
    history = looks(lambda tokens: 3e5 / (tokens + 1e4), 1_000_000, noise=0.002)
    gain = gain_for(history, 9_000_000)
    assert 0 < gain.low < gain.value < gain.high < 1 and gain.high > 0.85


def test_frequency_loss_is_the_cross_entropy_of_the_counts():
    counts = np.array([3, 1, 0, 0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert frequency_loss(counts * 10**6, counts) == pytest.approx(entropy, rel=1e-4)
    assert frequency_loss(np.zeros(4), counts) == pytest.approx(math.log(4))


def test_a_spike_stays_and_a_hard_batch_does_not():
    rng = np.random.default_rng(3)
    calm = list(3 + 0.05 * rng.normal(size=200))
    assert not steps_astray(calm, 3.1)
    assert not steps_astray(calm, 9.0)  # one hard batch
    assert not steps_astray([*calm, 9.0, 3.0], 9.0)
    assert steps_astray([*calm, 5.0, 5.5], 6.0) == 3
    assert steps_astray([], math.nan) == steps_astray(calm, math.inf) == 1


@pytest.mark.parametrize(
    ("above", "deviation", "is_spike"),
    [(0.41, 0.05, True), (0.39, 0.05, False), (0.31, 0.001, True), (0.29, 0.001, False)],
)
def test_a_spike_is_eight_deviations_and_a_tenth_above_the_median(above: float, deviation: float, is_spike: bool):
    """Losses around 3 whose robust standard deviation is known."""
    spread = deviation / 1.4826
    calm = [3 + spread, 3 - spread] * 32
    assert steps_astray([*calm, 9.0, 9.0], 3 + above) == (3 if is_spike else 0)
    assert steps_astray([*calm, 3 + above, 9.0], 9.0) == (3 if is_spike else 0)
    assert steps_astray([*calm[1:], 9.0, 9.0], 9.0) == 0  # too few to know what is usual
    assert steps_astray([9.0] * 30 + [*calm, 9.0, 9.0], 3 + above) == (3 if is_spike else 0)  # long ago says nothing


def test_spikes_are_hardly_ever_seen_where_there_are_none():
    """Falling losses with heavy tails (Student's t, 3 degrees of freedom): 20,000 steps."""
    rng = np.random.default_rng(4)
    steps = np.arange(20_000)
    losses = (2 + 5 * (1 + steps / 50) ** -0.5 + 0.08 * rng.standard_t(3, size=len(steps))).tolist()
    seen = [steps_astray(losses[max(0, i - 127) : i], losses[i]) for i in range(len(losses))]
    assert not any(seen)


def test_a_fall_that_is_none_by_its_blocks_is_not_the_end() -> None:
    """On a plateau before anything is learned a few rows fall by a hundredth, by chance."""
    rng, at = np.random.default_rng(5), np.cumsum([next_evaluation(0, SAMPLE)] * 60)
    rows = rng.normal(size=7) * 0.3

    def resting(change: np.ndarray) -> list[Look]:
        found = [Look(0, 0, 1.4, tuple(1.4 + rows))]
        for t in at.tolist():
            blocks = 1.4 + rows + change + 1e-4 * rng.normal(size=7)
            found.append(Look(t // 100, t, float(blocks.mean()), tuple(blocks)))
        return found

    by_chance = np.array([-0.4, 0.3, -0.2, 0.25, -0.3, 0.2, -0.06])
    assert first_verdict(resting(by_chance), Settled(0.005, floor=1.399))[0] == "improving"
    assert first_verdict(resting(by_chance - by_chance.mean() - 0.3), Settled(0.005, floor=1.399))[0] == "settled"


def resting(t: float) -> float:
    """A slow starter: down to 5 nats at once, and further only after a million tokens."""
    return 2.0 + 3.0 / (1 + (t / 1e6) ** 3) + 4.0 * math.exp(-t / 2000)


@pytest.mark.parametrize(
    ("bigram", "trigram", "rests"),
    [(None, None, True), (4.6, 4.0, False), (5.4, 4.0, False), (5.6, 5.3, True)],
    ids=["no counts", "above pairs", "above triples", "below both"],
)
def test_a_plateau_above_what_counts_of_tokens_give_is_not_the_end(
    bigram: float | None, trigram: float | None, rests: bool
) -> None:
    """Where the loss lies below both, nothing tells it from a model that has settled."""
    history = looks(resting, 20_000_000, noise=0.01, seed=3)
    state, at = first_verdict(history, replace(Settled(0.005, floor=6.7), bigram_loss=bigram, trigram_loss=trigram))
    assert state == "settled" and (resting(at.tokens) > 4.9) == rests
    assert rests or at.loss < 2.5


def test_a_model_too_small_to_know_pairs_of_tokens_settles_after_a_long_rest() -> None:
    rule = Settled(0.005, floor=6.7, bigram_loss=4.0, trigram_loss=3.0)
    history = looks(lambda t: 5.0 + 2.0 * math.exp(-t / 20_000), 4_000_000, noise=0.005)
    state, at = first_verdict(history, rule)
    assert state == "settled" and LONGEST_REST <= at.step < 1.2 * LONGEST_REST
    state, at = first_verdict(history, replace(rule, bigram_loss=9.0))
    assert state == "settled" and LONG_HISTORY <= history.index(at) < 1.5 * LONG_HISTORY


def test_it_is_asked_once_in_every_tenth_more_tokens() -> None:
    """Not at each of the evaluations between, which come five times as often late in a run."""
    history = looks(power, 6_000_000, noise=0.005)
    asked = [look.tokens for n, look in enumerate(history, 1) if n > MIN_HISTORY and Settled(0.005).asks(history[:n])]
    assert all(b >= a * (1 + ASK_EVERY) for a, b in itertools.pairwise(asked))
    late = [look for look in history if look.tokens > 2_000_000]
    assert len(late) > 3 * sum(at > 2_000_000 for at in asked) > 0
    between = next(n for n in range(len(history), 0, -1) if not Settled(0.005).asks(history[:n]))
    assert Settled(0.5).judge(history[:between]).state == "improving"  # though it would have settled long before
