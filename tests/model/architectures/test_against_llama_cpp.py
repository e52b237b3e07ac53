"""Every family against llama.cpp: the same random weights, live here and exported as GGUF there."""

import pytest
import torch

from settle.formats.gguf import export_gguf
from settle.infer.engine import Engine
from settle.infer.sample import logprobs
from tests.model.architectures.cases import BEYOND_GGUF, CASES

POSITIONS = [0, 1, 5, 6, 7, 11, 14, 15, 16, 23, 39]


def _random(part):
    """A model whose every tensor has a say in what comes next."""
    model = part.skeleton("cpu")
    random = torch.Generator().manual_seed(0)
    offset = part.options().layers[0].norm_offset
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if name.endswith("norm.weight"):
                weight.copy_(1 - offset + noise * 0.2)
            elif weight.ndim == 1:
                weight.copy_(noise * 0.5)
            else:
                weight.copy_(noise * (1.5 / weight.shape[-1] ** 0.5))
    return model


@pytest.mark.parametrize("name", [name for name in CASES if name not in BEYOND_GGUF])
def test_equals_llama_cpp(name, tokenizer, tmp_path) -> None:
    case = CASES[name]
    part = case.model_copy(update={"vocab_size": tokenizer.vocab_size})
    model = _random(part)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    path = export_gguf(part, weights, tokenizer, tmp_path / "x.gguf", "f32")
    with Engine(path, threads=1) as engine:
        ids = torch.randint(5, part.vocab_size, (40,), generator=torch.Generator().manual_seed(2)).tolist()
        positions = [p for p in POSITIONS if p < engine.context - 1]
        live = logprobs(model, ids, positions)
        for row, position in zip(live, positions, strict=True):
            found = engine.next_token_logprobs(ids[: position + 1])
            file = torch.tensor([found[i] for i in range(len(row))])
            torch.testing.assert_close(file, row, atol=0.02, rtol=0.002)
