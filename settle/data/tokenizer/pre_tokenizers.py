"""How each family of byte-level tokenizers cuts a text into words before merging; llama.cpp's names of the ways.

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
_CASED_LETTERS = """
41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c
38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b
1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4
1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113
2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b
2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06
fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df
1e900-1e943
"""
_CHINESE = r"[一-龥\u0800-一가-\ud7ff]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{classes.inside_brackets(_CASED_LETTERS)}]+",
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
    """patterns: see above. whole_words: a word that is a token is that token, whatever its merges.
    add_bos: what a file that does not say so means."""

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
    """The pieces of a text, whose concatenation it is."""
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
    """`\\p{X}` written out with the frozen classes, inside brackets or not."""
    out, inside = [], False
    for part in re.split(r"(\\p\{\w\}|\\.|[\[\]])", pattern):
        if part.startswith("\\p"):
            body = classes.inside_brackets(_CLASSES[part[3]])
            out.append(body if inside else f"[{body}]")
        else:
            inside = part == "[" if part in ("[", "]") else inside
            out.append(part)
    return re.compile("".join(out), re.ASCII)
