"""Questions about dictionaries, manual pages, packages and libraries, as lists that `judge_tune.py` learns from.

    python bench/judge_entries.py FOLDER [SOURCE ...] --out entries.jsonl

    jargon, gcide, vera, elements  dictionaries of dict.org: a headword, what it means, or what an abbreviation is of
    packages                       names and summaries of Debian's packages, many in a file
    man                            manual pages of some programs and libraries: the summary below NAME
    pages                          web pages of libraries' documentation: a heading
    docstrings                     functions and classes of libraries: the first sentence of a docstring

None of them is a source of `gold.py`'s sets (but FOLDOC has taken entries of the Jargon File, and GCIDE some of an
older WordNet), and neither their frames nor their rules of rewording are used: words give way to those of
`synonyms.txt`, and the rest is that of `judge_wordings.py`. The packages come by `apt-get download` and `pip
download` and are unpacked below FOLDER; nothing is installed.

Each line is as `judge_lists.py` writes it. Other passages of the document that answers are left out where the whole
document is about what is asked. Where something else has four fifths of what the question's words tell, the row says
`elsewhere`, and `judge_tune.py` does not take the answer away.
"""

import argparse
import ast
import json
import random
import re
import shutil
import subprocess
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from gold import _bare, _shown, dictionary, file_name, sections
from judge_documents import _downloaded
from judge_lists import _span
from judge_pairs import read_synonyms
from judge_wordings import NOUN, VERB, frames, worded_again
from paraphrase import stems
from retrieval import indexed
from selectolax.lexbor import LexborHTMLParser
from sources import plain, unpacked

from settle.retrieve.index.collection import Collection
from settle.retrieve.search import Hit, search

LISTED = 8
QUESTIONS = 900  # of a source, at most
EXCHANGED = 0.45  # of the words that have others of the same meaning
LONGEST = 14  # words of a meaning that is asked for
ELSEWHERE = 0.8  # share of what the words tell
GLOSS = (
    "what's it called: {}", "there's a name for {}, which one", "name for {}?", "I forgot the term, it means {}",
    "how do people say {}", "is there an expression for {}", "one word for {}", "term meaning {}",
    "{} - what is that called?", "what would I call {}?", "which entry is about {}?",
)  # fmt: skip
SHORT = ("what does {} stand for?", "{} abbreviation", "meaning of {}", "what's {} short for?", "{} - spelled out?")
LONG = ("abbreviation of {}", "how is {} abbreviated?", "short form of {}?", "acronym for {}", "{} in short")
TOOL = ("which {tool} is for {}", "is there a {tool} for {}?", "{tool} for {}", "looking for a {tool}: {}")
DOES = ("which {tool} can {}", "is there a {tool} to {}?", "{tool} to {}", "a {tool} that lets me {}?")
DICTIONARIES = {"jargon": 20, "gcide": 20, "vera": 3, "elements": 20}  # words of an entry, at least
MAN = (
    "openssh-client", "openssh-server", "rsync", "zsh-common", "debhelper", "dpkg-dev", "apt", "postfix", "nftables",
    "iptables", "cups-client", "netpbm", "mtools", "tcpdump", "cryptsetup-bin", "groff", "tcl-doc", "ncurses-doc",
    "libcurl4-doc", "libpcap0.8-dev", "bind9-dnsutils", "sqlite3", "tmux", "xfsprogs", "mdadm", "podman", "buildah",
    "samba-common-bin", "libarchive-dev", "libbsd-dev",
)  # fmt: skip
PAGES = ("numpy", "sqlalchemy", "jinja2", "flask", "requests", "click", "attr", "werkzeug", "celery", "mpmath")
LIBRARIES = ("networkx==3.4.2", "more-itertools==10.7.0", "boltons==25.0.0", "sympy==1.13.3")
SECTIONS = ("editors", "games", "graphics", "science", "sound", "text", "utils", "net", "admin")
MOST = {"gcide": 1500, "vera": 1600, "man": 800, "packages": 1800, "docstrings": 1200}  # documents or entries
TOGETHER = 25  # entries of a file, where they are short


@dataclass(frozen=True)
class Entry:
    """text: what is asked for, by frames of its kind. phrase: words that stand in the passage that answers."""

    path: str
    text: str
    frames: Sequence[str]
    phrase: str
    tool: str = ""


Made = tuple[dict[str, str], list[Entry], bool]  # documents, what is asked of them, and whether one answers as a whole


