"""The tokenizer of a GGUF file as the library `tokenizers` runs it: many texts at once, on all cores.

For counting, and for encoders; what a model writes with is `pretrained.py`, whose ids are llama.cpp's on
every text.
"""

import json

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from settle.base.errors import FormatError
from settle.data.tokenizer.tokenizer_files import as_json
from settle.data.tokenizer.vocabulary import CONTROL, SPACE, Metadata, Vocabulary

_PREFIX = "tokenizer.ggml."


def fast_tokenizer(metadata: Metadata) -> Tokenizer:
    """Return a tokenizer that puts the tokens around a text that its model expects, when asked for special tokens.

    metadata: of the file. Raises FormatError for a kind that is not known here.
    """
    keys = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
    kind = keys.get("model")
    if kind == "bert":
        return _word_piece(keys)
    if kind == "t5":
        return _unigram(keys)
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(as_json(Vocabulary(metadata))))
    return tokenizer


def _word_piece(keys: Metadata) -> Tokenizer:
    """Return WordPiece. GGUF marks where a word begins, WordPiece (with ##) where it continues."""
    control = _control(keys)
    tokens = [
        token if token in control else token[1:] if token.startswith(SPACE) else f"##{token}"
        for token in keys["tokens"]
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    lowercase = bool(keys.get("normalizer.lowercase", True))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=tokens[keys.get("unknown_token_id", 100)]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=bool(keys.get("normalizer.strip_accents", lowercase))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = keys.get("bos_token_id", keys.get("cls_token_id", 101)), keys.get("seperator_token_id", 102)
    return _opened_and_closed(tokenizer, tokens, control, around)


def _unigram(keys: Metadata) -> Tokenizer:
    """Return SentencePiece's unigram model, as XLM-RoBERTa uses it."""
    tokens, scores = keys["tokens"], keys.get("scores")
    if not scores:
        raise FormatError("its tokenizer has no scores", "get the file again")
    tokenizer = Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), keys.get("unknown_token_id", 3)))
    steps: list[normalizers.Normalizer] = []
    if keys.get("precompiled_charsmap"):
        steps.append(normalizers.Precompiled(bytes(keys["precompiled_charsmap"])))
    if keys.get("remove_extra_whitespaces", True):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if keys.get("add_space_prefix", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme)
    around = keys.get("bos_token_id", 0), keys.get("eos_token_id", 2)
    return _opened_and_closed(tokenizer, tokens, _control(keys), around)


def _control(keys: Metadata) -> set[str]:
    kinds = keys.get("token_type") or []
    return {token for token, kind in zip(keys["tokens"], kinds, strict=False) if kind == CONTROL}


def _opened_and_closed(
    tokenizer: Tokenizer, tokens: list[str], control: set[str], around: tuple[int, int]
) -> Tokenizer:
    first, last = around
    tokenizer.add_special_tokens(sorted(control))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokens[first]} $A {tokens[last]}", special_tokens=[(tokens[i], i) for i in around]
    )
    return tokenizer
