"""Fewer tokens: the same ids where no removed one is needed, here, in llama.cpp and in transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from settle.base.errors import DataError, UsageError
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.evaluate.gate.behaviour import Effort
from settle.evaluate.gate.gate import PROSE, Reference, run_gate
from settle.formats.gguf import read_gguf
from settle.infer.engine import Engine
from settle.infer.live_sampling import logprobs
from settle.model.pretrained import Pretrained
from settle.shrink.prunable_model import PrunableModel
from settle.shrink.pruners.vocabulary import Tokens, Vocabulary, cut_subject, cut_tokenizer
from tests.data.test_pretrained_tokenizer import byte_level, spaced, texts  # noqa: F401
from tests.model.architectures.cases import BEYOND_GGUF, CASES, each
from tests.shrink.pruners.subjects import assert_ordinary, code, more_code, random_subject, trained_subject, write_gguf

PRUNER = Vocabulary(kin=False)
TEXT = [PROSE[0] * 3]


@pytest.fixture(params=["gpt-2", "llama-bpe", "smollm", "spaced"])
def whole(request) -> PretrainedTokenizer:
    """A tokenizer of each kind before it is cut; llama-bpe takes whole words whatever their merges."""
    if request.param == "spaced":
        return PretrainedTokenizer.from_folder(request.getfixturevalue("spaced"))
    return PretrainedTokenizer(request.getfixturevalue("byte_level") | {"tokenizer.ggml.pre": request.param})


def _subject(tokenizer) -> PrunableModel:
    return random_subject(CASES["llama"], tokenizer)


def renumbered(ids, kept) -> list[int]:
    """Old ids as new ones."""
    new = {int(old): place for place, old in enumerate(kept)}
    return [new[int(i)] for i in ids]


def test_a_text_that_needs_no_removed_token_has_the_same_ids(whole) -> None:
    kept = PRUNER.choose(whole, TEXT).ids
    assert len(kept) < whole.vocab_size - 40
    cut, left, same = cut_tokenizer(whole, kept), set(kept), 0
    for text in [*TEXT, PROSE[0][17:90], *texts()]:
        for specials in (False, True):
            ids = whole.encode(text, specials).tolist()
            again = cut.encode(text, specials).tolist()
            if left.issuperset(ids):
                same += 1
                assert again == renumbered(ids, kept), text
            assert cut.decode(again) == whole.decode(ids), text
    assert same > 20


def test_the_cut_tokenizer_means_the_same_in_llama_cpp_and_transformers(whole, tmp_path) -> None:
    kept = PRUNER.choose(whole, TEXT).ids
    subject = cut_subject(_subject(whole), kept)
    again = PretrainedTokenizer.from_folder(subject.write(tmp_path / "hf"))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    with Engine(write_gguf(subject, tmp_path / "x.gguf", "f32"), threads=1) as engine:
        for text in texts():
            for specials in (False, True):
                ids = subject.tokenizer.encode(text, specials).tolist()
                assert ids == engine.tokenize(text, specials), repr(text)
    for text in (*PROSE, "it's 12345 words.<|user|> Ça va ?<|im_end|>日本"):
        ids = subject.tokenizer.encode(text, specials=True).tolist()
        assert ids == again.encode(text, specials=True).tolist()
        assert ids == theirs.encode(text, add_special_tokens=False)


def test_what_every_text_may_need_stays(whole) -> None:
    kept = PRUNER.choose(whole, TEXT)
    cut = cut_tokenizer(whole, kept.ids)
    assert cut.special_tokens.keys() == whole.special_tokens.keys()
    for name in ("bos_id", "eos_id", "pad_id", "turn_end_id", "unknown_id"):
        before, after = getattr(whole, name), getattr(cut, name)
        assert (before is None) == (after is None)
        assert before is None or whole.tokens[before] == cut.tokens[after]
    one_byte = {b for b in whole.token_bytes if len(b) == 1}
    assert one_byte <= set(cut.token_bytes)
    written = whole.encode(whole.chat_template, specials=True).tolist()
    assert set(written) <= set(kept.ids)
    assert kept.report.tokens == (whole.vocab_size, cut.vocab_size)
    assert kept.report.removed_in_the_text == 0
    assert cut.vocab_size % 64 == 0


def test_reserved_tokens_go(whole) -> None:
    metadata = whole.gguf_metadata()
    more = [f"<unused{i}>" for i in range(70)]
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *more]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *[3] * 70]
    if "tokenizer.ggml.scores" in metadata:
        metadata["tokenizer.ggml.scores"] = [*metadata["tokenizer.ggml.scores"], *[0.0] * 70]
    wider = PretrainedTokenizer(metadata)
    assert not set(more) & set(cut_tokenizer(wider, PRUNER.choose(wider, TEXT).ids).tokens)


def test_kin_of_the_text_stays() -> None:
    tokenizer = PretrainedTokenizer.from_folder(trained_subject().tokenizer.path)
    names = Tokens(tokenizer)
    kin = {tokenizer.tokens[i] for i in names.kin([names.ids["self"]])}
    assert "Ġself" in kin and "self" in kin
    less, more = (Vocabulary(kin=kin).choose(tokenizer, ["self self"]) for kin in (False, True))
    assert "Ġself" not in {tokenizer.tokens[i] for i in less.ids} or len(less.ids) == len(more.ids)
    assert "Ġself" in {tokenizer.tokens[i] for i in more.ids}


def test_a_number_of_tokens_is_kept_to_and_the_rarest_go() -> None:
    tokenizer = trained_subject().tokenizer
    text = [code()[:3000]]
    whole = Vocabulary(kin=False).choose(tokenizer, text)
    kept = Vocabulary(tokens=320).choose(tokenizer, text)
    assert len(kept.ids) == 320 < len(whole.ids)
    counts = np.bincount(tokenizer.encode(text[0]), minlength=tokenizer.vocab_size)
    gone = [i for i in range(tokenizer.vocab_size) if i not in kept.ids]
    assert kept.report.removed_in_the_text == counts[gone].sum() > 0
    assert max(counts[gone]) <= np.sort(counts)[-40]
    with pytest.raises(UsageError, match="100 tokens are too few: .*keep .* or more"):
        Vocabulary(tokens=100).choose(tokenizer, text)
    with pytest.raises(DataError, match="no text"):
        Vocabulary().choose(tokenizer, [])


def test_what_further_text_will_not_find_is_foretold() -> None:
    tokenizer = trained_subject().tokenizer
    short = Vocabulary(kin=False).choose(tokenizer, [code()[:400]])
    assert short.report.unseen_share is None and "unknown share" in short.report.warning
    report = Vocabulary(kin=False).choose(tokenizer, [code()[:800] * 20]).report
    assert report.unseen_share < 0.01 and not report.warning


def test_tokens_like_the_texts_stay_until_further_text_finds_its_own() -> None:
    tokenizer = trained_subject().tokenizer
    text = [code() * 2, more_code()[:20000]]
    less, some = (Vocabulary(kin=False, least=50, unseen=share).choose(tokenizer, text) for share in (1, 0.02))
    assert len(less.ids) < len(some.ids)
    assert less.report.unseen_share > 0.02 >= some.report.unseen_share
    alike = [tokenizer.tokens[i] for i in Tokens(tokenizer).alike(["if x:\n    return x"])]
    assert {"x", "re", "return"} & set(alike) and not [t for t in alike if "y" in t]


@pytest.mark.parametrize("name", each(name for name in CASES if name not in BEYOND_GGUF))
def test_every_family_stays_an_ordinary_model(name, tokenizer, tmp_path) -> None:
    subject = random_subject(CASES[name], tokenizer)
    pruned = PRUNER.prune(subject, [], [code()[:300]])
    assert pruned.subject.part.vocab_size == pruned.subject.tokenizer.vocab_size < subject.part.vocab_size
    assert_ordinary(pruned.subject, tmp_path)


def test_the_distribution_among_what_is_left_is_the_same() -> None:
    subject = trained_subject()
    text = [code()[:600]]
    kept = PRUNER.choose(subject.tokenizer, text).ids
    cut = cut_subject(subject, kept)
    ids = subject.tokenizer.encode(text[0]).tolist()[:60]
    whole = logprobs(subject.build(), ids, range(60))[:, kept]
    left = logprobs(cut.build(), renumbered(ids, kept), range(60))
    torch.testing.assert_close(left, whole.log_softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["f16", "q8_0", "q4_0"])
def test_a_file_is_cut_without_rounding_anything_again(dtype, tmp_path) -> None:
    subject = trained_subject()
    source, target = tmp_path / "whole.gguf", tmp_path / "cut.gguf"
    write_gguf(subject, source, dtype, {"name": "tiny", "size_label": "9B"})
    kept = PRUNER.cut_file(source, target, [code()[:600]])
    before, after = read_gguf(source), read_gguf(target)
    for name, tensor in before.tensors.items():
        rows = tensor.place.bytes().reshape(tensor.shape[0], -1)
        rows = rows[kept.ids] if name in ("token_embd.weight", "output.weight") else rows
        assert after.tensors[name].dtype == tensor.dtype
        assert np.array_equal(after.tensors[name].place.bytes(), rows.ravel()), name
    changed = ("tokenizer.", "llama.vocab_size", "general.size_label")
    same = {k: v for k, v in before.metadata.items() if not k.startswith(changed)}
    assert same.items() <= after.metadata.items()
    assert after.metadata["llama.vocab_size"] == len(kept.ids)
    assert after.metadata["general.size_label"].endswith("K")
    assert target.stat().st_size < source.stat().st_size
    cut = Pretrained.open(target)
    bars = "blocks" if dtype.startswith("q") else dtype
    figures = run_gate(Reference(cut.load(), cut.tokenizer, [code()]), target, bars, Effort(num_greedy=8))
    assert figures["passed"], figures["first_difference"]


def test_ends_and_openings_keep_their_meaning(tokenizer) -> None:
    subject = random_subject(CASES["llama-3"].with_fields(eos_token_id=(0, 2, 300), bos_token_id=1), tokenizer)
    kept = [i for i in range(tokenizer.vocab_size) if i not in (5, 300)]
    part = cut_subject(subject, kept).part
    assert part.eos_token_id == (0, 2) and part.bos_token_id == 1 and part.pad_token_id is None
