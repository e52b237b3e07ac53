"""A text as the words that lexical search compares, and as its sentences.

Words are in lower case, stemmed and spelled one way, names taken apart. Items of lists, rows of tables and lines of
listings count as sentences.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version

from snowballstemmer.english_stemmer import EnglishStemmer

# Of what a text becomes, which a stemmer's next version may change: an index made by another one is made again.
VERSION = f"2, snowballstemmer {version('snowballstemmer')}"
_WORD = re.compile(r"\w+(?:\+\+|#(?!\w))?")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+|(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_ACCENTS = re.compile(r"[\u0300-\u036f]")  # the index of words knows none
_LONGEST = 64  # characters of a word that is kept
_COMMON = (
    "a an and are as at be but by can could did do does for from had has have how i if in into is it its me my no not"
    " of on or our shall should so some such than that the their them then there these they this to was we were what"
    " when where which while who whom whose why will with would you your"
)
STOP = frozenset(_COMMON.split())
# British spelling → American. Other words that end so change too, in question and passage alike.
_SPELLINGS = tuple(
    (re.compile(pattern), american)
    for pattern, american in (
        (r"(?<=...)our(?=s?$|ed$|ing$|ite|able|ful|less)", "or"),
        # not advise, precise, raise, surprise, promise, premise: they have relatives without -ise
        (r"(?<=...)(?<![aeoucvw])(?<!pr)(?<!pr[eo]m)is(?=e[sdr]?$|ing$|ation)", "iz"),
        (r"(?<=.l)ys(?=e[sdr]?$|ing$)", "yz"),
        (r"(?<=..[^aeious])re(?=s?$)", "er"),
        (r"(?<=..)ogue(?=s?$)", "og"),
    )
)
_stemmer = EnglishStemmer()  # not `stemmer()`, which takes PyStemmer of some other version where that is installed
# after a full stop and a closing quote, before a capital or a digit; or at the end of a paragraph or an item
_END = re.compile(
    r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[`]*[A-Z0-9])|(?<=[。！？])|\n\s*\n|\n(?=\s*(?:[-*+•|>]|\d+[.)])\s)"
)
_ABBREVIATED = re.compile(r"(?:^|\s)(?:[A-Z]|e\.g|i\.e|cf|vs|etc|approx|Dr|Mr|Mrs|Ms|No|Fig|Sec|Eq|St)\.$")


def words(text: str) -> list[str]:
    """Return the stems of a text in order, without stop words.

    `readFile_v2` gives itself and its parts; scripts without spaces give pairs of characters.
    """
    plain = text.isascii()
    stems: list[str] = []
    for word in _WORD.findall(text if plain else unicodedata.normalize("NFKC", text)):
        if not plain and _CJK.search(word):
            stems += (word[i : i + 2] for i in range(max(1, len(word) - 1)))
        else:
            stems += _stems(word[:_LONGEST])
    return stems


@lru_cache(maxsize=1 << 16)
def _stems(word: str) -> tuple[str, ...]:
    if not word.isascii():
        word = _ACCENTS.sub("", unicodedata.normalize("NFD", word))
    if word[-1] in "+#":
        return (word.rstrip("+#").lower() + ("plusplus" if word[-1] == "+" else "sharp"),)
    whole = word.lower()
    if whole in STOP:
        return ()
    parts = [part.lower() for part in _HUMP.split(word) if part]
    stems = [whole if len(parts) > 1 else _stem(whole)]
    if len(parts) > 1:
        stems += [_stem(part) for part in parts if part not in STOP]
    return tuple(stems)


def _stem(word: str) -> str:
    for pattern, american in _SPELLINGS:
        word = pattern.sub(american, word)
    stem: str = _stemmer.stemWord(word)
    return stem


def sentences(text: str) -> Iterator[str]:
    """Yield each sentence in order, its white space normalized."""
    pending = ""
    start = 0
    for end in [*_END.finditer(text), None]:
        piece = text[start : end.end() if end else len(text)]
        start = end.end() if end else len(text)
        pending += piece
        if end and _ABBREVIATED.search(pending.rstrip()):
            continue
        sentence = " ".join(pending.split())
        if sentence:
            yield sentence
        pending = ""
