"""English questions by rule: what a heading, a definition, a sentence, a function or a row of a table could answer.

Words are dropped, bent and put in another order, which is what makes a question differ from its passage; some come out
clumsy, as people's do. There is no lexicon: a word is replaced by one of the collection's own that is near it in the
embedder's space, a synonym or something of the same kind. Some words are mistyped, which stands for all words that no
document has. Greetings, doubts and contractions say nothing of what is asked, so the answer stays the same.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random

import numpy as np

from settle.retrieve.index.embedders import Vectorizer
from settle.retrieve.index.words import STOP, words

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
_ASKING = ("how", "why", "what", "when", "where", "which", "who", "can", "do", "is")
Telling = Callable[[Sequence[str]], list[float]]
"""How much each word of a question tells, in nats; 0 for one that tells nothing."""
_SENTENCE_END = re.compile(r"(?<![A-Z])(?<!e\.g)(?<!i\.e)\.\s|;")  # not of an initial
_DOCSTRING = re.compile(r'(?:def|class) +(\w+)[^\n]*(?:\n[^"\n]*){0,12}?\n\s+[rRuU]?"""\s*([^"]{15,400})')
_COMMENTED = re.compile(r"/\*\*\s*\*?\s*([^@/]{15,400}?)\s*(?:\*\s*@[^/]*)?\*/\s*(?:[\w<>\[\]*&]+ +)+?(\w+)\s*\(")
_AUXILIARY = re.compile(
    r"^(.{3,70}?) (is|are|was|were|can|could|must|should|may|might|will|would|has|have|had) (.{10,})$"
)
_SILENT_E = re.compile(
    r"(?:[^aeiou][aiouy][dkmpt]|[^s]s|[cuvz]|[^n]g|ang|ib|[^aeioul]l|[^ao]il|ul|[^ea]ar|[^a]ir|(?:^st|rest|ign|expl|sc)or"
    r"|[^o]ur|[^aoe]in|un|creat|clon|cach|(?:del|compl)et)$"
)
_NO_E = frozenset(("edit", "exit", "limit", "visit", "format", "develop", "backup"))
_NO_GERUND = frozenset(("string", "thing", "nothing", "something", "anything", "everything", "morning", "evening"))
_PAST = frozenset(("has", "have", "had"))
MOST_WORDS = 18  # of a question: people's are shorter than documents' sentences


def plain(text: str) -> str:
    """Return a text without the marks of Markdown."""
    return _MARKS.sub("", _LINK.sub(r"\1", text))


def prose_sentences(text: str) -> list[str]:
    """Return the sentences of a passage that are prose, on one line each."""
    prose = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*+•]|\d+[.)])\s)", text):
        for sentence in _SENTENCE.split(" ".join(plain(paragraph).split())):
            if _PROSE.match(sentence) and len(WORD.findall(sentence)) >= 7:
                prose.append(sentence)
    return prose


def definitions(text: str, is_entry: bool) -> list[tuple[str, str]]:
    """Return (term, what it is) for the sentences of a passage that define, and its lists of terms.

    is_entry: whether its first line may be the headword of a dictionary.
    """
    pairs = [(m["term"], m["gloss"]) for sentence in prose_sentences(text) if (m := _DEFINED.match(sentence))]
    pairs += [(plain(m["term"]), plain(m["gloss"])) for line in text.split("\n") if (m := _LISTED.match(line))]
    if is_entry and (m := _ENTRY.match(text)):
        pairs.append((m["term"], " ".join(plain(m["gloss"]).split())))
    terms = [(_ARTICLE.sub("", term.split(",")[0].strip(" ;\"'“”")), gloss) for term, gloss in pairs]
    return [(term, gloss) for term, gloss in terms if is_term(term) and _is_prose(gloss)]


def is_term(text: str) -> bool:
    term_words = text.lower().split()
    return 0 < len(term_words) <= MOST_TERM and not (STOP | NO_TERM).intersection(term_words[:1] + term_words[-1:])


