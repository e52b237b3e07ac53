"""One text, one list of ids: in our encoder, in `tokenizers`, in `transformers` and in llama.cpp."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine

from settle.base.errors import DataError
from settle.data.tokenizer import byte_bpe
from settle.data.tokenizer.byte_bpe import SPECIALS, ByteBpeTokenizer, closed, vocabulary_size
from settle.data.tokenizer.character_classes import LETTERS, NUMBERS, SPACES, ranges
from tests.data.llama_ids import ids_of, llama_of
from tests.data.test_prepare import prose

ROOM = Path(byte_bpe.__file__).parent
PIECES = [
    *("'s", "'re", "'ll", "'", "''", "'S", " 's", "s", "re", " ", "  ", "\n", "\r\n", "\t", "a", "B", "12", "!", "..."),
    *("\u00a0", "\u3000", "\u0085", "\u2028", "\u200b", "\u200d", "\ufeff", "e\u0301", "\u00bd", "\u00b2", "\u0661"),
    *("é", "中文", "한", "ع", "ש", "ก", "👩\u200d👩\u200d👧", "🇩🇪", "\x00", "\x1b[0m", "\x7f", "\u1c89", "\U00011bf0"),
    *("<|", "|>", "<|endoftext|>", "<|im_start|>", "<|pad|>", "[INST]", "</s>"),
]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ByteBpeTokenizer:
    code = [f.read_text("utf-8") for f in sorted(ROOM.glob("*.py"))]
    return ByteBpeTokenizer.train(
        [*code, prose(0, 20_000), "日本語 text é " * 50], 2048, tmp_path_factory.mktemp("tokenizer")
    )


@pytest.fixture(scope="module")
def engine(tokenizer: ByteBpeTokenizer) -> Engine:
    engine = Engine.from_file(str(tokenizer.path / "tokenizer.json"))
    engine.encode_special_tokens = True  # special tokens written in a text are text
    return engine


def adversarial(count: int) -> list[str]:
    """Texts around every border of a character class, mixtures of scripts, and what the product was trained on."""
    rng = random.Random(0)
    borders = [c for listed in (LETTERS, NUMBERS, SPACES) for a, b in ranges(listed) for c in (a - 1, a, b, b + 1)]
    borders = [c for c in borders if 0 <= c < 0x110000 and not 0xD800 <= c < 0xE000]
    found = ["", *PIECES, "a" * 3000, " " * 3000, "\n" * 300, "中" * 999]
    found += [f"a{chr(c)}b 1{chr(c)}2 !{chr(c)}? {chr(c)} {chr(c)}{chr(c)}" for c in sorted(set(borders))]
    while len(found) < count:
        some = [rng.choice(PIECES) for _ in range(rng.randint(1, 20))]
        anything = [chr(rng.choice(borders)) for _ in range(rng.randint(0, 5))]
        mixed = some + anything
        rng.shuffle(mixed)
        found.append("".join(mixed))
    return found


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_ids_are_those_of_tokenizers(tokenizer: ByteBpeTokenizer, engine: Engine, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.tolist() == engine.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.byte_length[ids].sum()) == len(text.encode())
    assert not set(ids.tolist()) & set(tokenizer.special_tokens.values())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(texts, max_size=8))
def test_documents_do_not_touch(tokenizer: ByteBpeTokenizer, documents: list[str]) -> None:
    if not documents:
        assert tokenizer.encode_batch([]) == []
        return
    ids, after = tokenizer.encode_documents(*closed([d.encode() for d in documents]))
    first = 0
    for document, last in zip(documents, after.tolist(), strict=True):
        assert ids[first:last].tolist() == [*tokenizer.encode(document).tolist(), tokenizer.eos_id]
        first = last
    assert first == len(ids)


def test_forgetting_changes_nothing(tokenizer: ByteBpeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_bpe, "MAX_WORDS", 5)
    small = ByteBpeTokenizer(tokenizer.path)
    for seed in range(5):
        text = prose(seed, 200) + "x" * 100 * seed
        assert np.array_equal(small.encode(text), tokenizer.encode(text))


def test_ids_are_those_of_llama_cpp(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    code = [f.read_text("utf-8")[:3000] for f in sorted(ROOM.rglob("*.py"))]
    everything = [*adversarial(6000), *code, *(prose(i, 50) for i in range(100))]
    with llama_of(tokenizer, tmp_path / "vocabulary.gguf") as llama:
        for text, ids in zip(everything, ids_of(llama, everything, tokenizer.pad_id), strict=True):
            assert tokenizer.encode(text).tolist() == ids, repr(text)
        chat = "<|im_start|>user\nHi<|im_end|>\n"
        assert tokenizer.encode(chat, specials=True).tolist() == llama.tokenize(chat, special=True)


def test_transformers_reads_the_folder(tokenizer: ByteBpeTokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(tokenizer.path))
    for text in (prose(3, 100), "don't  stop\n\n\tx = 1 日本 👩‍👧 \u1c89"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
        assert theirs.decode(tokenizer.encode(text)) == text
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    shown = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>assistant\n")
    assert (theirs.eos_token, theirs.pad_token) == ("<|endoftext|>", "<|pad|>")


def test_what_a_file_of_weights_needs(tokenizer: ByteBpeTokenizer) -> None:
    assert len(tokenizer.tokens) == len(tokenizer.token_types) == tokenizer.vocab_size == 2048
    assert [tokenizer.tokens[i] for i, kind in enumerate(tokenizer.token_types) if kind == 3] == list(SPECIALS)
    assert len(tokenizer.merges) == 2048 - 256 - len(SPECIALS)
    assert tokenizer.byte_length[tokenizer.eos_id] == 0


def test_the_vocabulary_grows_with_the_corpus() -> None:
    sizes = [vocabulary_size(n) for n in (0, 100_000, 1_000_000, 10_000_000, 30_000_000, 10**9, 10**12)]
    assert sizes == sorted(sizes)
    assert sizes[2] == 1024 and 4000 <= sizes[3] <= sizes[4] <= 8192 and sizes[-1] == 32768


def test_a_vocabulary_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="260"):
        ByteBpeTokenizer.train(["text"], 100, tmp_path)


def test_a_damaged_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError):
        ByteBpeTokenizer(tmp_path)
