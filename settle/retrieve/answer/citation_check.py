"""Check whether a passage supports a sentence: by its words and meaning, and by what the two claim.

A claim may add to a passage or change in it a name, a number, a negation, an opposite, or who does what to whom. Words
alone do not show it: "The vault is owned by team Osprey" has every word of "Mara owns the vault, and team Osprey runs
the gateway". So a claim is compared with one line of the passage, cut into segments at commas and conjunctions: its
words have to come from one segment, or from segments that belong together, with the same roles.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import log
from pathlib import Path
from typing import NamedTuple

import numpy as np

from settle.retrieve.answer.answer import Piece, Source
from settle.retrieve.answer.groundedness import SUPPORTED, groundedness
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import sentences, words

MEANING = 0.7  # weight of the meaning in the score; words have the rest
COMPARED = 3  # lines of a source whose meaning is compared: those that share most words with the sentence
UNRELATED = 64  # passages from which the cosine of unrelated ones is estimated
CLEARER = 0.15  # score margin needed to replace the model's own citation


@dataclass(frozen=True)
class Support:
    """How well a passage supports a sentence."""

    score: float  # 0 to 1
    differs: tuple[str, ...]  # the words in which it says something else: any of them rules support out
    source: Source
    piece: Piece
    line: str  # the nearest sentence of the passage

    @property
    def enough(self) -> bool:
        return self.score >= SUPPORTED and not self.differs


class _Line(NamedTuple):
    """A sentence of a passage."""

    text: str
    piece: Piece
    stems: frozenset[str]

    def shares(self, weights: Mapping[str, float]) -> float:
        """Return the total weight of those of a sentence's words (stem → weight) that this line has."""
        return sum(weight for stem, weight in weights.items() if stem in self.stems)


class Checker:
    """Checks sentences against sources: against the lines of each source that share most words with the sentence."""

    def __init__(self, collection: Collection, sources: Sequence[Source]) -> None:
        self._collection, self.sources = collection, sources
        self._lines = {source.number: [*_lines(source)] for source in sources}
        self._meanings: dict[str, np.ndarray] = {}
        self._floor, self._groundedness = _floor(collection), groundedness(collection.catalogue)

    def best(self, sentence: str, cited: int) -> Support:
        """Return the support of the source to cite: the model's own, unless another supports it more clearly."""
        weights = word_weights(self._collection, sentence)
        lines = {
            number: sorted(lines, key=lambda line: -line.shares(weights))[:COMPARED]
            for number, lines in self._lines.items()
        }
        self._embed([sentence, *(line.text for some in lines.values() for line in some)])
        supports = [self._supported(sentence, weights, source, lines[source.number]) for source in self.sources]
        best = max(supports, key=lambda s: (s.enough, s.score))
        own = next(support for support in supports if support.source.number == cited)
        if self._groundedness is not None:
            pairs = [(support.piece.passage.text, sentence) for support in (best, own)]
            best, own = (
                replace(support, score=score)
                for support, score in zip((best, own), self._groundedness.scores(pairs), strict=True)
            )
        is_clearer = (best.enough and not own.enough) or best.score > own.score + CLEARER
        return best if is_clearer else own

    def _supported(
        self, sentence: str, weights: Mapping[str, float], source: Source, lines: Sequence[_Line]
    ) -> Support:
        there = frozenset().union(*(line.stems for line in self._lines[source.number]))
        there |= {stem for piece in source.pieces for stem in words(_about(piece))}
        lexical = sum(w for stem, w in weights.items() if stem in there) / (sum(weights.values()) or 1)
        meaning = self._meanings[sentence]
        near = [(float(self._meanings[line.text] @ meaning) - self._floor) / (1 - self._floor) for line in lines]
        about = " ".join(_about(piece) for piece in source.pieces)
        agrees = [not differences(sentence, [line.text], about) for line in lines]
        nearest = lines[max(range(len(lines)), key=lambda n: (agrees[n], near[n]))]
        score = (1 - MEANING) * lexical + MEANING * max(0.0, *near)
        differs = differences(sentence, [line.text for line in self._lines[source.number]], about)
        return Support(score, differs, source, nearest.piece, nearest.text)

    def _embed(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._meanings]
        self._meanings |= zip(new, self._collection.vectors.vectorizer.documents(new), strict=True)


def _lines(source: Source) -> Iterator[_Line]:
    for piece in source.pieces:
        for text in sentences(piece.passage.text):
            yield _Line(text, piece, frozenset(words(text)))


