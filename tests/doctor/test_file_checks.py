"""Failures of files beyond those that the checks inject themselves: each found, and proven where it does harm."""

import shutil
from dataclasses import replace

import pytest

from settle.base.event_log import Events
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.doctor.checks import Check
from settle.doctor.checks.files import damaged_weights
from settle.doctor.checks.files.rope import _others, _rewritten, _slides
from settle.doctor.doctor import examine
from settle.doctor.known_answers import PARAGRAPHS, PROSE
from settle.doctor.likelihood import Reader, text_reading
from settle.doctor.model_files import other_files, with_file
from settle.doctor.subject import ModelFile, Running
from settle.experiment.run import prove
from settle.formats.gguf import export_gguf, read_gguf, write_edited
from settle.infer.scorer import Overrides
from settle.library.resolve import resolve_gguf
from settle.library.store import StoredModel, add_model
from settle.model.architectures.gemma2 import Gemma2
from settle.model.source import hash_of
from tests.doctor.chat_model import healthy
from tests.doctor.faults import FAULTS, reorder_rows

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


def test_a_model_that_was_trained_apart_is_another_one(home, tmp_path):
    """Two runs of one recipe have the same shapes and tokens."""
    source = healthy(ModelFile).model.weights
    mine = shutil.copyfile(source, tmp_path / "mine.gguf")
    reorder_rows(source, tmp_path / "other-seed.gguf", "")
    reorder_rows(source, tmp_path / "damaged.gguf", "blk.1.")
    assert [path.name for path in other_files(mine, read_gguf(mine))] == ["damaged.gguf"]


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


BASE = "gemma2.rope.freq_base"


def nats(subject, overrides=None):
    with Reader(subject.model) as reader:
        readings = [text_reading(reader.engine, PARAGRAPHS[0], 64)]
        if overrides is None:
            return reader.nats(readings[0])
        with reader.overridden(overrides):
            return reader.nats(readings[0])


@pytest.fixture
def sliding(home, tmp_path):
    """Return a Gemma 2 whose attention looks at positions, in a file with a wrong base and one with the right one."""
    tokenizer = ByteBpeTokenizer.train(PROSE, 400, tmp_path / "tokenizer")
    part = Gemma2(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, vocab_size=tokenizer.vocab_size, max_position_embeddings=512, query_pre_attn_scalar=32,
        sliding_window=128, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    weights = {name: p.detach() for name, p in part.build(seed=0).named_parameters()}
    for name in weights:
        if "q_proj" in name or "v_proj" in name:
            weights[name] *= 30
    path = export_gguf(part, weights, tokenizer, tmp_path / "right.gguf", "f16")
    right = ModelFile(str(path), resolve_gguf(str(path)))
    return with_file(right, write_edited(right.model.weights, tmp_path / "wrong.gguf", {BASE: 10.0})), right


def test_a_copy_reaches_the_layers_that_an_override_does_not(sliding):
    wrong, right = sliding
    with Reader(wrong.model) as reader:
        metadata = reader.engine.metadata
        readings = [text_reading(reader.engine, PARAGRAPHS[0], 64)]
    assert _slides(wrong.model, metadata) and "base 10000" in _others(metadata)
    sound = nats(right)
    asked = nats(wrong, Overrides(rope_base=1e4))
    copied = _rewritten(wrong.model, _others(metadata), readings)["base 10000"]
    assert copied == pytest.approx(sound, abs=1e-5) != pytest.approx(nats(wrong), abs=1e-3)
    assert asked != pytest.approx(sound, abs=1e-3)
