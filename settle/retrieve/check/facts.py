"""Facts that a passage states, each with questions it answers: by rule, so the answer is the document's own sentence.

A rule turns a sentence round only where its parts can be told apart by their words alone, and leaves all others: a
collection has more sentences than rows are wanted. What points elsewhere ("this", "below", "see …") is no fact, since
nobody can read it without its page.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from random import Random
from typing import NamedTuple

from settle.retrieve.check.phrases import WORD, definitions, functions, is_term, plain, prose_sentences, rows, slipped
from settle.retrieve.index.words import STOP

MOST_STATED, FEWEST_STATED = 45, 7  # words of a sentence
NAMED = frozenset(("term", "default", "definition", "table", "code"))  # kinds that ask for something by its name
_ELSEWHERE = re.compile(
    r"\b(?:above|below|following|as follows|previous(?:ly)?|earlier|later in|next (?:section|chapter|page|example)"
    r"|this|these|those|here|such|the (?:same|latter|former|other|first|second|two|example|figure|listing)|see|shown"
    r"|described|mentioned|discussed|e\.g|i\.e|etc|for example|for instance|chapters?|sections?|figures?|we|our|us"
    r"|let's|respectively|refers? to|(?:have|take) a look|please|that's|there's|likewise|similarly|his|her|he|she)\b",
    re.I,
)
_POINTING = re.compile(
    r"(?:it|they|there|however|but|so|then|also|otherwise|instead|thus|hence|and|or|yet|still|again|now|finally|first"
    r"|second|next|once|note|additionally|furthermore|moreover|in (?:addition|contrast|fact|other|both|either)|while"
    r"|because|since|after|before|unlike|like|another|one|both|each of|most of|some|many|other|others|its|their|what"
    r"|which|who|as|well|yes|no|please|only|similar|even|too|just|more|main|alternatively|either|thanks|whether)\b",
    re.I,
)
_LOST = re.compile(r"::|[|{}<>\\=]|\]\[|:\w+:|https?:|\.\.\.|…|\s-\s-|\?\s|\$\s|`[^`]*$|\t| ,|\( | \)|[\"“”]\s[\"“”]")
_PRONOUN = re.compile(r"\b(?:that's|it|its|they|them|their|i|my|me|itself|themselves)\b", re.I)
_YOU = {"you": "I", "your": "my", "yours": "mine", "yourself": "myself", "you're": "I am", "you've": "I have"}
_YOURS = re.compile(rf"\b(?:{'|'.join(_YOU)})\b", re.I)
_HOW = re.compile(
    r"To (?P<what>[a-z]+ [^,:;()]{5,70}),"
    r" (?!(?:it|they|we|an?|one|the|[a-z]+ (?:[a-z]+s|can|will|should|must|may)) )[a-z].{10,}"
)
_YOU_CAN = re.compile(
    r"You (?:can|may) (?:also |even |easily |simply |further )?(?P<what>[a-z]+ [^,:;()]{5,70}?)(?<! is)(?<! are)"
    r" (?:by [a-z]+ing|using) .{5,}"
)
_BE_DONE = re.compile(
    r"(?P<who>[^,:;()]{3,40}) can be (?P<what>[a-z]+(?:ed|set|put|built|run|done|given|written|found|made)"
    r"(?: (?:to|from|for|in|on|as) [^,:;()]{3,30})?) (?:by [a-z]+ing|using|with) .{5,}"
)
_IF = re.compile(
    r"(?P<if>If|When) (?P<when>[^,:;()]{8,90}), (?P<who>[^,:;()]{2,40}?) (?P<verb>must|should|need to|needs to|has to"
    r"|have to|will|is|are|can|may|cannot)(?: not)? (?P<rest>.{6,})"
)
_BECAUSE = re.compile(
    r"(?P<who>[^,:;()]{3,45}?) (?P<verb>is|are|was|were|must|should|cannot|can|will) (?P<rest>[^,:;()]{3,70}?),?"
    r" because .{8,}"
)
_RULE = re.compile(
    r"(?P<who>[^,:;()]{3,45}?) (?P<verb>must|may|can|should)(?P<no> not|not)?"
    r" (?!also|even|no |only|still|now|further)(?P<rest>[a-z][^:;()]{8,110})[.!]$"
)
_DATE = re.compile(
    r"(?P<who>[^,:;()]{3,45}?) (?P<verb>was|were) (?P<rest>[^,:;()\d]{3,60}?) (?:in|on|since) (?:(?:\d{1,2} )?"
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December)(?: \d{1,2},?)? )?"
    r"(?:1[6-9]|20)\d\d\b"
)
_DEFAULT = re.compile(r"(?:(?:the )?defaults? (?:value )?(?:is|to)|defaults to|by default,? (?:is|it is))\b", re.I)
_DEFAULT_LINE = re.compile(r"^\W*Default(?: value)?\W*:\s*\W*(?P<value>[^\n]{1,60})$", re.M)
_NUMBERED = re.compile(r"^(?:\d+\.)+\d*\.?\s+|^Q(?:uestion)?\s*\d*[.:]\s*")
_PURPOSE = re.compile(
    r"(?P<who>(?:The |An? )?[^,:;()]{2,40}?) (?:(?:is|are|can be) used (?:to|for)|(?:lets|allows|enables) (?:you"
    r"|users|one)|(?:makes|make) it possible) .{8,}"
)
_IS_A = re.compile(
    r"(?P<who>(?:An? |The )?[^,:;()]{2,40}?)(?: \([^)]{1,40}\))? (?P<verb>is|are) (?:an?|the|one of)"
    r" (?!one\b|only|best|same|most|last|case|reason|default|[a-z]+est\b)[a-z].{10,}"
)
_CODE = re.compile(
    r"(?:--?[\w-]+(?:[= ]<?\w+>?)?|[A-Z]+_[A-Z_]+|\w+(?:[._]\w+)+(?:\(\))?|\w+\(\)|[a-z]+[A-Z]\w+|\w+(?:::\w+)+)"
)
_SIGNATURE = re.compile(r"\(.*\)?$")
_WHOSE = frozenset(WORD.findall("a an the each every all any no"))
_INSIDE = frozenset(WORD.findall("of for in on the a an and to from with"))
_AROUND = frozenset(
    WORD.findall(
        "now instead also even then still again often usually always never either defined only two three four five"
        " several few many other first second third last next best most latest safest simplest easiest further"
    )
)
_EVERY = re.compile(r"(?:each|every|all|any|no) ", re.I)
_UNNAMED = re.compile(r"the (?:value|option|setting|argument|parameter|flag|field|key|file|function|method|command) ")
_LEFT_OPEN = re.compile(  # in what is to be done: a thing that was spoken of, or a second statement
    r"^[a-z]+ that |\bthe (?:problem|issue|error|latter|ambiguity)\b| (?:the|an?) [a-z]+ [a-z]+s (?:an?|the) "
    r"| (?:that|this|either|by|and)$"
)
_ABOUT = re.compile(  # a sentence about something else that a name has to do with
    r"(?:The|An?) (?:(?! that | which )[\w ()-]){2,40} (?:needs? to|should|is|are|must|can|will|may) "
)
_MODAL = re.compile(r"\b(?:must|should|will|can|may|would|if)\b|\beither\b|\band [a-z]+s\b|,")
_PROPERTIES = frozenset(  # what a column has to end with: its cells are then one thing of their row
    WORD.findall(
        "address amount author capacity category code colour color command cost country date deadline default"
        " description duration email fee format frequency height language length level licence license limit"
        " location maximum meaning method minimum model name number owner path period phone population port price"
        " purpose range rate remedy result role salary shape size speed state status summary temperature time type"
        " unit url value version voltage weight width year"
    )
)
_DOING = re.compile(  # begins what a name does or is
    r"(?:An? |The |[A-Z][a-z]+[^s\W]s (?!of\b|and\b|in\b)|(?:Set|Get|Return|Make|Enable|Disable|Restrict|Show|Print"
    r"|Add|Remove|Run"
    r"|Specify|Write|Read|Create|Delete|Allow|Force|Prevent|Limit|Control|Define|Load|Save|Send|Start|Stop|Turn|List"
    r"|Choose|Select|Display|Include|Exclude|Ignore|Keep|Convert|Check|Call|Clear|Close|Open|Copy|Update|Change"
    r"|Configure|Register|Render|Parse|Build|Find|Generate|Output|Suppress|Skip|Store|Wait|Whether|Number of) )"
)
_IDLE = frozenset(
    WORD.findall("thing things way ways value values case cases example name one result most purpose idea")
)


class Fact(NamedTuple):
    """What a passage says, and questions that it answers."""

    kind: str  # the rule
    questions: tuple[str, ...]  # as one asks it, in several wordings
    answer: str
    stated: str  # what of the passage says so, on one line, without marks


def small_words(texts: Iterable[str]) -> frozenset[str]:
    """Return the words that the texts write small more often than not; others are names."""
    small: Counter[str] = Counter()
    for text in texts:
        for word in WORD.findall(text):
            small[word.lower()] += 1 if word.islower() else -1
    return frozenset(word for word, balance in small.items() if balance > 0)


def is_whole(sentence: str) -> bool:
    """Return whether a sentence can be read without its page."""
    words = WORD.findall(sentence)
    if not FEWEST_STATED <= len(words) <= MOST_STATED or _LOST.search(sentence) or _ELSEWHERE.search(sentence):
        return False
    if _POINTING.match(sentence) or any(sentence.count(a) != sentence.count(b) for a, b in ("()", "[]", "“”")):
        return False
    if sentence.count('"') % 2 or not sentence.endswith((".", "!")):
        return False
    small = [word for word in words if word.islower()]
    return 2 * len(small) >= len(words)


def as_asked(question: str, random: Random) -> str:
    """Return a question as people type it: most with care, some small and short of a mark, a few mistyped."""
    chance = random.random()
    if chance < 0.65:
        return question
    question = question[0].lower() + question[1:] if question[:2] not in ("I ", "I'") else question
    question = re.sub(r"^what is\b", "what's", question) if chance > 0.9 else question
    question = question.rstrip("?") if chance > 0.75 else question
    return slipped(question, random) if chance > 0.93 else question


class FactReader:
    """Reads facts. small: words that the collection writes small."""

    def __init__(self, small: Set[str]) -> None:
        self._small = small

    def facts(self, text: str, headings: Sequence[str], begins: bool) -> list[Fact]:
        """Return the facts of a passage. begins: whether its section does so with it."""
        found = [fact for sentence in prose_sentences(text) if is_whole(sentence) for fact in self._stated(sentence)]
        found += [*(self._of_heading(text, headings) if begins else ()), *self._listed(text, headings, begins)]
        found += [*self._of_table(text), *self._of_code(text)]
        return [fact for fact in found if fact.questions and all(self.can_be_asked(q) for q in fact.questions)]

    def _stated(self, sentence: str) -> Iterator[Fact]:
        """Yield what one sentence says, by the first rule that it fits."""
        bare = sentence.rstrip(".!")
        questions: tuple[str, ...]
        if (m := _HOW.match(bare)) and self._is_verb(m["what"]):
            what = _mine(m["what"])
            questions = (f"How do I {what}?", f"How can I {what}?", f"What do I do to {what}?")
            yield Fact("how", questions, sentence, sentence)
        elif (m := _YOU_CAN.match(bare)) and self._is_verb(m["what"]):
            yield Fact("how", (f"How can I {_mine(m['what'])}?", f"How do I {_mine(m['what'])}?"), sentence, sentence)
        elif (m := _BE_DONE.match(bare)) and self._is_subject(m["who"]) and not _LEFT_OPEN.search(m["what"]):
            who = self._lower(m["who"])
            yield Fact("how", (f"How can {who} be {m['what']}?",), sentence, sentence)
        elif m := _IF.match(bare):
            yield from self._condition(m, sentence)
        elif (m := _BECAUSE.match(bare)) and self._is_subject(m["who"]):
            who, no = self._lower(m["who"]), " not" if m["verb"] == "cannot" else ""
            question = f"Why {m['verb'].removesuffix('not')} {who}{no} {_mine(m['rest'])}?"
            yield Fact("why", (question,), sentence, sentence)
        elif (m := _DATE.match(bare)) and self._is_subject(m["who"]):
            yield Fact("date", (f"When {m['verb']} {self._lower(m['who'])} {m['rest']}?",), sentence, sentence)
        elif (m := _PURPOSE.match(bare)) and self._is_subject(m["who"]) and not _EVERY.match(m["who"]):
            who = self._lower(m["who"])
            be = "are" if _is_plural(who) else "is"
            questions = (f"What {be} {who} used for?",)
            if be == "is":
                questions += (f"What does {who} do?", f"What is {who} for?")
            yield Fact("purpose", questions, sentence, sentence)
        elif (m := _IS_A.match(bare)) and self._is_subject(m["who"]) and _is_name(m["who"]):
            who = self._lower(m["who"])
            term = re.sub(r"^(?:an?|the) ", "", who, flags=re.I)
            questions = (f"What {m['verb']} {who}?", *([f"What is meant by {term}?"] if term.islower() else []))
            yield Fact("definition", questions, sentence, sentence)
        elif (m := _RULE.match(sentence)) and self._is_subject(m["who"]) and self._is_plain_rule(m["who"], m["rest"]):
            yield Fact("rule", (f"{m['verb'].capitalize()} {self._lower(m['who'])} {_mine(m['rest'])}?",),
                       f"{'No' if m['no'] else 'Yes'}. {sentence}", sentence)  # fmt: skip

    def _condition(self, m: re.Match[str], sentence: str) -> Iterator[Fact]:
        when = m["when"]
        who, conjunction = m["who"].lower(), m["if"].lower()
        if (
            len(when.split()) < 3
            or _PRONOUN.search(when)
            or _UNNAMED.match(when)
            or not self._has_subject(when)
            or not (who == "you" or self._is_subject(who))
        ):
            return
        when = _mine(when)
        if who == "you" and m["verb"] in ("must", "should", "need to", "have to"):
            questions: tuple[str, ...] = (
                f"What should I do {conjunction} {when}?",
                f"What must I do {conjunction} {when}?",
            )
        elif m["verb"] in ("will", "is", "are") and "," not in m["rest"]:
            questions = (f"What happens {conjunction} {when}?",)
        elif who == "you" and m["verb"] == "can":
            questions = (f"What can I do {conjunction} {when}?",)
        else:
            return
        yield Fact("condition", questions, sentence, sentence)

    def _of_heading(self, text: str, headings: Sequence[str]) -> Iterator[Fact]:
        if not headings:
            return
        heading = _NUMBERED.sub("", plain(headings[-1]).strip(" #"))
        first = next(iter(prose_sentences(text)), "")
        if heading.endswith(("that?", "mean?")) or re.search(r"[.!?:] (?!What|How|Why|Where|Which)", heading):
            return
        if heading.endswith("?") and 3 <= len(WORD.findall(heading)) <= 20 and not _ELSEWHERE.search(heading):
            paragraph = _first_paragraph(text, heading)
            if paragraph and not _LOST.search(paragraph) and len(paragraph) <= 600:
                yield Fact("asked", (heading[0].upper() + heading[1:],), paragraph, paragraph)
            return
        name = _SIGNATURE.sub("", heading)
        if not _CODE.fullmatch(name) or not re.search(r"[^\W\d]{2}", name):
            return
        scope = _scope(name, headings[:-1])
        if first and _is_gloss(first) and text.lstrip("#*`> \n").find(first[:20]) < 250:
            yield Fact("term", _of_term(name, scope, first), first, first)
        if m := _DEFAULT_LINE.search(text):
            value = re.sub(r"(?i)\s+by default$", "", plain(m["value"]).strip(" .`'\""))
            if value and not re.search(r"[\"'()<>\[\]]", value) and len(value.split()) < 4:
                questions = (f"What is the default of {name}{scope}?", f"What does {name}{scope} default to?")
                stated = " ".join(plain(m[0]).split())
                yield Fact("default", questions, f"The default of {name} is {value}.", stated)

    def _listed(self, text: str, headings: Sequence[str], begins: bool) -> Iterator[Fact]:
        for term, gloss in definitions(text, begins and not headings):
            sentence = next(iter(re.split(r"(?<=[.!])\s", " ".join(gloss.split()))), "")
            if not _CODE.fullmatch(term) or f"{term} is " in text or not _is_gloss(sentence):
                continue
            scope = _scope(term, headings)
            yield Fact("term", _of_term(term, scope, sentence), sentence, sentence)
            if _DEFAULT.search(sentence):
                yield Fact("default", (f"What is the default of {term}{scope}?",), sentence, sentence)

    def _of_table(self, text: str) -> Iterator[Fact]:
        cells = rows(text)
        asked = Counter((row, column) for row, column, _ in cells)
        before: dict[str, str] = {}
        for row, column, cell in cells:
            stated = before[row] = f"{before.get(row, row)} {cell}"
            if asked[row, column] > 1 or len(row.split()) > 4 or not row[0].isalpha() or "  " in row:
                continue
            if column.lower().split()[-1] not in _PROPERTIES or len(column.split()) > 3 or len(cell) > 160:
                continue
            if not re.search(r"\w", cell) or any(_LOST.search(part) for part in (row, column, cell)):
                continue
            column = " ".join(word.lower() if word[1:].islower() else word for word in column.split())
            yield Fact("table", (f"What is the {column} of {row}?",), cell, stated)

    def _of_code(self, text: str) -> Iterator[Fact]:
        for name, doc in functions(text):
            doc = plain(doc)
            if (
                len(name) > 2
                and name.lower() not in STOP
                and not name.startswith(("_", "My", "my", "test", "Test"))
                and _is_gloss(doc)
            ):
                yield Fact("code", (f"What does {name} do?", f"What is {name} for?"), doc, doc)

    @staticmethod
    def can_be_asked(question: str) -> bool:
        """Return whether a question can be read without the page it was made from."""
        if _ELSEWHERE.search(question) or _LOST.search(question.rstrip("?")) or len(question) > 160:
            return False
        return not _PRONOUN.search(question.replace(" I ", " ").replace(" my ", " ").replace("I?", "?"))

    def _is_subject(self, text: str) -> bool:
        """Return whether a text is a noun with what belongs to it, as far as its small words can tell."""
        words = text.lower().split()
        bare = words[1:] if words[0] in _WHOSE else words
        if not bare or len(words) > 6 or bare[0] in STOP or bare[-1] in STOP or _PRONOUN.search(text):
            return False
        if (
            any(word in STOP and word not in _INSIDE for word in bare)
            or bare[0].endswith("ly")
            or _IDLE.intersection(bare)
        ):
            return False
        if _AROUND.intersection(bare) or (words[0] == "the" and len(words) == 2 and bare[0] in self._small):
            return False  # "the file" is one that was spoken of
        return not (bare[0].endswith(("ing", "ed")) and bare[0] in self._small)

    def _is_plain_rule(self, who: str, rest: str) -> bool:
        """Return whether a rule is about something with an article, many, or a name, and says one thing of it."""
        first = who.split()[0].lower()
        is_one = first in _WHOSE or first not in self._small or _is_plural(self._lower(who))
        return is_one and not _MODAL.search(rest)

    def _has_subject(self, clause: str) -> bool:
        first = clause.lower().split()[0]
        return (
            not first.endswith(("ing", "ed"))
            and (first in _WHOSE or first in ("you", "your") or first not in STOP)
            and (first not in ("set", "unset", "not", "used", "given", "run", "possible", "necessary"))
        )

    def _is_verb(self, text: str) -> bool:
        first = text.split()[0]
        return (
            first not in STOP | _AROUND
            and not _LEFT_OPEN.search(text)
            and not first.endswith(("ly", "ing", "ed", "s"))
            and first in self._small
        )

    def _lower(self, text: str) -> str:
        first = text.split(" ", 1)[0]
        is_small = first.lower() in self._small or (first.split("-")[0].lower() in self._small and first[1:].islower())
        return text[0].lower() + text[1:] if (is_small and self._is_common(text)) or first.lower() in _WHOSE else text

    def _is_common(self, text: str) -> bool:
        """Return whether a text that begins a sentence is no name: neither code, nor great in its second word."""
        first, *others = text.split()
        return (first[1:].islower() or len(first) == 1) and not (others and others[0][:1].isupper())


def _mine(text: str) -> str:
    """Return what is stated to a reader as the reader says it."""
    text = re.sub(r"\byou are\b", "I am", text, flags=re.I)
    text = re.sub(
        r"\b(to|for|from|with|of|by|in|on|at|lets?|allows?|tells?|gives?) you\b|\byou$", r"\1 me", text
    ).strip()
    return _YOURS.sub(lambda m: _YOU[m[0].lower()], text)


def _is_name(text: str) -> bool:
    term = re.sub(r"^(?:an?|the) ", "", text, flags=re.I)
    if _EVERY.match(text):
        return False
    return bool(is_term(term) and len(term) > 1 and not _IDLE.intersection(term.lower().split()))


def _is_gloss(sentence: str) -> bool:
    """Return whether a sentence says what something does, without pointing elsewhere."""
    words = WORD.findall(sentence)
    if not 4 <= len(words) <= MOST_STATED or not sentence.endswith(".") or not sentence[0].isupper():
        return False
    if _LOST.search(sentence) or _ELSEWHERE.search(sentence) or _POINTING.match(sentence):
        return False
    return _DOING.match(sentence) is not None and "parameter" not in sentence and not _ABOUT.match(sentence)


def _of_term(name: str, scope: str, gloss: str) -> tuple[str, ...]:
    """Return questions about a name: what it is where its gloss begins with a noun, else what it does."""
    is_noun = gloss.split()[0].lower() in _WHOSE
    return (f"What is {name}{scope}?",) if is_noun else (f"What does {name}{scope} do?",)


def _scope(name: str, headings: Sequence[str]) -> str:
    """Return where an option belongs, in words, "" where its name says enough."""
    above = plain(headings[0]).strip(" #") if headings else ""
    above = re.sub(r"\(\d\)$|\s+manual page$", "", above, flags=re.I).lower() if above.isupper() else above
    is_command = re.fullmatch(r"[\w-]+(?:\(\d\))?", above) is not None and len(above) <= 24
    return f" in {above.split('(')[0]}" if name.startswith("-") and is_command else ""


def _first_paragraph(text: str, heading: str) -> str:
    """Return the first paragraph under a heading, "" where it cannot be read alone."""
    paragraphs = (" ".join(plain(paragraph).split()).lstrip("# ") for paragraph in re.split(r"\n\s*\n", text))
    line = next((line for line in paragraphs if line and line.rstrip("?") != heading.rstrip("?")), "")
    whole = line.endswith((".", "!")) and len(WORD.findall(line)) >= 5 and line[0].isupper()
    return line if whole and not _ELSEWHERE.search(line) and not _POINTING.match(line) else ""


def _is_plural(subject: str) -> bool:
    head = re.split(r" (?:of|for|in|on|to|from|with) ", subject)[0].split()[-1]
    return head.endswith("s") and head.islower() and not head.endswith(("ss", "us", "is"))
