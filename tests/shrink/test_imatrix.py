"""Importance files: what gguf's reader sees of ours, what we make of llama.cpp's, what is refused."""

import struct

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from settle.base.errors import FormatError
from settle.shrink.types.imatrix import Importance, metadata_of, read_imatrix, write_imatrix
from tests.shrink.files import make_gguf

random = np.random.default_rng(0)
MEANS = {
    "blk.0.attn_q.weight": random.random(64, np.float32),
    "blk.10.attn_q.weight": random.random(64, np.float32),
    "blk.2.ffn_down_exps.weight": random.random(3 * 32, np.float32),
}
COUNTS = {"blk.2.ffn_down_exps.weight": np.array([700, 300, 24])}


def test_gguf_layout(tmp_path):
    """Key for key and tensor for tensor what llama-imatrix writes."""
    path = tmp_path / "x.gguf"
    write_imatrix(path, Importance(MEANS, 1025, ["a.txt", "b.txt"], COUNTS))
    read = GGUFReader(path)
    keys = {k: f.contents() for k, f in read.fields.items() if not k.startswith("GGUF.")}
    assert keys == {
        "general.type": "imatrix",
        "imatrix.datasets": ["a.txt", "b.txt"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 512,
    }
    assert {t.name: tuple(int(d) for d in t.shape) for t in read.tensors} == {
        "blk.0.attn_q.weight.in_sum2": (64,),
        "blk.0.attn_q.weight.counts": (1,),
        "blk.10.attn_q.weight.in_sum2": (64,),
        "blk.10.attn_q.weight.counts": (1,),
        "blk.2.ffn_down_exps.weight.in_sum2": (32, 3),
        "blk.2.ffn_down_exps.weight.counts": (1, 3),
    }
    tensors = {t.name: t.data for t in read.tensors}
    assert tensors["blk.0.attn_q.weight.counts"].tolist() == [1025]
    assert tensors["blk.2.ffn_down_exps.weight.counts"].ravel().tolist() == [700, 300, 24]
    expected = MEANS["blk.0.attn_q.weight"] * np.float32(1025)
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight.in_sum2"], expected)


@pytest.mark.parametrize("name", ["x.gguf", "x.dat"])
def test_round_trip(tmp_path, name):
    written = write_imatrix(tmp_path / name, Importance(MEANS, 1025, ["a.txt"]))
    assert written.datasets == ["a.txt"] and list(written.means) == sorted(MEANS)
    for tensor, values in MEANS.items():
        np.testing.assert_allclose(written.means[tensor], values, rtol=2e-7)
    again = write_imatrix(tmp_path / f"2{name}", written)
    assert (tmp_path / name).read_bytes() != b"" and again.num_tokens == written.num_tokens
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_llama_imatrix_s_own_gguf(tmp_path):
    """As llama-imatrix lays it out, an expert that was never used and the sums of the inputs with it."""
    writer = GGUFWriter(tmp_path / "x.gguf", "")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 512)
    sums = np.arange(12, dtype=np.float32).reshape(2, 6)
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", sums)
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[4], [0]], np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum", sums)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(tmp_path / "x.gguf")
    assert list(found.means) == ["blk.0.ffn_up_exps.weight"]
    assert found.means["blk.0.ffn_up_exps.weight"].tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1, 1, 1, 1, 1, 1]
    assert found.num_tokens == 4 and found.datasets == ["wiki.txt"]


def dat(*entries, tail=b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        out += np.asarray(values, "<f4").tobytes()
    return out + tail


def test_llama_imatrix_s_own_dat(tmp_path):
    path = tmp_path / "x.dat"
    path.write_bytes(dat(("a.weight", 4, [2, 4]), ("b.weight", 0, [3]), tail=struct.pack("<ii", 4, 4) + b"wiki"))
    found = read_imatrix(path)
    assert {n: v.tolist() for n, v in found.means.items()} == {"a.weight": [0.5, 1], "b.weight": [3]}
    assert found.datasets == ["wiki"] and found.num_tokens == 4 * 512
    path.write_bytes(dat(("a.weight", 4, [2, 4])))  # older files end here
    assert read_imatrix(path).datasets == []


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "cut short"),
        (struct.pack("<i", -3), "it says it has -3 tensors"),
        (struct.pack("<ii", 1, 1 << 30), "a name takes"),
        (dat(("a.weight", 1, [1, 2]))[:-1], "a.weight takes 8 bytes, 7 are left"),
        (dat(("a.weight", 1, [1, float("nan")])), "no mean of squares"),
        (dat(("a.weight", 1, [1, -1])), "no mean of squares"),
        (b"GGUF" + bytes(30), "not a sound GGUF file"),
    ],
)
def test_what_is_no_importance(tmp_path, raw, what):
    (tmp_path / "x.dat").write_bytes(raw)
    with pytest.raises(FormatError, match=what):
        read_imatrix(tmp_path / "x.dat")


@pytest.mark.parametrize("name", ["x.gguf", "x.dat"])
def test_cut_and_changed_bytes_are_refused_or_read(tmp_path, name):
    """Nothing but a FormatError comes of a damaged file."""
    path = tmp_path / name
    write_imatrix(path, Importance({"blk.0.attn_q.weight": MEANS["blk.0.attn_q.weight"][:8]}, 9, ["a.txt"]))
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    damaged = [whole[:end] for end in range(0, len(whole), 3)]
    for _ in range(300):
        changed = bytearray(whole)
        for at in draw.integers(0, len(whole), 3):
            changed[at] = draw.integers(0, 256)
        damaged.append(bytes(changed))
    refused = 0
    for raw in damaged:
        path.write_bytes(raw)
        try:
            found = read_imatrix(path)
        except FormatError:
            refused += 1
        else:
            assert all(np.isfinite(v).all() for v in found.means.values())
    assert refused > len(damaged) / 4


def test_what_a_file_tells_of_its_importance():
    assert metadata_of(Importance(MEANS, 1025, ["a.txt", "b.txt"]), "x.gguf") == {
        "quantize.imatrix.file": "x.gguf",
        "quantize.imatrix.dataset": "a.txt",
        "quantize.imatrix.entries_count": 3,
        "quantize.imatrix.chunks_count": 3,
    }
    assert metadata_of(Importance(MEANS)) == {"quantize.imatrix.entries_count": 3}


def test_a_model_is_no_importance(tmp_path):
    with pytest.raises(FormatError, match="GGUF file of another kind"):
        read_imatrix(make_gguf(tmp_path / "x.gguf"))
    with pytest.raises(FormatError, match="cannot be read"):
        read_imatrix(tmp_path / "missing.gguf")