def _floor(collection: Collection) -> float:
    """Return the cosine of unrelated passages of this collection, which depends on the embedder: 0.1 or 0.8."""
    ids = [passage.id for passage in collection.catalogue.passages.page(limit=UNRELATED)]
    vectors = np.array(list(collection.catalogue.passages.vectors(ids).values()))
    if len(vectors) < 2:
        return 0.0
    return float(np.median((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]))


def word_weights(collection: Collection, text: str) -> dict[str, float]:
    """Return the stems of a text, each with its weight in a collection: the rarer, the higher."""
    stems = set(words(text))
    frequencies = collection.catalogue.words.frequencies(stems)
    total = max(2, collection.catalogue.counts()["passages"])
    return {stem: log(1 + total / frequencies.get(stem, 1)) for stem in stems}


def _about(piece: Piece) -> str:
    """Return the words that say what a passage is about, other than its text: the file's name and the headings."""
    return " ".join((Path(piece.occurrence.path).name, *piece.passage.headings))


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


BE = word_set("is are was were be been being am")
_TOKEN = re.compile(r"`[^`]+`|\d+(?:[.,:]\d+)*|[\w][\w'’./-]*[\w]|\w")
_CODE = re.compile(r"`[^`]+`|(?>\w*?[a-z][A-Z])\w*|\w(?>\w*?_)\w+")  # atomic: a word takes time in its length
_NEGATIONS = word_set(
    "no not never none nothing nobody nowhere cannot without neither nor hardly rarely seldom unable lack lacks lacked"
    " fails failed"
)
_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {word: str(n) for n, word in enumerate(_UNITS.split()) if n > 1}  # "one" is mostly no number
_NUMBERS |= {word: str(10 * n) for n, word in enumerate(_TENS.split(), 3)}
_NUMBERS |= {"dozen": "12", "hundred": "100", "thousand": "1000"}
# Forms of verbs that a stemmer does not bring together; the first of each line is what they become.
_IRREGULAR = """
write wrote written writes / sell sold / buy bought / beat beaten / give gave given / take took taken / lead led
/ keep kept / tell told / make made / run ran / win won / lose lost / send sent / build built / hold held / pay
paid / say said / meet met / grow grew grown / fall fell fallen / rise rose risen / drive drove driven / break
broke broken / choose chose chosen / speak spoke spoken / draw drew drawn / fly flew flown / know knew known /
show shown / teach taught / think thought / catch caught / bring brought / find found / eat ate eaten / sing
sang sung / begin began begun / see saw seen / go went gone / come came / do did done / get got gotten / throw
threw thrown / steal stole stolen / lend lent / spend spent / feed fed / fight fought / seek sought / sow sown /
hide hid hidden / ride rode ridden / shoot shot / forbid forbade forbidden / stand stood / understand understood
/ become became / wear wore worn / tear tore torn / swear swore sworn / bear bore born"""
# Each side of a line is what the other one denies, where it takes its place.
_SIDES = """before earlier / after later
above over more / below under less fewer
most maximum / least minimum
larger bigger greater longer / smaller shorter
higher taller / lower
hotter warmer / colder cooler
older / newer younger
faster quicker / slower
heavier / lighter
cheaper / dearer pricier
deeper / shallower
hot warm / cold cool
fast quick quickly / slow slowly
large big long / small short
high / low
old / new young
open opened opens / closed close closes shut
allowed permitted allows permits may can / forbidden prohibited banned forbids
accepted accepts / rejected rejects refused refuses
enabled enables enable on / disabled disables disable off
added adds add / removed removes remove deleted
rose rises rise increased increases increase grew / fell falls fall decreased decreases decrease shrank
start starts started begin begins began beginning / end ends ended stop stops stopped
continues continue continued / stops stop stopped
always / never sometimes rarely
all every everyone both / some none few
first / last second then
left / right
north / south
east / west
inside within / outside
early / late
buy buys bought / sell sells sold
won wins win / lost loses lose
required mandatory must / optional
public / private
true / false
succeeds succeeded success / fails failed failure
kept keeps keep / lost discarded
loads load loaded / unloads unload unloaded
up / down
with / without
full / empty
wet / dry
hard / soft
good better best / bad worse worst"""


@dataclass(frozen=True)
class Token:
    """A word in its place."""

    text: str
    lower: str
    stem: str  # what it is compared by, "" for a word that carries no meaning
    is_name: bool = False
    is_number: bool = False
    is_owner: bool = False  # followed by 's


def tokens(text: str, other: str = "") -> list[Token]:
    """Return the words of a text in order.

    other: a text that shows which first words of a sentence are names: those that it has with a capital letter only.
    """
    found = []
    for match in _TOKEN.finditer(text):
        word = match.group()
        is_first = not text[: match.start()].strip() or text[: match.start()].rstrip()[-1] in ".!?"
        found.append(_token(word, is_first, text, other or text))
    return found


