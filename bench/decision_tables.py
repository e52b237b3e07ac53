"""Labelled rows for the decision objective, made of what anybody can install offline, before any score was seen.

    apt-get download wordnet-base fortunes manpages manpages-dev python3.13 lintian
    for d in *.deb; do dpkg -x $d raw; done
    pip download --no-deps bfcl-eval vaderSentiment && for w in *.whl; do unzip -q $w -d raw; done
    pip download --no-deps --no-binary :all: vaderSentiment && tar xzf vaderSentiment-3.3.2.tar.gz
    tar xzf vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz -C raw
    pip download --no-deps scipy botocore && for w in *.whl; do unzip -q $w -d raw; done
    dpkg -x vim-runtime*.deb raw && cp faq_questions.json raw   # questions of the FAQs of Perl, Python, Debian
    python bench/decision_tables.py raw tables [TABLE…]

Each table is a folder with train (200 rows) and test (400, or what is left). Development: sections, speech. Judgement,
looked at once: functions, feeling, manuals, fortunes; and, made when these had been looked at and the product was
changed after them: components, reviews, severity.

Which of a few sources a sentence is from, names of products and classes taken out, 300 rows to train on and 300 to
judge (200 and what is left for faq): for development aws and keys; judgement, made before any score against naive Bayes
and looked at once: help, pages, faq, archive, library, numbers.

Sources and licences: package descriptions of Debian (each
package's own), WordNet 3.0 (WordNet licence), the manual pages of Linux (man-pages, mostly GPL and BSD), fortunes
(public domain and others), BFCL (Apache-2.0), the lexicon of vaderSentiment and the review sentences of its authors
(MIT), the news of Python 3.13 (PSF), the tags of lintian (GPL), Vim's help (Vim licence), SciPy's docstrings (BSD),
botocore's (Apache-2.0), Python's (PSF), the FAQs of Perl, Python and Debian (Artistic, PSF, GPL).
"""

import ast
import csv
import gzip
import json
import random
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

TRAIN, TEST = 200, 400
SOURCE_TRAIN, SOURCE_TEST = 300, 300  # of the tables that ask which source a sentence is from
LONGEST = 220  # characters of a text
Row = dict[str, object]

DEVELOPMENT = ("sections", "speech")
JUDGEMENT = ("functions", "feeling", "manuals", "fortunes", "components", "reviews", "severity")
DEVELOPMENT_SOURCES, JUDGEMENT_SOURCES = ("aws", "keys"), ("help", "pages", "faq", "archive", "library", "numbers")
SECTIONS = ("games", "science", "sound", "mail", "fonts", "editors", "net", "graphics")
SPEECH = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
PAGES = {
    "2": "system call", "3": "library function", "4": "device file", "5": "file format", "8": "administration command"
}  # fmt: skip
TOPICS = ("computers", "law", "food", "love", "politics", "medicine", "science", "sports")
COMPONENTS = ("Build", "C API", "Core and Builtins", "Documentation", "IDLE", "Library", "Tests", "Windows")
SEVERITIES = ("error", "warning", "info", "pedantic")
LEVELS = ["very negative", "negative", "neutral", "positive", "very positive"]


def sections(raw: Path, names: Iterable[str] = SECTIONS) -> Iterator[tuple[str, str]]:
    """Yield what a Debian package is for, and its section of the archive."""
    available = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    seen = set()
    for record in available.split("\n\n"):
        section = re.search(r"^Section: (?:[\w-]+/)?(\w+)$", record, re.M)
        summary = re.search(r"^Description(?:-en)?: (.+)$", record, re.M)
        name = re.search(r"^Package: (\S+)$", record, re.M)
        if section and summary and name and section[1] in names and name[1] not in summary[1].lower():
            text = summary[1].strip()
            if text not in seen:
                seen.add(text)
                yield text, section[1]