def _is_prose(text: str) -> bool:
    """Return whether most of the first words are plain, and neither numbers, addresses nor code."""
    first = text.split()[:_FIRST]
    return sum(_PLAIN_WORD.fullmatch(word) is not None for word in first) > len(first) / 2


def of_heading(heading: str, above: str, random: Random) -> str:
    """Return a question that the section below a heading answers.

    above: the heading over it, asked with it where that tells more, or "".
    """
    heading = plain(heading).strip(" .:?!#")
    content = [w for w in WORD.findall(heading) if w.lower() not in STOP]
    words = heading.split()
    inside = f" {random.choice(('in', 'for', 'with', 'of'))} {_lower(plain(above).strip(' .:?!#'))}" if above else ""
    if words and (verb := base_of_gerund(words[0])):
        rest = " ".join([verb, *_bent(words[1:], random)])
        ways = ("how do I {}", "how to {}", "what is the way to {}", "how can one {}")
        return random.choice(ways).format(rest + inside)
    if len(words) > 2 and words[0].lower() in _ASKING:
        return " ".join(_shuffled(content, random)) + inside
    topic = " ".join(_bent(words, random))
    frames = (
        "what is {}", "how does {} work", "what does one need to know about {}", "explain {}", "how is {} used",
        "where is {} described", "{}", "tell me about {}",
    )  # fmt: skip
    if random.random() < 0.3 and len(content) > 2:
        topic = " ".join(_shuffled(content, random))
    return random.choice(frames).format(_lower(topic) + inside)


def of_term(term: str, random: Random) -> str:
    """Return a question that asks what a term means."""
    frames = ("what is {}", "what does {} mean", "define {}", "meaning of {}", "what is meant by {}", "explain {}")
    return random.choice(frames).format(term)


def of_meaning(gloss: str, term: str, random: Random) -> str:
    """Return a question that asks for a term by what it means."""
    hidden = {w.lower() for w in WORD.findall(term)}
    gloss_words = WORD.findall(_SENTENCE_END.split(gloss)[0])
    remaining = [w for w in gloss_words if w.lower() not in hidden and (len(w) > 1 or w == "a")]
    frames = ("what do you call {}", "which term stands for {}", "what is the name for {}", "{}")
    return random.choice(frames).format(_lower(" ".join(_fewer(remaining, random)[:MOST_WORDS])))


def of_sentence(sentence: str, telling: Telling, random: Random) -> str:
    """Return a question that a sentence answers: one side masked, or only its content words, in another order."""
    sentence = sentence.rstrip(".!?")
    match = _AUXILIARY.match(sentence)
    if match and random.random() < 0.6:
        subject, verb, rest = match.groups()
        rest = " ".join(_fewer(WORD.findall(rest), random)[: MOST_WORDS - 2])
        if random.random() < 0.5 or verb in _PAST:
            return f"what {verb} {rest}"
        if subject.split()[0].lower() not in NO_TERM | {"when", "if", "how", "where", "why"}:
            about = " ".join(WORD.findall(rest)[:6])
            return f"{random.choice(('why', 'when', 'in what case'))} {verb} {_lower(subject)} {about}"
    words: list[str] = WORD.findall(sentence)
    weights = telling(words)
    best = sorted(range(len(words)), key=lambda i: -weights[i])[: random.randint(5, 9)]
    chosen = [words[i].lower() if i == 0 else words[i] for i in sorted(best) if weights[i] > 0]
    frames = ("{}", "what about {}", "where does it say {}", "how about {}")
    return random.choice(frames).format(" ".join(_shuffled(chosen, random) if random.random() < 0.3 else chosen))


def functions(text: str) -> list[tuple[str, str]]:
    """Return (name, first sentence of its documentation) of the functions and classes in a listing."""
    pairs = [(m[1], m[2]) for m in _DOCSTRING.finditer(text)]
    pairs += [(m[2], re.sub(r"\n\s*\*", "\n", m[1])) for m in _COMMENTED.finditer(text)]
    return [(name, " ".join(re.split(r"\n\s*\n|(?<=\.)\s", doc.strip())[0].split())) for name, doc in pairs]