def _token(word: str, is_first: bool, text: str, other: str) -> Token:
    lower = word.lower()
    if word[0].isdigit():
        plain = re.sub(r",(?=\d{3}\b)", "", word)
        return Token(word, lower, plain.removesuffix(":00"), is_number=True)
    if lower in _NUMBERS:
        return Token(word, lower, _NUMBERS[lower], is_number=True)
    bare = re.sub(r"['’]s$|['’]$", "", word)
    is_owner = bare != word
    stems = words(_base_forms().get(bare.lower(), bare.strip("`")))
    is_code = bool(_CODE.fullmatch(word)) or word.startswith("`")
    is_name = is_code or (bare[:1].isupper() and bool(stems) and (not is_first or _is_proper(bare, text, other)))
    return Token(word, lower, " ".join(stems), is_name, is_owner=is_owner)


def _is_proper(word: str, text: str, other: str) -> bool:
    """Return whether the first word of a sentence is a name.

    Another place has it inside a sentence with its capital, or a second capital follows here.
    """
    inside = re.search(rf"[\w,;:] {re.escape(word)}\b", other)
    follows = re.match(rf"\s*{re.escape(word)} [A-Z]", text)
    return bool(inside or follows) and not re.search(rf"\b{re.escape(word.lower())}\b", other)


def is_negation(token: Token) -> bool:
    return token.lower in _NEGATIONS or token.lower.endswith(("n't", "n’t"))


@lru_cache(maxsize=1)
def _base_forms() -> dict[str, str]:
    verbs = [forms.split() for forms in _IRREGULAR.split("/")]
    return {form: forms[0] for forms in verbs for form in forms}


@lru_cache(maxsize=1)
def _opposites() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for line in _SIDES.splitlines():
        one, other = (frozenset(side.split()) for side in line.split("/"))
        for word in one:
            found[word] = found.get(word, frozenset()) | other
        for word in other:
            found[word] = found.get(word, frozenset()) | one
    return found


NEAR = 0.75  # share of the best line's words from which on another line may be the one that is meant
NEGATED = 4  # words before a part of a line in which a negation is one of that part
MOST_ELSEWHERE = 0.4  # share of a claim's words that may be in other lines than the one that says it
LONG = 4  # words of a part of a claim that is compared by itself too
LEADING = 2  # words at the start of a segment that may be what the next one is about; a name may be longer
_CUT = re.compile(
    r"[;:,()]\s|\s(?=(?:and|but|or|nor|while|whereas|whose|which|who|when|because|unless|if|then|not|never)\s)", re.I
)
_CLAIM_CUT = re.compile(r"[;:,]\s|\s(?=(?:and|but|while|whereas)\s)")
_REFERS = word_set("he she it they him her them his its their this these those who which whose")
_OPENERS = word_set("a an the this that these those every each all no its his her their our my")
_PREPOSITIONS = word_set(
    "by to from for than before after of in on at with within into under over above below against until since via"
)
_BREAKS = word_set("and but or nor then while whereas")


@dataclass(frozen=True)
class _Segment:
    """A part of a line, in order."""

    tokens: tuple[Token, ...]
    number: int = 0

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset(token.stem for token in self.tokens if token.stem)

    @cached_property
    def leading(self) -> frozenset[str]:
        """What it is about, as far as the first words say that: a name, or some words and the name after them."""
        heads = [token for token in self.tokens if token.stem]
        first = 0 if heads and heads[0].is_name else LEADING
        end = next((n for n in range(first, len(heads)) if not heads[n].is_name), len(heads))
        if first and self.tokens[0].lower not in _OPENERS:
            end = first  # what follows is a verb and what it is done to
        return frozenset(token.stem for token in heads[: max(end, 1)])

    @property
    def has_subject(self) -> bool:
        """Return whether it names a subject of its own: it begins with an article or a name."""
        words = [token for token in self.tokens if token.lower not in _BREAKS]
        return bool(words) and (words[0].lower in _OPENERS or words[0].is_name)

    @property
    def is_referring(self) -> bool:
        return any(token.lower in _REFERS for token in self.tokens)


def differences(claim: str, lines: Sequence[str], about: str = "") -> tuple[str, ...]:
    """Return the words in which a claim differs from what the lines of a passage say; none where one of them says it.

    about: the headings above them, and the file's name, whose names are known to every line.
    """
    if any(_repeats(tokens(claim), tokens(line)) for line in lines):
        return ()
    whole = _against_lines(claim, lines, about)
    parts = list(_segments(claim, _CLAIM_CUT))
    long = [part for part in parts if len(part.stems) >= LONG]
    if len(parts) > 1 and (long or whole):
        found = [_against_lines(" ".join(token.text for token in part.tokens), lines, about) for part in long]
        if any(found):
            return next(filter(None, found))
        if len(long) == len(parts) and all(part.has_subject for part in parts):
            return ()  # each part says something of its own, and each is there
    return whole


