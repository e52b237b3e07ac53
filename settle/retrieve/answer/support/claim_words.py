"""The words of a claim as they are compared: stems, names, numbers however they are written, negations, opposites."""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from settle.retrieve.index.words import words


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
    """A word in its place. stem: what it is compared by, "" for a word that says nothing; is_owner: followed by 's."""

    text: str
    lower: str
    stem: str
    is_name: bool = False
    is_number: bool = False
    is_owner: bool = False

    def owning(self) -> "Token":
        return replace(self, is_owner=True)


def tokens(text: str, other: str = "") -> list[Token]:
    """The words of a text in order. other: a text that shows which first words of a sentence are names: those that it
    has with a capital letter only."""
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
    """Whether the first word of a sentence is a name: another place has it inside of a sentence with its capital, or a
    second capital follows here."""
    inside = re.search(rf"[\w,;:] {re.escape(word)}\b", other)
    follows = re.match(rf"\s*{re.escape(word)} [A-Z]", text)
    return bool(inside or follows) and not re.search(rf"\b{re.escape(word.lower())}\b", other)


def is_negation(token: Token) -> bool:
    return token.lower in _NEGATIONS or token.lower.endswith(("n't", "n’t"))


@lru_cache(maxsize=4096)
def opposites(token: Token) -> frozenset[str]:
    """The words that deny this one where they take its place."""
    return _opposites().get(token.lower, frozenset())


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
