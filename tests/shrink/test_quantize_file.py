"""The loop that streams a model through the quantizer: real tiny models, and everything that can go wrong."""

import resource
import tracemalloc

import numpy as np
import pytest
from gguf import GGUFReader

from settle.base.errors import FormatError, ResourceError, UsageError
from settle.base.registry import parts
from settle.formats.gguf import export_gguf, read_gguf
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.mixes import MIXES, mix_types
from settle.shrink.types.quantize_file import file_bytes, guessed_file_type, quantize_gguf, quantized_already
from tests.model.architectures.cases import each
from tests.shrink.files import make_gguf
from tests.shrink.reference import llama_quantize
from tests.trained import trained


def kinds_of(file, recipe, known=False):
    return {name: choice.kind for name, choice in mix_types(file, recipe, known).items()}


@pytest.mark.parametrize("architecture", each(parts("model/architectures")))
def test_real_models_of_every_architecture(tmp_path, architecture):
    """What `settle` exports is quantized to the bytes of llama.cpp, with an importance too."""
    tokenizer = trained().tokenizer
    part = parts("model/architectures")[architecture].TINY.model_copy(update={"vocab_size": tokenizer.vocab_size})
    weights = {name: p.detach() for name, p in part.build(0).named_parameters()}
    source = export_gguf(part, weights, tokenizer, tmp_path / "x.gguf", "f16", {"name": "tiny", "tags": ["a"]})
    file = read_gguf(source)
    random = np.random.default_rng(0)
    matrices = {name: tensor.shape for name, tensor in file.tensors.items() if len(tensor.shape) > 1}
    sizes = {name: shape[-1] * (shape[0] if len(shape) > 2 else 1) for name, shape in matrices.items()}
    means = {name: random.random(size, np.float32) for name, size in sizes.items()}
    recipes = ["Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q2_K"]
    theirs = llama_quantize(source, tmp_path / "theirs", recipes, means)
    assert set(theirs) >= {"Q4_K_M", "IQ4_XS", "Q2_K"}
    for recipe, their in theirs.items():
        kinds = kinds_of(file, recipe, True)
        ours = quantize_gguf(source, tmp_path / "ours.gguf", kinds, Importance(means), recipe)
        assert ours.read_bytes() == their.read_bytes(), recipe


def test_memory_does_not_depend_on_the_model(tmp_path):
    """A tensor of 32 MB goes through a few megabytes, whatever is made of it."""
    size = 4096
    table = np.random.default_rng(0).standard_normal((size, size), np.float32)
    source = make_gguf(tmp_path / "x.gguf", layers=1, extra={"blk.0.ffn_up.weight": table})
    kinds = kinds_of(read_gguf(source), "Q8_0")
    del table
    tracemalloc.start()
    try:
        quantize_gguf(source, tmp_path / "y.gguf", kinds, threads=2)
        peak = tracemalloc.get_traced_memory()[1]
        quantize_gguf(source, tmp_path / "z.gguf", {}, threads=2)
        copied = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size * size * 2 / 2 and copied < size * size * 2 + (1 << 22)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(tmp_path, threads):
    source = make_gguf(tmp_path / "x.gguf", experts=3, rows=40, extra={"big.weight": (3000, 512)})
    kinds = kinds_of(read_gguf(source), "Q4_0")
    alone = quantize_gguf(source, tmp_path / "alone.gguf", kinds, threads=1, file=read_gguf(source))
    together = quantize_gguf(source, tmp_path / "together.gguf", kinds, threads=threads)
    assert alone.read_bytes() == together.read_bytes()


def test_progress_ends_at_the_end(tmp_path):
    source = make_gguf(tmp_path / "x.gguf", rows=40)
    told = []
    kinds = kinds_of(read_gguf(source), "Q8_0")
    quantize_gguf(source, tmp_path / "y.gguf", kinds, progress=lambda *numbers: told.append(numbers))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (sum(t.num_bytes for t in read_gguf(source).tensors.values()),) * 2


