"""Checks grammars and answers in a process of its own, under limits on memory and processor time.

Run as a module by `grammars.py`, never imported by it. It reads requests from stdin and answers each on stdout, one
JSON line each. A grammar is checked as the engine will use it: by the same release of llguidance, with the tokens of
the same model, and beyond its first mask. What goes over a limit ends this process, and `grammars.py` starts another.
"""

import contextlib
import functools
import json
import random
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import psutil
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark

from settle.formats.gguf import read_gguf

STACK_BYTES = 512 << 10  # the smallest that a thread of llama.cpp has (macOS)
TOKENIZER_SECONDS, GRAMMAR_SECONDS, ANSWER_SECONDS = 60, 3, 20  # of processor time
MEMORY_BYTES = 512 << 20  # beside what the process has when a request comes
WALK_TOKENS, WALKS = 48, 2  # of answers that are tried: some limits of llguidance are reached only inside of one
STRUCTURE, STRUCTURE_SHARE = b'",:{}[]', 0.7  # how often a walk prefers a token with one of these, which leads on
LINEAR = jsonschema_rs.RegexOptions()  # patterns without backtracking
OPTIONS = re.compile(r"%llguidance (\{.*\})\n")  # the first line of a grammar
ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)")
_CONTROL, _BYTE = 3, 6  # llama.cpp's types of tokens
MARK = b"\xff"  # llguidance's, of what no text contains


class _Vocabulary:
    """A model's tokens, in the form that llguidance wraps."""

    bos_token_id = None

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        texts: Sequence[str] = metadata["tokenizer.ggml.tokens"]
        types: Sequence[int] = metadata.get("tokenizer.ggml.token_type", ())
        by_character = _byte_characters() if metadata.get("tokenizer.ggml.model") == "gpt2" else None
        kinds = [*types, *[1] * (len(texts) - len(types))]
        self.tokens = [_bytes_of(str(text), kind, by_character) for text, kind in zip(texts, kinds, strict=False)]
        ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eos")]
        self.eos_token_id = next((end for end in ends if isinstance(end, int)), len(self.tokens) - 1)
        self._ids = {token: number for number, token in enumerate(self.tokens)}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids by the longest match: of what a grammar leaves no choice about."""
        rest, ids = text if isinstance(text, bytes) else text.encode(), []
        while rest:
            sizes = range(min(len(rest), self._longest), 0, -1)
            size = next((size for size in sizes if rest[:size] in self._ids), 0)
            if not size:
                break
            ids.append(self._ids[rest[:size]])
            rest = rest[size:]
        return ids


class _Tokenizer:
    """A model's tokens for llguidance.

    is_structure: of each token, whether it leads to another part of a JSON document. Shape (tokens,). special: the
    texts of control tokens."""

    def __init__(self, path: str) -> None:
        vocabulary = _Vocabulary(read_gguf(Path(path)).metadata)
        self.inner = LLTokenizer(TokenizerWrapper(vocabulary))
        self.special = [token[1:].decode() for token in vocabulary.tokens if token.startswith(MARK) and len(token) > 1]
        self.is_structure = np.array([any(sign in token for sign in STRUCTURE) for token in vocabulary.tokens])


@functools.lru_cache(4)
def _tokenizer(path: str, stamp: str) -> _Tokenizer:
    return _Tokenizer(path)


@functools.lru_cache(256)
def check_grammar(grammar: str, is_gbnf: bool, model: str, stamp: str) -> tuple[str, str | None]:
    """Return the grammar for llguidance, and why the engine cannot keep to it."""
    _limit(TOKENIZER_SECONDS, MEMORY_BYTES)
    tokenizer = _tokenizer(model, stamp)
    _limit(GRAMMAR_SECONDS, MEMORY_BYTES)
    lark = gbnf_to_lark(grammar) if is_gbnf else grammar
    once = _unescaped(lark)
    names_special = any(_names_special(text, tokenizer) for text in (lark, once, _unescaped(once)))
    lark = _spelled_freely(lark) if names_special else lark
    matcher = LLMatcher(tokenizer.inner, lark, log_level=0)
    for seed in range(WALKS):
        error, forced = _walk(matcher, tokenizer, random.Random(seed))
        if error:
            return lark, error
        lark = _spelled_freely(lark) if _names_special(forced, tokenizer) else lark
        matcher.reset()
    return lark, None


def _spelled_freely(lark: str) -> str:
    """Return the grammar without forced tokens.

    Where one text is all that is allowed, the engine takes its tokens as llama.cpp would read them in a prompt,
    where the text `<|im_end|>` is the end of a turn; now the model spells it."""
    options = OPTIONS.match(lark)
    if options is None:
        return lark
    return f"%llguidance {json.dumps(json.loads(options[1]) | {'no_forcing': True})}\n{lark[options.end() :]}"


def _unescaped(text: str) -> str:
    """Return a grammar with one level of escapes undone: JSON's around a text, a pattern's inside of it."""
    return ESCAPED.sub(lambda m: chr(int(m[1], 16)) if m[1] else m[2], text)


def _names_special(text: str, tokenizer: _Tokenizer) -> bool:
    return any(special in text for special in tokenizer.special)


def check_answer(
    grammar: str, model: str, stamp: str, schema: dict[str, Any] | None, text: str, has_ended: bool
) -> tuple[str, str | None]:
    """Return the text, and why it is not what the grammar allows, or its beginning where it has not ended."""
    _limit(TOKENIZER_SECONDS, MEMORY_BYTES)
    tokenizer = _tokenizer(model, stamp)
    _limit(ANSWER_SECONDS, MEMORY_BYTES)
    matcher = LLMatcher(tokenizer.inner, grammar, log_level=0)
    ids = tokenizer.inner.tokenize_bytes(text.rstrip("\ufffd").encode())
    if matcher.try_consume_tokens(ids) < len(ids) or matcher.is_error():
        return text, str(matcher.get_error()) or "the text is not what the grammar allows"
    if has_ended and not (matcher.is_accepting() or matcher.is_stopped()):
        return text, "the text ends too early"
    return text, _misfit(schema, text) if has_ended and schema is not None else None


def check_json(schema: dict[str, Any], text: str) -> tuple[str, str | None]:
    """Return the text, and why it does not fit the schema."""
    _limit(ANSWER_SECONDS, MEMORY_BYTES)
    return text, _misfit(schema, text)


def _misfit(schema: dict[str, Any], text: str) -> str | None:
    """Return why a text does not fit a schema; one that no validator understands is the grammar's alone to keep."""
    try:
        value = json.loads(text)
    except ValueError as e:
        return f"it is not JSON: {e}"
    for validator_for in (jsonschema_rs.validator_for, jsonschema_rs.Draft7Validator):
        try:
            validator = validator_for(schema, validate_formats=False, offline=True, pattern_options=LINEAR)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
            continue
        error = next(validator.iter_errors(value), None)
        return error.message if error else None
    return None


