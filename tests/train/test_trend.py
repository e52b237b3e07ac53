"""The posterior of the gain against one that is computed pair by pair as its definition says, and its small parts."""

import math

import numpy as np
import pytest
from scipy import stats

from settle.train.settled import Settled, first_near, recent, rise_of, sample_size, trend_of
from settle.train.settled.trend import (
    KAPPAS,
    NEXT,
    NOISES,
    SMOOTH_KAPPAS,
    SMOOTH_NOISES,
    SMOOTH_WEIGHT,
    SMOOTHS,
    Window,
)
from tests.train.test_settled import Look


def fall(kappa: float, x: np.ndarray) -> np.ndarray:
    """E + A·tokens^-κ at x = ln(tokens ÷ now), with A such that 10 % more tokens from now on bring 1."""
    if kappa == 0:
        return -x / NEXT
    shape = np.exp(-kappa * x)
    return (shape - 1) / (1 - math.exp(-kappa * NEXT))


def matern(apart: np.ndarray, length: float, ratio: float) -> np.ndarray:
    """Matérn's kernel of order 3/2 (Rasmussen & Williams 2006, equation 4.17)."""
    scaled = math.sqrt(3) * np.abs(apart) / length
    return ratio * (1 + scaled) * np.exp(-scaled)


def pair(y: np.ndarray, x: np.ndarray, kappa: float, noise: np.ndarray, smooth: tuple[float, float] | None):
    """(log evidence, gain, its scale, level, sigma): universal kriging with restricted likelihood."""
    n = len(x)
    covariance = noise + (matern(np.subtract.outer(x, x), *smooth) if smooth else 0.0)
    design = np.stack([np.ones(n), fall(kappa, x)], 1)
    inverse = np.linalg.inv(covariance)
    information = design.T @ inverse @ design
    beta = np.linalg.solve(information, design.T @ inverse @ y)
    rest = y - design @ beta
    sigma2 = float(rest @ inverse @ rest) / (n - 2)
    # gain = level now - level after 10 % more tokens; each is a curve and, perhaps, a smooth departure
    now = matern(x, *smooth) if smooth else np.zeros(n)
    later = matern(x - NEXT, *smooth) if smooth else np.zeros(n)
    weight_gain, weight_level = inverse @ (now - later), inverse @ now
    gain = beta[1] + weight_gain @ rest
    level = beta[0] + weight_level @ rest
    prior = 2 * (smooth[1] - matern(np.array(NEXT), *smooth)) if smooth else 0.0
    left = np.array([0.0, 1.0]) - design.T @ weight_gain
    variance = prior - (now - later) @ weight_gain + left @ np.linalg.solve(information, left)
    evidence = -np.linalg.slogdet(covariance)[1] / 2 - np.linalg.slogdet(information)[1] / 2
    return evidence - (n - 2) / 2 * math.log(sigma2 * (n - 2)), gain, math.sqrt(sigma2 * variance), level, sigma2


def by_definition(y: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    n = len(x)
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))

    def lasting(r: float, share: float) -> np.ndarray:
        return (1 - share) * r**lag + share * np.eye(n)

    rows = []
    for r, share in NOISES:
        group = [pair(y, x, kappa, lasting(r, share), None) for kappa in KAPPAS]
        # a κ that lies between two of them has a gain between theirs
        between = np.gradient([one[1] for one in group])
        for prior, one, gap in zip(KAPPAS.values(), group, between, strict=True):
            log_prior = math.log(prior) + math.log((1 - SMOOTH_WEIGHT) / len(NOISES))
            rows.append(
                (one[0] + log_prior, one[1], math.hypot(one[2], gap / math.sqrt(12)), one[3], one[4], r * (1 - share))
            )
    for smooth in SMOOTHS:
        for r, share in SMOOTH_NOISES:
            for kappa, prior in SMOOTH_KAPPAS.items():
                one = pair(y, x, kappa, lasting(r, share), smooth)
                log_prior = math.log(prior) + math.log(SMOOTH_WEIGHT / len(SMOOTHS) / len(SMOOTH_NOISES))
                rows.append((one[0] + log_prior, one[1], one[2], one[3], one[4], r))
    evidence, gains, scales, levels, sigma2, correlations = map(np.array, zip(*rows, strict=True))
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    return {
        "weights": weights, "gains": gains, "scales": scales, "loss": weights @ levels,
        "noise": math.sqrt(weights @ sigma2), "correlation": weights @ correlations,
    }  # fmt: skip


TOKENS = [int(1000 * 1.06**k) for k in range(14)]
LOSSES = 3 - 0.1 * np.log(TOKENS) + 0.02 * np.random.default_rng(0).normal(size=14).cumsum()


