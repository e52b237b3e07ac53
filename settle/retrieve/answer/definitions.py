"""The terms that a passage explains, and what it says they are. There is no lexicon: only patterns of English."""

import re

from settle.retrieve.index.words import STOP

_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_MARKS = re.compile(r"[`*]+|(?<!\w)_+|_+(?!\w)|<[^<>]{1,80}>|^\s*(?:[-+•]|\d+[.)])\s+|^\s*>+\s?", re.M)
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9])")
WORD = re.compile(r"[^\W_][\w.+#'’/-]*[\w+#]|\w")
_PROSE = re.compile(r"[A-Z\"“‘(][^{}=;|<>\\]{30,400}[.!?]$")
_DEFINED = re.compile(
    r"(?:(?:In [^,.]{3,40}, )?(?:an?|the) )?(?P<term>[\w][\w.+#'’/-]*(?: [\w.+#'’/-]+){0,4}?)"
    r"(?: \([^)]{1,40}\))?,? (?:is|are|means|refers to|stands for|denotes)"
    r" (?P<gloss>(?:an?|the|one of|any|some) .{15,})",
    re.I,
)
_LISTED = re.compile(
    r"^\s*(?:[-*+•]\s+|\d+[.)]\s+)?(?P<term>[`*_]{0,3}[\w.@/-][^:—–\n]{0,40}?[`*_]{0,3})\s*(?::|[—–]|\s--?\s)\s*(?P<gloss>[^\n]{15,})"
)
_ENTRY = re.compile(
    r"(?P<term>\w[^\n]{0,60})\n\s*\n\s*(?:<[^>]{1,60}>\s*|\([^)]{1,60}\)\s*)*(?P<gloss>(?:\S+ ){4,}.*)", re.S
)
_ARTICLE = re.compile(r"^(?:an?|the) ", re.I)
MOST_TERM = 4  # words of a term
_PLAIN_WORD = re.compile(r"[(\"'“‘{]*[^\W\d_]{2,}(?:[-'’][^\W\d_]+)*[)\"'”’}.,;:!?]*")
_FIRST = 8  # words of an explanation that are examined
_NEVER = (  # begins or ends a term
    "it this that there these those he she they we you which one here because then also so thus hence however but if"
    " not only see note notes example examples warning warnings caution important tip hint todo help default"
)
NO_TERM = frozenset(_NEVER.split())


def plain(text: str) -> str:
    """A text without the marks of Markdown."""
    return _MARKS.sub("", _LINK.sub(r"\1", text))


def prose_sentences(text: str) -> list[str]:
    """Those of a passage that are prose, on one line each."""
    prose = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*+•]|\d+[.)])\s)", text):
        for sentence in _SENTENCE.split(" ".join(plain(paragraph).split())):
            if _PROSE.match(sentence) and len(WORD.findall(sentence)) >= 7:
                prose.append(sentence)
    return prose


def definitions(text: str, is_entry: bool) -> list[tuple[str, str]]:
    """(term, what it is) of a passage: sentences that define, lists of terms. is_entry: whether its first line may be
    the headword of a dictionary."""
    pairs = [(m["term"], m["gloss"]) for sentence in prose_sentences(text) if (m := _DEFINED.match(sentence))]
    pairs += [(plain(m["term"]), plain(m["gloss"])) for line in text.split("\n") if (m := _LISTED.match(line))]
    if is_entry and (m := _ENTRY.match(text)):
        pairs.append((m["term"], " ".join(plain(m["gloss"]).split())))
    terms = [(_ARTICLE.sub("", term.split(",")[0].strip(" ;\"'“”")), gloss) for term, gloss in pairs]
    return [(term, gloss) for term, gloss in terms if _is_term(term) and _is_prose(gloss)]


def _is_term(text: str) -> bool:
    term_words = text.lower().split()
    return 0 < len(term_words) <= MOST_TERM and not (STOP | NO_TERM).intersection(term_words[:1] + term_words[-1:])


def _is_prose(text: str) -> bool:
    """Whether most of its first words are such, and neither numbers, addresses nor code."""
    first = text.split()[:_FIRST]
    return sum(_PLAIN_WORD.fullmatch(word) is not None for word in first) > len(first) / 2
