"""Rates of the planner against the same sums written out."""

from types import SimpleNamespace
from typing import Any

import pytest

from settle.plan.cluster.throughput import doublings
from settle.plan.fit import speed
from settle.plan.fit.weight_types import matrices_as
from settle.plan.memory_model import need


def rate(value: float) -> Any:
    return SimpleNamespace(value=value)


@pytest.mark.parametrize(
    ("width", "inner", "used", "heads", "widest"),
    [(100, 150, 0, 1, 200), (100, 250, 0, 1, 250), (100, 250, 3, 1, 750), (100, 150, 1, 9, 288)],
)
def test_the_work_of_a_batch_is_its_widest_state_twice(
    width: int, inner: int, used: int, heads: int, widest: int
) -> None:
    shape: Any = SimpleNamespace(
        width=width, inner=inner, experts_used=used, heads=heads, head_dim=32, vocab=1000, towers=0,
        kv_bytes=lambda context, element: 7.0 * context,
    )  # fmt: skip
    machine: Any = SimpleNamespace(kind="cuda", count=2)
    found = need(shape, "f16", machine, 64, texts=3, weights=5e6)
    assert found.working + found.logits == 2 * (2 * 4.0 * 64 * widest + 4.0 * 1000 * 64)
    assert (found.weights, found.cache) == (5e6, 3 * 7.0 * 64)


def test_the_first_token_waits_for_the_prompt_and_for_itself() -> None:
    assert speed.first_token_seconds(rate(100.0), rate(4.0), 50) == pytest.approx(0.75)
    assert speed.first_token_seconds(rate(100.0), rate(4.0), 0) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("devices", "node", "wanted"), [(1, 8, 0), (8, 8, 0), (16, 8, 1), (64, 8, 3), (64, 16, 3), (8, 4, 1)]
)
def test_nodes_are_doubled(devices: int, node: int, wanted: float) -> None:
    assert doublings(SimpleNamespace(node=node), SimpleNamespace(devices=devices)) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("type_name", "body", "head"),
    [
        ("q4_k_m", "q4_k", "q6_k"), ("Q4_0", "q4_0", "q6_k"), ("q8_0", "q8_0", "q8_0"), ("f16", "f16", "f16"),
        ("bf16", "bf16", "bf16"), ("nothing", "q8_0", "q8_0"),
    ],
)  # fmt: skip
def test_a_type_is_priced_by_its_longest_known_name(type_name: str, body: str, head: str) -> None:
    shape: Any = SimpleNamespace(width=256, read=1000, table=300)
    found = matrices_as(shape, type_name)
    assert found.read == {body: 700.0}
    assert found.written == ({body: 1000.0} if head == body else {body: 700.0, head: 300.0})
