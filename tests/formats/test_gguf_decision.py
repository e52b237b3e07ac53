"""The decision keys of a GGUF file: what is written is read, and what llama.cpp would trip over is refused before."""

import math
from dataclasses import replace

import numpy as np
import pytest

from settle.base.errors import FormatError
from settle.formats.gguf import read_gguf
from settle.formats.gguf.decision import TEMPLATE_KEY, read_decision
from settle.formats.gguf.layout import Entry, layout
from tests import decision_model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return decision_model.write(tmp_path_factory.mktemp("decision") / "decider.gguf")


def rewritten(file, path, changes):
    """The same file with other keys: what `settle shrink` does with every key that it does not change."""
    source = read_gguf(file)
    entries = [Entry(name, t.shape, t.dtype, t.num_bytes) for name, t in source.tensors.items()]
    planned = layout(source, entries, changes)
    with path.open("wb") as out:
        out.write(planned.header)
        for tensor in source.tensors.values():
            out.write(tensor.place.bytes().tobytes() + bytes(planned.padding(tensor.num_bytes)))
    return path


def test_what_is_written_is_read(file, tmp_path):
    wanted, read = decision_model.keys(), read_decision(read_gguf(file).metadata)
    assert read.confidences == pytest.approx(wanted.confidences)
    assert replace(read, confidences=wanted.confidences) == wanted
    copied = rewritten(file, tmp_path / "copied.gguf", {"general.name": "copied"})
    assert read_decision(read_gguf(copied).metadata) == read


def test_other_models_have_none(tmp_path):
    bare = decision_model.write(
        tmp_path / "bare.gguf", decision_model.keys(confidences=(), correct=(), families=(), temperatures={})
    )
    assert read_decision(read_gguf(bare).metadata).temperatures == {}
    plain = rewritten(bare, tmp_path / "plain.gguf", {"llama.decision.type": None})
    assert read_decision(read_gguf(plain).metadata) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"llama.decision.type": 3}, "decision.type is 3"),
        ({TEMPLATE_KEY: None}, "tokenizer.chat_template.systemone"),
        ({"llama.decision.temperature.choice": 0.0}, "decision.temperature.choice is 0.0"),
        ({"llama.decision.temperature.noul": -1.0}, "decision.temperature.noul is -1.0"),
        ({"llama.decision.temperature.noul": math.inf}, "decision.temperature.noul is inf"),
        ({"llama.decision.temperature.score": "warm"}, "decision.temperature.score is 'warm'"),
        ({"settle.decision.questions": "[1]"}, "settle.decision.questions is .1."),
        ({"settle.decision.questions": "{"}, "settle.decision.questions is '{'"),
        ({"settle.decision.correct": np.array([True])}, "do not belong together"),
        (
            {"settle.decision.families": np.array([1, 2], "i4")},
            "settle.decision.families and settle.decision.confidences",
        ),
    ],
)
def test_keys_that_are_not_sound_are_refused(file, tmp_path, changes, named):
    with pytest.raises(FormatError, match=named):
        read_gguf(rewritten(file, tmp_path / "bad.gguf", changes))