def _against_lines(claim: str, lines: Sequence[str], about: str) -> tuple[str, ...]:
    every = tokens(claim, " ".join((*lines, about)))
    asked = [token for token in every if token.stem or is_negation(token)]
    stems = {token.stem for token in asked if token.stem}
    if not stems or not lines:
        return ()
    known = {token.stem for token in tokens(about) if token.stem}
    covered = [len(stems & {token.stem for token in tokens(line)}) for line in lines]
    least = NEAR * max(covered)
    found: list[tuple[str, ...]] = []
    for number in sorted(range(len(lines)), key=lambda n: -covered[n]):
        if covered[number] >= least:
            found.append(_against_line(claim, asked, lines, number, known))
            if not found[-1]:
                return ()
    return found[0]


def _repeats(claim: Sequence[Token], line: Sequence[Token]) -> bool:
    """Return whether a line has the claim word for word, and no negation just before it."""
    ours, theirs = [token.lower for token in claim], [token.lower for token in line]
    for start in range(len(theirs) - len(ours) + 1):
        if theirs[start : start + len(ours)] == ours:
            return not any(map(is_negation, line[max(0, start - NEGATED) : start]))
    return False


def _against_line(
    claim: str, asked: Sequence[Token], lines: Sequence[str], number: int, known: set[str]
) -> tuple[str, ...]:
    """Return the differences from one line, whose pronouns refer to the line above it."""
    line, before = lines[number], lines[number - 1] if number else ""
    here = tokens(line)
    refers = any(token.lower in _REFERS for token in here)
    there = {token.stem for token in here if token.stem}
    above = {token.stem for token in tokens(before) if token.stem} if refers else set()
    passage = {token.stem for other in lines for token in tokens(other) if token.stem}
    elsewhere = [t for t in asked if t.stem in passage - there - above - known]
    if len({t.stem for t in elsewhere}) > MOST_ELSEWHERE * len({t.stem for t in asked} & passage):
        return tuple(dict.fromkeys(token.text for token in elsewhere))
    missing = [t.text for t in asked if (t.is_name or t.is_number) and t.stem not in there | above | known]
    if missing:
        return tuple(dict.fromkeys(missing))
    segments = [*(_segments(before) if refers else ()), *_segments(line)]
    segments = [replace(segment, number=number) for number, segment in enumerate(segments)]
    words = {token.stem for token in asked if token.stem}
    found: list[tuple[str, ...]] = []
    best = max(len(words & segment.stems) for segment in segments)
    for segment in sorted(segments, key=lambda s: -len(words & s.stems)):
        if len(words & segment.stems) >= NEAR * best:
            found.append(_against_segment(claim, asked, segment, segments, before if refers else ""))
            if not found[-1]:
                return ()
    return found[0]


def _against_segment(
    claim: str, asked: Sequence[Token], main: _Segment, segments: Sequence[_Segment], before: str
) -> tuple[str, ...]:
    """Return the differences, if `main` is what the claim repeats."""
    words = {token.stem for token in asked if token.stem}
    used, there, elsewhere = [main], set(main.stems), set[str]()
    for other in segments:
        extra = (words & other.stems) - main.stems
        if other is main:
            continue
        if not _belongs(other, main, words, extra):
            elsewhere |= extra
            continue
        there |= extra
        if extra - other.leading or other.stems <= words:
            used.append(other)
    if elsewhere - there:
        return tuple(token.text for token in asked if token.stem in elsewhere - there)
    used.sort(key=lambda segment: segment.number)
    here = [token for segment in used for token in segment.tokens]
    turned = [token for token in asked if token.stem not in {t.stem for t in here} and _opposite_in(token, here)]
    negated = [t for t in asked if is_negation(t)], [t for t in here if is_negation(t)]
    swapped = _swapped(claim, here, segments, before)
    flips = len(turned) + (len(negated[0]) != len(negated[1])) + bool(swapped)
    if flips % 2 == 0:  # "A is smaller than B" says what "B is larger than A" says
        return () if not swapped or turned else swapped
    return tuple(t.text for t in (*turned, *negated[0], *negated[1])) or swapped


