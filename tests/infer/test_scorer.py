"""The scorer with its real child process, against the live model and llama.cpp's server."""

import importlib.util
import os
import signal

import numpy as np
import pytest

from settle.base.errors import EngineError, FormatError, UsageError
from settle.base.python_command import extra_command
from settle.data.likelihoods import Likelihoods
from settle.formats.gguf import export_gguf
from settle.infer import scorer as scorer_module
from settle.infer.engine import Engine
from settle.infer.live_sampling import logprobs
from settle.infer.scorer import Scorer
from tests.infer.conftest import ends_with_its_parent, gone
from tests.live_records import live_compare, live_likelihoods

pytest.importorskip("llama_cpp_py_sync")


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    return {
        dtype: export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / f"{dtype}.gguf", dtype)
        for dtype in ("f32", "q4_0")
    }


@pytest.fixture(scope="module")
def windows(tiny):
    """One of them takes more than one piece, one has a single position."""
    ids = tiny.tokenizer.encode("".join(tiny.held_out)).tolist()
    return [ids[:200], ids[200:300], ids[300:302], ids[302:500]]


@pytest.fixture(scope="module")
def scorer(files):
    with Scorer(files["f32"], 256, threads=1) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def reference(scorer, windows, tmp_path_factory):
    return scorer.likelihoods(windows, tmp_path_factory.mktemp("reference") / "record", {"sha256": "ab"})


def live(tiny, windows) -> list[np.ndarray]:
    """The live model's whole distributions, (L − 1, V) for each window."""
    return [logprobs(tiny.model, ids, range(len(ids) - 1)).double().numpy() for ids in windows]


def test_a_record_of_a_file_is_what_the_live_model_says(tiny, reference, windows):
    assert reference.num_windows == len(windows) and reference.about["sha256"] == "ab"
    for index, whole in enumerate(live(tiny, windows)):
        rows = reference.rows(index)
        kept = np.take_along_axis(whole, rows.top_ids.astype(int), 1)
        np.testing.assert_allclose(rows.top_logprobs, kept, atol=0.02)
        came = whole[np.arange(len(whole)), windows[index][1:]]
        np.testing.assert_allclose(rows.came_logprobs, came, atol=0.02)


def test_a_file_against_itself(scorer, reference):
    told = []
    same = scorer.compare(reference, told.append)
    assert same.kl.max() < 1e-6 and same.top_equal.all()
    np.testing.assert_allclose(same.logprobs, reference.came_logprobs, atol=1e-6)
    assert sum(told) == reference.num_positions


def test_another_file_diverges_as_much_as_whole_distributions_do(files, reference, windows):
    """By the same formula over whole distributions, which llama.cpp's server gives at some positions."""
    with Scorer(files["q4_0"], 256, threads=1) as scorer:
        found = scorer.compare(reference)
    assert len(found.kl) == reference.num_positions and found.kl.min() >= 0
    with Engine(files["f32"], threads=1) as ours, Engine(files["q4_0"], threads=1) as theirs:
        wanted = []
        for end in range(1, 100):
            p, q = (engine.next_token_logprobs(windows[0][:end]) for engine in (ours, theirs))
            wanted.append(sum(np.exp(p[i]) * (p[i] - q[i]) for i in p))
    assert np.mean(found.kl[:99]) == pytest.approx(np.mean(wanted), rel=0.02)
    assert np.mean(found.kl) > 1e-4 and 0.5 < found.top_equal.mean() < 1


def test_live_records_and_those_of_files_are_alike(tiny, scorer, reference, windows, tmp_path):
    tiny.model.train()
    made = live_likelihoods(tiny.model, windows, tmp_path / "live")
    assert scorer.compare(made).kl.max() < 1e-3
    assert live_compare(tiny.model, reference).kl.max() < 1e-3
    some = live_compare(tiny.model, made, windows=[1, 2])
    assert len(some.kl) == 100 and some.kl.max() < 1e-6
    assert tiny.model.training


def test_logprobs_without_a_record(scorer, reference, windows):
    found = scorer.logprobs(windows)
    assert [len(one) for one in found] == [len(ids) - 1 for ids in windows]
    np.testing.assert_allclose(np.concatenate(found), reference.came_logprobs, rtol=1e-6)


@pytest.mark.parametrize(
    ("window", "says"),
    [([5], "has 1 tokens"), ([5] * 300, "has 300 tokens"), ([5, 100_000], "the token 100000")],
)
def test_windows_that_cannot_be_read(scorer, tmp_path, window, says):
    with pytest.raises(UsageError, match=says):
        scorer.likelihoods([[5, 6], window], tmp_path / "record")
    assert not list(tmp_path.iterdir())


def test_another_vocabulary(scorer, reference, monkeypatch):
    monkeypatch.setattr(reference, "num_vocab", reference.num_vocab + 1)
    with pytest.raises(UsageError, match="no divergence between their distributions"):
        scorer.compare(reference)


def test_a_context_that_the_model_was_not_made_for(files):
    with pytest.raises(UsageError, match="made for 512 tokens"):
        Scorer(files["f32"], 513)


def test_without_the_package(files, monkeypatch):
    monkeypatch.setattr(scorer_module, "PACKAGE", "llama_cpp_that_is_not_there")
    assert importlib.util.find_spec(scorer_module.PACKAGE) is None
    with pytest.raises(UsageError, match="llama-cpp-that-is-not-there") as e:
        Scorer(files["f32"])
    assert e.value.fix == extra_command("shrink")


def test_not_a_gguf_is_never_opened(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(FormatError):
        Scorer(tmp_path / "x.gguf")


def test_what_llama_cpp_cannot_load_says_why(lacking):
    with pytest.raises(EngineError, match="ffn_up"), Scorer(lacking):
        pass


def test_a_model_that_computes_no_numbers(tiny, tmp_path):
    """Weights that are sound one by one, and whose products are not."""
    weights = tiny.weights | {"model.norm.weight": tiny.weights["model.norm.weight"] * 0 + 3e38}
    path = export_gguf(tiny.part, weights, tiny.tokenizer, tmp_path / "x.gguf", "f32")
    with Scorer(path, threads=1) as scorer:
        with pytest.raises(EngineError, match="not a number"):
            scorer.likelihoods([[5, 6, 7]], tmp_path / "record")
        assert not gone(scorer.pid)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_the_child_dies_in_mid_work(files, windows, tmp_path):
    with Scorer(files["f32"], 256, threads=1) as scorer:
        scorer.rows(windows[0])
        os.kill(scorer.pid, signal.SIGINT)  # Ctrl-C is for the parent
        scorer.rows(windows[0])
        os.kill(scorer.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="died"):
            scorer.likelihoods(windows, tmp_path / "record")
    assert not list(tmp_path.iterdir())
    with pytest.raises(EngineError, match="not running"):
        scorer.rows(windows[0])


def test_the_child_dies_with_its_parent(files):
    assert ends_with_its_parent("settle.infer.scorer", "Scorer", files["f32"])


def test_a_record_can_be_looked_up(reference, windows):
    again = Likelihoods(reference.folder)
    assert [again.find(ids) for ids in windows] == list(range(len(windows)))
