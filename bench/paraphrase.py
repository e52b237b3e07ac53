"""Questions out of headings, glosses and summaries, by rule, so that the words of a question are not the document's.

The rules, the same for every set and every system that is compared; all choices are drawn with a seed of the question:

1. A text is taken as the longest terms of up to three words that WordNet knows ("operating system"), and else as words.
   Function words stay. Names stay: what has a digit, an underscore, a dot or a capital inside, is all capitals, is
   unknown to WordNet or spelled with a capital there, or has a capital where not every word of the text has one.
2. Half of the other terms (rounded down, at least one) give way to a synonym, as far as WordNet knows one: a word in
   the synset that is the term's most frequent sense over all parts of speech, where that synset is the synonym's most
   frequent sense too; of several, the one tagged most often. It takes on the ending of the word it replaces. Words of
   the same stem are no synonyms.
3. A noun that stayed changes its number, one time in three.
4. "A of B" becomes "B A", and "A and B" becomes "B and A", one time in two each; so do clauses between semicolons.
5. The outcome is put into one of the set's frames ("How do I …?").
6. Where fewer than two terms are there to begin with, or no stem has changed in the end, there is no question.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import snowballstemmer

_STEM = lru_cache(maxsize=1 << 17)(snowballstemmer.stemmer("english").stemWord)
_POS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_TYPES = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
_ENDINGS = {
    "n": [("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
          ("s", "")],
    "v": [("ies", "y"), ("es", "e"), ("es", ""), ("s", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")],
    "a": [("er", ""), ("er", "e"), ("est", ""), ("est", "e")],
    "r": [],
}  # fmt: skip
_FUNCTION = (
    "a about above after again all also an and any are as at be because been before being below between both but by can"
    " could did do does doing down during each either etc few for from further had has have having he her here hers him"
    " his how i if in into is it its itself just like made make me more most my no nor not of off on once one only or"
    " other others our out over own per same she should so some someone something such than that the their them then"
    " there these they thing this those through to too two under until up upon used using use usually various very was"
    " we were what when where which while who whom why will with within without would you your"
)
FUNCTION = frozenset(_FUNCTION.split())
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*[A-Za-z]|[A-Za-z]")
_TERM = 3  # words at most
_TOKEN = re.compile(r"[^\s;,()]+|[;,()]")


@dataclass(frozen=True)
class Synset:
    """pos: n, v, a or r. words: as WordNet spells them, spaces as underscores."""

    pos: str
    words: tuple[str, ...]
    gloss: str


class WordNet:
    """The database files of WordNet 3.0 in a folder (see its manual page wndb(5))."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[tuple[str, str], Synset] = {}  # by part of speech and offset
        self.senses: dict[tuple[str, str], list[tuple[str, str]]] = {}  # of (pos, lemma), the most frequent first
        self.tagged: dict[tuple[str, str], int] = defaultdict(int)  # how often (pos, lemma) was met, in any sense
        self.exceptions: dict[tuple[str, str], str] = {}  # of (pos, form), the lemma
        self.irregular: dict[tuple[str, str], list[str]] = defaultdict(list)  # of (pos, lemma), the forms
        for pos, name in _POS.items():
            for line in (folder / f"data.{name}").open(encoding="utf-8"):
                if line[0] != " ":
                    fields, _, gloss = line.partition(" | ")
                    offset, _, _, count, *rest = fields.split()
                    words = tuple(re.sub(r"\(\w+\)$", "", w) for w in rest[: 2 * int(count, 16) : 2])
                    self.synsets[pos, offset] = Synset(pos, words, gloss.strip())
            for line in (folder / f"index.{name}").open(encoding="utf-8"):
                if line[0] != " ":
                    lemma, _, count, *rest = line.split()
                    self.senses[pos, lemma] = [(pos, offset) for offset in rest[-int(count) :]]
            for line in (folder / f"{name}.exc").open(encoding="utf-8"):
                form, lemma = line.split()[:2]
                self.exceptions[pos, form] = lemma
                self.irregular[pos, lemma].append(form)
        for line in (folder / "cntlist.rev").open(encoding="utf-8"):
            key, _, count = line.split()
            lemma, _, rest = key.partition("%")
            self.tagged[_TYPES[rest[0]], lemma] += int(count)

    @lru_cache(maxsize=1 << 17)  # noqa: B019  one object for the run
    def reading(self, word: str) -> tuple[str, str] | None:
        """(part of speech, lemma) that a lower-case word most often is."""
        found = {(pos, lemma) for pos in _POS for lemma in self._lemmas(word, pos)}
        order = {pos: i for i, pos in enumerate(_POS)}
        return max(found, key=lambda r: (self.tagged[r], r[1] == word, -order[r[0]], r[1]), default=None)

    def _lemmas(self, word: str, pos: str) -> list[str]:
        if (pos, self.exceptions.get((pos, word))) in self.senses:
            return [self.exceptions[pos, word]]
        forms = [word, *(word[: -len(a)] + b for a, b in _ENDINGS[pos] if word.endswith(a) and len(word) > len(a) + 1)]
        return [form for form in forms if (pos, form) in self.senses]

    @lru_cache(maxsize=1 << 17)  # noqa: B019
    def synonym(self, pos: str, lemma: str) -> str | None:
        """The other word of the most frequent sense (rule 2), if there is one."""
        sense = self.senses[pos, lemma][0]
        words = [w for w in self.synsets[sense].words if w.isalpha() and w.islower()]
        others = [w for w in words if not stems(w) & stems(lemma.replace("_", " "))]
        mutual = [w for w in others if self.reading(w) == (pos, w) and self.senses[pos, w][0] == sense]
        return max(mutual, key=lambda w: (self.tagged[pos, w], -words.index(w)), default=None)


