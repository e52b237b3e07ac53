"""The trap of 256, seen beforehand."""

from settle.formats.gguf import read_gguf
from settle.shrink.types.mixes import mix_types
from settle.shrink.types.quantize_file import expected_error, find_fallback, quantize_gguf
from tests.shrink.files import make_gguf


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