def test_metadata(tmp_path):
    """Keys that are not named keep their bytes, their order and their type; changed ones go to the end."""
    source = make_gguf(tmp_path / "x.gguf")
    changes = {
        "settle.flag": None,
        "general.name": "smaller",
        "quantize.imatrix.entries_count": 12,
        "settle.kl": 0.25,
        "settle.kept": True,
        "settle.texts": ["a", "ü"],
        "settle.below": -1,
        "settle.list": np.array([1, 2], np.int32),
    }
    kinds = kinds_of(read_gguf(source), "Q8_0")
    written = quantize_gguf(source, tmp_path / "y.gguf", kinds, mix="Q8_0", metadata=changes)
    assert file_bytes(read_gguf(source), kinds, "Q8_0", changes) == written.stat().st_size
    ours, theirs = read_gguf(written), GGUFReader(written)
    keys = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert keys == ours.metadata
    before, after = read_gguf(source).metadata, dict(ours.metadata)
    assert list(after)[-9:] == ["general.quantization_version", "general.file_type", *list(changes)[1:]]
    assert {k: after[k] for k in list(changes)[1:-1]} == {k: changes[k] for k in list(changes)[1:-1]}
    assert after["settle.list"] == [1, 2] and after["general.file_type"] == 7 and "settle.flag" not in after
    same = [k for k in before if k not in changes and k not in ("general.quantization_version", "general.file_type")]
    assert [k for k in after if k in same] == same and all(after[k] == before[k] for k in same)
    with pytest.raises(FormatError, match="settle.x cannot be"):
        quantize_gguf(source, tmp_path / "z.gguf", kinds, metadata={"settle.x": object()})


def test_file_type_of_a_choice_of_ones_own(tmp_path):
    file = read_gguf(make_gguf(tmp_path / "x.gguf"))
    assert guessed_file_type(kinds_of(file, "Q5_K_S"), file) == MIXES["Q5_K_M"]
    assert guessed_file_type(kinds_of(file, "Q6_K"), file) == MIXES["Q6_K"]
    assert guessed_file_type(dict.fromkeys(file.tensors, "IQ3_S"), file) == 1024


def test_a_quantized_source(tmp_path):
    source = make_gguf(tmp_path / "x.gguf")
    file = read_gguf(source)
    once = quantize_gguf(source, tmp_path / "once.gguf", kinds_of(file, "Q4_K_M"), mix="Q4_K_M")
    assert quantized_already(file) == {} and quantized_already(read_gguf(once))["Q4_K"] > 5
    again = kinds_of(read_gguf(once), "Q2_K")
    with pytest.raises(UsageError, match=r"quantized already \(most of them Q4_K, \d\.\d bits.*lost.*--requantize"):
        quantize_gguf(once, tmp_path / "again.gguf", again)
    assert not (tmp_path / "again.gguf").exists()
    ours = quantize_gguf(once, tmp_path / "again.gguf", again, mix="Q2_K", requantize=True)
    theirs = llama_quantize(once, tmp_path / "theirs", ["Q2_K"], allow_requantize=True)
    assert ours.read_bytes() == theirs["Q2_K"].read_bytes()
    # what stays as it is may be quantized
    copy = quantize_gguf(once, tmp_path / "copy.gguf", {}, mix="Q4_K_M")
    assert copy.read_bytes() == once.read_bytes()


