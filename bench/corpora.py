"""Corpora of many kinds and languages, from Debian packages: what the runs of bench/recorded/ were trained on.

    python bench/corpora.py PACKAGES OUT [--data DIR]

PACKAGES: a folder in which each package lies extracted under its name (`apt-get download NAME`, then
`dpkg -x NAME_*.deb PACKAGES/NAME`). Packages that are missing are left out. OUT: gets one text file a corpus. DIR: a
folder with tinyshakespeare.txt, gsm8k_train.jsonl, alpaca_en_demo.json and glaive_toolcall_en_demo.json.

Sizes differ on purpose, from 0.15 to 2 MB: small texts are repeated many times in a run.
"""

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

MARK = re.compile(r"<(script|style|head)\b.*?</\1>|<[^>]+>", re.S | re.I)


@dataclass(frozen=True)
class Source:
    """package: its name; files: a glob below it; size: bytes that are kept at most; kind: what it is, for the table."""

    package: str
    files: str
    size: int
    kind: str


SOURCES = {
    "devil": Source("dict-devil", "usr/share/dictd/*.dict.dz", 400_000, "dictionary, English"),
    "jargon": Source("dict-jargon", "usr/share/dictd/*.dict.dz", 1_000_000, "dictionary, English"),
    "cedict": Source("dict-cc-cedict", "usr/share/dictd/*.dict.dz", 1_000_000, "dictionary, Chinese and English"),
    "hungarian": Source("dict-freedict-hun-eng", "usr/share/dictd/*.dict.dz", 1_200_000, "dictionary, Hungarian"),
    "arabic": Source("dict-freedict-ara-eng", "usr/share/dictd/*.dict.dz", 1_200_000, "dictionary, Arabic"),
    "pronounced": Source("festlex-cmu", "usr/share/festival/dicts/cmu/*.out", 800_000, "table of sounds"),
    "handbook": Source("debian-handbook", "usr/share/**/html/en-US/*.html", 900_000, "manual, English"),
    "handbook_ar": Source("debian-handbook", "usr/share/**/html/ar-MA/*.html", 500_000, "manual, Arabic"),
    "japanese": Source("debian-reference-ja", "usr/share/**/*.html", 900_000, "manual, Japanese"),
    "chinese": Source("debian-reference-zh-cn", "usr/share/**/*.html", 600_000, "manual, Chinese"),
    "german": Source("debian-reference-de", "usr/share/**/*.html", 1_000_000, "manual, German"),
    "korean": Source("debian-faq-ko", "usr/share/**/*.html", 300_000, "questions, Korean"),
    "russian_faq": Source("debian-faq-ru", "usr/share/**/*.html", 500_000, "questions, Russian"),
    "french": Source("developers-reference-fr", "usr/share/**/*.html", 600_000, "manual, French"),
    "finnish": Source("aptitude-doc-fi", "usr/share/**/*.html", 500_000, "manual, Finnish"),
    "czech": Source("aptitude-doc-cs", "usr/share/**/*.html", 500_000, "manual, Czech"),
    "spanish": Source("aptitude-doc-es", "usr/share/**/*.html", 700_000, "manual, Spanish"),
    "sayings_pl": Source("fortunes-pl", "usr/share/games/fortunes/**/*", 1_500_000, "sayings, Polish"),
    "sayings_ru": Source("fortunes-ru", "usr/share/games/fortunes/**/*", 2_000_000, "sayings, Russian"),
    "sayings_it": Source("fortunes-it", "usr/share/games/fortunes/**/*", 1_000_000, "sayings, Italian"),
    "sayings_de": Source("fortunes-de", "usr/share/games/fortunes/**/*", 1_500_000, "sayings, German"),
    "sayings_zh": Source("fortunes-zh", "usr/share/games/fortunes/**/*", 800_000, "verse, Chinese"),
    "sayings_en": Source("fortunes", "usr/share/games/fortunes/**/*", 1_500_000, "sayings, English"),
    "c_headers": Source("linux-libc-dev", "usr/include/linux/**/*.h", 1_500_000, "code, C"),
    "perl": Source("perl-modules-5.40", "usr/share/perl/**/*.pm", 2_000_000, "code, Perl"),
    "vim_script": Source("vim-runtime", "usr/share/vim/**/*.vim", 1_500_000, "code, Vim"),
    "vim_help": Source("vim-runtime", "usr/share/vim/**/doc/*.txt", 1_500_000, "manual, English"),
    "python": Source("libpython3.13-stdlib", "usr/lib/**/*.py", 2_000_000, "code, Python"),
    "tcl": Source("tcllib", "usr/share/tcltk/**/*.tcl", 1_200_000, "code, Tcl"),
    "go": Source("golang-1.24-src", "usr/share/go*/src/net/**/*.go", 1_500_000, "code, Go"),
    "lisp": Source("emacs-el", "usr/share/emacs/**/*.el.gz", 1_500_000, "code, Lisp"),
    "codes": Source("iso-codes", "usr/share/iso-codes/json/iso_639-3.json", 800_000, "table, JSON"),
    "locales": Source("locales", "usr/share/i18n/locales/*", 1_200_000, "tables of a standard"),
    "unicode": Source("unicode-data", "usr/share/unicode/*.txt", 800_000, "tables of a standard"),
    "sqlite": Source("sqlite3-doc", "usr/share/**/*.html", 1_200_000, "manual, English"),
    "manuals_de": Source("manpages-de", "usr/share/man/**/*.gz", 1_500_000, "manual pages, German"),
    "git_doc": Source("git-doc", "usr/share/doc/git*/**/*.txt", 1_500_000, "manual, English"),
    "dutch": Source("debian-faq-nl", "usr/share/**/*.html", 500_000, "questions, Dutch"),
    "sayings_cs": Source("fortunes-cs", "usr/share/games/fortunes/**/*", 1_500_000, "sayings, Czech"),
    "lintian": Source("lintian", "usr/share/**/*.pm", 1_500_000, "code, Perl"),
    "rust": Source("rust-doc", "usr/share/doc/rust*/html/book/*.html", 800_000, "manual, English"),
    # small, for runs of many passes
    "vera": Source("dict-vera", "usr/share/dictd/*.dict.dz", 150_000, "dictionary, English"),
    "foldoc": Source("dict-foldoc", "usr/share/dictd/*.dict.dz", 250_000, "dictionary, English"),
    "swedish": Source("dict-freedict-swe-eng", "usr/share/dictd/*.dict.dz", 180_000, "dictionary, Swedish"),
    "latin": Source("dict-freedict-lat-eng", "usr/share/dictd/*.dict.dz", 120_000, "dictionary, Latin"),
    "manuals_ja": Source("manpages-ja", "usr/share/man/**/*.gz", 220_000, "manual pages, Japanese"),
    "manuals_pl": Source("manpages-pl", "usr/share/man/**/*.gz", 200_000, "manual pages, Polish"),
    "manuals_sv": Source("manpages-sv", "usr/share/man/**/*.gz", 130_000, "manual pages, Swedish"),
    "sayings_br": Source("fortunes-br", "usr/share/games/fortunes/**/*", 160_000, "sayings, Portuguese"),
    "sayings_bg": Source("fortunes-bg", "usr/share/games/fortunes/**/*", 200_000, "sayings, Bulgarian"),
    "sayings_eo": Source("fortunes-eo", "usr/share/games/fortunes/**/*", 110_000, "sayings, Esperanto"),
    "italian": Source("debian-faq-it", "usr/share/**/*.html", 170_000, "questions, Italian"),
    "portuguese": Source("debian-reference-pt", "usr/share/**/*.html", 260_000, "manual, Portuguese"),
    "apt_ja": Source("aptitude-doc-ja", "usr/share/**/*.html", 180_000, "manual, Japanese"),
    "russian_dev": Source("developers-reference-ru", "usr/share/**/*.html", 240_000, "manual, Russian"),
    "octave": Source("octave-common", "usr/share/octave/**/*.m", 150_000, "code, Octave"),
    "ruby": Source("libruby3.3", "usr/lib/ruby/**/*.rb", 230_000, "code, Ruby"),
    "prolog": Source("swi-prolog-core", "usr/lib/**/*.pl", 120_000, "code, Prolog"),
    # large, for runs of a million parameters and more
    "boost": Source("libboost1.83-dev", "usr/include/**/*.hpp", 9_000_000, "code, C++"),
    "manuals_fr": Source("manpages-fr", "usr/share/man/**/*.gz", 9_000_000, "manual pages, French"),
}  # fmt: skip

