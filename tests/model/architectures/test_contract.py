"""Every family against the contract: what it says of itself is true of the model it builds, and that model learns."""

import pytest
import torch

from settle.formats.gguf import export_gguf, read_gguf
from settle.model.config import ROUTERS
from settle.model.families import families
from settle.train.objectives.next_token import NextToken
from tests.model.architectures.cases import BEYOND_GGUF, CASES

FAMILIES = families()


@pytest.mark.parametrize("name", CASES)
def test_counts_are_true(name) -> None:
    part = CASES[name]
    shapes = {n: tuple(p.shape) for n, p in part.skeleton().named_parameters()}
    assert shapes == part.parameters()
    assert part.num_parameters == sum(p.numel() for p in part.skeleton().parameters())
    tables = [shapes.get(n, (0,)) for n in ("model.embed_tokens.weight", "lm_head.weight")]
    assert part.num_non_embedding_parameters == part.num_parameters - sum(torch.Size(t).numel() for t in tables)
    assert set(part.hf_names()) == set(part.gguf_names()) == set(shapes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_a_size_learns_from_nothing(family) -> None:
    part = FAMILIES[family].sized(60_000, vocab_size=64, context=64)
    assert 0.5 < part.num_parameters / 60_000 < 4 and part.max_position_embeddings == 64
    assert part.flops_per_token(64) > 0
    model = part.build(seed=0)
    text = (torch.arange(97) * 7 % 64)[:96]
    bounds = torch.tensor([0, 48, 96], dtype=torch.int32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss, count = NextToken().loss(model, text, text.roll(-1), bounds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()) / count)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("name", CASES)
def test_bf16_is_close_to_fp32(name) -> None:
    part = CASES[name]
    inputs, targets = torch.randint(0, part.vocab_size, (2, 96), generator=torch.Generator().manual_seed(0))
    bounds = torch.arange(0, 97, 24, dtype=torch.int32)
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = part.build(seed=0)
        model.compute_dtype = dtype
        losses[dtype] = NextToken().loss(model, inputs, targets, bounds)[0].detach()
    torch.testing.assert_close(losses[torch.bfloat16], losses[torch.float32], rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", [name for name in CASES if name not in BEYOND_GGUF])
def test_q8_0_of_every_family(name, tokenizer, tmp_path) -> None:
    """Stacked and fused tensors keep whole blocks; norms, biases and routers stay exact."""
    part = CASES[name].model_copy(update={"vocab_size": tokenizer.vocab_size})
    weights = {n: p.detach() for n, p in part.build(seed=0).named_parameters()}
    tensors = read_gguf(export_gguf(part, weights, tokenizer, tmp_path / "x.gguf", "q8_0")).tensors
    seen: dict[str, int] = {}
    for parameter, tensor in part.gguf_names().items():
        stored = torch.from_numpy(tensors[tensor].load())
        if len(part.gguf_members()[tensor]) > 1:
            stored = stored[seen.setdefault(tensor, 0)]
            seen[tensor] += 1
        expected = weights[parameter]
        exact = tensors[tensor].dtype == "F32"
        assert exact == (expected.ndim != 2 or parameter.removesuffix(".weight").endswith(ROUTERS))
        error = (part.from_gguf_tensor(parameter, stored).view_as(expected) - expected).abs().max()
        assert error <= (1e-6 if exact else 2**-7 * expected.abs().max())


def test_every_family_is_compared_with_llama_cpp() -> None:
    """A family's TINY is what the comparisons run on: it must be one that llama.cpp computes."""
    assert not BEYOND_GGUF & set(families())
