"""Batches are a pure function of (seed, position) and lose nothing."""

from pathlib import Path

import numpy as np
import pytest

from settle.data.batches import Batches, held_out_batches
from settle.data.store import StoreWriter, TokenStore


def make_store(folder: Path, lengths: list[int]) -> TokenStore:
    """Documents whose ids count up from 1000 times their number, so that a batch tells where it comes from."""
    writer = StoreWriter(folder, 0, np.uint32)
    for number, length in enumerate(lengths, 1):
        ids = np.append(np.arange(length - 1) + 100_000 * number, 0)
        writer.append(ids, np.array([length]), np.array([[0, number, number]]), length)
    return writer.close()


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    rng = np.random.default_rng(0)
    return make_store(tmp_path, [*rng.integers(1, 90, 60).tolist(), 1, 1, 3000, 64, 65, 2])


def test_every_token_is_a_target_once_an_epoch(store: TokenStore) -> None:
    batches = Batches(store, sequence_length=64, tokens_per_batch=100, seed=1)
    seen = np.zeros(store.num_tokens + 1, int)
    count = 3 * store.num_tokens // 100
    for position in range(count):
        for document, start, stop in batches.rows_of(position):
            begin = store.document_starts[document]
            assert begin + stop <= store.document_starts[document + 1]
            seen[begin + start : begin + stop] += 1
    assert seen.sum() == count * 100
    assert seen[0] == 0 and set(seen[1:].tolist()) <= {2, 3}


def test_a_segment_stays_in_its_document(store: TokenStore) -> None:
    batches = Batches(store, sequence_length=64, tokens_per_batch=256, seed=2)
    for position in range(20):
        batch = batches.at(position)
        assert batch.inputs.shape == batch.targets.shape == batch.positions.shape == (256,)
        assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == 256
        lengths = np.diff(batch.cu_seqlens)
        assert lengths.min() > 0 and lengths.max() <= 64
        rows = batches.rows_of(position)
        assert len(rows) == len(lengths)
        for (document, start, stop), first, last in zip(rows, batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            text = store.document(document)
            assert np.array_equal(batch.targets[first:last], text[start:stop])
            before = text[start - 1 : stop - 1] if start else np.append(0, text[: stop - 1])
            assert np.array_equal(batch.inputs[first:last], before)
            assert np.array_equal(batch.positions[first:last], np.arange(last - first))


def test_a_position_alone_decides(store: TokenStore) -> None:
    walked = Batches(store, 32, 128, seed=7)
    expected = [walked.at(p).inputs for p in range(60)]
    jumped = Batches(store, 32, 128, seed=7)
    for position in (59, 3, 41, 0):
        assert np.array_equal(jumped.at(position).inputs, expected[position])
    assert not np.array_equal(Batches(store, 32, 128, seed=8).at(0).inputs, expected[0])


def test_a_store_smaller_than_a_batch(tmp_path: Path) -> None:
    batches = Batches(make_store(tmp_path, [5, 3]), 16, 50, seed=0)
    assert len(batches.at(9).inputs) == 50


def test_many_blocks_and_groups_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("settle.data.batches._BLOCK_TOKENS", 128)
    monkeypatch.setattr("settle.data.batches._GROUP_TOKENS", 512)
    store = make_store(tmp_path, np.random.default_rng(3).integers(1, 400, 80).tolist())
    batches = Batches(store, 32, 64, seed=0)
    targets = np.concatenate([batches.at(p).targets for p in range(-(-store.num_tokens // 64))])[: store.num_tokens]
    assert np.array_equal(np.sort(targets), np.sort(store.tokens[1:]))


def test_held_out_is_seen_once_in_order(store: TokenStore) -> None:
    targets = np.concatenate([b.targets for b in held_out_batches(store, 64, 100)])
    assert np.array_equal(targets, store.tokens[1:])
    some = list(held_out_batches(store, 64, 100, limit_tokens=500))
    assert 300 < sum(len(b.targets) for b in some) < 800
    again = list(held_out_batches(store, 64, 100, limit_tokens=500))
    assert all(np.array_equal(a.targets, b.targets) for a, b in zip(some, again, strict=True))
