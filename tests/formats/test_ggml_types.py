"""The table of ggml types against the libraries, and a type that is added to it."""

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from settle.evaluate.gate.gate import Reference, run_gate
from settle.formats import ModelContents
from settle.formats.gguf import Gguf, read_gguf
from settle.formats.gguf.types import GGML, Bars, GgmlType, exported
from settle.model.pretrained import Pretrained
from tests.examples import example


@pytest.mark.parametrize("row", GGML.values(), ids=list(GGML))
def test_a_row_says_what_ggml_says(row):
    assert GGMLQuantizationType[row.name] == row.id
    assert GGML_QUANT_SIZES[row.id] == (row.block, row.block_bytes)
    for mix, number in row.mixes.items():
        assert LlamaFileType[("ALL_" if mix == "F32" else "MOSTLY_") + mix] == number
    assert (row.bars is None) == (row.large_bars is None)


def test_exported_types_are_those_with_bars():
    assert exported() == ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


def test_a_new_type_is_one_row(tiny, tmp_path, monkeypatch):
    """TQ2_0, the row in docs/develop.md: it is exported, read, loaded and gated, with nothing else changed."""
    with pytest.raises(ValueError, match="'tq2_0'"):
        Gguf(dtype="tq2_0")
    row = eval(example("tq2_0"), {"GgmlType": GgmlType, "Bars": Bars})
    monkeypatch.setitem(GGML, "TQ2_0", row)
    part = tiny.part.with_fields(hidden_size=256, intermediate_size=256, num_hidden_layers=1)  # blocks are 256 wide
    weights = {name: parameter.detach() for name, parameter in part.build(seed=0).named_parameters()}
    path = Gguf(dtype="tq2_0").write(tmp_path / "x.gguf", ModelContents(part, weights, tiny.tokenizer, {"name": "x"}))
    stored = read_gguf(path)
    assert stored.tensors["blk.0.ffn_up.weight"].dtype == "TQ2_0" and stored.metadata["general.file_type"] == 37
    opened = Pretrained.open(path)
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(opened.read(name).numpy(), stored.tensors["blk.0.ffn_up.weight"].load())
    as_stored = opened.load(quantize="as-is").weights()[name]
    torch.testing.assert_close(as_stored.dense(torch.float32), opened.read(name), rtol=0, atol=0)
    dense = opened.load().eval()
    figures = run_gate(Reference(dense, tiny.tokenizer, tiny.held_out), path, "blocks")
    assert figures["passed"], figures