def _walk(matcher: LLMatcher, tokenizer: _Tokenizer, draw: random.Random) -> tuple[str | None, str]:
    """Write the beginning of an answer that fits.

    Return the error that it meets, and the texts that were forced on the way, one a line."""
    forced: list[str] = []
    for _ in range(WALK_TOKENS):
        if matcher.is_stopped() and not matcher.is_error():
            break
        forced.append(matcher.compute_ff_bytes().decode("utf-8", "replace"))
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return str(matcher.get_error()), ""
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: len(tokenizer.is_structure)]
        leading = bits * tokenizer.is_structure
        chosen = leading if leading.any() and draw.random() < STRUCTURE_SHARE else bits
        allowed = np.flatnonzero(chosen)
        if not len(allowed):
            return "no text fits it", ""
        matcher.consume_token(int(draw.choice(allowed)))
    return None, "\n".join(forced)


def _limit(cpu_seconds: int, more_bytes: int) -> None:
    """Limit the processor time and memory that this process may take from here on."""
    process = psutil.Process()
    seconds = int(sum(process.cpu_times()[:2])) + 1 + cpu_seconds
    with contextlib.suppress(ImportError):  # Windows: `grammars.py` limits the time alone
        import resource

        for kind, limit in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_AS, int(process.memory_info().vms) + more_bytes),  # macOS does not limit memory
        ):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))


def _byte_characters() -> dict[str, int]:
    """GPT-2's spelling of bytes as characters: printable ones as themselves, the others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(others)}


def _bytes_of(text: str, kind: object, by_character: dict[str, int] | None) -> bytes:
    if kind == _CONTROL:
        return MARK + text.encode()
    if kind == _BYTE and len(text) == 6:
        return bytes([int(text[3:5], 16)])
    if by_character and all(character in by_character for character in text):
        return bytes(map(by_character.__getitem__, text))
    return text.replace("▁", " ").encode()


CHECKS: dict[str, Callable[..., tuple[str, str | None]]] = {
    "grammar": check_grammar,
    "answer": check_answer,
    "json": check_json,
}


def _answered(kind: str, arguments: list[Any]) -> tuple[str, str | None]:
    try:
        return CHECKS[kind](*arguments)
    except RecursionError:
        return "", "it is nested too deep"
    except BaseException as e:  # noqa: BLE001  a panic of Rust is no Exception
        return "", str(e)[:300] or type(e).__name__


def _serve() -> None:
    for line in sys.stdin:
        kind, *arguments = json.loads(line)
        sys.stdout.write(json.dumps(_answered(kind, arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.set_int_max_str_digits(0)  # a long number is JSON too; the time it takes has a limit
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=_serve).start()
