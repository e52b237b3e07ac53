"""Figures of a comparison, and their intervals."""

import json
import math

import numpy as np
import pytest

from settle.base.statistics import bootstrap_ratio
from settle.data.likelihoods import Compared, LikelihoodsWriter, Windows, draws, sizes, summarise, text_windows
from settle.evaluate.divergence import divergence, text_loss
from settle.infer.live_sampling import logprobs
from tests.live_records import live_compare, live_likelihoods


@pytest.fixture(scope="module")
def windows(tiny):
    return text_windows(tiny.tokenizer, tiny.held_out, 64)


def test_figures_of_a_model_against_itself(tiny, windows, tmp_path):
    record = live_likelihoods(tiny.model, windows.ids, tmp_path / "record")
    found = divergence(record, live_compare(tiny.model, record), windows.total_bytes)
    assert found.kl.value < 1e-6 and found.kl_max < 1e-6 and found.same_top.value == 1
    assert found.rise.value == pytest.approx(0, abs=1e-6)
    assert found.tokens == windows.num_tokens and found.windows == len(windows.ids)
    whole = [logprobs(tiny.model, ids[:-1], range(len(ids) - 1)).numpy() for ids in windows.ids]
    nats = -sum(rows[np.arange(len(rows)), ids[1:]].sum() for rows, ids in zip(whole, windows.ids, strict=True))
    assert found.loss == pytest.approx(nats / windows.num_tokens, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nats / windows.num_tokens), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / windows.total_bytes, rel=1e-5)
    assert json.loads(json.dumps(found.to_json()))["kl"]["low"] >= 0


def record_of(folder, number: int, length: int):
    """A record of a model that knows nothing, over `number` windows."""
    random = np.random.default_rng(0)
    with LikelihoodsWriter(folder, 50, {}) as writer:
        for _ in range(number):
            ids = random.integers(0, 50, length + 1)
            logits = np.zeros((length, 50), np.float32)
            writer.append(ids, summarise(logits, ids[1:], draws(ids, sizes(50)[1]), 50))
        return writer.close()


def test_figures_and_intervals_of_known_numbers(tmp_path):
    """Windows differ more than their tokens do: the interval is as wide as that of the windows' means."""
    number, length = 200, 20
    record = record_of(tmp_path / "record", number, length)
    random = np.random.default_rng(1)
    means = random.exponential(0.1, number)
    kl = np.repeat(means, length)
    compared = Compared(kl, np.full(number * length, -math.log(50) * 1.01, np.float32), kl < 0.1)
    found = divergence(record, compared)
    assert found.kl.value == pytest.approx(means.mean()) and found.kl_max == means.max()
    assert found.kl_99 == pytest.approx(np.quantile(kl, 0.99))
    error = 1.96 * means.std() / math.sqrt(number)
    assert found.kl.high - found.kl.low == pytest.approx(2 * error, rel=0.1)
    assert found.same_top.value == (means < 0.1).mean()
    assert found.rise.value == pytest.approx(0.01, rel=1e-4) and found.rise.high == pytest.approx(0.01, rel=1e-4)
    assert found.bits_per_byte is None and found.reference_perplexity == pytest.approx(50, rel=1e-5)
    some = divergence(record, Compared(*(values[: 7 * length] for values in vars(compared).values())))
    assert some.windows == 7 and some.kl.value == pytest.approx(means[:7].mean())


def test_one_window_is_no_sample(tmp_path):
    record = record_of(tmp_path / "record", 1, 20)
    found = divergence(record, Compared(np.ones(20), record.came_logprobs, np.ones(20, bool)))
    assert found.kl.value == 1 and not found.kl.is_bounded
    assert found.to_json()["kl"] == {"value": 1.0, "low": None, "high": None}


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Of a ratio of sums over windows of different lengths."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        counts = random.integers(10, 100, 25)
        figure = bootstrap_ratio(random.gamma(2.0, 1.0, 25) * counts, counts, random, resamples=500)
        hits += figure.low <= 2.0 <= figure.high
    assert 0.90 < hits / 400 < 0.985


def test_text_is_compared_across_vocabularies(tiny):
    """The same texts cut in other places, by a model that holds each byte as likely as before."""
    num_bytes = np.array([100, 50, 75])
    ours = Windows([[0] * 11] * 3, np.array([0, 1, 2]), num_bytes)
    theirs = Windows([[0] * 6] * 4, np.array([0, 0, 1, 2]), num_bytes)
    bits = [np.full(10, -math.log(2) * size / 10) for size in num_bytes]
    same = [np.full(5, -math.log(2) * size / 5) for size in (50, 50, 50, 75)]
    found = text_loss(bits, ours, same, theirs)
    assert found.bits_per_byte.value == pytest.approx(1) and found.rise.value == pytest.approx(0, abs=1e-12)
    worse = text_loss(bits, ours, [1.02 * values for values in same], theirs)
    assert worse.rise.value == pytest.approx(0.02) and worse.texts == 3 and worse.num_bytes == 225
