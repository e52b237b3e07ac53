"""A table of any usual dialect comes back cell by cell, and what does not fit below its header is named."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settle.base.errors import DataError
from settle.documents.blocks import Block, is_number
from settle.documents.readers import Reader
from settle.documents.rows import Record

TICKETS = [
    {"frage": "Hi, my printer gets no IP address.", "antwort": '{"queue": "network", "device": "printer"}', "id": "0"},
    {"frage": 'It says "paper jam".', "antwort": '"', "id": "1"},
    {"frage": "Two\nlines; and a | bar", "antwort": "yes\tno", "id": "2"},
]


def written(rows: list[dict[str, str]], delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def records(data: str | bytes) -> list[Record]:
    encoded = data.encode() if isinstance(data, str) else data
    return list(Reader.make("csv", {}).records(io.BytesIO(encoded)))


def values(data: str | bytes) -> list[object]:
    return [record.get("value", record.get("problem")) for record in records(data)]


def texts(data: str, field: str | None = None) -> list[str]:
    rows = Reader.make("csv", {"field": field}).rows(io.BytesIO(data.encode()))
    return [row.get("text", "! " + row.get("problem", "")) for row in rows]


def blocks(path: Path, data: str) -> tuple[list[Block], list[str]]:
    notes: list[str] = []
    path.write_bytes(data.encode())
    return list(Reader.make("csv", {}).blocks(path, notes.append)), notes


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_the_csv_module_writes_comes_back(delimiter: str, quoting: int, encoding: str) -> None:
    assert values(written(TICKETS, delimiter, quoting).encode(encoding)) == TICKETS


# any text: a file of control characters is refused as binary, and no text has the noncharacters
CELLS = st.text(st.characters(exclude_categories=["Cs", "Cn", "Cc"], include_characters="\t\r\n"), max_size=30)
NAMES = st.lists(st.text("abcdefgh_", min_size=1, max_size=8), min_size=1, max_size=5, unique=True)


@settings(max_examples=300, deadline=None)
@given(st.data(), NAMES, st.sampled_from(",;\t|"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_round_trip(data: st.DataObject, names: list[str], delimiter: str, quoting: int) -> None:
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, CELLS)), min_size=1, max_size=8))
    assert values(written(rows, delimiter, quoting)) == rows


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS).filter(lambda row: any(map(str.strip, row))), min_size=1, max_size=8))
def test_round_trip_of_text_to_train_on(rows: list[tuple[str, str]]) -> None:
    data = written([{"text": text, "note": note} for text, note in rows])
    expected = [text or "! a record without text" for text, _ in rows]
    assert texts(data, "text") == expected


def test_no_byte_of_a_text_column_is_lost() -> None:
    rows = [{"id": str(i), "text": f'Row {i} said "one, two", and left; "{i}"'} for i in range(400)]
    assert texts(written(rows), "text") == [row["text"] for row in rows]


@pytest.mark.parametrize("data", ["name;preis\nA;1,50\nB;2,70\n", "name;preis, netto\nA;1,50\nB;2,70\n"])
def test_european_numbers(data: str) -> None:
    header = data.split("\n")[0].split(";")
    assert values(data) == [dict(zip(header, row, strict=True)) for row in (["A", "1,50"], ["B", "2,70"])]
    assert texts(data) == ["A", "B"] and all(map(is_number, ("1,50", "-1.234,5", "3.5"))) and not is_number("1,5 kg")


def test_numbers_on_both_sides_of_a_semicolon() -> None:
    assert values("1,5;2,5\n3,5;4,5\n") == [{"1,5": "3,5", "2,5": "4,5"}]


def test_one_column_has_no_delimiter() -> None:
    assert values('text\nHello, world; and\tmore\n"a ""b"", c"\n') == [
        {"text": "Hello, world; and\tmore"},
        {"text": 'a "b", c'},
    ]


def test_line_ends_of_every_system_and_inside_of_cells() -> None:
    for end in ("\n", "\r\n", "\r"):
        data = f'a,b{end}1,"x{end}y"{end}2,z{end}'
        assert values(data) == [{"a": "1", "b": f"x{end}y"}, {"a": "2", "b": "z"}]


def test_the_line_that_excel_writes_above_the_header() -> None:
    found = records("sep=|\na|b\n1|x,y\n")
    assert [record["value"] for record in found] == [{"a": "1", "b": "x,y"}] and found[0]["row"] == 3


def test_latin_1() -> None:
    assert values("frage,antwort\nGrüße,schön\n".encode("latin-1")) == [{"frage": "Grüße", "antwort": "schön"}]
    assert values("a,b\nx,café".encode("latin-1")) == [{"a": "x", "b": "café"}]


def test_rows_that_do_not_fit_are_named_with_their_line() -> None:
    found = records('id,text,label\n1,"two\nlines",ok\n2,he said, "x",ok\n3,short\n4,b,c,,\n')
    assert [(record["row"], record.get("value", record.get("problem"))) for record in found] == [
        (2, {"id": "1", "text": "two\nlines", "label": "ok"}),
        (4, "a row of more cells than the 3 columns of the header"),
        (5, {"id": "3", "text": "short"}),
        (6, {"id": "4", "text": "b", "label": "c"}),
    ]


@pytest.mark.parametrize("broken", ['2,"never closed\n3,c\n', '2,"closed" early\n3,c\n'])
def test_a_broken_quote_ends_the_reading_and_says_where(broken: str, tmp_path: Path) -> None:
    *good, problem = records("id,text\n1,a\n" + broken)
    assert [record["value"] for record in good] == [{"id": "1", "text": "a"}]
    assert problem["row"] == 3 and "nothing below it was read" in problem["problem"]
    read, notes = blocks(tmp_path / "a.csv", "id,text\n1,a\n" + broken)
    assert [block.text for block in read] == ["1 | a"] and notes[0].startswith("line 3: ")


def test_a_short_row_is_no_text_for_a_field_it_lacks() -> None:
    assert texts("id,text\n1,a b\n2\n", "text") == ["a b", "! a row that ends before the column 'text'"]
    with pytest.raises(DataError, match="no field 'words'.*'id', 'text'"):
        texts("id,text\n1,a\n", "words")


def test_columns_without_a_name_or_with_the_same_one() -> None:
    assert values(",a,a\n1,2,3\n") == [{"column 1": "1", "a": "2", "a (3)": "3"}]


def test_an_index_reads_the_same_cells(tmp_path: Path) -> None:
    data = 'host,purpose\ndb1,"primary ""gold"" database"\ndb2,"a, b"\n'
    read, notes = blocks(tmp_path / "hosts.csv", data)
    assert [block.text for block in read] == ['db1 | primary "gold" database', "db2 | a, b"] and not notes
    assert [block.place.line for block in read] == [2, 3] and read[0].header == "host | purpose"