def _belongs(other: _Segment, main: _Segment, words: set[str], extra: set[str]) -> bool:
    """Return whether a claim may take the words `extra` from another segment than the one that it repeats.

    It may where the other one says nothing else (and is no parallel that comes before), or names what the main one is
    about.
    """
    if not other.stems - words:
        is_parallel = bool(other.stems & main.stems) and bool(main.stems - words)
        return other.number > main.number or not is_parallel
    is_open = not main.has_subject or main.is_referring
    return other.number < main.number and is_open and extra <= other.leading


def _segments(line: str, cut: re.Pattern[str] = _CUT) -> Iterator[_Segment]:
    """Return the segments of a line; one without a content word ("or not") belongs to the one before it."""
    found: list[tuple[Token, ...]] = []
    for piece in cut.split(line):
        some = tuple(tokens(piece, line))
        if found and not any(token.stem for token in some):
            found[-1] += some
        elif some:
            found.append(some)
    return map(_Segment, found)


def _opposite_in(token: Token, here: Sequence[Token]) -> bool:
    against = _opposites().get(token.lower, frozenset())
    return any(other.lower in against or other.stem in against for other in here)


def _swapped(claim: str, here: Sequence[Token], segments: Sequence[_Segment], before: str) -> tuple[str, ...]:
    """Return two words that have changed places: agent and patient, source and destination, or owner and property."""
    asked, line = tokens(claim), _with_owner(list(here), segments, before)
    for hinge in {t.stem for t in asked if t.stem and not t.is_name and not t.is_number}:
        for roles in (_roles, _relation):
            ours, theirs = roles(asked, hinge), roles(line, hinge)
            shared = [stem for stem in ours if stem in theirs and stem != hinge]
            for one in shared:
                for other in shared:
                    if ours[one] == theirs[other] != theirs[one] == ours[other]:
                        texts = {t.stem: t.text for t in asked}
                        return (texts[one], texts[other])
    return ()


def _roles(of: Sequence[Token], hinge: str) -> dict[str, str]:
    """Return the role of each stem around the hinge: agent, patient, or the preposition that it follows."""
    places = [n for n, token in enumerate(of) if token.stem == hinge]
    if len(places) != 1 or (places[0] and _makes_noun(of[places[0] - 1])):
        return {}
    at = places[0]
    passive = any(token.lower in BE for token in of[max(0, at - 3) : at]) and of[at].lower.endswith(
        ("ed", "en", "wn", "nt", "ght", "ld", "id", "de", "un", "ne", "ad")
    )
    roles = {token.stem: "patient" if passive else "agent" for token in of[:at] if token.stem}
    role = "patient"
    for token in of[at + 1 :]:
        if token.lower in _PREPOSITIONS:
            role = "agent" if passive and token.lower == "by" else token.lower
        elif token.stem:
            roles.setdefault(token.stem, role)
    return roles


def _makes_noun(before: Token) -> bool:
    """Return whether the word after this one is not a verb, and nothing is done by it."""
    return before.lower in _OPENERS or before.lower in _PREPOSITIONS - {"to"} or before.is_number


def _relation(of: Sequence[Token], hinge: str) -> dict[str, str]:
    """Return each stem as owner or value, where a form of "be" joins them.

    The deputy of OWNER is VALUE, VALUE is OWNER's deputy.
    """
    at = next((n for n, token in enumerate(of) if token.stem == hinge), None)
    be = next((n for n, token in enumerate(of) if token.lower in BE), None)
    if at is None or be is None:
        return {}
    start, end = (0, be) if at < be else (be + 1, len(of))
    same, other = of[start:end], [*of[:start], *of[end:]]
    owned = any(token.lower == "of" or token.is_owner for token in same)
    if not owned:
        return {}
    roles = {token.stem: "owner" for token in same if token.stem and token.stem != hinge}
    return roles | {token.stem: "value" for token in other if token.stem and token.stem not in roles}


def _with_owner(here: list[Token], segments: Sequence[_Segment], before: str) -> list[Token]:
    """Return the tokens with a possessive pronoun replaced by the names that it refers to.

    Those are the names that the line above begins with, or, for "whose", those that precede it.
    """
    at = next((n for n, token in enumerate(here) if token.lower in ("his", "her", "its", "their", "whose")), None)
    if at is None:
        return here
    if here[at].lower == "whose":
        flat = [token for segment in segments for token in segment.tokens]
        end = next((n for n, token in enumerate(flat) if token.lower == "whose"), 0)
        names = [token for token in flat[max(0, end - LEADING) : end] if token.is_name]
    else:
        names = [token for token in tokens(before)[:LEADING] if token.is_name]
    return [*here[:at], *(replace(token, is_owner=True) for token in names), *here[at + 1 :]]
