"""The ways in which byte-level tokenizers cut a text into words before merging, by llama.cpp's names.

A way is a list of patterns: each cuts the pieces that the one before it left, into what matches and what lies
between. Patterns: those published in the families' `tokenizer.json`, read as llama.cpp reads them. It knows no white
space beyond ASCII inside a pattern, and stands in a vertical tab for it; `words` does the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from settle.data.tokenizer import character_classes as classes

CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_AFTER_LETTERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _LINES
_LLAMA3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _AFTER_LETTERS
_QWEN2 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _AFTER_LETTERS
_QWEN35 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _LINES
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _LINES
_TEKKEN = f"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _SLASHED
_GPT4O = f"{_LEAD}{_UPPER}*{_LOWER}+{CONTRACTION}?|{_LEAD}{_UPPER}+{_LOWER}*{CONTRACTION}?" + r"|\p{N}{1,3}" + _SLASHED
_CHINESE = r"[一-龥\u0800-一가-\ud7ff]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{classes.inside_brackets(classes.CASED_LETTERS)}]+",
    r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"\s+\Z",
    _CHINESE,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, r"\p{N}")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _LINES,
)
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True)
class Way:
    """A way to cut words.

    patterns: see above. whole_words: whether a word that is a token is that token, whatever its merges. add_bos: what a
    file that does not say so means.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_WAYS: dict[tuple[str, ...], Way] = {
    ("default",): Way(_DEFAULT),
    ("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "mellum", "modern-bert", "trillion"): Way((GPT2,)),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): Way((r"\p{N}", GPT2)),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"): Way((_LLAMA3,), whole_words=True, add_bos=True),
    ("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"): Way((_LLAMA3,)),
    ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "grok-2"): Way((_QWEN2,)),
    ("qwen35",): Way((_QWEN35,)),
    ("tekken",): Way((_TEKKEN,), whole_words=True, add_bos=True),
    ("gpt-4o", "llama4", "kanana2"): Way((_GPT4O,)),
    ("falcon",): Way(_FALCON),
    ("deepseek-llm",): Way(_DEEPSEEK_LLM),
    ("deepseek-coder",): Way(_DEEPSEEK_CODER),
    ("deepseek-v3", "hunyuan-dense"): Way(_DEEPSEEK_V3),
}
WAYS: dict[str, Way] = {name: way for names, way in _WAYS.items() for name in names}

_CLASSES = {
    "L": classes.LETTERS,
    "N": classes.NUMBERS,
    "P": classes.PUNCTUATION,
    "S": classes.SYMBOLS,
    "M": classes.MARKS,
}
_SPACES = {c: 0x0B for a, b in classes.ranges(classes.SPACES) for c in range(a, b + 1) if c > 127}
_FOREIGN_SPACE = re.compile("[" + "".join(map(chr, _SPACES)) + "]")


def words(text: str, patterns: Sequence[str]) -> list[str]:
    """Return the pieces of a text, whose concatenation it is."""
    plain = text.translate(_SPACES) if _FOREIGN_SPACE.search(text) else text
    bounds = [(0, len(text))] if text else []
    for pattern in patterns:
        find = _compiled(pattern).finditer
        cut: list[tuple[int, int]] = []
        for first, last in bounds:
            at = first
            # a piece is a text of its own: what looks ahead must not see the next one
            for match in find(plain[first:last]):
                start, end = match.start() + first, match.end() + first
                if start > at:
                    cut.append((at, start))
                cut.append((start, end))
                at = end
            if at < last:
                cut.append((at, last))
        bounds = cut
    return [text[first:last] for first, last in bounds]


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern with `\\p{X}` written out by the frozen classes, inside brackets or not."""
    out, inside = [], False
    for part in re.split(r"(\\p\{\w\}|\\.|[\[\]])", pattern):
        if part.startswith("\\p"):
            body = classes.inside_brackets(_CLASSES[part[3]])
            out.append(body if inside else f"[{body}]")
        else:
            inside = part == "[" if part in ("[", "]") else inside
            out.append(part)
    return re.compile("".join(out), re.ASCII)
