"""On a pretended card (`tests/pretend_card`): no tensor on a wrong device, and the host waits where it has to alone.

The full matrix of architectures and works is bench/gpu_trace.py's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from settle.model.architectures import Architecture
from tests.pretend_card import PretendCard, pretend_card
from tests.pretend_card.works import GGUF_TYPES, WORKS, Bench, dequantized

ONCE_A_STEP = {("to the CPU", "train/gradient.py")}  # the losses and the gradient's norm, together


def waits(card: PretendCard) -> set[tuple[str, str]]:
    """Kinds of waits with their files; uploads are queued on CUDA, and wait on the device that stands for it here."""
    found = {(wait.what, wait.line.rpartition(":")[0]) for wait in card.trace.waits}
    return found - {("to the card", "model/layers/transfer.py")}


@pytest.mark.parametrize(
    ("family", "work", "dtype", "expected"),
    [
        ("llama", "train", "float32", ONCE_A_STEP),
        ("qwen2", "QLoRA", "bfloat16", ONCE_A_STEP),
        ("llama", "scores in float32", "bfloat16", ONCE_A_STEP),
        ("mistral", "generation", "bfloat16", {("wait", "model/kv_cache.py"), ("to the CPU", "model/kv_cache.py")}),
        ("llama", "evaluation", "bfloat16", {("to the CPU", "train/objectives/__init__.py")}),
    ],
)
def test_a_warm_step_waits_for_the_card_only_where_it_must(
    family: str, work: str, dtype: str, expected: set[tuple[str, str]]
) -> None:
    part, kind = Architecture.parts()[family].TINY, getattr(torch, dtype)
    here, found = WORKS[work](Bench(part, "cpu", kind)), set()
    with pretend_card("meta") as card:

        @contextmanager
        def counted() -> Iterator[None]:
            card.trace.waits.clear()
            yield
            found.update(waits(card))
            if work == "train" and family == "llama":
                assert card.trace.number("to the CPU") == 1 and not card.trace.number("wait")

        there = WORKS[work](Bench(part, "meta", kind, counted))
    assert found == expected
    # a half type rounds otherwise in the card's order of operations, unless scores are in float32
    assert there == pytest.approx(here, rel=1e-5 if dtype == "float32" or "float32" in work else 0.03)


def test_every_gguf_type_is_dequantized_on_the_card() -> None:
    for kind in GGUF_TYPES:
        with pretend_card("meta") as card:
            here, there = dequantized(kind, "meta")
            assert there.device.type == "meta"
            assert torch.equal(torch.nan_to_num(card.numbers_of(there)), torch.nan_to_num(here)), kind


def test_the_pretended_card_refuses_what_a_card_refuses() -> None:
    with pretend_card("meta") as card:
        there = torch.ones(3).to("meta")
        with pytest.raises(RuntimeError, match="devices"):
            there + torch.ones(3)
        assert there.sum().item() == 3.0
    assert card.trace.number("wait") == 1 and card.trace.number("to the card") == 1
