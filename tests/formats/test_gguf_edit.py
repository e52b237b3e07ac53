"""A GGUF file with other metadata: only what was asked for changes, and the weights lie as they lay."""

import numpy as np
import pytest

from settle.base.errors import FormatError, UsageError
from settle.formats.gguf import export_gguf, read_gguf, write_edited

TEMPLATE = "tokenizer.chat_template"


@pytest.fixture
def file(tiny, tmp_path):
    return export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf", "q8_0", {"name": "tiny"})


def test_a_key_is_changed_added_and_left_out(file, tmp_path):
    before = read_gguf(file)
    changes = {
        "tokenizer.ggml.add_bos_token": True,  # its type stays
        TEMPLATE: "{{ messages }} — longer than any value that was there before" * 20,
        "general.name": None,
        "my.list": ["a", "bc"],
        "my.number": -3,
        "my.float": 0.5,
    }
    after = read_gguf(write_edited(file, tmp_path / "out.gguf", changes))
    assert {key: after.metadata.get(key) for key in changes} == changes
    untouched = set(before.metadata) - set(changes)
    assert untouched and all(_same(before.metadata[key], after.metadata[key]) for key in untouched)
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        assert tensor.dtype == after.tensors[name].dtype
        np.testing.assert_array_equal(tensor.load(), after.tensors[name].load())


def test_no_change_gives_the_same_bytes(file, tmp_path):
    assert write_edited(file, tmp_path / "out.gguf", {}).read_bytes() == file.read_bytes()


def test_a_value_that_its_type_cannot_hold_is_refused_and_nothing_is_left(file, tmp_path):
    with pytest.raises(UsageError, match="cannot be"):
        write_edited(file, tmp_path / "out.gguf", {"tokenizer.ggml.eos_token_id": -1})
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_torn_file_is_refused(file, tmp_path):
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(FormatError):
        write_edited(file, tmp_path / "out.gguf", {"general.name": "x"})


def _same(one, other):
    return bool(np.all(np.asarray(one, object) == np.asarray(other, object)))
