"""Tokenizers of others: the ids of llama.cpp on the same file, and of `transformers` on the same folder."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Trained
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from settle.base.errors import FormatError
from settle.data.tokenizer.pre_tokenizers import WAYS, words
from settle.data.tokenizer.pretrained import Finder, PretrainedTokenizer
from settle.evaluate.gate.behaviour import ADVERSARIAL
from settle.evaluate.gate.gate import PROSE
from settle.formats.gguf import read_gguf
from tests.data.llama_ids import ids_of, llama_of

PIECES = [
    " ", "  ", "\n", "\n\n", "\t", "\r", "\r\n", "'s", "'S", "'ll", "'", "a", "Zz", "é", "e\u0301", "ß", "0",
    "12", "1234567", "٣", "日本", "한국", "ก", "ा", "क", "😀", "\u200d", "\u00a0", "\u3000",
    "\u0085", "\u2028", "_", "-", "!", "。", "，", "$", "+", "<", "^", "|", "`", "{", "ſ", "K", "İ", "Σ",
    "\x00", "\x1f", "\ufeff", "\U0010ffff", "𝔘", "ﬁ", "²", "Ⅷ", "▁", "Ġ", "word", "The", "don't",
    "\ue000", "\u0378", "/", ".,", "AbC", "x.y/z", "<|user|>", "<|end|>", "</s>", "<b>", "<|im_end|>",
]  # fmt: skip
VOCABULARY = 600


def texts() -> list[str]:
    """Adversarial, natural, and mixed at random (the same each time)."""
    draw = random.Random(0)
    mixed = ["".join(draw.choices(PIECES, k=draw.randint(1, 25))) for _ in range(250)]
    planes = [*range(32, 0xD800, 7), *range(0xE000, 0x10FFFF, 61)]
    foreign = ["".join(map(chr, draw.choices(planes, k=9))) for _ in range(50)]
    return [*ADVERSARIAL, *PROSE, *mixed, *foreign]


def _as_llama_cpp(tokenizer: PretrainedTokenizer, path) -> None:
    """Asserts equal ids for every text, as text and as a rendered chat, and that the file keeps every key."""
    llama = llama_of(tokenizer, path, padding=8)
    again = PretrainedTokenizer(read_gguf(path).metadata)
    assert again.tokens[: tokenizer.vocab_size] == tokenizer.tokens
    lists = ("tokens", "token_type", "scores")
    kept, given = again.gguf_metadata(), tokenizer.gguf_metadata()
    assert {k: v for k, v in kept.items() if not k.endswith(lists)} == {
        k: v for k, v in given.items() if not k.endswith(lists)
    }
    padding = tokenizer.vocab_size  # which no text becomes
    with llama:
        for specials in (False, True):
            for text, ids in zip(texts(), ids_of(llama, texts(), padding, specials), strict=True):
                assert tokenizer.encode(text, specials).tolist() == ids, repr(text)


@pytest.fixture(scope="module")
def byte_level():
    """Metadata of a small byte-level vocabulary, control tokens and one defined by hand."""
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    trained.train_from_iterator([*PROSE, "word words wordy 123 1234567 .,.,.,\n\n\n\n    \t\t", *PIECES] * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    # a few bytes are left out, as in SmolLM2's vocabulary
    lacking = {"õ", "ö", "÷"}
    tokens = [t for t in tokens if t not in lacking]
    first = len(tokens)
    tokens += ["<|user|>", "<|im_end|>", "<b>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * first + [3, 3, 4],
        "tokenizer.ggml.merges": [" ".join(m) for m in model["merges"]],
        "tokenizer.ggml.bos_token_id": first,
        "tokenizer.ggml.eos_token_id": first + 1,
        "tokenizer.chat_template": "{% for m in messages %}<|user|>{{ m['content'] }}<|im_end|>{% endfor %}",
    }


@pytest.mark.parametrize("pre", dict.fromkeys(next(n for n in WAYS if WAYS[n] == way) for way in WAYS.values()))
def test_byte_level_ids_are_llama_cpps(byte_level, tmp_path, pre):
    tokenizer = PretrainedTokenizer(byte_level | {"tokenizer.ggml.pre": pre})
    assert tokenizer.turn_end_id == tokenizer.eos_id == tokenizer.tokens.index("<|im_end|>")
    _as_llama_cpp(tokenizer, tmp_path / "x.gguf")


def test_a_message_of_gpt_oss_does_not_end_its_turn(byte_level):
    """Thoughts end with <|end|>, and the answer follows in the same turn; Phi's <|end|> ends one."""
    tokens, types = byte_level["tokenizer.ggml.tokens"], byte_level["tokenizer.ggml.token_type"]
    template = (Path(__file__).parents[1] / "chat_templates/gpt-oss.jinja").read_text()
    for names, turn_end in ((["<|end|>"], "<|end|>"), (["<|call|>", "<|end|>", "<|return|>"], "<|return|>")):
        metadata = byte_level | {
            "tokenizer.ggml.pre": "gpt-4o",
            "tokenizer.ggml.tokens": [*tokens, *names],
            "tokenizer.ggml.token_type": [*types, *(3 for _ in names)],
            "tokenizer.ggml.eos_token_id": len(tokens) + len(names) - 1,
            "tokenizer.chat_template": template,
        }
        tokenizer = PretrainedTokenizer(metadata)
        assert tokenizer.tokens[tokenizer.turn_end_id] == turn_end


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe", "deepseek-coder", "deepseek-v3"])
def test_byte_level_files_mean_the_same_to_transformers(byte_level, tmp_path, pre):
    tokenizer = PretrainedTokenizer(byte_level | {"tokenizer.ggml.pre": pre})
    tokenizer.save(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path), PretrainedTokenizer.from_folder(tmp_path)
    assert again.pre == pre and again.chat_template == tokenizer.chat_template and again.add_bos == tokenizer.add_bos
    assert [again.bos_id, again.eos_id, again.pad_id] == [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    for text in (*PROSE, *ADVERSARIAL[:8], "it's 12345 words.<|user|> Ça va ?<|im_end|>日本"):
        ids = tokenizer.encode(text, specials=True).tolist()
        assert ids == theirs.encode(text, add_special_tokens=False) == again.encode(text, specials=True).tolist()
    if tokenizer.add_bos:
        assert theirs.encode("a")[0] == tokenizer.bos_id
    other = tmp_path / "copy"
    other.mkdir()
    again.save(other)
    assert (other / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.fixture(scope="module")
def spaced(tmp_path_factory):
    """A small SentencePiece-like vocabulary in Hugging Face's files."""
    folder = tmp_path_factory.mktemp("spaced")
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([*PROSE, "aaaaaa aa aaa word words"] * 3, trainers.BpeTrainer(vocab_size=300))
    model = json.loads(trained.to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].get)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *learned, "\n\n", "<end_of_turn>"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = {0: True, 1: True, 2: True, len(tokens) - 2: False, len(tokens) - 1: True}
    raw = {
        "added_tokens": [{"id": i, "content": tokens[i], "special": s, **flags} for i, s in special.items()],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True,
            "vocab": {t: i for i, t in enumerate(tokens)}, "merges": model["merges"],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    bos = {"__type": "AddedToken", "content": "<s>", **flags, "normalized": True}
    config = {"bos_token": bos, "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}<end_of_turn>{% endfor %}")
    return folder


@pytest.mark.parametrize("prefix", [False, True])
def test_spaced_ids_are_llama_cpps(spaced, tmp_path, prefix):
    read = PretrainedTokenizer.from_folder(spaced)
    tokenizer = PretrainedTokenizer(read.gguf_metadata() | {"tokenizer.ggml.add_space_prefix": prefix})
    assert tokenizer.add_bos and tokenizer.tokens[tokenizer.turn_end_id] == "<end_of_turn>"
    _as_llama_cpp(tokenizer, tmp_path / "x.gguf")
    assert tokenizer.decode(tokenizer.encode(PROSE[1])) == PROSE[1]


def test_gemma4_ids_are_llama_cpps(spaced, tmp_path):
    """`tokenizer.ggml.model` of published Gemma 4 files: merges of characters by a list, inside lines."""
    merges = json.loads((spaced / "tokenizer.json").read_text())["model"]["merges"]
    read = PretrainedTokenizer.from_folder(spaced).gguf_metadata()
    tokens = [*read["tokenizer.ggml.tokens"], "\n\n\n", "\n▁▁", "▁▁▁", "▁▁"]
    own = {"model": "gemma4", "tokens": tokens, "add_bos_token": False, "add_space_prefix": False}
    own["token_type"] = [*read["tokenizer.ggml.token_type"], 1, 1, 1, 1]
    own["merges"] = [*(m if isinstance(m, str) else " ".join(m) for m in merges), "▁ ▁", "▁▁ ▁", "\n ▁▁"]
    own["scores"] = [0.0] * len(tokens)
    metadata = {k: v for k, v in read.items() if not k.endswith("ggml.pre")}
    tokenizer = PretrainedTokenizer(metadata | {f"tokenizer.ggml.{key}": value for key, value in own.items()})
    assert tokenizer.add_bos
    _as_llama_cpp(tokenizer, tmp_path / "x.gguf")
    text = "one   two\n\n\n  three 日本\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*PROSE, "aaaa aaaaa  x\n y\n", "<s>Ça<end_of_turn>日本"):
        text = text.replace("\n\n\n", "\n")  # a token without merges, which published files do not have
        assert tokenizer.encode(text, specials=True).tolist() == theirs.encode(text, add_special_tokens=False)


def test_spaced_files_mean_the_same_to_transformers(spaced, tmp_path):
    read = PretrainedTokenizer.from_folder(spaced)
    tokenizer = PretrainedTokenizer(read.gguf_metadata())
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    original, again = AutoTokenizer.from_pretrained(spaced), PretrainedTokenizer.from_folder(tmp_path)
    for text in (*PROSE, "aaaa aaaaa  x\n\n\ny", "<s>Ça<end_of_turn>日本"):
        ids = tokenizer.encode(text, specials=True).tolist()
        assert ids == original.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        assert ids == again.encode(text, specials=True).tolist()


def test_documents_are_closed_and_bytes_are_counted(byte_level):
    import numpy as np

    tokenizer = PretrainedTokenizer(byte_level)
    ids, after = tokenizer.encode_documents("ab c\0été\0".encode(), np.array([4, 10]))
    assert ids[after - 1].tolist() == [tokenizer.eos_id] * 2
    assert tokenizer.decode(ids[: after[0]]) == "ab c" and tokenizer.decode(ids[after[0] :]) == "été"
    assert tokenizer.byte_length[ids].sum() == 4 + 5
    assert tokenizer.special_tokens.keys() == {"<|user|>", "<|im_end|>"}


def test_phi_3_swallows_white_space_behind_its_tokens(byte_level):
    ids = PretrainedTokenizer(byte_level | {"general.name": "Phi-3 mini"}).encode("<|user|> \n a", specials=True)
    plain = PretrainedTokenizer(byte_level).encode("<|user|>a", specials=True)
    assert ids.tolist() == plain.tolist()


def test_overlapping_tokens_are_found_longest_first():
    assert Finder({"ab": 0, "bcd": 1}).split("xabcd") == ["xa", 1]
    assert Finder({"\n" * n: n for n in range(1, 5)}).split("a" + "\n" * 6 + "b") == ["a", 4, 2, "b"]


def test_words_of_a_text_are_the_text():
    for text in texts():
        for way in WAYS.values():
            assert "".join(words(text, way.patterns)) == text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.ggml.model": "t5"}, "tokenizer 't5' is not supported.*llama, gpt2, gemma4"),
        ({"tokenizer.ggml.pre": "kimi-k2"}, "pre-tokenizer 'kimi-k2' is not supported"),
        ({"tokenizer.ggml.merges": None}, "no whole tokenizer"),
    ],
)
def test_what_is_not_read(byte_level, change, says):
    with pytest.raises(FormatError, match=says):
        PretrainedTokenizer(byte_level | change)


@pytest.mark.parametrize(
    ("model", "steps", "says"),
    [
        ({"type": "Unigram", "vocab": [["a", -1.0]]}, None, "Unigram"),
        ({"type": "BPE", "vocab": {"a": 0}}, [{"type": "Split", "pattern": {"Regex": "x+"}}], r"not known: \['x\+'\]"),
        ({"type": "BPE", "vocab": {"a": 0}}, [], "space before each text"),
    ],
)
def test_files_that_are_not_read(tmp_path, model, steps, says):
    level = {"type": "ByteLevel", "add_prefix_space": steps == [], "use_regex": False}
    pre = {"type": "Sequence", "pretokenizers": [*(steps or []), level]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "pre_tokenizer": pre}))
    with pytest.raises(FormatError, match=says):
        PretrainedTokenizer.from_folder(tmp_path)


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(FormatError, match="no tokenizer.json"):
        PretrainedTokenizer.from_folder(tmp_path)
