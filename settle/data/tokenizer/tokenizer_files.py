"""Hugging Face's tokenizer files, read into the keys that a GGUF file has for them, and written from those.

Layout: https://huggingface.co/docs/tokenizers; keys: ggml's `docs/gguf.md`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from settle.base.errors import FormatError, malformed_is_format_error
from settle.base.files import parse_json, write_atomic
from settle.data.tokenizer.character_classes import pattern as written_out_gpt2
from settle.data.tokenizer.pre_tokenizers import CONTRACTION, GPT2, WAYS
from settle.data.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

JsonObject = dict[str, Any]
MOST_HOLES = 1 << 16  # ids without a token, beside as many as there are tokens
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model")
_ANY_CASE = re.compile(r"\(\?i:'s\|'t\|'re\|'ve\|'m\|'ll\|'d\)|'\(\?i:\[sdmt\]\|ll\|ve\|re\)")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_LOOKS_CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused\d+>|<pad>|<mask>")


@malformed_is_format_error("its tokenizer")
def read(folder: Path) -> JsonObject:
    """Return the `tokenizer.*` keys that a GGUF file of this folder would have.

    Raises FormatError when there is no tokenizer.json, or it does something that llama.cpp cannot repeat.
    """
    raw = _json(folder / "tokenizer.json")
    if raw is None:
        raise FormatError(f"{folder} has no tokenizer.json", "get the model's whole folder, with its tokenizer")
    config = _json(folder / "tokenizer_config.json") or {}
    model = raw.get("model") or {}
    if model.get("type", "BPE") != "BPE" or not model.get("vocab"):
        raise FormatError(f"its tokenizer is a {model.get('type')} model", "byte-level and SentencePiece BPE are read")
    added = {token["id"]: token for token in raw.get("added_tokens") or []}
    by_id = {i: token for token, i in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    if not all(type(i) is int and 0 <= i < MOST_HOLES + 2 * len(by_id) for i in by_id):
        raise FormatError(f"its {len(by_id)} tokens have ids that cannot be those of rows", "get the file again")
    size = max(by_id) + 1
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(size)]
    types = [NORMAL if i in by_id else UNUSED for i in range(size)]
    for i, token in added.items():
        control = token.get("special") or _LOOKS_CONTROL.fullmatch(token["content"])
        types[i] = CONTROL if control else USER_DEFINED
        if not control:
            tokens[i] = token["content"].replace(SPACE, " ")
    pairs = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    named = _named(folder, config, by_id)
    keys: JsonObject = {"tokens": tokens, "token_type": types}
    if _is_byte_level(raw):
        keys |= {"model": "gpt2", "pre": _pre(raw, bool(model.get("ignore_merges"))), "merges": pairs}
    else:
        keys |= {"model": "llama", "pre": "default", "add_space_prefix": _prefixes_space(raw)}
        keys["scores"] = _scores(tokens, pairs)
        for i, token in enumerate(tokens):
            types[i] = BYTE if _BYTE_TOKEN.fullmatch(token) else types[i]
        unknown = model["vocab"].get(model.get("unk_token"))
        if unknown is not None:
            types[unknown] = UNKNOWN
            keys["unknown_token_id"] = unknown
    keys |= {f"{name}_token_id": i for name, i in named.items()}
    keys["add_bos_token"] = _adds_bos(raw, config, tokens, named.get("bos"))
    keys["add_eos_token"] = False
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    template = _template(folder, config)
    return metadata | ({"tokenizer.chat_template": template} if template else {})


def folder_template(folder: Path) -> str:
    """Return the chat template of a model's folder, or nothing. Raises FormatError, OSError, ValueError."""
    return _template(folder, _json(folder / "tokenizer_config.json") or {})


def _json(path: Path) -> JsonObject | None:
    if not path.exists():
        return None
    try:
        read = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise FormatError(f"{path} is damaged: {str(e)[:100]}", "get the file again") from None
    if not isinstance(read, dict):
        raise FormatError(f"{path} holds no settings", "get the file again")
    return read


