"""What a claim adds to a passage or changes in it: a name, a number, a negation, an opposite, who does what to whom.

Words alone do not show it: "The vault is owned by team Osprey" has every word of "Mara owns the vault, and team Osprey
runs the gateway". So a claim is held against one line of the passage, cut into segments at commas and conjunctions:
its words have to come from one segment, or from segments that belong together, with the same roles.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from settle.retrieve.answer.support.claim_words import BE, Token, is_negation, opposites, tokens, word_set

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
        """Whether it names one of its own: it begins with an article or a name."""
        words = [token for token in self.tokens if token.lower not in _BREAKS]
        return bool(words) and (words[0].lower in _OPENERS or words[0].is_name)

    @property
    def is_referring(self) -> bool:
        return any(token.lower in _REFERS for token in self.tokens)


def differences(claim: str, lines: Sequence[str], about: str = "") -> tuple[str, ...]:
    """The words in which a claim differs from what the lines of a passage say; none where one of them says it.

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
    """The differences to the line that is nearest."""
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
    """Whether a line has the claim word for word, and no negation just before it."""
    ours, theirs = [token.lower for token in claim], [token.lower for token in line]
    for start in range(len(theirs) - len(ours) + 1):
        if theirs[start : start + len(ours)] == ours:
            return not any(map(is_negation, line[max(0, start - NEGATED) : start]))
    return False


def _against_line(
    claim: str, asked: Sequence[Token], lines: Sequence[str], number: int, known: set[str]
) -> tuple[str, ...]:
    """The differences to one line, whose pronouns refer to the line above it."""
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
    """The differences, if `main` is what the claim repeats."""
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
    """Whether a claim may take the words `extra` from another segment than the one that it repeats: the other one says
    nothing else (and is no parallel that comes before), or names what the main one is about."""
    if not other.stems - words:
        is_parallel = bool(other.stems & main.stems) and bool(main.stems - words)
        return other.number > main.number or not is_parallel
    is_open = not main.has_subject or main.is_referring
    return other.number < main.number and is_open and extra <= other.leading


def _segments(line: str, cut: re.Pattern[str] = _CUT) -> Iterator[_Segment]:
    """The segments of a line; one that says nothing by itself ("or not") belongs to the one before it."""
    found: list[tuple[Token, ...]] = []
    for piece in cut.split(line):
        some = tuple(tokens(piece, line))
        if found and not any(token.stem for token in some):
            found[-1] += some
        elif some:
            found.append(some)
    return map(_Segment, found)


def _opposite_in(token: Token, here: Sequence[Token]) -> bool:
    against = opposites(token)
    return any(other.lower in against or other.stem in against for other in here)


def _swapped(claim: str, here: Sequence[Token], segments: Sequence[_Segment], before: str) -> tuple[str, ...]:
    """Two words that have changed places: who does it and to whom it is done, from where and to where, whose it is."""
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
    """Stem → its role beside the hinge: agent, patient, or the preposition that it follows."""
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
    """Whether the word after this one is no verb, and nothing is done by it."""
    return before.lower in _OPENERS or before.lower in _PREPOSITIONS - {"to"} or before.is_number


def _relation(of: Sequence[Token], hinge: str) -> dict[str, str]:
    """Stem → owner or value, where a form of "be" joins them: the deputy of OWNER is VALUE, VALUE is OWNER's deputy."""
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
    """The tokens with a possessive pronoun replaced by the names that it stands for: those that the line above begins
    with, or, for "whose", those that stand before it."""
    at = next((n for n, token in enumerate(here) if token.lower in ("his", "her", "its", "their", "whose")), None)
    if at is None:
        return here
    if here[at].lower == "whose":
        flat = [token for segment in segments for token in segment.tokens]
        end = next((n for n, token in enumerate(flat) if token.lower == "whose"), 0)
        names = [token for token in flat[max(0, end - LEADING) : end] if token.is_name]
    else:
        names = [token for token in tokens(before)[:LEADING] if token.is_name]
    return [*here[:at], *(token.owning() for token in names), *here[at + 1 :]]
