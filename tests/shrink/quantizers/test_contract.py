"""Every quantizer of the registry, against the contract of the family."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from settle.base.errors import UsageError
from settle.formats import Weights
from settle.formats.gguf import read_gguf
from settle.formats.gguf.types import ggml_type
from settle.shrink.quantizers import Quantizer
from settle.shrink.types.budget import CostTable
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.mixes import quantizable
from settle.shrink.types.quantize_file import file_bytes, quantize_gguf
from settle.shrink.types.sensitivity import candidates
from tests.shrink.files import make_gguf

QUANTIZERS = Quantizer.parts()


@dataclass
class Model:
    """What a quantizer is given, made up: every bit less costs four times as much, as rounding does."""

    file: Weights

    @property
    def importance(self) -> Importance:
        return Importance({n: np.ones(t.shape[-1], np.float32) for n, t in self.file.tensors.items()})

    @property
    def costs(self) -> CostTable:
        tensors = [self.file.tensors[name] for name in sorted(quantizable(self.file))]
        sizes = {t.name: {k: ggml_type(k).num_bytes(t.shape) for k in candidates(t)} for t in tensors}
        bits = {t.name: {k: 8 * n / math.prod(t.shape) for k, n in sizes[t.name].items()} for t in tensors}
        return CostTable({name: {k: 4.0**-b for k, b in of.items()} for name, of in bits.items()}, sizes)


@pytest.fixture
def model(tmp_path):
    return Model(read_gguf(make_gguf(tmp_path / "x.gguf", rows=8)))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_file_of_the_size_that_was_asked_for(name, model, tmp_path):
    quantizer = Quantizer.make(name, {})
    whole = file_bytes(model.file, {})
    sizes = []
    for share in (0.9, 0.5, 0.35):
        kinds = quantizer.choose_types(model, int(share * whole))
        assert set(kinds) <= set(model.file.tensors)
        written = quantize_gguf(tmp_path / "x.gguf", tmp_path / "y.gguf", kinds, model.importance)
        assert written.stat().st_size == file_bytes(model.file, kinds) <= share * whole
        assert kinds == quantizer.choose_types(model, int(share * whole))
        sizes.append(written.stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_size_that_is_too_small(name, model):
    with pytest.raises(UsageError, match=r"\d [kM]?B"):
        Quantizer.make(name, {}).choose_types(model, 1000)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_setting_is_described(name):
    assert QUANTIZERS[name].__doc__
    assert all(field.description for field in QUANTIZERS[name].model_fields.values())