def test_the_posterior_is_its_definition() -> None:
    x = np.log(np.array(TOKENS) / TOKENS[-1])
    wanted = by_definition(LOSSES, x)
    found = Window(TOKENS).posterior(np.stack([LOSSES, LOSSES[::-1]]))
    for name in ("gains", "scales"):
        np.testing.assert_allclose(getattr(found, name)[0], wanted[name], rtol=1e-6, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(found.weights[0], wanted["weights"], rtol=1e-6)
    for name in ("loss", "noise", "correlation"):
        assert getattr(found, name)[0] == pytest.approx(wanted[name], rel=1e-7), name
    assert found.freedom == 12
    again = by_definition(LOSSES[::-1], x)
    assert found.loss[1] == pytest.approx(again["loss"]) and found.noise[1] == pytest.approx(again["noise"])


def test_the_response_is_what_the_gain_changes_by_with_each_loss() -> None:
    found = Window(TOKENS).posterior(LOSSES[None])
    mean = float(found.weights[0] @ found.gains[0])
    assert float(found.response[0] @ LOSSES) == pytest.approx(mean)
    assert found.response[0].sum() == pytest.approx(0.0, abs=1e-9)


def test_probabilities_and_quantiles_are_of_the_mixture_of_students() -> None:
    found = Window(TOKENS).posterior(LOSSES[None])

    def above(level: float) -> float:
        t = (found.gains[0] - level) / found.scales[0]
        return float(found.weights[0] @ stats.t.cdf(t, found.freedom))

    for level in (-0.05, 0.0, 0.005, 0.02, 0.1):
        assert found.above(np.array([level]))[0] == pytest.approx(above(level), abs=2e-3)
    for probability in (0.025, 0.5, 0.9):
        assert above(float(found.quantile(probability)[0])) == pytest.approx(1 - probability, abs=2e-3)
    interval = found.interval(0.8, 2.0)
    assert interval.ends == tuple(float(found.quantile(p)[0]) / 2 for p in (0.5, 0.1, 0.9)) and interval.level == 0.8
    wide = found.widened(np.array([0.3]))
    np.testing.assert_allclose(wide.scales, np.hypot(found.scales, 0.3))


def test_the_trend_of_a_window_is_its_posterior_as_fractions_of_the_loss() -> None:
    history = [Look(n, t, float(v)) for n, (t, v) in enumerate(zip(TOKENS, LOSSES, strict=True))]
    found, tolerance = trend_of(history, 0.01), 0.01
    posterior = Window(TOKENS[:]).posterior(LOSSES[None])
    assert found is not None and (found.start_tokens, found.points) == (TOKENS[0], 14)
    loss = float(posterior.loss[0])
    whole = max(loss, LOSSES.min())
    assert found.gain.level == 0.95
    assert found.gain.ends == pytest.approx([float(posterior.quantile(p)[0]) / whole for p in (0.5, 0.025, 0.975)])
    assert found.chance == pytest.approx(float(posterior.above(np.array([tolerance * whole]))[0]))
    assert (found.loss, found.noise) == pytest.approx((loss, float(posterior.noise[0])))
    assert found.correlation == pytest.approx(float(posterior.correlation[0])) and found.sample_stderr == 0.0
    flat = found.to_json()
    assert (flat["gain"], flat["low"], flat["high"]) == found.gain.ends and flat["chance"] == found.chance


def test_many_evaluations_are_thinned_to_means_of_neighbours() -> None:
    tokens = [int(1000 * 1.02**k) for k in range(101)]
    losses = 3 - 0.1 * np.log(tokens) + 0.01 * np.random.default_rng(1).normal(size=101)
    whole = Window(tokens)
    assert whole.points == 33
    found = whole.posterior(losses[None])
    means = losses[2:].reshape(33, 3).mean(1)  # the oldest two are left out
    x = np.log(np.array(tokens[2:]) / tokens[-1]).reshape(33, 3).mean(1)
    wanted = by_definition(means, x)
    assert float(found.loss[0]) == pytest.approx(wanted["loss"], rel=1e-7)
    np.testing.assert_allclose(found.scales[0], wanted["scales"], rtol=1e-6)
    assert found.response.shape == (1, 101) and (found.response[0, :2] == 0).all()
    assert found.response[0, 2] == pytest.approx(found.response[0, 4])


# --- the window ---


def test_the_window_begins_where_losses_say_something_about_the_end() -> None:
    """Behind the last median of five that is more than twice the latest one."""
    losses = np.array([[9.0, 9, 9, 9, 9, 9, 3, 3, 3, 3, 2, 2, 2, 2, 2], [3.0] * 15])
    assert first_near(losses).tolist() == [8, 0]
    edge = np.array([[4.0] * 10 + [2.0] * 5, [4.1] * 10 + [2.0] * 5])
    assert first_near(edge).tolist() == [0, 12]


def test_the_window_reaches_back_to_a_tenth_of_the_tokens_and_has_ten_points() -> None:
    history = [Look(n, 100 * n, 3.0) for n in range(1, 41)]
    assert [e.step for e in recent(history)] == list(range(4, 41))
    assert recent(history[:9]) == [] and len(recent(history[:10])) == 10
    high = [Look(n, 100 * n, 9.0 if n < 38 else 3.0) for n in range(1, 41)]
    assert len(recent(high)) == 10


# --- a rise ---


def test_a_rise_has_the_standard_error_of_two_means_of_five() -> None:
    """Around a parabola in ln(tokens), with the correlation of neighbours put right for a short series."""
    rng = np.random.default_rng(4)
    tokens = np.array([int(1000 * 1.05**k) for k in range(40)])
    bend = 2 + 0.5 * np.log(tokens / 3500.0) ** 2
    losses = bend + 0.02 * rng.normal(size=40)
    history = [Look(i, int(t), float(v)) for i, (t, v) in enumerate(zip(tokens, losses, strict=True))]
    found = rise_of(history, 0.005)
    assert found is not None
    means = np.convolve(losses, np.ones(5) / 5, "valid")
    low = int(means.argmin())
    assert found.rise == pytest.approx(means[-1] - means[low])
    best = low + int(losses[low : low + 5].argmin())
    assert (found.best_step, found.best_tokens, found.best_loss) == (best, tokens[best], losses[best])
    inside = tokens >= 0.35 * tokens[-1]
    x, y = np.log(tokens[inside] / tokens[-1]), losses[inside]
    design = np.stack([np.ones(len(x)), x, x**2], 1)
    hat = design @ np.linalg.pinv(design)
    rest, n = y - hat @ y, len(x)
    plain = float(rest[1:] @ rest[:-1] / (rest @ rest))
    rho = min(max((plain + 2 / n) / (1 - 4 / n), 0.0), 0.9)
    expected = np.trace((np.eye(n) - hat) @ rho ** np.abs(np.subtract.outer(range(n), range(n))))
    inflation = min((1 + rho) / (1 - rho), 5)
    assert found.rise_stderr == pytest.approx(math.sqrt(rest @ rest / expected * 2 / 5 * inflation))


def test_a_rise_counts_from_four_errors_and_from_the_tolerance() -> None:
    """On a parabola, where only the blocks of the sample disagree: by `apart` in the last five evaluations."""

    def history(apart: float) -> list[Look]:
        found = []
        for n in range(30):
            tokens = int(1000 * 1.05**n)
            loss = 2 + 0.5 * math.log(tokens / 2000) ** 2
            spread = apart if n >= 25 else 0.0
            found.append(Look(n, tokens, loss, (loss - spread, loss, loss + spread)))
        return found

    plain = rise_of(history(0.0), 0.005)
    assert plain is not None and plain.rise_stderr < 1e-6
    assert rise_of(history(0.0)[:9], 0.0) is None and rise_of(history(0.0)[:15], 0.0) is None  # few, and still falling
    for errors, is_rise in ((3.9, False), (4.1, True)):
        found = rise_of(history(plain.rise / errors * math.sqrt(3)), 0.005)
        assert (found is not None) == is_rise
        assert found is None or found.rise_stderr == pytest.approx(plain.rise / errors, rel=1e-5)
    lowest = min(np.convolve([e.loss for e in history(0.0)], np.ones(5) / 5, "valid"))
    for tolerance, is_rise in ((0.99, True), (1.01, False)):
        assert (rise_of(history(0.0), tolerance * plain.rise / lowest) is not None) == is_rise


# --- pretrained models that learn nothing ---


def judged(losses: list[float], floor: float | None, step: int = 1) -> str:
    """The verdict on evaluations 100 tokens apart, the first before training."""
    history = [Look(step * n, 100 * n, v) for n, v in enumerate(losses)]
    return Settled(floor=floor).judge(history).state


def test_a_pretrained_model_that_does_not_improve_is_broken_at_once() -> None:
    """It knows more than frequencies; another model's loss may rest for thousands of steps before it falls."""
    resting = [3.0 + 0.01 * math.sin(n) for n in range(40)]
    assert judged(resting, floor=5.0) == "broken"
    assert judged(resting, floor=3.1) == "improving"  # by chance of the rows no better than frequencies
    assert judged(resting, floor=2.0) == "improving"
    assert judged(resting, floor=None) == "improving"
    assert judged(resting, floor=None, step=200) == "broken"  # 7,800 steps
    assert judged(resting, floor=None, step=100) == "improving"  # 3,900


def test_a_sample_is_what_the_share_of_the_time_can_read() -> None:
    assert sample_size(10**9, 1000) == 4096 and sample_size(10**8, 10**8) == int(10**8 / 16 * 3 * 0.04)
    assert sample_size(10**10, 10**7) == int(10**8 / 16 * 3 * 0.04)
