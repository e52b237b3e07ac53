"""Every quantizer that needs nothing but a file, against the contract of the family."""

import pytest
from pydantic import ValidationError

from settle.base.registry import part
from settle.formats.gguf import read_gguf
from settle.shrink.quantizers import Quantizer, types_of
from settle.shrink.types.mixes import MIXES
from settle.shrink.types.quantize_file import quantize_gguf
from tests.shrink.files import make_gguf


@pytest.mark.parametrize("recipe", ["Q4_K_M", "q8_0"])
def test_mixed(tmp_path, recipe):
    quantizer = part("shrink/quantizers", "mixed")(recipe=recipe)
    assert isinstance(quantizer, Quantizer) and quantizer.file_type == recipe.upper()
    source = make_gguf(tmp_path / "x.gguf")
    choices = quantizer.kinds(read_gguf(source))
    written = quantize_gguf(source, tmp_path / "y.gguf", types_of(choices), file_type=quantizer.file_type)
    file = read_gguf(written)
    assert {n: t.dtype for n, t in file.tensors.items()} == types_of(choices)
    assert file.metadata["general.file_type"] == MIXES[recipe.upper()]


def test_a_mix_that_is_not_known():
    with pytest.raises(ValidationError, match="there is no 'Q4_K'"):
        part("shrink/quantizers", "mixed")(recipe="Q4_K")
