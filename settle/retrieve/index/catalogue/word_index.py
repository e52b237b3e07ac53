"""Lexical search in a catalogue: the words of passages and of titles, ranked by BM25.

The words are stored without the texts that they came from, so removing a text takes the same text that was added. An
index made by other rules for words is rebuilt when the catalogue is opened.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from settle.retrieve.index import words as word_rules
from settle.retrieve.index.catalogue.database import Database, Row

HEADINGS_WEIGHT = 1.0  # of a word in the headings, relative to one in the passage
_TABLES = (
    "DROP TABLE IF EXISTS vocabulary",
    "DROP TABLE IF EXISTS words",
    "DROP TABLE IF EXISTS titles",
    "CREATE VIRTUAL TABLE words USING fts5 (text, headings, content = '', tokenize = \"unicode61 tokenchars '_'\")",
    "CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, 'row')",
    "CREATE VIRTUAL TABLE titles USING fts5 (title, content = '', tokenize = \"unicode61 tokenchars '_'\")",
)

PassageText = tuple[int, str, tuple[str, ...]]  # id, text, headings
DocumentTitle = tuple[int, str, str]  # id, path, title


class WordIndex:
    """Stems (see `words.py`) of passages and titles in the catalogue's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def frequencies(self, stems: Iterable[str]) -> dict[str, int]:
        """The number of passages that each stem occurs in, headings included; stems that occur nowhere are left out."""
        wanted = sorted(set(stems))
        return dict(self._database.rows_in("SELECT term, doc FROM vocabulary WHERE term IN ({})", wanted))

    def starting_with(self, prefix: str) -> list[str]:
        """The stems that begin with `prefix`."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        rows = self._database.rows("SELECT term FROM vocabulary WHERE term >= ? AND term < ?", prefix, end)
        return [term for (term,) in rows]

    def search(self, stems: Sequence[str], k: int) -> list[tuple[int, float]]:
        """(passage, BM25) of the k passages that match the stems best, the best first."""
        return self._ranked("words", f"bm25(words, 1.0, {HEADINGS_WEIGHT})", stems, k)

    def search_titles(self, stems: Sequence[str], k: int) -> list[tuple[int, float]]:
        """(document, BM25) of the k documents whose titles and file names match the stems best, the best first."""
        return self._ranked("titles", "bm25(titles)", stems, k)

    def _ranked(self, table: str, score: str, stems: Sequence[str], k: int) -> list[tuple[int, float]]:
        if not stems:
            return []
        match = " OR ".join(f'"{stem}"' for stem in dict.fromkeys(stems))
        statement = (
            f"SELECT rowid, -{score} AS score FROM {table} WHERE {table} MATCH ? ORDER BY score DESC, rowid LIMIT ?"
        )
        return [(row_id, score) for row_id, score in self._database.rows(statement, match, k)]

    def under_headings(self, stems: Sequence[str], limit: int) -> list[int]:
        """Passages that have every one of the stems in their headings."""
        if not stems:
            return []
        match = "headings : (" + " AND ".join(f'"{stem}"' for stem in dict.fromkeys(stems)) + ")"
        rows = self._database.rows("SELECT rowid FROM words WHERE words MATCH ? LIMIT ?", match, limit)
        return [passage for (passage,) in rows]

    # Changes, inside a transaction of the catalogue

    def clear(self) -> None:
        """Makes the tables anew, empty."""
        self._database.run(*_TABLES)

    def add_passages(self, passages: Iterable[PassageText]) -> None:
        self._database.execute_many(
            "INSERT INTO words (rowid, text, headings) VALUES (?, ?, ?)", map(_passage_row, passages)
        )

    def remove_passages(self, passages: Iterable[PassageText]) -> None:
        self._database.execute_many(
            "INSERT INTO words (words, rowid, text, headings) VALUES ('delete', ?, ?, ?)", map(_passage_row, passages)
        )

    def add_titles(self, documents: Iterable[DocumentTitle]) -> None:
        self._database.execute_many("INSERT INTO titles (rowid, title) VALUES (?, ?)", map(_title_row, documents))

    def remove_titles(self, documents: Iterable[DocumentTitle]) -> None:
        self._database.execute_many(
            "INSERT INTO titles (titles, rowid, title) VALUES ('delete', ?, ?)", map(_title_row, documents)
        )

    def optimize(self) -> None:
        """Merges the index's segments."""
        self._database.run(*(f"INSERT INTO {table} ({table}) VALUES ('optimize')" for table in ("words", "titles")))


def _passage_row(passage: PassageText) -> Row:
    passage_id, text, headings = passage
    return passage_id, " ".join(word_rules.words(text)), " ".join(word_rules.words(" ".join(headings)))


def _title_row(document: DocumentTitle) -> Row:
    """Each word once: a title often repeats the file's name."""
    document_id, path, title = document
    name = Path(path)
    stems = word_rules.words(f"{name.stem} {title if title != name.name else ''}")
    return document_id, " ".join(dict.fromkeys(stems))
