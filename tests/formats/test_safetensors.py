"""safetensors: read what the library writes, write what it and transformers read, refuse what lies."""

import json
import random
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from settle.base.errors import FormatError, ResourceError
from settle.formats.safetensors import export_safetensors, read_safetensors, write_safetensors


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a file written by the safetensors library."""
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4, 2).bfloat16(),
        "c": torch.randn(7).half(),
        "d": torch.arange(6).view(2, 3),
        "e": torch.tensor([True, False]),
        "f": torch.zeros(0, 4),
    }
    save_file(tensors, path, {"format": "pt", "name": "x"})
    return path.read_bytes(), tensors


def read(raw, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    weights = read_safetensors(path)
    return {name: t.load() for name, t in weights.tensors.items()}, weights.metadata


def test_reads_the_library(sound, tmp_path):
    raw, tensors = sound
    ours, metadata = read(raw, tmp_path)
    assert metadata == {"format": "pt", "name": "x"}
    assert set(ours) == set(tensors)
    for name, tensor in tensors.items():
        expected = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        np.testing.assert_array_equal(ours[name], expected)


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("f32", torch.float32), ("f16", torch.half), ("bf16", torch.bfloat16)]
)
def test_library_reads_ours(tmp_path, dtype, torch_dtype):
    """Rounded as torch rounds, infinities and NaN included."""
    torch.manual_seed(0)
    values = torch.cat([torch.randn(1000) * 10.0 ** torch.randint(-4, 4, (1000,)), torch.tensor([0.0, -0.0])])
    if dtype != "f16":
        values = torch.cat([values, torch.tensor([torch.inf, -torch.inf, torch.nan, 1e38])])
    write_safetensors(tmp_path / "x.safetensors", {"a": values, "b": values.reshape(2, -1).numpy()}, dtype, {"k": "v"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["a"].nan_to_num(7), values.to(torch_dtype).nan_to_num(7))
    assert torch.equal(loaded["b"].nan_to_num(7), values.reshape(2, -1).to(torch_dtype).nan_to_num(7))


def with_header(raw, change):
    """The file with its header changed by a function on the parsed JSON."""
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header = change(header) or header
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + size :]


def entry(**changes):
    return lambda header: header["a"].update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (entry(data_offsets=[0, 1 << 62]), "do not fill"),
        (entry(data_offsets=[-4, 56]), "do not fill"),
        (entry(data_offsets=[60, 0]), "do not fill"),
        (entry(data_offsets=[0.0, 60.0]), "is not dtype, shape and data_offsets"),
        (entry(shape=[1 << 40, 1 << 40]), "do not fill"),
        (entry(shape=[-3, -5]), "impossible shape"),
        (entry(shape=[True, 15]), "impossible shape"),
        (entry(shape="x"), "is not dtype"),
        (entry(dtype="F99"), "unknown type"),
        (entry(more=1), "is not dtype"),
        (lambda h: {"a": h["a"], "b": h["a"]}, "the tensor before it ends"),
        (lambda h: {name: e for name, e in h.items() if name != "e"}, "its tensors end at byte"),
        (lambda h: h.update(__metadata__={"a": 1}), "map of strings"),
        (lambda h: "[1]", "not an object"),
        (lambda h: "{", "not JSON"),
        (lambda h: "[" * 100_000, "not JSON"),
        (lambda h: '{"a": 1, "a": 2}', "twice"),
        (lambda h: '{"a": ' + "9" * 6000 + "}", "not JSON"),
    ],
)
def test_says_what_is_wrong(sound, tmp_path, change, says):
    with pytest.raises(FormatError, match=says):
        read(with_header(sound[0], change), tmp_path)


@pytest.mark.parametrize("size", [1 << 27, 1 << 40, (1 << 64) - 1])
def test_lying_header_size(sound, tmp_path, size):
    tracemalloc.start()
    with pytest.raises(FormatError, match="says its header is"):
        read(struct.pack("<Q", size) + sound[0][8:], tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_damage_at_random(sound, tmp_path):
    """A sound file comes out, or a FormatError, and nothing else ever."""
    raw = sound[0]
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    rng = random.Random(3)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(raw)
        at = rng.randrange(end)
        match rng.randrange(4):
            case 0:
                damaged[at] ^= 1 << rng.randrange(8)
            case 1:
                damaged[at : at + 1] = rng.choice([b"9", b"-", b"{", b"]", b'"', b"e", b"null", b"\xff", b"\\u0000"])
            case 2:
                del damaged[at : at + rng.randrange(1, 9)]
            case 3:
                del damaged[rng.randrange(len(damaged)) :]
        try:
            read(bytes(damaged), tmp_path)
        except FormatError:
            refused += 1
    assert refused > 1000


def test_missing_empty_and_folder(tmp_path):
    with pytest.raises(FormatError, match="there is no file"):
        read_safetensors(tmp_path / "none.safetensors")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FormatError, match="is empty"):
        read_safetensors(tmp_path)


def test_transformers_gives_equal_logits(tiny, tmp_path):
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "out", "f32", {"name": "tiny"})
    theirs, missing = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not missing["missing_keys"] and not missing["unexpected_keys"]
    ids = torch.from_numpy(tiny.tokenizer.encode(tiny.held_out[0])[:300].astype("int64"))
    with torch.no_grad():
        ours = tiny.model(ids, torch.tensor([0, len(ids)], dtype=torch.int32)) @ tiny.model.head.T
        torch.testing.assert_close(theirs.eval()(ids[None]).logits[0], ours, rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "<|im_start|>user\nHé 😀<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(text) == tiny.tokenizer.encode(text, specials=True).tolist()
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hé 😀"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == text


def test_values_too_large_for_f16(tmp_path):
    with pytest.raises(FormatError, match="f16 cannot hold"):
        write_safetensors(tmp_path / "x.safetensors", {"a": torch.tensor([1e6])}, "f16")
    assert not list(tmp_path.iterdir())


def test_no_room(tmp_path):
    """More than any disk has: refused before anything is written."""
    huge = torch.zeros(1).expand(1 << 62, 1)
    with pytest.raises(ResourceError, match="no room for x.safetensors"):
        write_safetensors(tmp_path / "x.safetensors", {"a": huge}, "f16")
    assert not list(tmp_path.iterdir())


def test_shards(tiny, tmp_path):
    """Several files and an index: transformers reads ours, we read the library's, a later whole file leaves none."""
    from transformers import LlamaForCausalLM

    folder = export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "ours", shard_bytes=100_000)
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    theirs = LlamaForCausalLM.from_pretrained(folder)
    names = tiny.part.hf_names()
    for name, tensor in tiny.weights.items():
        assert torch.equal(theirs.state_dict()[names[name]], tensor)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    for place in (folder, tmp_path / "theirs"):
        assert (place / "model.safetensors.index.json").exists()
        read_back = read_safetensors(place).tensors
        assert read_back.keys() == set(names.values())
        for name, tensor in tiny.weights.items():
            np.testing.assert_array_equal(read_back[names[name]].load(), tensor.numpy())
    export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, folder)
    assert [p.name for p in folder.glob("model*")] == ["model.safetensors"]


def test_shards_that_do_not_fit_their_index(tiny, tmp_path):
    folder = export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x", shard_bytes=100_000)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    second = folder / f"model-00002-of-{len(set(places.values())):05}.safetensors"
    for weight_map, says in [
        (places | {"more": second.name}, "more is not in it"),
        (places | {"more": "../other.safetensors"}, "outside its folder"),
        (places | {"more": 7}, "outside its folder|no index"),
        (list(places), "no index"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(FormatError, match=says):
            read_safetensors(folder)
    index.write_text(json.dumps({"weight_map": places}))
    second.unlink()
    with pytest.raises(FormatError, match=f"x lacks {second.name}, one of its"):
        read_safetensors(folder)
