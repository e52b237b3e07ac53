"""Six gold sets for retrieval, made of Debian packages: what is asked, and the one place that answers it.

    python bench/gold.py FOLDER [--sets …] [--share 0.25] [--seed 1]

    foldoc    a dictionary of computing        headword, reworded      → its entry (a text file)
    wordnet   the database WordNet 3.0         gloss, reworded         → the entry of the word (a text file)
    python    the documentation of Python 3.13 heading, reworded       → the section (web pages, as they are)
    man       manual pages, as `man` shows them NAME line's summary, reworded → the page (a text file)
    django    the documentation of Django 4.2   as Python's
    admin     manual pages of administration    as the others

The packages come by `apt-get download` and are unpacked below FOLDER, nothing is installed; `groff` must be here. Each
set becomes `FOLDER/SET/documents/`, `questions.jsonl`, `unanswerable.jsonl`, `about.json`, and for Python
`sections.jsonl`. A question has `answer`, the document below `documents/`, `also`, others that answer it as well, and
for Python `section`, an anchor of the page.

Some of the documents are held out: what can be asked about them is unanswerable, unless what is left speaks of it. It
does where the headword, gloss, heading or summary of another document has more than half of the words, or where one
sentence, line or heading has four fifths of what the words tell (by how few sentences they stand in). Questions are
split in two halves, `dev` to choose by and `test` to report on. The rules of rewording stand in `paraphrase.py`; an
entry of FOLDOC that begins with another name, of which the headword has the initials or which has the headword's, is
asked by that. Files are named by hashes, which say nothing of what is asked for. The same seed gives the same sets.
"""

import argparse
import gzip
import hashlib
import json
import random
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import log
from pathlib import Path

from paraphrase import Paraphraser, WordNet, stems
from selectolax.lexbor import LexborHTMLParser, LexborNode
from sources import unpacked

PACKAGES = {
    "foldoc": ["dict-foldoc"],
    "wordnet": ["wordnet-base"],
    "python": ["python3.13-doc"],
    "man": ["manpages", "manpages-dev", "coreutils", "util-linux", "git-man", "procps", "e2fsprogs"],
    "django": ["python-django-doc"],
    "admin": ["systemd", "iproute2", "lvm2", "btrfs-progs", "openssl"],
}
KINDS = {"django": "python", "admin": "man"}  # the set that another one is made like
DOCUMENTS = {"foldoc": 9000, "wordnet": 4000, "python": 340, "man": 1500}  # so that embedding them takes minutes
HELD_OUT = {"foldoc": 0.45, "wordnet": 0.25, "python": 0.5, "man": 0.45}  # so that enough questions are unanswerable
QUESTIONS, UNANSWERABLE = 1000, 300  # at most
SAME = 0.5  # share of common words above which a thing that is left speaks of the same
SAID = 0.8  # share of what the words tell, from which on a sentence does
LONGEST = 15_000  # characters of a manual page; of a web page twenty times as many
QUESTION_WORDS = frozenset(
    ("how", "why", "what", "when", "where", "which", "can", "could", "is", "are", "do", "does", "i", "my")
)

