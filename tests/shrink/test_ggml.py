import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as theirs

from settle.base.errors import FormatError, UsageError
from settle.base.python_command import extra_command
from settle.formats.gguf.types import GGML
from settle.shrink.types import ggml

KINDS = ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS", "IQ4_NL", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4"]
random = np.random.default_rng(0)
VALUES = random.standard_normal((64, 512), np.float32)


@pytest.mark.parametrize("kind", [*KINDS, "F16", "BF16", "F32"])
def test_numbers_come_back(kind):
    """What is written is read by gguf's own reader and by ggml as the same numbers; what is lost is what is told."""
    raw = ggml.quantize(VALUES, kind)
    assert raw.shape == (64, ggml.num_bytes(kind, 512))
    code = GGMLQuantizationType[kind]
    back = theirs(raw, code) if kind != "F32" else raw.view(np.float32)
    if kind != "F32":
        np.testing.assert_array_equal(ggml.dequantize(raw, kind, np.empty_like(VALUES)), back)
    lost = np.square(back - VALUES).sum() / np.square(VALUES).sum()
    assert lost == pytest.approx(GGML[kind].error, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_pieces_change_nothing(kind, monkeypatch):
    alone = ggml.quantize(VALUES, kind, threads=1)
    monkeypatch.setattr(ggml, "PIECE", 1 << 10)
    out = np.empty_like(alone)
    assert ggml.quantize(VALUES, kind, threads=4, out=out) is out
    np.testing.assert_array_equal(out, alone)


@pytest.mark.parametrize("kind", ["Q4_K", "Q2_K", "IQ4_XS", "Q4_0", "IQ3_XXS"])
def test_importance_moves_the_error(kind):
    """The error at inputs that matter is smaller with the importance than without, or than at the others."""
    importance = np.ones(512, np.float32)
    importance[::8] = 300
    with_it = ggml.quantize(VALUES, kind, importance)
    error = np.square(ggml.dequantize(with_it, kind, np.empty_like(VALUES)) - VALUES).mean(0)
    assert error[::8].mean() < 0.9 * error.mean()


@pytest.mark.parametrize("kind", [row.name for row in GGML.values() if row.needs_importance])
def test_types_that_need_an_importance(kind):
    with pytest.raises(UsageError, match="needs to know how much each input matters"):
        ggml.quantize(VALUES[:2], kind)


def test_what_cannot_be_quantized():
    with pytest.raises(UsageError, match="rows of 48 values cannot be Q4_K"):
        ggml.quantize(VALUES[:, :48], "Q4_K")
    with pytest.raises(UsageError, match="no type 'Q9'"):
        ggml.quantize(VALUES, "Q9")
    with pytest.raises(UsageError, match="I32 is no type of weights"):
        ggml.quantize(VALUES, "I32")
    with pytest.raises(UsageError, match=r"the importance has the shape \(7,\)"):
        ggml.quantize(VALUES, "Q4_K", np.ones(7))
    broken = VALUES.copy()
    broken[3, 3] = np.nan
    with pytest.raises(FormatError, match="NaN or infinity"):
        ggml.quantize(broken, "Q8_0")


@pytest.mark.parametrize(("kind", "fits"), [("F16", False), ("Q4_1", False), ("Q8_0", True), ("BF16", True)])
def test_values_beyond_fp16(kind, fits):
    """Scales are fp16: what cannot be told with one is refused, as llama.cpp refuses it."""
    large = VALUES[:2].copy()
    large[1, 40] = 1e6
    if fits:
        assert np.isfinite(ggml.dequantize(ggml.quantize(large, kind), kind, np.empty_like(large))).all()
    else:
        with pytest.raises(FormatError, match=r"values as large as 1e\+06"):
            ggml.quantize(large, kind)


def test_the_package_is_missing(monkeypatch):
    ggml._library.cache_clear()
    monkeypatch.setattr(ggml, "PACKAGE", "llama_cpp_py_sync_missing")
    try:
        with pytest.raises(UsageError, match="shrinking needs llama-cpp-py-sync") as e:
            ggml.quantize(VALUES, "Q8_0")
        assert e.value.fix == extra_command("shrink")
    finally:
        ggml._library.cache_clear()


def test_llama_cpp_is_not_loaded():
    code = (
        "import sys, numpy\n"
        "from settle.shrink.types import ggml\n"
        "ggml.quantize(numpy.zeros((1, 32), numpy.float32), 'Q8_0')\n"
        "assert 'llama_cpp_py_sync' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_are_those_that_may_run_and_the_quota_allows(monkeypatch):
    monkeypatch.setattr(ggml.machine, "is_asked", lambda: False)
    for allowed, quota, threads in ((8, None, 8), (8, 2.5, 3), (2, 9.0, 2), (8, 0.2, 1), (0, None, 1)):
        found = SimpleNamespace(allowed=allowed, quota=quota)
        monkeypatch.setattr(ggml.machine, "cores", lambda found=found: found)
        assert ggml.num_threads() == threads
    monkeypatch.setattr(ggml.machine, "is_asked", lambda: True)
    monkeypatch.setattr(ggml.machine, "num_threads", lambda: 5)
    assert ggml.num_threads() == 5
