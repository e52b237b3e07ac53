"""Our choice of types, and our bytes, against llama.cpp's own for the same file."""

import numpy as np
import pytest

from settle.base.errors import FormatError, UsageError
from settle.formats.gguf import read_gguf
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.mixes import MIXES, mix_types
from settle.shrink.types.quantize_file import expected_error, file_bytes, find_fallback, quantize_gguf
from tests.shrink.files import make_gguf
from tests.shrink.reference import llama_quantize

SHAPES = {
    "llama": {"layers": 12},
    "wide groups": {"layers": 9, "heads": 8, "tied": True},
    "70B": {"layers": 80, "heads": 8, "shared": 1},
    "65B": {"layers": 80, "heads": 4, "shared": 4},
    "qwen2": {"architecture": "qwen2", "layers": 80, "shared": 4, "inner": 256},
    "phi3": {"architecture": "phi3", "layers": 17, "fused": True},
    "falcon": {"architecture": "falcon", "layers": 17, "fused": True},
    "eight experts": {"layers": 9, "experts": 8},
    "experts": {"architecture": "qwen3moe", "layers": 11, "experts": 4, "tied": True},
    "gemma3": {"architecture": "gemma3", "layers": 18, "width": 640, "inner": 2048, "tied": True, "shared": 1},
    "576": {"layers": 30, "width": 576, "inner": 1536, "tied": True, "heads": 9, "shared": 3},
    "48": {"layers": 2, "width": 64, "inner": 48},
    "bf16": {"layers": 3, "dtype": "BF16"},
    "f32": {"layers": 3, "dtype": "F32"},
    "one row": {"extra": {"blk.0.attn_q.weight": (1, 256), "blk.1.ffn_down.weight": (1, 512)}},
    "others": {
        "extra": {"per_layer_token_embd.weight": (2, 256), "blk.0.attn_kv_b.weight": (2, 256), "x.norm": (2, 256)}
    },
}


# get those that tell of depth; the others take long and show nothing new
LARGE = ("70B", "65B", "qwen2", "gemma3", "576")
SMALL = ("llama", "48", "bf16", "f32", "one row", "others")  # get every mix with an importance, too
OF_LARGE = ("Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M", "Q3_K_S", "Q2_K", "F16")
BYTES_OF_LARGE = ("Q4_K_M", "IQ4_XS", "Q2_K")  # a block's bytes do not hang on the depth
FURTHER = ("65B", "wide groups", "falcon", "eight experts", "f32")
CASES = [
    pytest.param(shape, known, id=f"{shape}-{'importance' if known else 'plain'}", marks=marks)
    for shape in SHAPES
    for known in (False, True)
    for marks in [
        pytest.mark.exhaustive
        if shape in FURTHER or (known and shape in ("70B", "qwen2", "576", "phi3", "bf16"))
        else ()
    ]
]


def means_of(file, random):
    """An importance for most tensors, that of tokens of a wrong size."""
    found = {}
    for name, tensor in file.tensors.items():
        if len(tensor.shape) > 1 and "blk.1." not in name:
            size = tensor.shape[-1] * (tensor.shape[0] if len(tensor.shape) == 3 else 1)
            found[name] = random.random(size, np.float32) ** 4
    found["token_embd.weight"] = np.ones(7, np.float32)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "known"), CASES)
