"""The documents that the questions in `judge_questions/` are about, fetched and laid out as a person would have them.

Those in `asked/` are found by their names, too.

    python bench/judge_documents.py FOLDER [NAME ...]    # writes FOLDER/NAME/documents, and verifies the phrases

The head of a file of questions says where its documents come from, a line each:

    # from deb PACKAGE PATTERN [NAME]     files of a Debian package, by a pattern of paths; a single one may get a name
    # from wheel PACKAGE==VERSION NAME    the description of a Python package
    # from sdist PACKAGE==VERSION PATTERN [NAME]    files of its source archive

or there is none where they lie in `documents/NAME` beside it.

Then, as in `asked/`: "@ document", "+ question => words of the answer | other words of it", "- question" for what no
document of the collection answers. Compressed files are unpacked, DocBook becomes Markdown, the rest stays as it is.
Printed are the phrases that are not in their document, and for each file how many content words of a question are in
the neighbourhood of its phrase.
"""

import argparse
import gzip
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path
from typing import NamedTuple

from lxml import html as web
from sources import markdown, plain, unpacked

BENCH = Path(__file__).parent
FOLDERS = (BENCH / "judge_questions", BENCH / "asked")
AROUND = 250  # characters before and behind a phrase that are its neighbourhood
_FORM_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an the is are was were do does did can could should would will i you we they it its my me your what which
        who how why when where whats hows of to in on at by for from with and or not no if there be been have has
        had this that than then so any some get got about into as up out im ive dont cant doesnt wont id am just""",
    )
)


class Asked(NamedTuple):
    """phrases: of the answer, any of them; none where no document of the collection answers."""

    document: str
    question: str
    phrases: tuple[str, ...]


def file_of(name: str) -> Path:
    return next(path for folder in FOLDERS if (path := folder / f"{name}.txt").is_file())


def read(name: str) -> Iterator[Asked]:
    document = ""
    for line in file_of(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("@ "):
            document = line[2:].strip()
        elif line[:2] in ("+ ", "- "):
            question, _, noted = line[2:].partition(" => ")
            yield Asked(document, question, tuple(p.strip() for p in noted.split(" | ") if p.strip()))


def documents_of(name: str, folder: Path) -> Path:
    """Write `FOLDER/NAME/documents` if it is not there, and return where they are."""
    target = folder / name / "documents"
    if target.is_dir():
        return target
    if (kept := file_of(name).parent / "documents" / name).is_dir():
        shutil.copytree(kept, target)
    for line in file_of(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("# from "):
            kind, package, *rest = line.split()[2:]
            for path, named in _files(kind, package, rest, folder):
                _lay_out(path, target / named)
    return target


def _files(kind: str, package: str, rest: list[str], folder: Path) -> Iterator[tuple[Path, str]]:
    if kind == "wheel":
        yield _downloaded(package, folder, "--only-binary=:all:"), rest[0]
        return
    root = (
        unpacked(folder, [package])[0] if kind == "deb" else _opened(_downloaded(package, folder, "--no-binary=:all:"))
    )
    found = sorted(path for path in root.glob(rest[0]) if path.is_file())
    if not found:
        raise FileNotFoundError(f"{package}: {rest[0]}")
    for path in found:
        yield path, rest[1] if len(rest) > 1 else _name(path)


def _name(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return (
        f"{path.parent.name}.md"
        if name == "index.docbook"
        else name.replace(".docbook", ".md")
        if "." in name
        else f"{name}.txt"
    )


def _downloaded(package: str, folder: Path, only: str) -> Path:
    target = folder / "packages" / re.sub(r"\W", "_", package + only)
    if not target.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", only, "--no-build-isolation"]
        subprocess.run([*pip, "-d", str(target), package], check=True)
    return next(target.iterdir())


def _opened(archive: Path) -> Path:
    target = archive.parent.parent.parent / "unpacked" / archive.name
    if not target.is_dir():
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    return next(target.iterdir())


def _lay_out(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            metadata = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
            message = message_from_string(wheel.read(metadata).decode())
        target.write_text(message.get_payload() or message["Description"], encoding="utf-8")
    elif path.suffix == ".docbook":
        target.write_text(markdown(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        content = path.read_bytes()
        target.write_bytes(gzip.decompress(content) if path.suffix == ".gz" else content)


def text_of(path: Path) -> str:
    content = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".csv":
        content += content.replace(",", " ")  # as it is in the file, and cells side by side as they are indexed
    return plain(
        web.fromstring(content.encode()).text_content() if path.suffix in (".html", ".htm", ".page") else content
    )


def verify(name: str, folder: Path) -> None:
    texts = {
        path.relative_to(root).as_posix(): text_of(path)
        for root in [folder / name / "documents"]
        for path in root.rglob("*")
        if path.is_file()
    }
    asked, shared, seen = list(read(name)), [], set()
    for document, question, phrases in asked:
        if question in seen:
            print(f"{name}: asked twice: {question}")
        seen.add(question)
        if document not in texts:
            print(f"{name}: no document {document}")
            continue
        for phrase in phrases:
            if plain(phrase) not in texts[document]:
                print(f"{name}/{document}: not there: {phrase}")
        if phrases and (at := texts[document].find(plain(phrases[0]))) >= 0:
            near = set(re.findall(r"\w+", texts[document][max(0, at - AROUND) : at + AROUND]))
            words = set(re.findall(r"\w+", question.lower().replace("'", ""))) - _FORM_WORDS
            shared.append(len(words & near))
    few = sum(n <= 1 for n in shared) / max(1, len(shared))
    there = sum(bool(a.phrases) for a in asked)
    print(f"{name}: {there} answered, {len(asked) - there} not; at most one content word shared in {few:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="files of questions; all of judge_questions/ if none is named")
    args = parser.parse_args()
    for name in args.names or sorted(path.stem for path in FOLDERS[0].glob("*.txt")):
        documents_of(name, args.folder.resolve())
        verify(name, args.folder.resolve())


if __name__ == "__main__":
    main()
