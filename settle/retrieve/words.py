"""A text as the words that lexical search compares: lower case, stemmed, names taken apart."""

import re
import unicodedata
from functools import lru_cache

import snowballstemmer

VERSION = 1  # of what a text becomes: an index made by another version is made again

_WORD = re.compile(r"\w+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+|(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_LONGEST = 64  # characters of a word that is kept
_COMMON = (
    "a an and are as at be but by can could did do does for from had has have how i if in into is it its me my no not"
    " of on or our shall should so some such than that the their them then there these they this to was we were what"
    " when where which who whom whose why will with would you your"
)
STOP = frozenset(_COMMON.split())
_stemmer = snowballstemmer.stemmer("english")


def words(text: str) -> list[str]:
    """Stems of a text in order, stop words left out. `readFile_v2` gives itself and its parts; scripts without spaces
    give pairs of characters."""
    found: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text)):
        if _CJK.search(word):
            found += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
            continue
        found += _stems(word[:_LONGEST])
    return found


@lru_cache(maxsize=1 << 16)
def _stems(word: str) -> tuple[str, ...]:
    whole = word.lower()
    if whole in STOP:
        return ()
    parts = [part.lower() for part in _HUMP.split(word) if part]
    stems = [whole if len(parts) > 1 else _stem(whole)]
    if len(parts) > 1:
        stems += [_stem(part) for part in parts if part not in STOP]
    return tuple(stems)


def _stem(word: str) -> str:
    stem: str = _stemmer.stemWord(word)
    return stem
