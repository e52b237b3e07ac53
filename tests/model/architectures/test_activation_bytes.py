"""What a family says that it keeps between forward and backward, against what autograd keeps."""

import pytest
import torch
from torch import Tensor

from settle.model.adapters.lora import LoRA
from settle.model.decoder import Decoder
from settle.train.objectives.next_token import NextToken
from tests.model.architectures.cases import CASES
from tests.model.test_llama import packed

LENGTH = 32


def kept_bytes(model: Decoder, rows: int, vocab: int) -> int:
    """Of all numbers that autograd keeps in one forward pass of `rows` segments."""
    inputs, targets, bounds = packed([LENGTH] * rows, vocab)
    kept: dict[int, int] = {}

    def remember(t: Tensor) -> Tensor:
        if t.is_floating_point():
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
        loss, _ = NextToken().loss(model, inputs, targets.abs(), bounds)
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("name", sorted(CASES))
def test_activation_bytes_are_what_autograd_keeps(name: str, rank: int | None) -> None:
    architecture = CASES[name]
    model = architecture.build(seed=0)
    adapter = None if rank is None else LoRA(rank=rank)
    if adapter is not None:
        adapter.apply(model)
    # what does not grow with the number of tokens, weights and copies of them, falls out of the difference
    more, less = (kept_bytes(model, rows, architecture.vocab_size) for rows in (16, 8))
    kept = adapter and adapter.kept_numbers(architecture.linears())
    said = architecture.activation_bytes_per_token(LENGTH, 4, kept) * LENGTH * 8
    assert abs(more - less - said) <= (0.1 * said if "moe" in name else 0), (more - less, said)