def stems(text: str) -> set[str]:
    """Of the content words, names included."""
    return {_STEM(w.lower()) for w in _WORD.findall(text) if w.lower() not in FUNCTION}


class Paraphraser:
    """Applies the rules."""

    def __init__(self, wordnet: WordNet) -> None:
        self.wordnet = wordnet

    def question(self, text: str, frames: Sequence[str], seed: str, verb: bool = False) -> str | None:
        """A question about what `text` says, or None (rule 6). frames: each with `{}` where the text goes; verb: the
        first word is one."""
        draw = random.Random(seed)
        clauses = [c.strip() for c in text.split(";") if c.strip()]
        if len(clauses) > 1 and draw.random() < 0.5:
            clauses.reverse()
        tokens = [t for i, clause in enumerate(clauses) for t in (";" if i else None, *self._terms(clause)) if t]
        words = [w for w in _WORD.findall(text) if w.lower() not in FUNCTION]
        titled = all(w[0].isupper() for w in words)
        plain = {i: reading for i, t in enumerate(tokens) if (reading := self._plain(t, titled or i == 0))}
        if len(plain) < 2:
            return None
        if verb and ("v", tokens[0].lower()) in self.wordnet.senses:
            plain[0] = ("v", tokens[0].lower())
        tokens = [t.lower() if t.lower() in FUNCTION else t for t in tokens]
        known = [i for i in plain if self.wordnet.synonym(*plain[i])]
        replaced = set(draw.sample(known, min(len(known), max(1, len(plain) // 2))))
        for i, (pos, lemma) in plain.items():
            term = "_".join(tokens[i].lower().split())
            if i in replaced:
                term = self._inflected(self.wordnet.synonym(pos, lemma) or "", term, lemma, pos)
            elif pos == "n" and draw.random() < 1 / 3:
                term = self._form(lemma, "s", "n") if term == lemma else lemma
            tokens[i] = term.replace("_", " ")
        said = _reordered(tokens, set(plain), draw)
        if not stems(text) - stems(said):
            return None
        return draw.choice(frames).format(said)

    def _terms(self, text: str) -> list[str]:
        """Rule 1: punctuation, words, and terms of several words."""
        tokens, terms = _TOKEN.findall(text), []
        while tokens:
            size = next((n for n in range(_TERM, 1, -1) if self._term(tokens[:n], n)), 1)
            terms.append(" ".join(tokens[:size]))
            tokens = tokens[size:]
        return terms

    def _term(self, words: list[str], size: int) -> bool:
        whole = all(_WORD.fullmatch(w) for w in words) and words[0].lower() not in FUNCTION
        return whole and len(words) == size and self.wordnet.reading("_".join(words).lower()) is not None

    def _plain(self, term: str, titled: bool) -> tuple[str, str] | None:
        """The reading of a term that is neither a function word nor a name. titled: its capitals say nothing."""
        words = term.split()
        if term.lower() in FUNCTION or not all(_WORD.fullmatch(w) and w[1:] == w[1:].lower() for w in words):
            return None
        reading = self.wordnet.reading("_".join(words).lower())
        if reading is None or (not titled and term != term.lower()):
            return None
        spelled = [w for w in self.wordnet.synsets[self.wordnet.senses[reading][0]].words if w.lower() == reading[1]]
        return reading if any(w.islower() for w in spelled) else None

    def _inflected(self, word: str, like: str, lemma: str, pos: str) -> str:
        """A synonym with the ending of the word `like`, a form of `lemma`."""
        if like == lemma or pos not in "nv":
            return word
        ending = next((e for e in ("ing", "s") if pos == "v" and like.endswith(e)), "s" if pos == "n" else "ed")
        return self._form(word, ending, pos)

    def _form(self, word: str, ending: str, pos: str) -> str:
        irregular = [f for f in self.wordnet.irregular[pos, word] if f.endswith("ing") == (ending == "ing")]
        if irregular and not (pos == "v" and ending == "s"):
            return irregular[0]
        if ending == "s" and word.endswith(("s", "x", "z", "ch", "sh")):
            return word + "es"
        if ending in ("s", "ed") and word.endswith("y") and word[-2:-1] not in "aeiou":
            return word[:-1] + ("ies" if ending == "s" else "ied")
        if ending in ("ed", "ing") and word.endswith("e") and not word.endswith("ee"):
            return word[:-1] + ending
        return word + ending


def _reordered(tokens: Sequence[str], content: set[int], draw: random.Random) -> str:
    """Rule 4. content: the places of the content words among the tokens."""
    order: list[str] = []
    i = 0
    while i < len(tokens):
        pair = tokens[i + 1] if i + 2 < len(tokens) and i in content and i + 2 in content else ""
        if pair in ("of", "and", "or") and draw.random() < 0.5:
            order += [tokens[i + 2], tokens[i]] if pair == "of" else [tokens[i + 2], pair, tokens[i]]
            i += 3
        else:
            order.append(tokens[i])
            i += 1
    return re.sub(r" ([;,)])", r"\1", " ".join(order)).replace("( ", "(")
