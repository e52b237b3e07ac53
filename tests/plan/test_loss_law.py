"""What a size and its text leave of the loss, and n-grams against a model that is written as its formula says."""

import math
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from settle.plan import loss_law
from settle.plan.loss_law import (
    CHUNK,
    ORDER,
    chunks,
    counted,
    left_over,
    ngram_curve,
    ngram_losses,
    packed,
    shifts,
    worth,
)


def by_the_formula(counted: np.ndarray, held_out: np.ndarray, vocab_size: int) -> float:
    """p(w | c) = (n(c, w) + t(c) p(w | c')) / (n(c) + t(c)), contexts cut at the beginning of a row."""
    follows: dict[tuple[int, tuple[int, ...]], Counter[int]] = defaultdict(Counter)
    for row in counted.tolist():
        for order in range(1, ORDER + 1):
            for at, token in enumerate(row):
                follows[order, tuple(row[max(0, at - order + 1) : at])][token] += 1
    losses = []
    for row in held_out.tolist():
        for at, token in enumerate(row):
            p = 1 / vocab_size
            for order in range(1, ORDER + 1):
                seen = follows.get((order, tuple(row[max(0, at - order + 1) : at])))
                if seen:
                    p = (seen[token] + len(seen) * p) / (seen.total() + len(seen))
            losses.append(-math.log(p))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_formula(seed: int) -> None:
    random = np.random.default_rng(seed)
    states = np.cumsum(random.integers(-1, 2, 900)) % 11  # each token says much about the next
    counted, held_out = states[:600].reshape(30, 20), states[600:].reshape(15, 20)
    loss = ngram_losses(counted, held_out, 11)[-1]
    assert loss == pytest.approx(by_the_formula(counted, held_out, 11), rel=1e-9)
    assert loss < 0.8 * math.log(11)


def test_what_was_never_counted_is_as_likely_as_all_else() -> None:
    nothing = np.full((1, 4), 3)
    unseen = ngram_losses(nothing, np.array([[7]]), 8)[-1]
    assert unseen == pytest.approx(by_the_formula(nothing, np.array([[7]]), 8)) and unseen > math.log(8)


def test_chunks_are_of_the_text_and_no_more_than_asked_for() -> None:
    text = np.arange(10 * CHUNK + 5)
    some = chunks(text, 3 * CHUNK + 7)
    assert some.shape == (3, CHUNK) and len({row[0] for row in some}) == 3
    assert all(row[0] % CHUNK == 0 and (np.diff(row) == 1).all() for row in some)
    assert chunks(text, 10**9).shape == (10, CHUNK) and chunks(np.arange(5), 1).shape == (1, 5)
    assert (chunks(text, 10**9, seed=1) != chunks(text, 10**9)).any()


def test_more_text_makes_it_more_predictable():
    random = np.random.default_rng(2)
    tokens = np.cumsum(random.integers(0, 3, 40_000)) % 64
    curve = ngram_curve(tokens[:30_000], tokens[30_000:], 64)
    sizes, losses = [n for n, _ in curve], [losses[-1] for _, losses in curve]
    assert sizes[0] == 4096 and sizes[-1] == 30_000 // 128 * 128
    assert losses == sorted(losses, reverse=True)
    assert math.log(3) < losses[-1] < losses[0] < math.log(64)


def test_a_corpus_is_counted_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    texts = [random.integers(0, 64, size) for size in (20_000, 4_000)]
    train, selection = (SimpleNamespace(folder=f"here/{len(text)}", tokens=text) for text in texts)
    tokenizer = SimpleNamespace(vocab_size=64)
    corpus = SimpleNamespace(train=train, selection=selection, held_out=selection, tokenizer=tokenizer)
    asked, is_counting, go_on = list[object](), Event(), Event()

    def slowly(*what: object) -> list[tuple[float, list[float]]]:
        asked.append(what)
        is_counting.set()
        assert go_on.wait(20)
        return ngram_curve(*texts, 64)

    monkeypatch.setattr(loss_law, "ngram_curve", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(counted, corpus)
        assert is_counting.wait(20)
        second = pool.submit(counted, corpus)
        go_on.set()
        assert first.result() is second.result() and first.result().ngrams == ngram_curve(*texts, 64)
        assert first.result().packed == packed(texts[0]) and all(found == 0 for _, found in first.result().shifts)
    assert len(asked) == 1


def test_what_a_size_and_its_text_leave_is_hoffmann_s():
    assert left_over(1e6, 1e8) == pytest.approx(406.4 * 1e6**-0.34 + 410.7 * 1e8**-0.28)


def test_repeated_text_is_worth_less():
    assert worth(500, 1000) == 500
    assert 1900 < worth(2000, 1000) < 2000
    assert worth(1e9, 1000) == pytest.approx(16_000)


def test_a_judged_text_of_another_kind_is_known_to_be_harder() -> None:
    random = np.random.default_rng(3)
    alike = np.cumsum(random.choice([1, 2, 3], 60_000)) % 64
    other = 5 * np.cumsum(random.choice([1, 2, 3], 10_000)) % 64  # another habit of walking around the circle
    text, selection = alike[:40_000], alike[40_000:50_000]
    judged = alike[50_000:], np.concatenate([alike[50_000:55_000], other[:5000]]), other
    like, partly, wholly = (dict(shifts(text, selection, j, 64)) for j in judged)
    assert list(like) == [2.0**k for k in range(13, 18)] and max(map(abs, like.values())) < 0.03
    assert all(0.2 < partly[counted] < wholly[counted] for counted in like)


def test_what_is_repeated_from_afar_is_packed() -> None:
    random = np.random.default_rng(4)
    text = random.integers(0, 500, 20_000).astype(np.uint16)
    assert packed(text) == pytest.approx(math.log(500), rel=0.12)  # nothing to find
    assert packed(np.concatenate([text, text])) < 0.6 * packed(text)
    assert packed(text.astype(np.uint32)) == pytest.approx(packed(text), rel=0.15)