def of_function(doc: str, random: Random) -> str:
    """Return a question that asks for code by what it does."""
    first, *rest = plain(doc).rstrip(".").split()
    remaining = _fewer(rest, random)[:MOST_WORDS]
    if first.lower() in ("a", "an", "the"):
        return " ".join(["which class is", first.lower(), *remaining])
    verb = first.lower()
    if verb.endswith("s") and not verb.endswith("ss"):  # Returns, Makes; but Pass, Process
        verb = verb[:-2] if verb.endswith(("sses", "shes", "ches", "xes")) else verb[:-1]
    return " ".join([random.choice(("how do I", "how to", "which function can", "code to")), verb, *remaining])


def rows(text: str) -> list[tuple[str, str, str]]:
    """Return (name of the row, name of the column, cell) of the tables in a passage."""
    lines = [_cells(line) for line in text.split("\n")]
    lines = [cells for cells in lines if len(cells) > 1 and not all(set(c) <= set("-: ") for c in cells)]
    if len(lines) < 2:
        return []
    head, *body = lines
    return [
        (row[0], name, cell)
        for row in body
        if len(row) == len(head) and row[0]
        for name, cell in zip(head[1:], row[1:], strict=True)
        if name and cell and any(c.isalpha() for c in row[0] + name)
    ]


def of_row(row: str, column: str, random: Random) -> str:
    """Return a question that asks for a cell."""
    frames = ("what is the {1} of {0}", "{0} {1}", "which {1} has {0}", "{1} for {0}", "tell me the {1} of {0}")
    return random.choice(frames).format(row, _lower(column))


def longest_copied(question: str, text: str) -> int:
    """Return the most words in a row that a question has from a text."""
    question_text, source = (" ".join(w.lower() for w in WORD.findall(t)) for t in (question, text))
    words, most = question_text.split(), 0
    for first in range(len(words)):
        while first + most < len(words) and f" {' '.join(words[first : first + most + 1])} " in f" {source} ":
            most += 1
    return most


def base_of_gerund(word: str) -> str:
    """Return the base of a gerund, `Rotating` → `rotate`, or "" for another word; best effort, without a lexicon."""
    word = word.lower()
    stem = word.removesuffix("ing")
    if stem == word or len(stem) < 2 or not re.search(r"[aeiouy]", stem) or word in _NO_GERUND:
        return ""
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsfz":
        return stem[:-1]  # running, setting
    return stem + "e" if _SILENT_E.search(stem) and stem not in _NO_E else stem


def _bent(words: Sequence[str], random: Random) -> list[str]:
    """Return the words without articles, the last one now and then in another number."""
    remaining = [w for w in words if w.lower() not in ("a", "an", "the")]
    return [*remaining[:-1], *(_other_number(w) if random.random() < 0.4 else w for w in remaining[-1:])]


def _other_number(word: str) -> str:
    if not word.isalpha() or not word.islower() or len(word) < 4 or word in STOP:
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith("s"):
        return word if word.endswith(("ss", "us", "is")) else word[:-1]
    if word.endswith(("ed", "ly", "ing")):
        return word
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + ("es" if word[-1] in "xz" else "s")


def _fewer(words: Sequence[str], random: Random) -> list[str]:
    """Drop some of the words at random, since users do not write everything."""
    return [w for w in words if random.random() >= 0.1]


def _shuffled(words: Sequence[str], random: Random) -> list[str]:
    return random.sample(list(words), len(words))


def _lower(text: str) -> str:
    """Return a text with its first letter in lower case, unless its first word is a name."""
    first = text.split(" ", 1)[0]
    return text[:1].lower() + text[1:] if first[1:].islower() or len(first) == 1 else text


def _cells(line: str) -> list[str]:
    if "|" in line:
        return [plain(cell).strip() for cell in line.strip().strip("|").split("|")]
    return [cell.strip() for cell in line.split("\t")]


