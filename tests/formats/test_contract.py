"""Every format, against the contract of the family."""

import pytest

from settle.base.registry import parts
from settle.formats import Format


@pytest.mark.parametrize("name", parts("formats"))
def test_what_is_written_is_read(tiny, tmp_path, name):
    form = parts("formats")[name]()
    assert isinstance(form, Format)
    path = tmp_path / f"model{form.suffix}"
    assert form.write(path, tiny.part, tiny.weights, tiny.tokenizer, {"name": "x"}) == path
    tensors = form.read(path).tensors
    assert sorted(t.shape for t in tensors.values()) == sorted(tuple(t.shape) for t in tiny.weights.values())
    for tensor in tensors.values():
        values = tensor.load()
        assert values.shape == tensor.shape and values.dtype == "float32"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
