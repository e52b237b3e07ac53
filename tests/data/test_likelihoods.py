"""Distributions made small: what is kept, that a divergence from it is unbiased, and records on disk."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from settle.base.errors import DataError, ResourceError
from settle.data.likelihoods import (
    Likelihoods,
    LikelihoodsWriter,
    Rows,
    bytes_per_position,
    compare,
    draws,
    sizes,
    summarise,
)

POSITIONS = 40


def pair(num_vocab: int, spread: float, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of a reference and of a model near it, and a window of ids."""
    random = np.random.default_rng(seed)
    ours = (random.standard_normal((POSITIONS, num_vocab)) * spread).astype(np.float32)
    theirs = ours + (random.standard_normal(ours.shape) * apart).astype(np.float32)
    return ours, theirs, random.integers(0, num_vocab, POSITIONS + 1).astype(np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(float)
    wide -= wide.max(1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def exact(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    p, q = log_softmax(ours), log_softmax(theirs)
    return (np.exp(p) * (p - q)).sum(1)


def rows_of(logits: np.ndarray, ids: np.ndarray, **pool: ThreadPoolExecutor) -> Rows:
    top, sampled = sizes(logits.shape[1])
    return summarise(logits, ids[1:], draws(ids, sampled), top, **pool)


@pytest.mark.parametrize("num_vocab", [5, 130, 161, 1000, 30_011])
def test_what_is_kept_is_what_the_model_said(num_vocab):
    logits, _, ids = pair(num_vocab, 3.0, 0.0)
    rows, wanted = rows_of(logits, ids), log_softmax(logits)
    top, sampled = sizes(num_vocab)
    assert rows.top_ids.shape == (POSITIONS, top) and rows.sampled_ids.shape == (POSITIONS, sampled)
    at = np.arange(POSITIONS)
    np.testing.assert_array_equal(rows.top_ids, np.argsort(-logits, 1, kind="stable")[:, :top])
    np.testing.assert_allclose(rows.top_logprobs, np.take_along_axis(wanted, rows.top_ids, 1), atol=1e-5)
    np.testing.assert_allclose(rows.came_logprobs, wanted[at, ids[1:]], atol=1e-5)
    if sampled:
        others = wanted.copy()
        np.put_along_axis(others, rows.top_ids, -np.inf, 1)
        np.testing.assert_allclose(np.exp(rows.rest_logmass), np.exp(others).sum(1), rtol=1e-4)
        np.testing.assert_allclose(rows.sampled_logprobs, np.take_along_axis(others, rows.sampled_ids, 1), atol=1e-5)
    else:
        assert top == num_vocab


def test_equal_logits_are_ordered_by_their_id():
    rows = rows_of(np.zeros((POSITIONS, 5000), np.float32), np.zeros(POSITIONS + 1, np.int32))
    np.testing.assert_array_equal(rows.top_ids, np.tile(np.arange(128), (POSITIONS, 1)))
    assert len(np.unique(rows.sampled_ids)) > 500 and rows.sampled_ids.min() >= 128


def test_others_are_drawn_by_their_probability():
    """A token that has a third of the rest's mass is a third of what is drawn from it, to within one draw."""
    logits = np.full((POSITIONS, 2000), -4.0, np.float32)
    logits[:, :128] = 4.0
    logits[:, 700] = np.log(1871 / 2) - 4.0
    rows = rows_of(logits, np.arange(POSITIONS + 1, dtype=np.int32))
    share = (rows.sampled_ids == 700).mean(1)
    assert abs(share.mean() - 1 / 3) < 0.01 and np.ptp(share) <= 2 / 32


@pytest.mark.parametrize(
    ("spread", "apart", "within"), [(1.0, 0.02, 0.04), (3.0, 0.1, 0.02), (3.0, 1.0, 0.02), (0.1, 0.3, 0.05)]
)
def test_divergence_is_that_of_the_whole_distributions(spread, apart, within):
    """On the mean, though hardly any mass is among the likeliest where they are flat; what is drawn varies then."""
    found, wanted = [], []
    for seed in range(6):
        ours, theirs, ids = pair(20_000, spread, apart, seed)
        found.append(compare(rows_of(ours, ids), theirs, ids[1:]).kl)
        wanted.append(exact(ours, theirs))
    assert np.mean(found) == pytest.approx(np.mean(wanted), rel=within)
    assert np.min(found) >= 0


def test_divergence_of_very_sharp_distributions():
    ours, theirs, ids = pair(20_000, 1.0, 0.1)
    ours[:, 17] += 60.0
    theirs[:, 17] += 60.0
    same = compare(rows_of(ours, ids), theirs, ids[1:])
    assert 0 <= same.kl.max() < 1e-6 and same.top_equal.all()
    moved = theirs.copy()
    moved[:, 18] += 80.0
    other = compare(rows_of(ours, ids), moved, ids[1:])
    np.testing.assert_allclose(other.kl, exact(ours, moved), rtol=1e-3)
    assert not other.top_equal.any() and np.isfinite(other.logprobs).all()


def test_impossible_tokens_are_counted_as_next_to_impossible():
    ours, theirs, ids = pair(500, 1.0, 0.1)
    theirs[:, 400:] = -np.inf
    found = compare(rows_of(ours, ids), theirs, ids[1:])
    assert np.isfinite(found.kl).all() and found.kl.min() > 1


@pytest.mark.parametrize("num_vocab", [100, 5000])
def test_not_a_number_is_told(num_vocab):
    logits, _, ids = pair(num_vocab, 1.0, 0.0)
    rows = rows_of(logits, ids)
    logits[3, 7] = np.nan
    for work in (lambda: rows_of(logits, ids), lambda: compare(rows, logits, ids[1:])):
        with pytest.raises(ValueError, match="not a number"):
            work()


def test_threads_and_pieces_change_nothing():
    logits, other, ids = pair(3000, 2.0, 0.1)
    whole = rows_of(logits, ids)
    drawn = draws(ids, 32)
    with ThreadPoolExecutor(3) as pool:
        parts = [
            summarise(logits[a:b], ids[a + 1 : b + 1], drawn[a:b], 128, pool)
            for a, b in ((0, 7), (7, 8), (8, POSITIONS))
        ]
        kl = compare(whole, other, ids[1:], pool).kl
    for ours, theirs in zip(vars(whole).values(), vars(Rows.joined(parts)).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(kl, compare(whole, other, ids[1:]).kl)


@pytest.mark.parametrize("num_vocab", [100, 3000, 70_000])
def test_record(tmp_path, num_vocab):
    folder = tmp_path / "record"
    windows = [pair(num_vocab, 2.0, 0.0, seed) for seed in (1, 2)]
    with LikelihoodsWriter(folder, num_vocab, {"model": "x"}, 2 * POSITIONS) as writer:
        for logits, _, ids in windows:
            writer.append(ids, rows_of(logits, ids))
        assert not folder.exists()
        record = writer.close()
    assert (record.num_windows, record.num_positions, record.num_vocab) == (2, 2 * POSITIONS, num_vocab)
    assert record.about == {"model": "x"}
    np.testing.assert_array_equal(record.positions, [0, POSITIONS, 2 * POSITIONS])
    for index, (logits, _, ids) in enumerate(windows):
        np.testing.assert_array_equal(record.window(index), ids)
        assert record.find(ids.tolist()) == index
        kept, made = record.rows(index), rows_of(logits, ids)
        np.testing.assert_array_equal(kept.top_ids, made.top_ids)
        np.testing.assert_array_equal(kept.sampled_ids, made.sampled_ids)
        np.testing.assert_allclose(kept.top_logprobs, made.top_logprobs, atol=2.5e-4)
        np.testing.assert_allclose(kept.sampled_logprobs, made.sampled_logprobs, atol=2.5e-4)
        np.testing.assert_array_equal(record.came_logprobs[POSITIONS * index :][:POSITIONS], made.came_logprobs)
        # what is rounded on disk hardly shows in a divergence
        assert compare(kept, logits, ids[1:]).kl.max() < 1e-7
    assert record.find([1, 2, 3]) is None
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix == ".bin")
    per_position = bytes_per_position(num_vocab)
    assert per_position < 1000 and size < 2 * (POSITIONS + 1) * per_position + 200
    assert [p.name for p in tmp_path.iterdir()] == ["record"]


def test_a_record_takes_the_place_of_an_earlier_one(tmp_path):
    logits, _, ids = pair(300, 1.0, 0.0)
    for number in (1, 2):
        with LikelihoodsWriter(tmp_path / "record", 300, {"number": number}) as writer:
            writer.append(ids, rows_of(logits, ids))
            writer.close()
    assert Likelihoods(tmp_path / "record").about == {"number": 2}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="something else"):
        LikelihoodsWriter(tmp_path / "mine", 300, {})


def test_an_empty_record_and_one_that_was_not_closed(tmp_path):
    with LikelihoodsWriter(tmp_path / "empty", 300, {}) as writer:
        assert writer.close().num_positions == 0
    with LikelihoodsWriter(tmp_path / "left", 300, {}):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_a_damaged_record_is_told(tmp_path):
    logits, _, ids = pair(300, 1.0, 0.0)
    with LikelihoodsWriter(tmp_path / "record", 300, {}) as writer:
        writer.append(ids, rows_of(logits, ids))
        writer.close()
    for name in ("top_ids.bin", "ids.bin", "starts.bin", "likelihoods.json"):
        path = tmp_path / "record" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-2])
        with pytest.raises(DataError, match="damaged"):
            Likelihoods(tmp_path / "record")
        path.write_bytes(whole)
    with pytest.raises(DataError, match="damaged"):
        Likelihoods(tmp_path)


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    with pytest.raises(ResourceError, match=r"no room for the likelihoods of 1,000,000,000,000,000 tokens"):
        LikelihoodsWriter(tmp_path / "record", 300, {}, positions=10**15)
    logits, _, ids = pair(300, 1.0, 0.0)
    with LikelihoodsWriter(tmp_path / "record", 300, {}) as writer:
        monkeypatch.setattr(writer, "_files", writer._files | {"ids": _Full()})
        with pytest.raises(ResourceError, match="No space left"):
            writer.append(ids, rows_of(logits, ids))
        monkeypatch.undo()
    assert not list(tmp_path.iterdir())


class _Full:
    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(Path("ids.bin")))
