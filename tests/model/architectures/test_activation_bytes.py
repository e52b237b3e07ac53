"""What a family says that it keeps between forward and backward, against what autograd keeps."""

import numpy as np
import pytest
import torch
from torch import Tensor

from settle.data.batches import Batch
from settle.model.adapters.lora import LoRA
from settle.model.decoder import Decoder
from settle.train.objectives.next_token import NextToken
from tests.model.architectures.cases import CASES
from tests.model.test_llama import packed
from tests.pretend_card import pretend_card

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
    assert more - less == said


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "llama", "phi3", "qwen3"])
def test_flash_attention_keeps_no_probabilities(name: str) -> None:
    """On a card that is not there, in bfloat16: gemma2 caps its scores, which that kernel does not know."""
    architecture = CASES[name]

    def kept(rows: int) -> int:
        lengths = np.full(rows, LENGTH)
        batch = Batch(
            *(np.zeros(rows * LENGTH, np.int64),) * 2,
            np.append(0, np.cumsum(lengths)).astype(np.int32),
            np.tile(np.arange(LENGTH), rows),
        )
        sizes: dict[int, int] = {}

        def remember(t: Tensor) -> Tensor:
            if t.is_floating_point():
                sizes[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
                held.append(t)
            return t

        held: list[Tensor] = []
        with pretend_card("meta", numbers=False):
            model = architecture.skeleton("meta")
            model.compute_dtype = torch.bfloat16
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
                NextToken().batch_loss(model, batch)
        return sum(sizes.values())

    found = kept(16) - kept(8)
    said = architecture.activation_bytes_per_token(LENGTH, 2, is_flash=True) * LENGTH * 8
    plain = architecture.activation_bytes_per_token(LENGTH, 2) * LENGTH * 8
    assert said == pytest.approx(found, rel=0.02), (found, said, plain)