def test_what_makes_no_sense(tmp_path):
    source = make_gguf(tmp_path / "x.gguf", experts=2, width=64, inner=96)
    target = tmp_path / "y.gguf"
    with pytest.raises(UsageError, match="no tensor blk.9.attn_q.weight"):
        quantize_gguf(source, target, {"blk.9.attn_q.weight": "Q8_0"})
    with pytest.raises(UsageError, match="blk.0.attn_q.weight: rows of 64 values cannot be Q4_K"):
        quantize_gguf(source, target, {"blk.0.attn_q.weight": "Q4_K"})
    with pytest.raises(UsageError, match="is the file that is read"):
        quantize_gguf(source, source, {})
    part = quantize_gguf(source, tmp_path / "part.gguf", {}, metadata={"split.count": 3})
    with pytest.raises(UsageError, match="one of 3 parts"):
        quantize_gguf(part, target, {})
    part.unlink()
    wrong = Importance({"blk.0.attn_q.weight": np.ones(7, np.float32)})
    with pytest.raises(UsageError, match="importance of blk.0.attn_q.weight has 7 values, the tensor takes 64 inputs"):
        quantize_gguf(source, target, {"blk.0.attn_q.weight": "Q4_0"}, wrong)
    broken = Importance({"blk.0.attn_q.weight": np.full(64, np.nan, np.float32)})
    with pytest.raises(UsageError, match="holds NaN"):
        quantize_gguf(source, target, {"blk.0.attn_q.weight": "Q4_0"}, broken)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_types_that_need_an_importance(tmp_path):
    source = make_gguf(tmp_path / "x.gguf")
    with pytest.raises(UsageError, match="blk.0.attn_q.weight: IQ3_XXS needs to know"):
        quantize_gguf(source, tmp_path / "y.gguf", {"blk.0.attn_q.weight": "IQ3_XXS"})
    means = {"blk.0.attn_q.weight": np.random.default_rng(0).random(256, np.float32)}
    kinds = {"blk.0.attn_q.weight": "IQ3_XXS"}
    written = quantize_gguf(source, tmp_path / "y.gguf", kinds, Importance(means))
    assert read_gguf(written).tensors["blk.0.attn_q.weight"].dtype == "IQ3_XXS"


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "output_norm.weight"])
def test_numbers_that_are_none(tmp_path, name):
    """In a matrix that is quantized, and in a vector that is copied."""
    broken = np.ones(256 if "norm" in name else (2, 256), np.float32)
    broken.flat[5] = np.inf
    source = make_gguf(tmp_path / "x.gguf", extra={name: broken})
    with pytest.raises(FormatError, match=f"{name}: there are NaN or infinity"):
        quantize_gguf(source, tmp_path / "y.gguf", kinds_of(read_gguf(source), "Q8_0"))
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_disk_fills_up(tmp_path):
    source = make_gguf(tmp_path / "x.gguf", extra={"big.weight": (3000, 512)})
    (tmp_path / "y.gguf").write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(ResourceError, match="no room for y.gguf"):
            quantize_gguf(source, tmp_path / "y.gguf", kinds_of(read_gguf(source), "Q8_0"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "y.gguf").read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.gguf", "y.gguf"]


def test_too_small_a_disk_is_known_before(tmp_path, monkeypatch):
    source = make_gguf(tmp_path / "x.gguf")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    told = []
    with pytest.raises(ResourceError, match=r"\d\.\d MB are needed and 0\.0 MB are free"):
        quantize_gguf(source, tmp_path / "y.gguf", {}, progress=lambda *n: told.append(n))
    assert not told and [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_interrupted(tmp_path):
    source = make_gguf(tmp_path / "x.gguf", extra={"big.weight": (3000, 512)})

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_gguf(source, tmp_path / "y.gguf", kinds_of(read_gguf(source), "Q4_K_M"), progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_another_alignment(tmp_path):
    """llama.cpp loses its way there; the file that we write stays sound."""
    source = make_gguf(tmp_path / "x.gguf")
    written = quantize_gguf(source, tmp_path / "y.gguf", {}, metadata={"general.alignment": 128})
    again = quantize_gguf(written, tmp_path / "z.gguf", kinds_of(read_gguf(written), "Q8_0"))
    assert all(t.place.start % 128 == 0 for t in read_gguf(again).tensors.values())
    assert again.stat().st_size % 128 == 0 and len(GGUFReader(again).tensors) == len(read_gguf(source).tensors)