SHARE = 0.25  # of the words of a text that have near ones, which are replaced
MISTYPED = 0.05  # of those
MOST = 2000  # words that are known, the most frequent ones
NEAREST = 2  # of them that may take a word's place
LEAST = 0.5  # cosine of a word with what takes its place
_WORD = re.compile(r"[^\W\d_]{4,}")
_BARE = 0.35  # share of questions that stay as they are
_SLIP = 0.08  # share of questions with a slip in one of their longer words
_LONG = 6  # letters of a word that may have one
_AROUND = (
    "does anyone know {}", "can you tell me {}", "i'd like to know {}", "i don't understand {}", "any idea {}",
    "hi, {}", "hey, quick one: {}", "so {}", "just wondering, {}", "could somebody explain {}", "{}, please", "{}??",
    "i'm not sure about this: {}", "sorry if that's obvious, but {}", "do you happen to know {}", "ok so {}",
    "tell me {}", "{} - how's that",
)  # fmt: skip
_SHORT = (
    (re.compile(r"\bwhat is\b"), ("what's", "whats")),
    (re.compile(r"\bhow is\b"), ("how's",)),
    (re.compile(r"\bwhere is\b"), ("where's", "wheres")),
    (re.compile(r"\bdoes not\b"), ("doesn't", "doesnt")),
    (re.compile(r"\bcannot\b"), ("can't", "cant")),
)
_LOWER_WORD = re.compile(r"[a-z]+")


class Rewording:
    """Replaces words that some texts have in lower case; names stay."""

    def __init__(self, vectorizer: Vectorizer, texts: Iterable[str]) -> None:
        counted = Counter(word for text in texts for word in _WORD.findall(text) if word.islower() and word not in STOP)
        self._words = [word for word, _ in counted.most_common(MOST)]
        self._at = {word: i for i, word in enumerate(self._words)}
        self._stems = [words(word) for word in self._words]
        self._vectors = vectorizer.documents(self._words) if self._words else np.zeros((0, 1), np.float32)

    def reworded(self, text: str, random: Random) -> str:
        """Return the text with about `SHARE` of its words replaced, and never more than half."""
        matches = [m for m in _WORD.finditer(text) if m[0].lower() in self._at]
        changed = [m for m in matches if random.random() < SHARE][: len(matches) // 2]
        for match in reversed(changed):
            word = match[0].lower()
            other = _mistyped(word, random) if random.random() < MISTYPED else self._other(word, random)
            text = text[: match.start()] + (other.capitalize() if match[0].istitle() else other) + text[match.end() :]
        return text

    def _other(self, word: str, random: Random) -> str:
        at = self._at[word]
        cosines = self._vectors @ self._vectors[at]
        near = (i for i in np.argsort(-cosines) if self._stems[i] != self._stems[at])
        likely = [self._words[i] for i, _ in zip(near, range(NEAREST), strict=False) if cosines[i] >= LEAST]
        return random.choice(likely) if likely else word


def _mistyped(word: str, random: Random) -> str:
    """Return the word with two neighbouring letters swapped, other than the first."""
    at = random.randrange(1, len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def as_people_ask(question: str, random: Random) -> str:
    """Return the question in one of the wordings that people use."""
    for pattern, others in _SHORT:
        if random.random() < 0.5:
            question = pattern.sub(random.choice(others), question)
    if random.random() < _SLIP:
        question = slipped(question, random)
    if random.random() >= _BARE:
        question = random.choice(_AROUND).format(question)
    return question


def slipped(question: str, random: Random) -> str:
    """Return the question with a letter of one longer word left out or doubled."""
    words = [match for match in _LOWER_WORD.finditer(question) if len(match[0]) >= _LONG]
    if not words:
        return question
    match = random.choice(words)
    at = random.randrange(match.start() + 2, match.end())
    return question[:at] + random.choice(("", 2 * question[at])) + question[at + 1 :]