def _named(folder: Path, config: JsonObject, by_id: Mapping[int, str]) -> dict[str, int]:
    """Return the ids of the tokens that open, end and pad a text."""
    ids = {token: i for i, token in by_id.items()}
    others = _json(folder / "special_tokens_map.json") or {}
    named: dict[str, int] = {}
    for name, key in (("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token")):
        value = config.get(key) or others.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if text in ids:
            named[name] = ids[text]
    if "eos" not in named:
        value = (_json(folder / "generation_config.json") or _json(folder / "config.json") or {}).get("eos_token_id")
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, int) and first in by_id:
            named["eos"] = first
    return named


def _template(folder: Path, config: JsonObject) -> str:
    own = folder / "chat_template.jinja"
    if own.exists():
        return own.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        by_name = {entry.get("name"): entry.get("template") for entry in value}
        value = by_name.get("default")
    return value or ""


def _steps(part: JsonObject | None) -> Iterator[JsonObject]:
    """Yield the steps of a normalizer, pre-tokenizer, decoder or post-processor, sequences opened."""
    if not part:
        return
    inner = next((part[key] for key in ("pretokenizers", "normalizers", "decoders", "processors") if key in part), None)
    if inner is None:
        yield part
    for step in inner or []:
        yield from _steps(step)


def _is_byte_level(raw: JsonObject) -> bool:
    steps = [*_steps(raw.get("pre_tokenizer")), *_steps(raw.get("decoder"))]
    return any(step["type"] == "ByteLevel" for step in steps)


def _pre(raw: JsonObject, whole_words: bool) -> str:
    """Return llama.cpp's name for how the pre-tokenizer cuts words."""
    patterns = []
    for step in _steps(raw.get("pre_tokenizer")):
        if step["type"] == "Split":
            patterns.append(_plain(step["pattern"].get("Regex") or re.escape(step["pattern"].get("String", ""))))
        elif step["type"] == "Digits":
            patterns.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif step["type"] == "ByteLevel":
            if step.get("add_prefix_space"):
                raise FormatError("its tokenizer puts a space before each text", "llama.cpp would not do the same")
            if step.get("use_regex", True):
                patterns.append(GPT2)
    known = [name for name, way in WAYS.items() if tuple(map(_plain, way.patterns)) == tuple(patterns)]
    if not known and len(patterns) == 1:
        known = [
            name for name, start in _CASED.items() if patterns[0].startswith(_CASED_START) and start in patterns[0]
        ]
    if not known:
        raise FormatError(
            f"its tokenizer cuts words in a way that is not known: {patterns}", f"known: {', '.join(WAYS)}"
        )
    return next((name for name in known if WAYS[name].whole_words == whole_words), known[0])


# published with classes of cased letters, which llama.cpp does not have; it writes them otherwise
_CASED_START = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}"
_CASED = {"gpt-4o": r"|\p{N}{1,3}|", "tekken": r"|\p{N}|"}


def _plain(pattern: str) -> str:
    """Return a pattern as it is compared: spellings that mean the same made one."""
    if pattern == written_out_gpt2():
        return GPT2
    pattern = _ANY_CASE.sub(lambda _: CONTRACTION, pattern)
    pattern = re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), pattern)
    pattern = pattern.replace("$", r"\Z") if pattern.endswith("+$") else pattern
    return pattern.removesuffix(r"|\s+") if pattern.startswith("'s|") else pattern