def of_dictionary(name: str, folder: Path, draw: random.Random) -> Made:
    documents, asked = {}, []
    entries = [
        document.content.decode() for document in dictionary(unpacked(folder, [f"dict-{name}"]), DICTIONARIES[name])
    ]
    entries = draw.sample(entries, min(len(entries), MOST.get(name, len(entries))))
    is_short = name == "vera"
    for number, entry in enumerate(entries):
        head, _, rest = entry.strip().partition("\n")
        head, means = re.sub(r"\s*\\.*", "", head).strip(), _meaning(rest)
        path = f"{number // TOGETHER}.txt" if is_short else file_name(entry)
        documents[path] = documents.get(path, "") + entry.strip() + "\n\n"
        if not means or len(head) < 2:
            continue
        if is_short:
            long = re.sub(r"\s*\(.*", "", means)
            asked.append(draw.choice([Entry(path, head, SHORT, means), Entry(path, long, LONG, means)]))
        elif draw.random() < (0.7 if name == "jargon" else 0.4):
            asked.append(Entry(path, head, frames(NOUN, True), means))
        elif len(means.split()) >= 4 and not stems(head) & stems(means):
            asked.append(Entry(path, means, GLOSS, means))
    return documents, asked, not is_short


def _meaning(text: str) -> str:
    """Return the first sentence or clause of what an entry says, without marks."""
    text = re.sub(r"\[[^\]]*\]|\{|\}|^\s*(n|v|vt|vi|adj|adv|prep|a|v\. t|v\. i)\.(,|\s)", " ", " ".join(text.split()))
    if "Atomic weight" in text:
        text = re.sub(r"^.*Atomic weight: \S+ ", "", text)
    text = re.sub(r"^\W*(n\.|v\.|adj\.|vi\.|vt\.|obs\.)?\s*1\.\s+", "", text.strip())
    first = re.split(r"(?<=[a-z)]{2})[.;:]\s|\s—\s|(?<=[a-z])\.$", text.strip(" .,"))[0]
    return " ".join(re.sub(r"^\([^)]*\)\s*", "", first).split()).strip(" .,;:")


