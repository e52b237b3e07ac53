"""Every format, against the contract of the family."""

import pytest

from settle.base.registry import parts
from settle.formats import Format
from tests.trained import adapter


@pytest.mark.parametrize("name", parts("formats"))
def test_what_is_written_is_read(tiny, tmp_path, name):
    form = parts("formats")[name]()
    assert isinstance(form, Format)
    path = tmp_path / f"model{form.suffix}"
    lora = adapter(tiny.part)
    weights, expected = (lora, lora.state) if form.holds == "adapter" else (tiny.weights, tiny.weights)
    assert form.write(path, tiny.part, weights, tiny.tokenizer, {"name": "x"}) == path
    tensors = form.read(path).tensors
    assert sorted(t.shape for t in tensors.values()) == sorted(tuple(t.shape) for t in expected.values())
    for tensor in tensors.values():
        values = tensor.load()
        assert values.shape == tensor.shape and values.dtype == "float32"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", parts("formats"))
def test_the_gguf_inside_is_what_llama_cpp_loads(tiny, tmp_path, name):
    form = parts("formats")[name]()
    if form.holds == "adapter":
        return
    path = tmp_path / f"model{form.suffix}"
    form.write(path, tiny.part, tiny.weights, tiny.tokenizer, {"name": "x"})
    file = form.gguf(path)
    assert (file is None) == (name in ("safetensors", "mlx"))
    assert file is None or (file.suffix == ".gguf" and file.is_file())
