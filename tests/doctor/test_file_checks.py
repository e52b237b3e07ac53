"""Failures of files beyond those that the checks inject themselves: each found, and proven where it does harm."""

from dataclasses import replace

import pytest

from settle.base.event_log import Events
from settle.doctor.checks import Check
from settle.doctor.checks.files import damaged_weights
from settle.doctor.doctor import examine
from settle.doctor.model_files import with_file
from settle.doctor.subject import ModelFile, Running
from settle.experiment.run import prove
from settle.formats.gguf import write_edited
from settle.library.store import StoredModel, add_model
from settle.model.source import hash_of
from tests.doctor.chat_model import healthy
from tests.doctor.faults import FAULTS

ROPE, WEIGHTS = (Check.parts()[name]() for name in ("rope", "damaged_weights"))


@pytest.fixture
def short(home, tmp_path):
    """Return the chat model, which has seen texts of some hundred tokens, as a file that says so."""
    model = healthy(ModelFile)
    return with_file(model, write_edited(model.model.weights, tmp_path / "short.gguf", {"llama.context_length": 128}))


def test_a_context_within_the_models_own_is_no_finding(short):
    assert not list(ROPE.detect(replace(short, running=Running(context=128))))


@pytest.mark.slow
def test_a_context_that_the_model_was_not_trained_on(short, tmp_path):
    asked = replace(short, running=Running(context=1024))
    (finding,) = examine(asked, Events(), ["rope"]).findings
    assert finding.details.to_json() == {"change": "context", "trained": 128}
    proof = prove(ROPE.trial(finding, asked, tmp_path), tmp_path / "measurements.jsonl", Events())
    assert (proof.state, proof.verified) == ("proven", True), proof.to_json()
    assert ROPE.fix(finding, asked).command.endswith("--context 128")


def test_what_takes_too_long_to_read_stays_likely(short, tmp_path):
    long = {"llama.context_length": 65_536}
    model = with_file(short, write_edited(short.model.weights, tmp_path / "long.gguf", long))
    asked = replace(model, running=Running(context=131_072))
    (finding,) = ROPE._too_long(asked)
    assert ROPE.trial(finding, asked, tmp_path) is None


@pytest.mark.slow
def test_a_damaged_block_without_another_file_of_the_model(home, tmp_path):
    broken = FAULTS["damaged_weights"](healthy(ModelFile), tmp_path)
    (tmp_path / "sound.gguf").unlink()
    (finding,) = WEIGHTS.detect(broken)
    assert finding.details.block == 1
    proof = prove(WEIGHTS.trial(finding, broken, tmp_path), tmp_path / "measurements.jsonl", Events())
    assert (proof.state, proof.verified) == ("proven", True), proof.to_json()
    assert "get the file again" in WEIGHTS.fix(finding, broken).what


def test_a_sound_model_is_not_better_without_a_block(home, monkeypatch):
    monkeypatch.setattr(damaged_weights, "BAD_NATS", 0.0)  # it is looked at as one that knows no prose
    assert not list(WEIGHTS.detect(healthy(ModelFile)))


def test_a_file_of_the_store_that_is_no_longer_what_was_pulled(home):
    subject = healthy(ModelFile)
    model = StoredModel("chat", "gguf", subject.model.weights, hash_of(subject.model.weights), "here")
    add_model(model)
    assert not list(WEIGHTS.detect(subject))
    add_model(replace(model, sha256="ab" * 32))
    (finding,) = WEIGHTS.detect(subject)
    assert "not the file that was pulled" in finding.what and finding.details.to_json() == {"other": None}
