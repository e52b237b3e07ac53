"""Questions made from headings, glosses and summaries by rule, in other words than the document's.

Somebody who knows the matter still sees what is asked.

The rules, the same for every system that is compared; all choices are drawn with a seed of the question:

1. A text is taken as the longest terms of up to three words that WordNet knows ("operating system"), and else as words.
   Function words stay. Names stay: what has a digit, an underscore, a dot or a capital inside, is all capitals, is
   unknown to WordNet or spelled with a capital there, or has a capital where not every word of the text has one, or
   where one of them is such a name.
2. Of the other terms a third, in general prose a half (rounded down, at least one), give way to a word that means the
   same, as far as there is one. Such pairs stand in `synonyms.txt`: written by hand, each read as somebody would who
   works with computers, for words alone and for words in names ("argument" and "parameter"). Verbs count where they can
   be nothing else: after "to" or "that", as a participle, or as the first word of what can be done. A dictionary's
   senses do not say what may be exchanged: WordNet has "sort" as "kind", and "executable" as "feasible".
3. In general prose (`general`: the glosses) WordNet's synonyms count too, where nothing else can be meant: the word has
   one sense, or its most frequent one has four fifths of its tags, and the same holds for the synonym, which is tagged
   at least a tenth as often. Words that share their first three letters are other spellings and no synonyms.
4. A word takes on the ending of the one it replaces, and "a" or "an" before it follows. A noun in the plural that
   stayed, not before another, stands in the singular one time in three.
5. "A of B" becomes "B A", and "A and B" becomes "B and A", one time in two each, where A and B stand alone; so do
   clauses between semicolons.
6. The outcome is put into one of the set's frames ("How do I …?"); a gerund that begins a heading becomes a verb.
7. Of a text of one word, and where no stem has changed in the end, there is no question.
"""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
_BEFORE_VERBS = frozenset(("to", "that", "which", "who", "can", "i", "you", "we", "they", "do", "does"))
_SAME_PAST = frozenset(("split", "put", "set", "cut", "hit", "hurt", "quit"))
FUNCTION = frozenset(_FUNCTION.split())
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*[A-Za-z]|[A-Za-z]")
_TERM = 3  # words at most
_TOKEN = re.compile(r"[^\s;,()]+|[;,()]")
_LIKE = Path(__file__).with_name("synonyms.txt")
_SAME = 3  # first letters that make a word another spelling
_CLEAR, _TAGS, _KNOWN = 0.8, 5, 0.1  # see rule 3: share of the first sense, of so many tags at least; synonym's share


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
        self.first: dict[tuple[str, str], int] = defaultdict(int)  # and in its most frequent one
        self.exceptions: dict[tuple[str, str], str] = {}  # of (pos, form), the lemma
        self.irregular: dict[tuple[str, str], list[str]] = defaultdict(list)  # of (pos, lemma), the forms
        for pos, name in _POS.items():
            for line in _lines(folder / f"data.{name}"):
                if line[0] != " ":
                    fields, _, gloss = line.partition(" | ")
                    offset, _, _, count, *rest = fields.split()
                    words = tuple(re.sub(r"\(\w+\)$", "", w) for w in rest[: 2 * int(count, 16) : 2])
                    self.synsets[pos, offset] = Synset(pos, words, gloss.strip())
            for line in _lines(folder / f"index.{name}"):
                if line[0] != " ":
                    lemma, _, count, *rest = line.split()
                    self.senses[pos, lemma] = [(pos, offset) for offset in rest[-int(count) :]]
            for line in _lines(folder / f"{name}.exc"):
                form, lemma = line.split()[:2]
                self.exceptions[pos, form] = lemma
                self.irregular[pos, lemma].append(form)
        for line in _lines(folder / "cntlist.rev"):
            key, sense, count = line.split()
            lemma, _, rest = key.partition("%")
            self.tagged[_TYPES[rest[0]], lemma] += int(count)
            self.first[_TYPES[rest[0]], lemma] += int(count) * (sense == "1")

    @lru_cache(maxsize=1 << 17)  # noqa: B019  one object for the run
    def reading(self, word: str) -> tuple[str, str] | None:
        """(part of speech, lemma) that a lower-case word most often is."""
        found = {(pos, lemma) for pos in _POS for lemma in self.lemmas(word, pos)}
        order = {pos: i for i, pos in enumerate(_POS)}
        return max(found, key=lambda r: (self.tagged[r], r[1] == word, -order[r[0]], r[1]), default=None)

    def lemmas(self, word: str, pos: str) -> list[str]:
        if (pos, self.exceptions.get((pos, word))) in self.senses:
            return [self.exceptions[pos, word]]
        forms = [word, *(word[: -len(a)] + b for a, b in _ENDINGS[pos] if word.endswith(a) and len(word) > len(a) + 1)]
        return [form for form in forms if (pos, form) in self.senses]

    @lru_cache(maxsize=1 << 17)  # noqa: B019
    def synonyms(self, pos: str, lemma: str) -> list[str]:
        """Other words for it where nothing else can be meant (rule 3)."""
        sense = self.senses[pos, lemma][0]
        words = [w for w in self.synsets[sense].words if w.isalpha() and w.islower() and w[:_SAME] != lemma[:_SAME]]
        mutual = [w for w in words if self.reading(w) == (pos, w) and self.senses[pos, w][0] == sense]
        least = max(1, _KNOWN * self.tagged[pos, lemma])
        known = [w for w in mutual if self.tagged[pos, w] >= least and self._is_clear(pos, w)]
        return known if self._is_clear(pos, lemma) else []

    def _is_clear(self, pos: str, lemma: str) -> bool:
        tagged = sum(self.tagged[p, lemma] for p in _POS)
        only = sum(len(self.senses.get((p, lemma), ())) for p in _POS) == 1
        return only or (tagged >= _TAGS and self.first[pos, lemma] >= _CLEAR * tagged)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.stat().st_size else []


