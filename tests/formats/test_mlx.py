"""What mlx-lm loads says what transformers says."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from settle.formats import ModelContents
from settle.formats.mlx import Mlx
from settle.formats.safetensors import export_safetensors

mx = pytest.importorskip("mlx.core", reason="mlx has no wheel for this machine")


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_mlx_lm_loads_it_with_equal_logits(tiny, tmp_path, dtype):
    from mlx_lm import load

    folder = Mlx(dtype=dtype).write(
        tmp_path / "mlx", ModelContents(tiny.part, tiny.weights, tiny.tokenizer, {"name": "x"})
    )
    hf = export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "hf", dtype)
    model, tokenizer = load(str(folder))
    text = "def f(self):\n    return self.value"
    ids = tiny.tokenizer.encode(text).tolist()
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    theirs = np.array(model(mx.array([ids]))[0].astype(mx.float32))
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)(torch.tensor([ids])).logits[0].numpy()
    error = np.abs(theirs - ours).max() / ours.std()
    assert error < (1e-3 if dtype == "f32" else 5e-2)
