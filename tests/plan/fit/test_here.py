"""The law of this machine is what two runs say, worked out by hand."""

import mmap
from dataclasses import replace

import numpy as np
import pytest

from settle.formats import LazyTensor, Place, Weights
from settle.library.catalogue import known_model
from settle.library.model_shape import ModelShape
from settle.machine import described
from settle.plan.fit.here import PROMPT, WRITTEN, ModelRun, law_here
from settle.plan.fit.model_shapes import NamedShape
from settle.plan.fit.speed import decode_rate, decode_terms, laws, prefill_rate, prefill_terms
from settle.plan.fit.weight_types import matrices_of

MACHINE = replace(described("cpu ddr5-5600 dual channel"), measured=True)


def measured(name, decode=None, prefill=None):
    """A run that obeys 1.7 of what matrices and 5 of what layers cost, and 2.5 of a prompt's matrices."""
    model = NamedShape(name, known_model(name).shape, "test", "q8_0", 1)
    terms = decode_terms(model.shape, "q8_0", MACHINE, PROMPT + WRITTEN // 2)
    reading = prefill_terms(model.shape, "q8_0", MACHINE, PROMPT)
    seconds = 1.7 * terms["matrices"] + 5 * terms["layers"]
    return ModelRun(model, decode or 1 / seconds, prefill or 1 / (2.5 * reading["matrices"]), 0)


def test_two_runs_give_both_numbers_and_predict_a_third_model():
    law = law_here([measured("smollm2-135m"), measured("qwen2.5-1.5b")], MACHINE)
    assert law.decode["matrices"] == pytest.approx(1.7) and law.decode["layers"] == pytest.approx(5)
    third = measured("llama-3.2-1b")
    rate = decode_rate(third.model.shape, "q8_0", MACHINE, PROMPT + WRITTEN // 2, law=law)
    assert rate.value == pytest.approx(third.decode) and rate.why.startswith("runs on this machine")
    assert prefill_rate(third.model.shape, "q8_0", MACHINE, law, PROMPT).value == pytest.approx(third.prefill, rel=0.01)


def test_one_run_corrects_one_number_and_none_leaves_the_law():
    law = law_here([measured("smollm2-135m")], MACHINE)
    assert set(law.decode) == {"matrices"} and law.rows == 1
    assert law_here([], MACHINE) == laws()["cpu"]


def test_runs_that_contradict_each_other_give_no_negative_cost():
    law = law_here([measured("smollm2-135m", decode=1000.0), measured("qwen2.5-1.5b", decode=0.5)], MACHINE)
    assert all(value >= 0 for value in law.decode.values()) and any(law.decode.values())


def test_a_type_costs_what_it_was_measured_to_cost_and_not_what_it_weighs():
    shape = known_model("llama-3.2-1b").shape
    slow = replace(MACHINE, bandwidth=1e12)  # so that arithmetic decides
    read = {name: prefill_terms(shape, name, slow, PROMPT)["matrices"] for name in ("q4_0", "q4_1", "q8_0", "f16")}
    assert read["q4_0"] < read["q8_0"] < read["q4_1"] and read["f16"] > 1.4 * read["q8_0"]
    written = {name: decode_terms(shape, name, slow, PROMPT)["matrices"] for name in read}
    assert written["q4_0"] < written["q8_0"] < written["f16"]
    narrow = decode_terms(shape, "q8_0", replace(MACHINE, bandwidth=1e9), PROMPT)
    assert narrow["matrices"] == pytest.approx(narrow["bytes"], rel=0.01)  # there reading the weights takes longer


def test_a_narrow_model_spends_most_of_a_prompt_outside_its_matrices():
    """Made models, read on one thread of an AVX-512 machine: microseconds of a processor for a token of a prompt."""
    spent = {(4, 1024, 5120): 2116, (6, 128, 512): 100, (12, 256, 1024): 602, (24, 128, 512): 394}
    seconds = {}
    for layers, width, inner in spent:
        body = layers * (4 * width * width + 3 * width * inner)
        size = body + 2 * 49152 * width
        heads = {"heads": width // 64, "kv_heads": width // 64, "head_dim": 64}
        shape = ModelShape(
            parameters=size, active=size, layers=layers, width=width, vocab=49152, context=512, inner=inner, **heads
        )
        seconds[layers, width, inner] = prefill_terms(shape, "q8_0", MACHINE, 448)["matrices"]
    widest = (4, 1024, 5120)
    for one in spent:
        assert seconds[one] / seconds[widest] == pytest.approx(spent[one] / spent[widest], rel=0.25), one


def test_the_matrices_of_a_file_are_counted_by_type():
    def tensor(dtype, *shape):
        return LazyTensor("", shape, dtype, 0, lambda: np.zeros(shape), Place(mmap.mmap(-1, 1), 0, 0))

    tensors = {
        "token_embd.weight": tensor("Q6_K", 1000, 256), "output_norm.weight": tensor("F32", 256),
        "blk.0.attn_q.weight": tensor("Q4_K", 256, 256), "blk.0.ffn_up_exps.weight": tensor("Q4_0", 8, 512, 256),
    }  # fmt: skip
    metadata = {"general.architecture": "x", "x.expert_count": 8, "x.expert_used_count": 2}
    tied = matrices_of(Weights(tensors, metadata))
    assert tied.read == {"q4_k": 65536, "q4_0": 2 * 131072} and tied.written == {**tied.read, "q6_k": 256_000}
    untied = matrices_of(Weights(tensors | {"output.weight": tensor("Q8_0", 1000, 256)}, metadata))
    assert untied.read == tied.read and untied.written == {**tied.read, "q8_0": 256_000}