def stems(text: str) -> set[str]:
    """Of the content words, names included."""
    return {_STEM(w.lower()) for w in _WORD.findall(text) if w.lower() not in FUNCTION}


def like() -> dict[bool, dict[tuple[str, str], list[str]]]:
    """Synonyms by (part of speech, word): False: in any text, True: in general prose."""
    any_text, general = _LIKE.read_text(encoding="utf-8").split("\n#")
    found: dict[bool, dict[tuple[str, str], list[str]]] = {}
    for is_general, part in ((False, any_text), (True, general)):
        rows = (line.partition(": ") for line in part.splitlines()[1:])
        found[is_general] = {(said[0], said[2:]): others.split(", ") for said, _, others in rows}
    found[True] |= found[False]
    return found


class Paraphraser:
    """Applies the rules. general: the texts are prose about anything (rule 3)."""

    def __init__(self, wordnet: WordNet, general: bool = True) -> None:
        self.wordnet, self.general, self.like = wordnet, general, like()[general]

    def question(self, text: str, frames: Sequence[str], seed: str, verb: bool = False) -> str | None:
        """Return a question about what `text` says, or None (rule 7).

        frames: each with `{}` where the text goes; verb: the first word is one.
        """
        draw = random.Random(seed)
        clauses = [c.strip() for c in text.split(";") if c.strip()]
        if len(clauses) > 1 and draw.random() < 0.5:
            clauses.reverse()
        tokens = [t for i, clause in enumerate(clauses) for t in (";" if i else None, *self._terms(clause)) if t]
        words = [w for w in _WORD.findall(text) if w.lower() not in FUNCTION]
        if len(words) < 2:
            return None
        titled = all(w[0].isupper() for w in words) and not any(self._is_name(w) for w in words)
        plain = {i: reading for i, t in enumerate(tokens) if (reading := self._plain(t, titled or i == 0))}
        plain = {i: reading for i, r in plain.items() if (reading := self._in_place(tokens, i, r, verb))}
        tokens = [t.lower() if t.lower() in FUNCTION else t for t in tokens]
        known = {i: others for i, reading in plain.items() if (others := self._others(*reading))}
        replaced = set(draw.sample(sorted(known), min(len(known), max(1, len(plain) // (2 if self.general else 3)))))
        for i, (pos, lemma) in plain.items():
            term, last = "_".join(tokens[i].lower().split()), i + 1 not in plain
            if i in replaced:
                term = self._inflected(draw.choice(known[i]), term, lemma, pos)
                if tokens[i - 1 : i] in (["a"], ["an"]):
                    tokens[i - 1] = "an" if re.match("[aeio]|u(?!s|ni)", term) else "a"
            elif pos == "n" and last and term in (f"{lemma}s", f"{lemma}es") and draw.random() < 1 / 3:
                term = lemma
            tokens[i] = term.replace("_", " ")
        said = _reordered(tokens, plain, draw)
        if not stems(text) - stems(said):
            return None
        return draw.choice(frames).format(said)

    def _in_place(self, tokens: Sequence[str], i: int, reading: tuple[str, str], verb: bool) -> tuple[str, str] | None:
        """Return the reading of a term at its place.

        It is a verb after `_BEFORE_VERBS` and where a verb text begins; elsewhere a verb without an ending, with -s or
        with -ing is a noun, if it is anything.
        """
        before, word = tokens[i - 1].lower() if i else "", tokens[i].lower()
        begins = verb and (i == 0 or (i == 2 and before in ("and", "or", ",")))
        if (begins or before in _BEFORE_VERBS) and (verbs := self.wordnet.lemmas(word, "v")):
            return "v", verbs[0]
        if reading[0] != "v" or (word != reading[1] and not word.endswith(("s", "ing"))):
            return reading
        nouns = self.wordnet.lemmas(word, "n")
        return ("n", nouns[0]) if nouns else None

    def _is_name(self, word: str) -> bool:
        """Of somebody or something, by its capital."""
        return word[1:].islower() and self.wordnet.reading(word.lower()) is None

    def _others(self, pos: str, lemma: str) -> list[str]:
        return self.like.get((pos, lemma)) or (self.wordnet.synonyms(pos, lemma) if self.general else [])

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
        """Return the reading of a term that is neither a function word nor a name. titled: its capitals say nothing."""
        words = term.split()
        if term.lower() in FUNCTION or not all(_WORD.fullmatch(w) and w[1:] == w[1:].lower() for w in words):
            return None
        reading = self.wordnet.reading("_".join(words).lower())
        if reading is None or (not titled and term != term.lower()):
            return None
        spelled = [w for w in self.wordnet.synsets[self.wordnet.senses[reading][0]].words if w.lower() == reading[1]]
        return reading if any(w.islower() for w in spelled) else None

    def _inflected(self, word: str, like: str, lemma: str, pos: str) -> str:
        """Return a synonym with the ending of `like`, a form of `lemma`; a verb of several words changes its first."""
        if like == lemma or pos not in "nv" or not word.islower():
            return word
        if pos == "v" and " " in word:
            first, _, rest = word.partition(" ")
            return f"{self._inflected(first, like, lemma, pos)} {rest}"
        ending = next((e for e in ("ing", "s") if pos == "v" and like.endswith(e)), "s" if pos == "n" else "ed")
        return self._form(word, ending, pos)

    def _form(self, word: str, ending: str, pos: str) -> str:
        irregular = [f for f in self.wordnet.irregular[pos, word] if f.endswith("ing") == (ending == "ing")]
        if irregular and not (pos == "v" and ending == "s"):
            return max(irregular, key=lambda form: form.endswith("n"))  # a participle
        if ending == "ed" and word in _SAME_PAST:
            return word
        if ending == "s" and word.endswith(("s", "x", "z", "ch", "sh")):
            return word + "es"
        if ending in ("s", "ed") and word.endswith("y") and word[-2:-1] not in "aeiou":
            return word[:-1] + ("ies" if ending == "s" else "ied")
        if ending in ("ed", "ing") and word.endswith("e") and not word.endswith("ee"):
            return word[:-1] + ending
        return word + ending


def _reordered(tokens: Sequence[str], plain: Mapping[int, tuple[str, str]], draw: random.Random) -> str:
    """Rule 5. plain: part of speech and lemma by the place of a word."""
    order: list[str] = []
    i = 0
    while i < len(tokens):
        pair = tokens[i + 1] if i in plain and i + 2 in plain and plain[i][0] == plain[i + 2][0] else ""
        alone = i - 1 not in plain and i + 3 not in plain and tokens[i + 3 : i + 4] not in ([","], ["and"], ["or"])
        if pair in ("of", "and", "or") and alone and draw.random() < 0.5 and (pair != "of" or plain[i][0] == "n"):
            order += [tokens[i + 2], tokens[i]] if pair == "of" else [tokens[i + 2], pair, tokens[i]]
            i += 3
        else:
            order.append(tokens[i])
            i += 1
    return re.sub(r" ([;,)])", r"\1", " ".join(order)).replace("( ", "(")