# Every other stretch of these is a text of its own, NAME_half: what would more of it bring?
HALVED, STRETCH = ("tcl", "sayings_it", "german", "rust", "jargon"), 10_000


def text_of(path: Path) -> str:
    """Return a file's text, decompressed and without markup; empty if it is not UTF-8."""
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return ""
    if "\0" in text:
        return ""
    if path.suffix == ".html":
        text = re.sub(r"[ \t]*\n\s*\n\s*", "\n\n", unescape(MARK.sub("", text)))
    return text.strip()


def collect(packages: Path, source: Source) -> Iterator[str]:
    """Pieces of the source's files in random order until its size is reached: of large files a stretch of 100 kB."""
    paths = sorted(p for p in (packages / source.package).glob(source.files) if p.is_file() and not p.is_symlink())
    random.Random(0).shuffle(paths)
    room = source.size
    for path in paths:
        text = text_of(path)
        if len(paths) > 3:
            text = text[:100_000]
        piece = text.encode()[:room].decode(errors="ignore")
        if piece:
            room -= len(piece.encode())
            yield piece
        if room <= 1000:
            return


def of_rows(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the data of shared rows, as plain text."""
    yield "shakespeare", (folder / "tinyshakespeare.txt").read_text()
    rows = [json.loads(line) for line in (folder / "gsm8k_train.jsonl").read_text().splitlines()]
    yield "maths", "\n\n".join(f"{r['question']}\n{r['answer']}" for r in rows)[:1_500_000]
    rows = json.loads((folder / "alpaca_en_demo.json").read_text())
    yield "instructions", "\n\n".join(f"{r['instruction']}\n{r['input']}\n{r['output']}" for r in rows)
    rows = json.loads((folder / "glaive_toolcall_en_demo.json").read_text())
    yield "tool_calls", "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    texts = {name: "\n\n".join(collect(asked.packages, source)) for name, source in SOURCES.items()}
    texts |= dict(of_rows(asked.data)) if asked.data else {}
    for name, text in sorted(texts.items()):
        if len(text) > 50_000:
            (asked.out / f"{name}.txt").write_text(text)
        if name in HALVED:
            stretches = (text[at : at + STRETCH] for at in range(0, len(text), 2 * STRETCH))
            (asked.out / f"{name}_half.txt").write_text("".join(stretches))
        print(f"{name}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