def _prefixes_space(raw: JsonObject) -> bool:
    steps = [*_steps(raw.get("normalizer")), *_steps(raw.get("pre_tokenizer"))]
    return any(
        (step["type"] == "Prepend" and step.get("prepend") == SPACE)
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return scores that merge in the order of the list: minus the place of the first merge that makes a token."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault(pair.replace(" ", ""), rank)
    return [-float(first.get(token, len(merges))) for token in tokens]


def _adds_bos(raw: JsonObject, config: JsonObject, tokens: list[str], bos: int | None) -> bool:
    if bos is None:
        return False
    for step in _steps(raw.get("post_processor")):
        if step["type"] == "TemplateProcessing":
            first = (step.get("single") or [{}])[0]
            return bool(first.get("SpecialToken", {}).get("id") == tokens[bos])
    return bool(config.get("add_bos_token", False))


def write(vocabulary: Vocabulary, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template of a tokenizer from a GGUF file."""
    write_atomic(folder / "tokenizer.json", json.dumps(as_json(vocabulary), ensure_ascii=False))
    named = {"bos_token": vocabulary.bos_id, "eos_token": vocabulary.eos_id, "pad_token": vocabulary.pad_id}
    config: JsonObject = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {name: vocabulary.tokens[i] for name, i in named.items() if i is not None}
    config |= {"add_bos_token": vocabulary.add_bos, "model_max_length": 1_000_000_000}
    if vocabulary.chat_template:
        config["chat_template"] = vocabulary.chat_template
    write_atomic(folder / "tokenizer_config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def as_json(vocabulary: Vocabulary) -> JsonObject:
    """Return the contents of a tokenizer.json."""
    byte_level = vocabulary.model == "gpt2"
    merges = vocabulary.merges if vocabulary.has_merges else _merges(vocabulary)
    added = []
    for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.token_types, strict=True)):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) or token in vocabulary.special_tokens:
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            added.append({"id": i, "content": token, **flags, "special": token in vocabulary.special_tokens})
    unknown = None if byte_level or vocabulary.unknown_id is None else vocabulary.tokens[vocabulary.unknown_id]
    model = {
        "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": not byte_level, "byte_fallback": not byte_level,
        "ignore_merges": byte_level and WAYS[vocabulary.pre].whole_words,
        "vocab": vocabulary.ids, "merges": merges,
    }  # fmt: skip
    raw = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "model": model}
    raw |= _byte_level_steps(vocabulary) if byte_level else _spaced_steps(vocabulary)
    raw["post_processor"] = _opening(vocabulary)
    return raw


def _byte_level_steps(vocabulary: Vocabulary) -> JsonObject:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    patterns = [pattern.replace(r"\Z", "$") for pattern in WAYS[vocabulary.pre].patterns]
    how = {"behavior": "Isolated", "invert": False}
    splits = [{"type": "Split", "pattern": {"Regex": pattern}, **how} for pattern in patterns]
    cut = {"type": "Sequence", "pretokenizers": [*splits, level]}
    return {"normalizer": None, "pre_tokenizer": cut, "decoder": level}


def _spaced_steps(vocabulary: Vocabulary) -> JsonObject:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if vocabulary.add_space_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if vocabulary.add_space_prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    lines = {"type": "Split", "pattern": {"Regex": r"\n+"}, "behavior": "Isolated", "invert": False}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": lines if vocabulary.model == "gemma4" else None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    }


def _opening(vocabulary: Vocabulary) -> JsonObject | None:
    if not vocabulary.add_bos or vocabulary.bos_id is None:
        return None
    bos = vocabulary.tokens[vocabulary.bos_id]
    opening = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [opening, first],
        "pair": [opening, first, second],
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos_id], "tokens": [bos]}},
    }


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """Return every way to make a token of two others, in the order in which SentencePiece would do it."""
    known = {t: i for i, t in enumerate(vocabulary.tokens) if vocabulary.token_types[i] in (NORMAL, USER_DEFINED)}
    merges = []
    for token, i in known.items():
        if vocabulary.token_types[i] == NORMAL:
            for cut in range(1, len(token)):
                if token[:cut] in known and token[cut:] in known:
                    merges.append((-vocabulary.scores[i], cut, token))
    return [[token[:cut], token[cut:]] for _, cut, token in sorted(merges)]