def of_packages(folder: Path, draw: random.Random) -> Made:
    del folder
    shown = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True, text=True).stdout
    by_section: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for paragraph in shown.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][\w-]+: ", line))
        if fields.get("Section") in SECTIONS and len(fields.get("Description", "").split()) > 3:
            by_section[fields["Section"]].append((fields["Package"], fields["Description"]))
    documents, asked = {}, []
    for section, rows in by_section.items():
        for number, (name, summary) in enumerate(
            sorted(draw.sample(rows, min(len(rows), MOST["packages"] // len(SECTIONS))))
        ):
            path = f"{section}/{number // TOGETHER}.md"
            documents[path] = documents.get(path, f"# {section}\n\n") + f"## {name}\n\n{summary}\n\n"
            what = re.sub(r"\s*[(\[][^)\]]*[)\]]", "", summary)
            if draw.random() < 0.2 and len(name) > 4:
                asked.append(Entry(path, name, frames(NOUN, True), summary))
            else:
                asked.append(
                    Entry(path, what, (*TOOL, "{}", "{}?"), summary, draw.choice(("package", "program", "tool")))
                )
    return documents, asked, False


def of_man(folder: Path, draw: random.Random) -> Made:
    roots = unpacked(folder, list(MAN))
    paths = sorted(p for root in roots for p in root.glob("usr/share/man/man?/*.gz") if not p.is_symlink())
    paths = draw.sample(paths, min(len(paths), 2 * MOST["man"]))
    documents, asked = {}, []
    with ThreadPoolExecutor(2) as pool:
        for path, text in zip(paths, pool.map(_shown, paths), strict=True):
            name = re.search(r"^NAME\n((?: .*\n|\n)+)", text, re.MULTILINE)
            _, _, summary = " ".join(name[1].split()).replace(" — ", " - ").partition(" - ") if name else ("",) * 3
            if len(documents) == MOST["man"] or not 3 <= len(summary.split()) <= 20 or len(text) > 15_000:
                continue
            place = f"{path.parent.name}/{file_name(path.name)}"
            documents[place] = text
            tool = "function" if path.parent.name[-1] == "3" else "file" if path.parent.name[-1] == "5" else "command"
            asked.append(_summary(place, summary, tool, draw))
    return documents, asked, True


def _summary(path: str, summary: str, tool: str, draw: random.Random) -> Entry:
    """Return an entry about a thing, or about what can be done, as verbs in the imperative or the third person."""
    first, _, rest = summary.rstrip(".").partition(" ")
    verb = re.sub(r"(?<=s|x|z)es$|(?<=ch|sh)es$|(?<=[a-rt-z])s$", "", first.lower()) if first[-3:] != "ous" else ""
    if verb in VERBS:
        own = (*frames(VERB, True), *DOES)
        return Entry(path, f"{verb} {rest}", own, summary, tool)
    own = (*frames(NOUN, True), *TOOL) if draw.random() < 0.7 else TOOL
    return Entry(
        path, f"{first[:1].lower()}{first[1:]} {rest}" if first[1:].islower() else f"{first} {rest}", own, summary, tool
    )


VERBS = frozenset(
    re.findall(
        r"\w+",
        """
        add append apply attach build calculate change check clean clear close collect combine compare compile
        compose compute concatenate configure connect construct control convert copy count create cut decode
        decompress define delete detach determine display do draw dump edit enable encode evaluate execute expand
        export extract factor fetch filter find fit fix format generate get give handle import initialize insert
        install integrate iterate join kill list load locate log make manage map mark merge modify monitor mount
        move open output parse perform plot prepare print process produce provide pull push put query read receive
        reduce register remove rename render repair replace report reset resize restore retrieve return rotate run
        sample save scale scan search select send set show simplify solve sort specify split start stop store strip
        switch test transform translate truncate turn update upload use validate verify view wait walk watch write
        yield
        """,
    )
)


def of_pages(folder: Path, draw: random.Random) -> Made:
    documents, asked = {}, []
    for library, root in zip(PAGES, unpacked(folder, [f"python-{name}-doc" for name in PAGES]), strict=True):
        paths = sorted(
            p
            for p in root.rglob("*.html")
            if p.stem not in ("index", "genindex", "search") and p.stat().st_size < 150_000
        )
        paths = [path for path in paths if not {"_modules", "dev", "release", "changelog", "history"} & {*path.parts}]
        for path in draw.sample(paths, min(len(paths), 24)):
            found = sections(LexborHTMLParser(path.read_text(encoding="utf-8", errors="replace")))
            place = f"{library}/{file_name(path.name, '.html')}"
            top = _bare(found[0][1]) if found else ""
            headings = [(_bare(h), own) for _, h, own in found if len(own.split()) >= 15]
            headings = [(h, own) for h, own in headings if len(h.split()) > 1 and h != top or len(h.split()) > 2]
            if headings:
                documents[place] = path.read_text(encoding="utf-8", errors="replace")
            for heading, _ in draw.sample(headings, min(len(headings), 6)):
                first, _, rest = heading.partition(" ")
                verb = next(
                    (v for v in (first.lower()[:-3], f"{first.lower()[:-3]}e", first.lower()[:-4]) if v in VERBS), ""
                )
                is_done = first.endswith("ing") and rest and verb
                text = f"{verb} {rest}" if is_done else heading
                asked.append(
                    Entry(
                        place,
                        draw.choice((f"{text} in {library}", text)),
                        frames(VERB if is_done else NOUN, True),
                        heading,
                    )
                )
    return documents, asked, False


def of_docstrings(folder: Path, draw: random.Random) -> Made:
    found = []
    for package in LIBRARIES:
        with zipfile.ZipFile(_downloaded(package, folder, "--only-binary=:all:")) as wheel:
            for name in wheel.namelist():
                if name.endswith(".py") and "test" not in name:
                    found += list(_documented(name, wheel.read(name).decode("utf-8", "replace")))
    documents, asked = {}, []
    modules = list(dict.fromkeys(module for module, _, _ in found))
    wanted = set(draw.sample(modules, min(len(modules), 180)))
    for module, name, text in [row for row in found if row[0] in wanted][: 2 * MOST["docstrings"]]:
        path = f"{module}.md"
        documents[path] = documents.get(path, f"# {module}\n\n") + f"## {name}\n\n{text}\n\n"
        summary = re.split(r"(?<=\w[)`\w])\.\s|\n\s*\n", text)[0]
        if 4 <= len(summary.split()) <= 24:
            asked.append(
                _summary(
                    path,
                    re.sub(r"[`*]", "", " ".join(summary.split())),
                    draw.choice(("function", "class", "way")),
                    draw,
                )
            )
    return documents, asked, False


def _documented(path: str, source: str) -> Iterator[tuple[str, str, str]]:
    """Yield module, name and docstring of what is public; of a long docstring the beginning."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            text = re.split(r"\n\s*(Examples|References|See Also|Notes)\n\s*[-=]{3,}", ast.get_docstring(node) or "")[0]
            if len(text.split()) > 12:
                yield (
                    path.removesuffix(".py").replace("/", "."),
                    node.name,
                    re.sub(r"\n([-=~]{3,})\n", "\n", text)[:2500],
                )


class Elsewhere:
    """How much of what a text's words tell one sentence or line of another document has."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._having: dict[str, list[int]] = defaultdict(list)
        self._path: list[str] = []
        for path, text in texts.items():
            for sentence in re.split(r"\n\s*\n|\n(?=#)|[.!?;:]\s", text):
                for stem in stems(sentence):
                    self._having[stem].append(len(self._path))
                self._path.append(path)

    def share(self, text: str, own: str) -> float:
        """Return the largest share outside the document `own`."""
        tells = {stem: log(len(self._path) / max(1, len(self._having.get(stem, ())))) for stem in stems(text)}
        by_sentence: dict[int, float] = defaultdict(float)
        for stem, tell in tells.items():
            for number in self._having.get(stem, ()):
                by_sentence[number] += tell
        others = (share for number, share in by_sentence.items() if self._path[number] != own)
        return max(others, default=0.0) / (sum(tells.values()) or 1.0)


class Wording:
    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._synonyms = read_synonyms(Path(__file__).with_name("synonyms.txt"))

    def question(self, entry: Entry) -> str:
        words = entry.text.split()
        if entry.frames is GLOSS and len(words) > LONGEST:
            words = words[: self._draw.randint(8, LONGEST)]
        if len(words) > 1:
            words = [self._other(word) for word in words]
        text = re.sub(r"^(A|An|The) ", lambda m: m[0].lower(), " ".join(words))
        if self._draw.random() < 0.4:
            text = re.sub(r"\b(\w{4,}) of (\w{4,})$", r"\2 \1", text)
        frame = self._draw.choice(entry.frames).replace("{tool}", entry.tool)
        return worded_again(frame.replace("{}", text), self._synonyms, self._draw)

    def _other(self, word: str) -> str:
        others = self._synonyms.get(word.lower())
        return self._draw.choice(list(others)) if others and self._draw.random() < EXCHANGED else word


def lists_of(source: str, collection: Collection, made: Made, draw: random.Random) -> Iterator[dict[str, Any]]:
    documents, asked, is_whole = made
    elsewhere, wording = Elsewhere(documents), Wording(draw)
    for entry in draw.sample(asked, min(len(asked), QUESTIONS)):
        question = wording.question(entry)
        hits, wanted = search(collection, question, 40), plain(entry.phrase)
        own = [any(str(place.path).endswith(f"/{entry.path}") for place in hit.occurrences) for hit in hits]
        right = [is_own and wanted in plain(hit.passage.embedded) for hit, is_own in zip(hits, own, strict=True)]
        if is_whole and not any(right):  # of a long entry whose first words were cut elsewhere
            right = own
        kept = [n for n in range(len(hits)) if right[n] or not (is_whole and own[n])]
        first = kept[:LISTED] + [n for n in kept[LISTED:] if right[n]][: not any(right[n] for n in kept[:LISTED])]
        yield {
            "source": source,
            "question": question,
            "answerable": True,
            "elsewhere": elsewhere.share(entry.text, entry.path) >= ELSEWHERE,
            "hits": [_record(hits[n], right[n], wanted) for n in first],
        }


def _record(hit: Hit, is_right: bool, phrase: str) -> dict[str, Any]:
    passage = hit.passage
    span = _span(passage.text, phrase) if is_right else None
    return {"headings": list(passage.headings), "text": passage.text, "right": is_right, "span": span}


def made_of(source: str, folder: Path, draw: random.Random) -> Made:
    if source in DICTIONARIES:
        return of_dictionary(source, folder, draw)
    return {"packages": of_packages, "man": of_man, "pages": of_pages, "docstrings": of_docstrings}[source](
        folder, draw
    )


def written(documents: Mapping[str, str], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in documents.items():
        path = folder / "documents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "documents"


def main() -> None:
    every = (*DICTIONARIES, "packages", "man", "pages", "docstrings")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sources", nargs="*", default=every)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as out:
        for source in args.sources:
            draw = random.Random(f"{args.seed} {source}")
            made = made_of(source, folder, draw)
            with indexed(written(made[0], folder / f"made-{source}")) as collection:
                rows = list(lists_of(source, collection, made, draw))
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            out.flush()
            found = sum(any(hit["right"] for hit in row["hits"][:4]) for row in rows)
            lost = sum(not any(hit["right"] for hit in row["hits"]) for row in rows)
            away = sum(not row["elsewhere"] for row in rows)
            print(
                f"{source}: {len(rows)} questions, {found} among four, {lost} not found, {away} said nowhere else",
                flush=True,
            )


if __name__ == "__main__":
    main()