def speech(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield a definition, and the part of speech of the word that it defines."""
    for kind, name in SPEECH.items():
        for line in (raw / "usr/share/wordnet" / f"data.{kind}").read_text().splitlines():
            gloss = line.partition("| ")[2].split('; "')[0].strip()
            if not line.startswith("  ") and len(gloss) > 20:
                yield gloss, name


def manuals(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield the first words of a manual page's description, and what kind of thing it describes."""
    for section, kind in PAGES.items():
        for path in sorted((raw / "usr/share/man" / f"man{section}").glob("*.gz")):
            text = gzip.decompress(path.read_bytes()).decode(errors="replace")
            found = re.search(r'^\.SH "?NAME"?\n(.+?)^\.S[Hh]', text, re.M | re.S)
            summary = re.split(r"\\?-\s+", found[1].replace("\n", " "), maxsplit=1) if found else []
            if len(summary) == 2 and "\\" not in summary[1] and len(summary[1]) > 12:
                yield summary[1].strip(), kind


def fortunes(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield a saying, and the collection that it is in."""
    for topic in TOPICS:
        for saying in (raw / "usr/share/games/fortunes" / topic).read_text(errors="replace").split("\n%\n"):
            text = " ".join(re.sub(r".\x08", "", saying).split())
            if 30 < len(text) < LONGEST:
                yield text, topic


def functions(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield a request with one function, and whether the function is of any use for it."""
    for name, answer in (("irrelevance", "no"), ("simple_python", "yes")):
        for line in (raw / "bfcl_eval/data" / f"BFCL_v4_{name}.json").read_text().splitlines():
            case = json.loads(line)
            request, function = case["question"][0][-1]["content"], case["function"][0]
            summary = function["description"].partition(". ")[0]
            yield f"{_cut(request)}\nFunction {function['name']}: {_cut(summary)}", answer


def components(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield an entry of Python's news, and the part of Python that it is filed under."""
    news = gzip.decompress((raw / "usr/share/doc/python3.13/NEWS.gz").read_bytes()).decode()
    for section, body in re.findall(r"^(\S[^\n]*)\n-{3,}\n(.+?)(?=^\S[^\n]*\n[-=]{3,}\n|\Z)", news, re.M | re.S):
        for entry in re.findall(r"^- (?:gh-\d+|bpo-\d+): (.+?)(?=^- |\Z)", body, re.M | re.S):
            text = " ".join(re.sub(r":[\w:]+:`[!~]?([^`]+)`", r"\1", entry).replace("``", "").split())
            if section in COMPONENTS and len(text) > 30:
                yield text, section


def severity(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield what a check of a Debian package found, and how severe that is."""
    for path in sorted((raw / "usr/share/lintian/tags").rglob("*.tag")):
        text = path.read_text()
        level, words = (
            re.search(r"^Severity: (\w+)", text, re.M),
            re.search(r"^Explanation: (.+?)^\S", text, re.M | re.S),
        )
        if level and words and level[1] in SEVERITIES:
            yield " ".join(re.sub(r"<[^>]+>|\n \.", "", words[1]).split()), level[1]


def feeling(raw: Path) -> Iterator[Row]:
    """Yield a word, and how ten people rated its feeling from -4 to 4: a distribution over five levels."""
    for line in (raw / "vaderSentiment/vader_lexicon.txt").read_text().splitlines():
        word, _, _, ratings = line.split("\t")[:4]
        if word.isalpha() and len(word) > 3:
            yield _rated(word, "feeling", "How does this word feel?", json.loads(ratings))


def reviews(raw: Path) -> Iterator[Row]:
    """Yield a sentence of a customer's review, and how twenty people rated its feeling."""
    texts, ratings = (
        dict(line.split("\t", 1) for line in path.read_text("utf-8-sig").splitlines())
        for path in (
            raw / f"hutto_ICWSM_2014/amazonReviewSnippets_{what}.txt" for what in ("GroundTruth", "anonDataRatings")
        )
    )
    for key in texts:
        text, rated = texts[key].partition("\t")[2], json.loads(ratings[key].rpartition("\t")[2])
        if len(text) > 20:
            yield _rated(_cut(text), "opinion", "What does the customer think of the product?", rated)


def _rated(text: str, name: str, asked: str, ratings: list[int]) -> Row:
    counts = [0] * len(LEVELS)
    for rating in ratings:
        counts[2 + (rating > 0) - (rating < 0) + (rating > 2) - (rating < -2)] += 1
    question = {"type": "score", "instructions": asked, "criteria": LEVELS}
    return {"state": text, "questions": {name: question}, "targets": {name: {str(i): n for i, n in enumerate(counts)}}}


HELP = {
    "spelling": "spell",
    "windows": "windows",
    "channels": "channel",
    "error lists": "quickfix",
    "events": "autocmd",
}
KEYS = {"mappings": "map", "patterns": "pattern", "terminals": "terminal", "movement": "motion", "printing": "print"}
NAMES = {
    "help": r"vim\w*|spell\w*|window\w*|channel\w*|quickfix|autocom\w*|autocmd\w*|event\w*|error\w*|list\w*",
    "keys": r"vim\w*|map\w*|pattern\w*|regexp?\w*|terminal\w*|motion\w*|mov\w*|print\w*",
    "pages": r"linux|glibc|posix|section",
    "faq": r"(?:c?perl|c?python|debian|dpkg|apt|cpan|pypi)\w*",
    "library": r"python|email\w*|mail\w*|tk\w*|tcl|async\w*|test\w*|xml\w*|http\w*",
    "numbers": r"scipy|numpy|stat\w*|signal\w*|linalg|linear algebra|image\w*|ndimage|sparse|optimi[sz]\w*",
    "aws": r"amazon|aws|s3|ec2|iam|rds|lambdas?|sqs|cloudwatch|"
    r"(?:bucket|instance|queue|function|role|database)\w*",
}
ARCHIVE = ("database", "electronics", "hamradio", "math", "text", "web")
LIBRARY, NUMBERS = (
    ("email", "tkinter", "asyncio", "unittest", "xml"),
    ("stats", "signal", "linalg", "ndimage", "sparse", "optimize"),
)
AWS = {"storage": "s3", "computers": "ec2", "access": "iam", "databases": "rds", "programs": "lambda"}


def sentences(text: str, table: str) -> Iterator[str]:
    """Yield the plain sentences of a text, without the names of a table's products and classes."""
    text = re.sub(rf"\b(?:{NAMES[table]})\b", "…", text, flags=re.I) if table in NAMES else text
    for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text):
        words = " ".join(sentence.split())
        letters = sum(c.isalpha() or c == " " for c in words)
        if 40 <= len(words) <= 180 and letters > 0.85 * len(words) and words[:1].isupper() and words[-1:] in ".!?":
            yield words


def _help(raw: Path, files: dict[str, str], table: str) -> Iterator[tuple[str, str]]:
    for topic, name in files.items():
        text = (raw / f"usr/share/vim/vim91/doc/{name}.txt").read_text(errors="replace")
        text = re.sub(r"[*|][^*|\s]+[*|]|[<>]$|~$", " ", text, flags=re.M)
        yield from ((sentence, topic) for sentence in sentences(text, table))


def pages(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield a sentence of a manual page, and what kind of thing the page describes."""
    for section, kind in PAGES.items():
        if section == "8":
            section, kind = "7", "overview"
        for path in sorted((raw / f"usr/share/man/man{section}").glob("*.gz")):
            text = gzip.decompress(path.read_bytes()).decode(errors="replace")
            body = re.sub(r"^\.(?:SH|TH|SS|TP|EX|in|ft|RS|RE|nf|fi).*$|^\.\\\".*$", "\n", text, flags=re.M)
            body = re.sub(r"^\.\w+ ?|\\f.|\\&|\\", "", body, flags=re.M).replace('"', "")
            own = re.escape(path.name.partition(".")[0])
            yield from ((re.sub(rf"\b{own}\w*", "…", each), kind) for each in list(sentences(body, "pages"))[1:5])


def faq(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield a frequent question, and what it is asked about."""
    for row in json.loads((raw / "faq_questions.json").read_text()):
        if row["src"] != "git":
            text = re.sub(rf"\b(?:{NAMES['faq']})\b", "…", row["q"], flags=re.I)
            if len(text) > 20:
                yield text, row["src"]


def _docstrings(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        if "/test" in str(path.relative_to(folder.parent)).replace(folder.name, "", 1):
            continue
        for node in ast.walk(ast.parse(path.read_text(errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield text


def _packages(root: Path, names: Iterable[str], table: str) -> Iterator[tuple[str, str]]:
    for name in names:
        for text in _docstrings(root / name):
            yield from ((sentence, name) for sentence in list(sentences(text, table))[:3])


def _aws(raw: Path) -> Iterator[tuple[str, str]]:
    for topic, name in AWS.items():
        path = sorted((raw / "botocore/data" / name).glob("*/service-2.json*"))[-1]
        data = path.read_bytes()
        model = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        for shape in (*model["operations"].values(), *model["shapes"].values()):
            text = re.sub(r"<[^>]+>", " ", shape.get("documentation", ""))
            yield from ((sentence, topic) for sentence in list(sentences(text, "aws"))[:2])


TABLES: dict[str, tuple[str, Callable[[Path], Iterable[tuple[str, str]]]]] = {
    "sections": ("section", sections),
    "speech": ("part_of_speech", speech),
    "functions": ("useful", functions),
    "manuals": ("kind", manuals),
    "fortunes": ("topic", fortunes),
    "components": ("component", components),
    "severity": ("severity", severity),
    "aws": ("topic", _aws),
    "keys": ("topic", lambda raw: _help(raw, KEYS, "keys")),
    "help": ("topic", lambda raw: _help(raw, HELP, "help")),
    "pages": ("kind", pages),
    "faq": ("subject", faq),
    "archive": ("section", lambda raw: sections(raw, ARCHIVE)),
    "library": ("topic", lambda raw: _packages(Path(sysconfig.get_path("stdlib")), LIBRARY, "library")),
    "numbers": ("topic", lambda raw: _packages(raw / "scipy", NUMBERS, "numbers")),
}
RATED = {"feeling": feeling, "reviews": reviews}


def main(raw: Path, out: Path, names: list[str]) -> None:
    for name in names or [*TABLES, *RATED]:
        dice = random.Random(name)
        if name in RATED:
            _write(out / name, dice.sample(list(RATED[name](raw)), TRAIN + TEST), dice, "jsonl")
            continue
        label, make = TABLES[name]
        by_label: dict[str, list[Row]] = {}
        for text, answer in dict(make(raw)).items():
            by_label.setdefault(answer, []).append({"text": text if "\n" in text else _cut(text), label: answer})
        of_sources = name in DEVELOPMENT_SOURCES + JUDGEMENT_SOURCES
        train, test = (SOURCE_TRAIN, SOURCE_TEST) if of_sources and name != "faq" else (TRAIN, TEST)
        most = (train + test) // len(by_label)  # equally many of each class, as far as there are
        rows = [row for answers in by_label.values() for row in dice.sample(answers, min(most, len(answers)))]
        _write(out / name, rows, dice, "csv", train, test)


def _write(folder: Path, rows: list[Row], dice: random.Random, kind: str, train: int = TRAIN, test: int = TEST) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dice.shuffle(rows)
    for side, chosen in (("train", rows[:train]), ("test", rows[train : train + test])):
        with (folder / f"{side}.{kind}").open("w", newline="", encoding="utf-8") as file:
            if kind == "csv":
                writer = csv.DictWriter(file, chosen[0])
                writer.writeheader()
                writer.writerows(chosen)
            else:
                file.writelines(json.dumps(row) + "\n" for row in chosen)
    print(folder.name, len(rows))


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[:LONGEST].rpartition(" ")[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