FRAMES = {
    "foldoc": ["What is {}?", "What does {} mean?", "Explain {}.", "I keep reading about {}, what is it?"],
    "wordnet": ["What is the word for {}?", "Which term means {}?", "What do you call {}?", "Looking for a word: {}"],
    "python": ["Where is {} explained?", "What is there to know about {}?", "I need help with {}.",
               "How does {} work in LIBRARY?"],
    "verb": ["How do I {}?", "What is there to {}?", "I want to {}.", "Is there a way to {}?"],
    "noun": ["What is known about {}?", "Where is {} described?", "Tell me about {}.", "Which page is about {}?"],
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Something that a document states and a question can be made of.

    text: what a question is made of; title: words that must not be in the question; same: what makes two of them the
    same, if it is not their words; section: of the document; verb: the first word is one; other: another name for it,
    which is asked for instead.
    """

    text: str
    frames: list[str]
    title: str = ""
    same: str = ""
    section: str = ""
    verb: bool = False
    other: str = ""


@dataclass(frozen=True)
class Document:
    """text: what stands in it, where its bytes are something else."""

    path: str
    content: bytes
    asked: list[Asked] = field(default_factory=list)
    text: str = ""


def file_name(title: str, suffix: str = ".txt") -> str:
    """Return a name that says nothing, since settle reads the name of a file as a title."""
    name = hashlib.sha256(title.encode()).hexdigest()[:16]
    return f"{name[:2]}/{name}{suffix}"


def dictionary(roots: list[Path], least: int = 20) -> Iterator[Document]:
    """Yield a document for each entry of at least `least` words; shorter ones mostly only name another entry.

    If an entry has several names, the first is asked for, unless the entry begins with one that is the other's initials
    and nobody else's.
    """
    index = next((roots[0] / "usr/share/dictd").glob("*.index"))
    text = gzip.decompress(index.with_suffix(".dict.dz").read_bytes())
    digits = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}
    places = set()
    for line in index.read_text(encoding="utf-8").splitlines():
        name, *place = line.split("\t")
        if not name.startswith("00"):
            places.add(tuple(sum(digits[c] * 64**i for i, c in enumerate(reversed(p))) for p in place))
    entries = [text[start : start + size].decode("utf-8", "replace") for start, size in sorted(places)]
    titles = [entry.split("\n", 1)[0].strip() for entry in entries]
    others = [_other_name(entry, title) for entry, title in zip(entries, titles, strict=True)]
    known = Counter(name.lower() for name in {*titles} | {*others})
    known.update(name.lower() for name in others)
    for entry, title, other in zip(entries, titles, others, strict=True):
        if len(entry.split()) < least:
            continue
        domain = re.search(r"<([^<>,]+)[^<>]*>", entry)
        frames = FRAMES["foldoc"]
        if domain:
            frames = [*frames, *(f"In {domain[1]}, {frame[0].lower()}{frame[1:]}" for frame in frames[:2])]
        name = other if known[other.lower()] == 2 else ""
        yield Document(file_name(entry), entry.encode(), [Asked(title, frames, other=name)])


def _other_name(entry: str, title: str) -> str:
    """Return the name in brackets that an entry begins with and whose initials match the title's, or ""."""
    bracket = re.match(r"[^\n]+\n\s*(?:<[^>]*>\s*)?\(([^()]{2,90})\)", entry)
    names = re.split(r",\s|\bor\b|\"", " ".join(bracket[1].split())) if bracket else []
    for name in (name.strip() for name in names):
        if {title.upper(), name.upper()} & {_initials(name), _initials(title)} and len(name) > 2 < len(title):
            return name
    return ""


def _initials(name: str) -> str:
    """Of more than one word, "and" and "of" left out; or "" of one."""
    words = [w for w in re.split(r"[\s-]+", name) if w.lower() not in ("and", "of", "the", "for")]
    return "".join(w[:1].upper() for w in words) if len(words) > 1 else ""


def wordnet_entries(database: WordNet, draw: random.Random, number: int) -> Iterator[Document]:
    """Yield a document for each entry of a word with its senses, as `wn -over` shows them; one sense is asked for."""
    kinds = {"n": "Noun", "v": "Verb", "a": "Adjective", "r": "Adverb"}
    by_lemma: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for (_, lemma), senses in database.senses.items():
        by_lemma[lemma] += senses
    for lemma in draw.sample(sorted(by_lemma), number):
        lines, last = [lemma.replace("_", " ")], ""
        for number, place in enumerate(by_lemma[lemma], 1):
            synset = database.synsets[place]
            if synset.pos != last:
                lines += ["", kinds[synset.pos]]
                last = synset.pos
            words = ", ".join(word.replace("_", " ") for word in synset.words)
            lines.append(f"{number}. {words} -- ({synset.gloss})")
        place = draw.choice(by_lemma[lemma])
        synset = database.synsets[place]
        gloss = re.split(r'; ?"', synset.gloss)[0]
        title = " ".join([lemma, *synset.words]).replace("_", " ")
        asked = [Asked(gloss, FRAMES["wordnet"], title, "".join(place))]
        yield Document(file_name(lemma), ("\n".join(lines) + "\n").encode(), asked)


PARTS = {
    "Python": ("library", "tutorial", "howto", "reference", "using", "faq", "c-api", "extending", "installing"),
    "Django": ("faq", "howto", "internals", "intro", "ref", "topics"),
}


def sections(page: LexborHTMLParser) -> list[tuple[str, str, str]]:
    """(anchor, heading, text without that of the sections inside it) of a page made by Sphinx."""
    found = []
    for node in page.css("section[id]"):
        heading = next((c for c in node.iter() if re.fullmatch("h[1-6]", c.tag or "")), None)
        if heading is None:
            continue
        own = " ".join(_text(child) for child in node.iter() if child.tag not in ("section", heading.tag))
        found.append((node.attributes["id"] or "", _text(heading), " ".join(own.split())))
    return found


def _text(node: LexborNode) -> str:
    return " ".join(node.text(separator="").replace("¶", " ").split())


def sphinx_pages(
    roots: list[Path], library: str, database: WordNet, draw: random.Random, most: int
) -> Iterator[tuple[Document, list[tuple[str, str, str]]]]:
    """Yield each page as a document; a heading of one or two words, or shared by others, is asked with the page's."""
    folder = next((roots[0] / "usr/share/doc").glob("*/html"))
    paths = sorted(p for part in PARTS[library] for p in (folder / part).rglob("*.html") if p.stem != "index")
    paths = [path for path in paths if path.stat().st_size < 20 * LONGEST]
    drawn = draw.sample(paths, min(len(paths), most))
    pages = {p: sections(LexborHTMLParser(p.read_text(encoding="utf-8"))) for p in drawn}
    headings = Counter(frozenset(stems(_bare(h))) for found in pages.values() for _, h, _ in found)
    for path, found in pages.items():
        asked = []
        for anchor, heading, own in found:
            said, top = _bare(heading), _bare(found[0][1])
            if said != top and (headings[frozenset(stems(said))] > 1 or len(stems(said)) < 3):
                said = f"{said} in {top}"
            if len(own.split()) >= 15:
                first, _, rest = said.partition(" ")
                verbs = database.lemmas(first.lower(), "v") if first.endswith("ing") and rest else []
                if verbs:
                    said, frames = f"{verbs[0]} {rest}", [f.format(f"{{}} in {library}") for f in FRAMES["verb"]]
                else:
                    is_question = said.split()[0].lower() in QUESTION_WORDS
                    frames = ["{}"] if is_question else [f.replace("LIBRARY", library) for f in FRAMES["python"]]
                asked.append(Asked(said, frames, section=anchor, verb=bool(verbs)))
        text = "\n\n".join(f"{heading}\n\n{own}" for _, heading, own in found)
        name = file_name(str(path.relative_to(folder)), ".html")
        yield Document(name, path.read_bytes(), draw.sample(asked, min(len(asked), 20)), text), found


def _bare(heading: str) -> str:
    """Return a heading without its number and the module's name before a dash."""
    return re.sub(r"^[\w. ,]+ — ", "", re.sub(r"^[\dA-Z]+(\.\d+)*\. ", "", heading))


def man(roots: list[Path], database: WordNet) -> Iterator[Document]:
    """Yield a document for each manual page.

    Its summary is what follows the dash below NAME; pages that only name another one are left out, and very long ones.
    """
    paths = sorted(p for root in roots for p in root.glob("usr/share/man/man?/*.gz") if not p.is_symlink())
    with ThreadPoolExecutor(2) as pool:
        for path, text in zip(paths, pool.map(_shown, paths), strict=True):
            name = re.search(r"^NAME\n((?: .*\n|\n)+)", text, re.MULTILINE)
            if not name or len(text) > LONGEST:
                continue
            names, _, summary = " ".join(name[1].split()).partition(" - ")
            if not summary or " - " in summary:
                continue
            section = path.parent.name[-1]
            verb = section in "1238" and ("v", summary.split()[0].lower()) in database.senses
            asked = [Asked(summary.rstrip("."), FRAMES["verb" if verb else "noun"], verb=verb)]
            yield Document(f"man{section}/{file_name(path.name)}", text.encode(), asked)


def _shown(path: Path) -> str:
    """Return a manual page as plain text, 80 columns, neither justified nor hyphenated."""
    source = gzip.decompress(path.read_bytes())
    if re.search(rb"^\.so ", source, re.MULTILINE):
        return ""
    command = ["groff", "-t", "-man", "-Tutf8", "-P-cbou", "-Kutf8", "-rLL=80n", "-rHY=0", "-dAD=l"]
    return subprocess.run(command, input=source, capture_output=True, check=True).stdout.decode()


def build(folder: Path, name: str, documents: list[Document], words: Paraphraser, seed: int) -> None:
    """Write a set: documents that are not held out, questions about them, and questions about the others."""
    draw = random.Random(f"{seed} {name}")
    held = set(draw.sample(range(len(documents)), round(HELD_OUT[KINDS.get(name, name)] * len(documents))))
    kept = [(d, a) for i, d in enumerate(documents) if i not in held for a in d.asked]
    shutil.rmtree(folder / "documents", ignore_errors=True)
    for i, document in enumerate(documents):
        if i not in held:
            path = folder / "documents" / document.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(document.content)
    same: dict[str, list[str]] = defaultdict(list)
    for document, asked in kept:
        same[_same(asked)].append(document.path)
    questions = []
    for document, asked in draw.sample(kept, len(kept)):
        if question := _question(words, asked, f"{seed} {name} {document.path} {asked.section}"):
            also = sorted({*same[_same(asked)]} - {document.path})
            row = {"question": question, "answer": document.path, "section": asked.section, "also": also}
            questions.append(row | {"source": asked.text})
    near = _Near([a.text for _, a in kept])
    said = _Said(d.text or d.content.decode() for i, d in enumerate(documents) if i not in held)
    unanswerable = []
    for document, asked in draw.sample(
        gone := [(documents[i], a) for i in sorted(held) for a in documents[i].asked], len(gone)
    ):
        question = _question(words, asked, f"{seed} {name} {document.path} {asked.section}")
        is_left = (asked.same and same[asked.same]) or near.share(asked.text) > SAME
        is_left = is_left or max(said.share(asked.text), said.share(asked.other)) >= SAID
        if question and not is_left:
            unanswerable.append({"question": question, "about": document.path, "source": asked.text})
    for kind, rows, most in (("questions", questions, QUESTIONS), ("unanswerable", unanswerable, UNANSWERABLE)):
        with (folder / f"{kind}.jsonl").open("w", encoding="utf-8") as file:
            for i, row in enumerate(rows[:most]):
                row = {"id": f"{name}-{kind[0]}{i:04}", **row, "split": "dev" if i % 2 else "test"}
                file.write(json.dumps({k: v for k, v in row.items() if v != ""}, ensure_ascii=False) + "\n")
    debs = sorted(p.name for n in PACKAGES[name] for p in (folder.parent / "packages").glob(f"{n}_*.deb"))
    about = {
        "seed": seed,
        "documents": len(documents) - len(held),
        "held_out": len(held),
        "questions": min(len(questions), QUESTIONS),
        "unanswerable": min(len(unanswerable), UNANSWERABLE),
        "could_be_asked": len(questions),
        "packages": debs,
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    print(name, about)


def _same(asked: Asked) -> str:
    return asked.same or " ".join(sorted(stems(asked.text)))


def _question(words: Paraphraser, asked: Asked, seed: str) -> str | None:
    if asked.other:
        return random.Random(seed).choice(asked.frames).format(asked.other)
    question = words.question(asked.text, asked.frames, seed, asked.verb)
    return question if question and not stems(asked.title) & stems(question) else None


class _Near:
    """How much of a text's words the most similar one of some others has."""

    def __init__(self, texts: list[str]) -> None:
        self.sets = [stems(text) for text in texts]
        self.having: dict[str, list[int]] = defaultdict(list)
        for i, found in enumerate(self.sets):
            for stem in found:
                self.having[stem].append(i)

    def share(self, text: str) -> float:
        """Return the largest Jaccard index with one of them."""
        wanted = stems(text)
        common = Counter(i for stem in wanted for i in self.having.get(stem, ()))
        return max((n / len(wanted | self.sets[i]) for i, n in common.items()), default=0.0)


class _Said:
    """How much of what a text's words tell one sentence or line of some others has."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.having: dict[str, list[int]] = defaultdict(list)
        self.number = 0
        for text in texts:
            for sentence in re.split(r"\n\s*\n|\n(?=\d+\. )|[.!?;:]\s", text):
                for stem in stems(sentence):
                    self.having[stem].append(self.number)
                self.number += 1

    def share(self, text: str) -> float:
        """Return the largest share; what occurs nowhere counts as much as what occurs once."""
        tells = {stem: log(self.number / max(1, len(self.having.get(stem, ())))) for stem in stems(text)}
        told: dict[int, float] = defaultdict(float)
        for stem, tell in tells.items():
            for i in self.having.get(stem, ()):
                told[i] += tell
        return max(told.values(), default=0.0) / (sum(tells.values()) or 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(PACKAGES), choices=list(PACKAGES))
    parser.add_argument("--share", type=float, default=1.0, help="of the documents")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder: Path = args.folder.resolve()
    database = WordNet(unpacked(folder, PACKAGES["wordnet"])[0] / "usr/share/wordnet")
    for name in args.sets:
        (folder / name).mkdir(exist_ok=True)
        draw = random.Random(f"{args.seed} {name}")
        roots, kind = unpacked(folder, PACKAGES[name]), KINDS.get(name, name)
        most = round(args.share * DOCUMENTS[kind])
        if kind == "wordnet":
            documents = list(wordnet_entries(database, draw, most))
        elif kind == "python":
            pages = list(sphinx_pages(roots, name.capitalize(), database, draw, most))
            documents = [document for document, _ in pages]
            with (folder / name / "sections.jsonl").open("w", encoding="utf-8") as file:
                for document, found in pages:
                    for anchor, heading, own in found:
                        row = {"path": document.path, "section": anchor, "heading": heading, "text": own}
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            documents = list(dictionary(roots) if kind == "foldoc" else man(roots, database))
            documents = draw.sample(documents, min(len(documents), most))
        build(folder / name, name, documents, Paraphraser(database, general=name == "wordnet"), args.seed)


if __name__ == "__main__":
    main()
