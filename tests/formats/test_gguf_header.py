"""A GGUF that lies is a FormatError: never a crash, never an allocation by a size that it claims."""

import random
import struct
import tracemalloc

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from settle.base.errors import FormatError
from settle.formats.gguf import read_gguf
from tests.base.bombs import COMPILED


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a small sound file with every kind of metadata and several tensor types."""
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_token_list(["a", "b", "c", "<|end|>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_scores([0.0, -1.0, -2.0, 0.5])
    writer.add_eos_token_id(3)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    writer.add_array("test.flags", [True, False])
    writer.add_float64("test.double", 1.5)
    writer.add_int64("test.long", -(1 << 40))
    rng = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", rng.normal(size=(4, 64)).astype(np.float16))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    blocks = rng.integers(0, 255, size=(4, 68), dtype=np.uint8)
    writer.add_tensor("output.weight", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def read(raw: bytes, tmp_path):
    path = tmp_path / "file.gguf"
    path.write_bytes(raw)
    weights = read_gguf(path)
    return {name: tensor.load() for name, tensor in weights.tensors.items()}, weights.metadata


def test_sound_file(sound, tmp_path):
    tensors, metadata = read(sound, tmp_path)
    assert metadata["tokenizer.ggml.tokens"] == ["a", "b", "c", "<|end|>"]
    assert metadata["test.flags"] == [True, False]
    assert metadata["test.double"] == 1.5
    assert metadata["test.long"] == -(1 << 40)
    assert tensors["token_embd.weight"].shape == (4, 64)
    assert tensors["output.weight"].shape == (4, 64)
    np.testing.assert_array_equal(tensors["output_norm.weight"], np.ones(64, np.float32))


def replaced(raw: bytes, at: int, value: bytes) -> bytes:
    return raw[:at] + value + raw[at + len(value) :]


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def after(raw: bytes, name: bytes) -> int:
    """Where the bytes after a length-prefixed name begin."""
    return raw.index(u64(len(name)) + name) + 8 + len(name)


HUGE = [1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("place", ["tensors", "keys", "key length", "array", "dimension", "offset"])
def test_lying_sizes(sound, tmp_path, place, value):
    """Each size and count in turn claims far more than there is; nothing is allocated for it."""
    tokens, tensor = after(sound, b"tokenizer.ggml.tokens"), after(sound, b"token_embd.weight")
    at = {"tensors": 8, "keys": 16, "key length": 24, "array": tokens + 8, "dimension": tensor + 4,
          "offset": tensor + 24}[place]  # fmt: skip
    tracemalloc.start()
    with pytest.raises(FormatError):
        read(replaced(sound, at, u64(value)), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("name", "place", "value", "says"),
    [
        (None, 0, b"GGML", "does not start with GGUF"),
        (None, 4, struct.pack("<I", 1), "version is 1"),
        (None, 4, struct.pack(">I", 3), "big-endian"),
        (b"llama.context_length", 0, struct.pack("<I", 99), "unknown type"),
        (b"llama.context_length", 4, struct.pack("<I", 0), "context_length is 0"),
        (b"tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 4), "outside the 4 tokens"),
        (b"tokenizer.ggml.tokens", 4, struct.pack("<I", 9), "an array of the type 9"),
        (b"token_embd.weight", 0, struct.pack("<I", 5), "5 dimensions"),
        (b"token_embd.weight", 0, struct.pack("<I", 0), "0 dimensions"),
        (b"token_embd.weight", 4, u64(0), "has the shape"),
        (b"token_embd.weight", 12, u64(3), "has 3 rows for 4 tokens"),
        (b"token_embd.weight", 20, struct.pack("<I", 4), "unknown tensor type"),
        (b"token_embd.weight", 24, u64(8), "not a multiple of the alignment"),
        (b"token_embd.weight", 24, u64(512), "lie on each other"),
        (b"output.weight", 4, u64(65), "not a multiple of its type's 32"),
        (b"output.weight", 24, u64(1 << 20), "the file at"),
    ],
)
def test_says_what_is_wrong(sound, tmp_path, name, place, value, says):
    at = place if name is None else after(sound, name) + place
    with pytest.raises(FormatError, match=says):
        read(replaced(sound, at, value), tmp_path)


def test_names_twice(sound, tmp_path):
    with pytest.raises(FormatError, match="the tensor output_norm.weight is there twice"):
        long_name = u64(len(b"output_norm.weight")) + b"output_norm.weight"
        read(sound.replace(u64(len(b"output.weight")) + b"output.weight", long_name), tmp_path)
    with pytest.raises(FormatError, match="key 'test.double' is there twice"):
        read(sound.replace(u64(len(b"test.long")) + b"test.long", u64(len(b"test.double")) + b"test.double"), tmp_path)


@pytest.mark.parametrize("template", [COMPILED["title"], "{% for %}"])
def test_a_template_is_not_compiled(tmp_path, template):
    """Compiling is running: whoever only reads the file does neither."""
    assert read_gguf(with_template(tmp_path, template)).metadata["tokenizer.chat_template"] == template


@pytest.mark.parametrize("value", ["x" * (1 << 19), 5, ["a"]])
def test_what_is_no_template(tmp_path, value):
    with pytest.raises(FormatError, match="tokenizer.chat_template is"):
        read_gguf(with_template(tmp_path, value))


def with_template(tmp_path, value):
    writer = GGUFWriter(tmp_path / "file.gguf", "llama")
    types = {str: GGUFValueType.STRING, int: GGUFValueType.INT32, list: GGUFValueType.ARRAY}
    writer.add_key_value("tokenizer.chat_template", value, types[type(value)], GGUFValueType.STRING)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "file.gguf"


def test_every_truncation(sound, tmp_path):
    """However much of the file is missing, it is noticed (padding at the very end carries nothing)."""
    for length in [*range(0, 1200, 7), *range(len(sound) - 40, len(sound) - 32)]:
        with pytest.raises(FormatError):
            read(sound[:length], tmp_path)


def test_flipped_and_scrambled(sound, tmp_path):
    """Random damage: either a sound file comes out or a FormatError, and nothing else ever."""
    rng = random.Random(7)
    header = sound.index(b"output.weight") + 60
    refused = 0
    for _ in range(3000):
        raw = bytearray(sound)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(4, header)
            match rng.randrange(4):
                case 0:
                    raw[at] ^= 1 << rng.randrange(8)
                case 1:
                    raw[at : at + 8] = struct.pack("<Q", rng.choice((*HUGE, 0, 1, rng.getrandbits(64))))
                case 2:
                    del raw[at : at + rng.randrange(1, 20)]
                case 3:
                    raw[at:at] = rng.randbytes(rng.randrange(1, 20))
        try:
            read(bytes(raw), tmp_path)
        except FormatError:
            refused += 1
    assert refused > 1000
