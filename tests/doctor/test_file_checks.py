"""Failures of files beyond those that the checks inject themselves: each found, and proven where it does harm."""

from dataclasses import replace

import pytest

from settle.base.event_log import Events
from settle.doctor.checks import Check
from settle.doctor.edited_file import edited_file, with_file
from settle.doctor.examine import examine
from settle.doctor.prove import prove
from settle.doctor.subject import Running
from tests.doctor.chat_model import healthy

ROPE = Check.parts()["rope"]()


@pytest.fixture
def short(home, tmp_path):
    """The chat model, which has seen texts of some hundred tokens, as a file that says so."""
    model = healthy(("model",))
    return with_file(model, edited_file(model.model, tmp_path / "short.gguf", {"llama.context_length": 128}))


def test_a_context_within_the_models_own_is_no_finding(short):
    assert not list(ROPE.detect(replace(short, running=Running(context=128))))


@pytest.mark.slow
def test_a_context_that_the_model_was_not_trained_on(short, tmp_path):
    asked = replace(short, running=Running(context=1024))
    (finding,) = examine(asked, Events(), ["rope"]).findings
    assert finding.details == {"change": "context", "trained": 128}
    proof = prove(ROPE.trial(finding, asked, tmp_path), tmp_path / "measurements.jsonl", Events())
    assert (proof.state, proof.verified) == ("proven", True), proof.to_json()
    assert ROPE.fix(finding, asked).command.endswith("--context 128")


def test_what_takes_too_long_to_read_stays_likely(short, tmp_path):
    long = {"llama.context_length": 65_536}
    model = with_file(short, edited_file(short.model, tmp_path / "long.gguf", long))
    asked = replace(model, running=Running(context=131_072))
    (finding,) = ROPE._too_long(asked)
    assert ROPE.trial(finding, asked, tmp_path) is None
