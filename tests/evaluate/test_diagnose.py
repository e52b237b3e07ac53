"""The reasons that are given for a file that is not its model: each by the smallest change that has it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from settle.evaluate.gate.diagnose import (
    Contents,
    Origin,
    _error,
    _harmless,
    _listed,
    _lora,
    _rows_alike,
    _same,
    causes,
    header,
    inspect,
    kept_text,
)
from settle.evaluate.gate.diagnose import adapter as lost_adapter
from settle.evaluate.gate.gate import held_out_texts
from settle.formats.gguf import export_gguf, read_gguf
from settle.formats.lora_gguf import export_lora, read_lora
from tests.trained import adapter, merged


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (0.5, "keeps 50% of"), (-0.05, "keeps 0% of"), (1.05, "keeps 105% of"), (0.0, "keeps 0% of"),
        (-0.06, "by rounding"), (1.06, "by rounding"),
    ],
)  # fmt: skip
def test_what_is_kept_of_an_adapter_in_words(share: float, says: str) -> None:
    assert says in kept_text(share)


@pytest.mark.parametrize(("share", "is_lost"), [(0.49, True), (0.5, False), (1.5, False), (1.51, True), (None, False)])
def test_an_adapter_is_lost_where_less_than_half_of_it_is_there(tiny: Any, share: float | None, is_lost: bool) -> None:
    assert bool(list(lost_adapter(Origin(tiny.part, {}), None, share))) == is_lost


def test_numbers_of_a_header_are_the_same_to_rounding_and_whole_ones_exactly() -> None:
    assert _same(1.0, 1.000001) and not _same(1.0, 1.0001) and _same(0.0, 1e-13) and _same(3, 3) and not _same(3, 4)
    assert _same(100_000_000, 100_000_000) and not _same(100_000_000, 100_000_001) and _same(2, 2.0) and _same("a", "a")
    assert not _same("a", "b") and not _same(1, "1")


@pytest.mark.parametrize("key", ["x.rope.scaling.finetuned", "x.rope.scaling.original_context_length"])
def test_what_llama_cpp_does_not_read_is_no_difference(key: str) -> None:
    assert _harmless(key, 7) and _harmless("x.rope.dimension_count", 7)
    assert _harmless("x.rope.scaling.factor", 1.0) and _harmless("x.rope.scaling.type", "none")
    assert not _harmless("x.rope.scaling.factor", 2.0) and not _harmless("x.rope.scaling.type", "linear")


def with_header(tiny: Any, **changes: object) -> Any:
    wanted = {"general.architecture": tiny.part.gguf_family, **tiny.part.gguf_metadata()}
    return SimpleNamespace(metadata={k: v for k, v in (wanted | changes).items() if v is not None}, tensors={})


def test_a_header_says_what_the_model_computes(tiny: Any) -> None:
    own, foreign = Origin(tiny.part, {}), Origin(tiny.part, {}, foreign=True)
    beside = Origin(tiny.part, {}, adapter=adapter(tiny.part))
    assert not list(header(own, with_header(tiny)))
    wrong = with_header(tiny, **{"llama.rope.freq_base": 7.0})
    for origin in (own, foreign, beside):
        (said,) = header(origin, wrong)
        assert said.startswith("the RoPE scale is wrong: llama.rope.freq_base is 7.0 in the file, ")
    (said,) = header(own, with_header(tiny, **{"llama.block_count": None}))
    assert said == "the header is wrong: llama.block_count is not in the file, 2 in the model"
    for origin in (foreign, beside):  # others may leave out what is the default
        assert not list(
            header(origin, with_header(tiny, **{"llama.block_count": None, "llama.rope.scaling.factor": 2.0}))
        )
    for key, topic in (("llama.rope.scaling.factor", "RoPE scale"), ("llama.attn_logit_softcapping", "soft-cap")):
        (said,) = header(own, with_header(tiny, **{key: 2.0}))
        assert said == f"the {topic} is wrong: {key} is 2.0 in the file, and the model has none"
    assert not list(header(own, with_header(tiny, **{"llama.rope.scaling.factor": 1.0, "llama.other": 2.0})))


def test_causes_come_in_the_order_in_which_they_are_likely(tiny: Any) -> None:
    file = with_header(tiny, **{"llama.block_count": 3})
    said = causes(Origin(tiny.part, {}), file, Contents(0.0, ["damage"]))
    assert [one.split(":")[0] for one in said] == ["the header is wrong", "the adapter is lost", "damage"]


def test_tensors_that_lack_or_have_another_shape_are_named(tiny: Any, tmp_path: Any) -> None:
    file = read_gguf(export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf", "f32"))
    names = tiny.part.gguf_names()
    few = {n: t for n, t in file.tensors.items() if n not in (names["lm_head.weight"], "blk.0.attn_q.weight")}
    lacking = inspect(Origin(tiny.part, tiny.weights), SimpleNamespace(tensors=few))  # type: ignore[arg-type]
    assert (
        lacking.damage == ["2 tensors are not in the file, the first is blk.0.attn_q.weight"] and lacking.kept is None
    )
    other = tiny.weights | {"lm_head.weight": torch.zeros(3, 64)}
    assert inspect(Origin(tiny.part, other), file).damage == ["not the model's values in output.weight"]
    only = {"lm_head.weight": tiny.weights["lm_head.weight"]}  # what the origin does not name is not judged
    assert inspect(Origin(tiny.part, only), file).damage == []


def test_what_is_kept_is_along_the_adapter_s_own_change(tiny: Any, tmp_path: Any) -> None:
    """Half of the change is in the file; a tensor that the base does not have says nothing of it."""
    whole, half = adapter(tiny.part, strength=0.2), adapter(tiny.part, strength=0.1)
    path = export_gguf(tiny.part, merged(tiny.weights, half), tiny.tokenizer, tmp_path / "x.gguf", "f32")
    base = {name: values for name, values in tiny.weights.items() if "layers.0" not in name}
    found = inspect(Origin(tiny.part, merged(tiny.weights, whole), base=base), read_gguf(path))
    assert found.kept == pytest.approx(0.5, abs=1e-3) and found.damage


def test_rows_in_another_order_are_told_from_other_values(tiny: Any, tmp_path: Any) -> None:
    weights = dict(tiny.weights)
    gates = [name for name in weights if "gate_proj" in name]
    for name in gates:
        weights[name] = weights[name].flip(0)
    weights["model.layers.0.mlp.up_proj.weight"] = -2 * weights["model.layers.0.mlp.up_proj.weight"]
    path = export_gguf(tiny.part, weights, tiny.tokenizer, tmp_path / "x.gguf", "f32")
    order, values = inspect(Origin(tiny.part, tiny.weights), read_gguf(path)).damage
    assert order.startswith("rows are permuted: ") and "blk.0.ffn_gate.weight, blk.1.ffn_gate.weight" in order
    assert values == "not the model's values in blk.0.ffn_up.weight"


def test_stale_values_are_told_from_rows_in_another_order(tiny: Any, tmp_path: Any) -> None:
    """Damage that is small in every row leaves the lengths of the rows nearly as they are."""
    weights, random = dict(tiny.weights), torch.Generator().manual_seed(0)
    head = weights["lm_head.weight"]
    noise = torch.randn(head.shape, generator=random) * head.norm() / head.numel() ** 0.5
    weights["lm_head.weight"] = head + 0.003 * noise
    cut = weights["model.layers.0.mlp.up_proj.weight"].clone()
    cut[:, 3] = 0
    weights["model.layers.0.mlp.up_proj.weight"] = cut
    weights["model.layers.1.self_attn.q_proj.weight"] = weights["model.layers.1.self_attn.q_proj.weight"].flip(0)
    path = export_gguf(tiny.part, weights, tiny.tokenizer, tmp_path / "x.gguf", "f16")
    order, values = inspect(Origin(tiny.part, tiny.weights), read_gguf(path)).damage
    assert order == "queries and keys are permuted: rows in another order than llama.cpp's in blk.1.attn_q.weight"
    assert values.startswith("not the model's values in ") and "output.weight (0.30% off: an older copy" in values
    assert "blk.0.ffn_up.weight (" in values and "permuted" not in values


def test_an_error_is_a_share_of_what_is_wanted() -> None:
    wanted = np.array([[3.0, 4.0], [0.0, 1.0]])
    assert _error(wanted * 1.1, wanted) == pytest.approx(0.1) and _error(wanted * 0, wanted * 0) == 0
    assert _error(np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]])) == pytest.approx(1.0)
    assert _rows_alike(wanted[::-1], wanted, 1e-6) and not _rows_alike(wanted * 1.1, wanted, 0.09)
    assert _rows_alike(wanted[:, ::-1] * [1, -1], wanted, 1e-6)
    turned = np.array([[4.0, 3.0], [0.0, 1.0]])  # rows of the same lengths, columns of others
    assert _rows_alike(turned, wanted, 1e-6) and not _rows_alike(wanted.T, wanted, 1e-6)


def test_of_many_names_three_are_shown() -> None:
    assert _listed(["a", "b", "c"]) == "a, b, c" and _listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


@pytest.mark.parametrize(("half", "says"), [("lora_A", "A of"), ("lora_B", "B of")])
def test_another_adapter_is_told_by_its_half(tiny: Any, tmp_path: Any, half: str, says: str) -> None:
    ours = adapter(tiny.part)
    key = next(name for name in ours.state if half in name and "down_proj" in name)
    path = export_lora(tiny.part, ours, tmp_path / "x.gguf")
    assert not list(_lora(tiny.part, ours, read_lora(path)))
    other = type(ours)(ours.method, ours.state | {key: ours.state[key] * 1.1}, base="tiny", base_sha256="ab" * 32)
    (said,) = _lora(tiny.part, other, read_lora(path))
    assert said.startswith(f"the adapter is another one: {says} model.layers.0.mlp.down_proj differs")
    near = type(ours)(ours.method, ours.state | {key: ours.state[key] * 1.001}, base="tiny", base_sha256="ab" * 32)
    assert not list(_lora(tiny.part, near, read_lora(path)))


class Documents:
    """A store of `number` documents of `length` tokens each, whose first token is its number."""

    def __init__(self, number: int, length: int) -> None:
        self.num_documents, self.length, self.num_tokens = number, length, number * length

    def document(self, at: int) -> np.ndarray:
        return np.array([at] + [1000] * (self.length - 1))


@pytest.mark.parametrize(
    ("number", "length", "chosen"),
    [
        (100, 10, list(range(0, 100, 3))),  # 1000 of 300 tokens: every third
        (10, 100, list(range(10))),  # of few, at least eight
        (80, 100, list(range(0, 80, 10))),  # every 27th would be fewer than eight
        (3, 2, [0, 1, 2]),
        (10_000, 2, list(range(0, 10_000, 67))),
    ],
)
def test_held_out_documents_are_evenly_spread(number: int, length: int, chosen: list[int]) -> None:
    reader: Any = SimpleNamespace(decode=lambda ids: ids.tolist())
    found: Any = held_out_texts(Documents(number, length), reader, most_tokens=300)  # type: ignore[arg-type]
    assert [ids[0] for ids in found] == chosen
    assert {len(ids) for ids in found} == {min(length - 1, 300 // 8)}  # without the end of the text, and not too long
