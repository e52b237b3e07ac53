"""Every format, against the contract of the family."""

import pytest

from settle.base.registry import parts
from settle.formats import AdapterContents, Format, ModelContents
from tests.trained import adapter


def write(form, path, tiny, lora):
    if form.holds == "adapter":
        base = path.parent.parent / "base.gguf"
        return form.write_adapter(path, AdapterContents(tiny.part, lora, tiny.tokenizer, base, {"name": "x"}))
    return form.write(path, ModelContents(tiny.part, tiny.weights, tiny.tokenizer, {"name": "x"}))


@pytest.mark.parametrize("name", parts("formats"))
def test_what_it_says_of_itself_is_so(tiny, tmp_path, name):
    form = parts("formats")[name]()
    assert form.dtype in form.dtypes()
    assert form.default_path("notes").name.startswith("notes")
    assert form.suffix == "" or form.default_path("notes").suffix == form.suffix
    contents = ModelContents(tiny.part, tiny.weights, tiny.tokenizer, {"name": "x"})
    over = AdapterContents(tiny.part, adapter(tiny.part), tiny.tokenizer, tmp_path / "base.gguf", {"name": "x"})
    for holds, write_it in (
        ("model", lambda: form.write(tmp_path / f"m{form.suffix}", contents)),
        ("adapter", lambda: form.write_adapter(tmp_path / f"a{form.suffix}", over)),
    ):
        if form.holds in (holds, "both"):
            assert write_it().exists()
        else:
            with pytest.raises(NotImplementedError):
                write_it()


@pytest.mark.parametrize("name", parts("formats"))
def test_what_is_written_is_read(tiny, tmp_path, name):
    form = parts("formats")[name]()
    assert isinstance(form, Format)
    path = tmp_path / f"model{form.suffix}"
    lora = adapter(tiny.part)
    expected = lora.state if form.holds == "adapter" else tiny.weights
    assert write(form, path, tiny, lora) == path
    tensors = form.read(path).tensors
    assert sorted(t.shape for t in tensors.values()) == sorted(tuple(t.shape) for t in expected.values())
    for tensor in tensors.values():
        values = tensor.load()
        assert values.shape == tensor.shape and values.dtype == "float32"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", [name for name, kind in parts("formats").items() if kind().for_llama_cpp])
def test_the_gguf_inside_is_what_llama_cpp_loads(tiny, tmp_path, name):
    form = parts("formats")[name]()
    path = tmp_path / f"model{form.suffix}"
    write(form, path, tiny, adapter(tiny.part))
    file = form.gguf(path)
    assert file.suffix == ".gguf" and file.is_file()
