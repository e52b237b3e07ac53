"""The gate of decision models: a file that answers as the live model passes, and one with a fault does not."""

from dataclasses import replace

import numpy as np
import pytest

from settle.base.errors import GateError
from settle.base.event_log import Events
from settle.data.decisions.prompt import DecisionEncoder, all_labels
from settle.data.decisions.questions import Question
from settle.data.decisions.rows import DecisionRow
from settle.evaluate.gate.decision_gate import DecisionGate, ProbabilitiesApart
from settle.formats.gguf import export_gguf
from settle.formats.gguf.decision import TEMPLATE_KEY
from settle.jobs.tune_decision import in_fine_enough_type
from settle.train.objectives.decision import Decision
from tests import decision_model
from tests.formats.test_gguf_decision import rewritten
from tests.trained import trained

ASKED = {
    "topic": decision_model.QUESTIONS["topic"],
    "raises": {"type": "noul", "instructions": "Does it raise?", "criteria": {"true": "it does", "false": None}},
    "length": {"type": "score", "instructions": "How long?", "criteria": ["short", "middling", "long"]},
}
STATES = ("def parse(self, value):", "import os", "<|im_end|>\n<|im_start|>assistant\nA")


@pytest.fixture(scope="module")
def gate():
    model = trained()
    labels = all_labels(model.tokenizer)
    rows = []
    for name, asked in ASKED.items():
        question = Question.from_json(asked)
        target = tuple(float(i == 0) for i in range(len(question.options)))
        rows += [DecisionRow(state, name, question, target, f"t:{n}") for n, state in enumerate(STATES)]
    objective = Decision(labels=list(labels.values()))
    encoder = DecisionEncoder(model.tokenizer, decision_model.prompt(), labels)
    return DecisionGate(model.model.eval(), objective, encoder, decision_model.keys(questions=ASKED), rows)


@pytest.fixture(scope="module")
def file(gate, tmp_path_factory):
    return decision_model.write(tmp_path_factory.mktemp("gate") / "decider.gguf", gate.keys)


def test_a_sound_file_passes(gate, file):
    figures = gate.run(file)
    assert figures["largest_difference"] < 1e-3 and figures["rows"] > 9 + 3 * 40


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"llama.decision.type": None}, "a key is missing"),
        ({"llama.decision.type": "openjev"}, "decision read out"),
        ({TEMPLATE_KEY: "{{ state }}"}, "decision template"),
        ({"llama.decision.temperature.choice": 1.0}, "has the temperatures"),
        ({"llama.decision.temperature.noul": None}, "has the temperatures"),
        ({"llama.decision.temperature.score.3_5": 3.0}, "has the temperatures"),
        ({"settle.decision.questions": "{}"}, "decision questions"),
        ({"settle.decision.columns": ["other"]}, "decision columns"),
        ({"settle.decision.correct": np.zeros(100, bool)}, "decision correct"),
        ({"settle.decision.confidences": np.zeros(100, "f4")}, "decision confidences"),
        ({"settle.decision.families": np.full(100, 7, "i4")}, "decision families"),
    ],
)
def test_a_wrong_key_is_refused(gate, file, tmp_path, changes, named):
    with pytest.raises(GateError, match=named):
        gate.run(rewritten(file, tmp_path / "bad.gguf", changes))


def test_odd_texts_that_the_context_does_not_hold_are_left_out(gate, file):
    """llama.cpp refuses them for every user; a model of a short context could never pass otherwise."""
    whole, short = gate._sampled(10_000), gate._sampled(gate._length(gate.rows[0]) + 40)
    assert len(gate.rows) < len(short) < len(whole) and short[: len(gate.rows)] == whole[: len(gate.rows)]
    assert max(map(gate._length, short[len(gate.rows) :])) < gate._length(gate.rows[0]) + 40


@pytest.mark.parametrize(
    "changes",
    [
        {"read_out": "openjev"},  # true before false
        {"template": ("{% for o in options %}", "{% for o in options | reverse %}")},
        {"template": ("{{ instructions }}", "")},
        {"template": ("{% if o.description %}: {{ o.description }}{% endif %}", "")},
    ],
)
def test_what_the_keys_mean_is_seen_in_the_answers(gate, tmp_path, changes):
    """The same faults where they were asked for: llama.cpp answers otherwise than the live model."""
    if "template" in changes:
        changes = {"template": gate.keys.template.replace(*changes["template"])}
    wrong = replace(gate.keys, **changes)
    assert wrong != gate.keys
    path = decision_model.write(tmp_path / "wrong.gguf", wrong)
    with pytest.raises(GateError, match="away from the trained model's"):
        replace(gate, keys=wrong).run(path)


def test_other_weights_are_refused(gate, tmp_path):
    model = trained()
    weights = {name: weight.clone() for name, weight in model.weights.items()}
    name = next(name for name in weights if name.endswith("layers.1.mlp.down_proj.weight"))
    weights[name] *= 1.5
    keys = gate.keys.metadata("llama")
    path = export_gguf(model.part, weights, model.tokenizer, tmp_path / "w.gguf", "f32", {}, keys)
    with pytest.raises(GateError, match="away from the trained model's"):
        gate.run(path)


def test_where_rounding_to_16_bits_moves_a_probability_too_far_the_file_is_f32(gate, tmp_path):
    def write(dtype):
        file = decision_model.write(tmp_path / f"{dtype}.gguf", gate.keys, dtype)
        return {"gguf": file.name}, replace(gate, bar=bar, rows=gate.rows[:1]).run(file)

    bar = 1.0
    apart = {dtype: write(dtype)[1]["largest_difference"] for dtype in ("f16", "f32")}
    bar = (apart["f32"] + apart["f16"]) / 2
    with pytest.raises(ProbabilitiesApart, match="f16.gguf"):
        write("f16")
    assert in_fine_enough_type(write, Events())[0] == {"gguf": "f32.gguf"}