def test_same_bytes_as_llama_cpp(tmp_path, shape, known):
    source = make_gguf(tmp_path / "source.gguf", **SHAPES[shape])
    file = read_gguf(source)
    means = means_of(file, np.random.default_rng(1)) if known else None
    asked = OF_LARGE if shape in LARGE or (known and shape not in SMALL) else tuple(MIXES)
    if shape in LARGE and known:
        asked = BYTES_OF_LARGE  # depth changes no more types with an importance than without
    theirs = llama_quantize(source, tmp_path / "theirs", asked, means)
    assert set(theirs) >= {"Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "F16"} & set(asked)
    if shape != "48":  # it has no block for such rows, but for K-quants' fall back
        assert set(theirs) == set(asked)
    importance = Importance(means) if known else None
    for recipe, their in theirs.items():
        chosen = mix_types(file, recipe, known)
        assert {n: c.kind for n, c in chosen.items()} == {n: t.dtype for n, t in read_gguf(their).tensors.items()}
        kinds = {name: choice.kind for name, choice in chosen.items()}
        if shape not in SMALL and recipe not in BYTES_OF_LARGE:
            continue
        ours = quantize_gguf(source, tmp_path / "ours.gguf", kinds, importance, recipe)
        assert ours.read_bytes() == their.read_bytes(), recipe
        assert file_bytes(file, kinds, recipe) == ours.stat().st_size
        assert {n: c.num_bytes for n, c in chosen.items()} == {
            n: t.num_bytes for n, t in read_gguf(ours).tensors.items()
        }


def test_rows_that_no_block_divides_become_f16(tmp_path):
    file = read_gguf(make_gguf(tmp_path / "x.gguf", width=64, inner=48))
    chosen = mix_types(file, "Q8_0")
    assert chosen["blk.0.ffn_down.weight"].kind == "F16" and chosen["blk.0.ffn_down.weight"].wanted == "Q8_0"
    assert chosen["blk.0.ffn_up.weight"].kind == "Q8_0" and not chosen["blk.0.ffn_up.weight"].fell_back


def test_an_expert_in_no_block(tmp_path):
    extra = {"ffn_down_exps.weight": (2, 2, 256)}
    file = read_gguf(make_gguf(tmp_path / "x.gguf", architecture="qwen3moe", experts=4, extra=extra))
    with pytest.raises(FormatError, match="layer"):
        mix_types(file, "Q4_K_M")


def test_a_recipe_that_is_not_known(tmp_path):
    with pytest.raises(UsageError, match="no mix 'Q4_K'"):
        mix_types(read_gguf(make_gguf(tmp_path / "x.gguf")), "Q4_K")


def test_rows_that_fall_back_are_named(tmp_path):
    source = make_gguf(tmp_path / "x.gguf", width=576, inner=1536, tied=True, rows=64)
    file = read_gguf(source)
    found = find_fallback(file, "Q4_K_M")
    assert "blk.0.attn_q.weight" in found.tensors and "blk.0.ffn_down.weight" not in found.tensors
    assert "token_embd.weight" in found.tensors
    kinds = {name: choice.kind for name, choice in mix_types(file, "Q4_K_M").items()}
    written = quantize_gguf(source, tmp_path / "y.gguf", kinds, mix="Q4_K_M")
    assert found.num_bytes == written.stat().st_size > found.promised
    text = str(found)
    assert f"rows of {len(found.tensors)} of {len(file.tensors)} tensors" in text and "Q4_K → Q5_0" in text


def test_what_is_proposed_is_better(tmp_path):
    file = read_gguf(make_gguf(tmp_path / "x.gguf", width=576, inner=1536, tied=True, rows=64))
    proposed = 0
    for recipe in ("Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q3_K_S", "Q2_K"):
        found = find_fallback(file, recipe)
        if found.better is not None:
            proposed += 1
            assert found.better_bytes <= found.num_bytes and found.better in str(found)
            assert expected_error(file, mix_types(file, found.better)) < expected_error(file, mix_types(file, recipe))
    assert proposed
    assert find_fallback(file, "Q2_K").more_precise == {"Q4_0": "IQ4_NL"}
    assert "IQ4_NL in place of Q4_0" in str(find_fallback(file, "Q2_K"))


def test_nothing_falls_where_rows_fit(tmp_path):
    file = read_gguf(make_gguf(tmp_path / "x.gguf", width=256, inner=512))
    assert find_fallback(file, "Q4_K_M") is None
