"""What is quoted for a sentence, an item, a row or a listing: that, and what belongs to it."""

import pytest

from settle.retrieve.answer.extractive import Excerpts, is_listing

PROSE = """The gateway signs every request. This takes a microsecond. Keys are rotated each month by cron. It runs at
night. Nobody has to be there. Nothing else is needed.

Restart it with:

$ systemctl restart gateway --now
$ journalctl -u gateway

Two things may go wrong:

- the port is taken, and the log says so
- the key has expired
  and was not renewed
"""
TABLE = "Levels of service.\n\n| level | answer within |\n|---|---|\n| gold | one hour |\n| silver | one day |"


def quoted(text: str, part: str) -> str:
    """What is quoted for the unit that has `part`."""
    excerpts = Excerpts(text)
    at = next(n for n, unit in enumerate(excerpts.units) if part in unit.text)
    told, units = excerpts.excerpt(at)
    assert at in units and excerpts.units[at].text.split("\n")[0] in told
    return told


def test_a_sentence_comes_with_those_that_follow():
    told = quoted(PROSE, "Keys are rotated")
    assert told == "Keys are rotated each month by cron. It runs at night. Nobody has to be there."


def test_a_sentence_that_points_back_comes_with_the_one_before():
    assert quoted(PROSE, "This takes").startswith("The gateway signs every request. This takes a microsecond.")
    assert quoted(PROSE, "Keys are rotated").startswith("Keys")


def test_a_listing_comes_with_what_introduces_it_and_the_other_way_round():
    whole = "Restart it with:\n$ systemctl restart gateway --now\n$ journalctl -u gateway"
    assert quoted(PROSE, "journalctl") == quoted(PROSE, "Restart it") == whole


def test_an_item_comes_with_what_introduces_the_list_and_without_the_others():
    told = quoted(PROSE, "expired")
    assert told == "Two things may go wrong:\n- the key has expired and was not renewed"
    assert quoted(PROSE, "Two things").count("\n- ") == 2


def test_a_row_comes_below_the_header_of_its_table():
    assert quoted(TABLE, "silver") == "| level | answer within |\n| silver | one day |"
    assert [unit.kind for unit in Excerpts(TABLE).units] == ["sentence", "row", "row"]


def test_long_listings_and_lists_end_somewhere():
    listing = "Run these:\n\n" + "\n".join(f"$ step --number={n}" for n in range(50))
    assert quoted(listing, "--number=3").count("\n") == 12
    items = "All of them:\n" + "\n".join(f"- item {n} of the list" for n in range(50))
    assert quoted(items, "All of them").count("\n") == 8


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["def f(x):", "    return x + g(x)"], True),
        (["$ borg list /path/to/repo"], True),
        (["The file is written, and then it is closed.", "Nobody has to do anything."], False),
        (["Some words that", "wrap over two lines"], False),
    ],
)
def test_listings_and_prose_are_told_apart(lines, expected):
    assert is_listing(lines) is expected


@pytest.mark.parametrize("text", ["", "\n\n", "|", "- ", "1.", "a | b", "```\n```"])
def test_any_text_has_units_that_can_be_quoted(text):
    excerpts = Excerpts(text)
    assert bool(excerpts.units) == bool(text.strip())
    for at in range(len(excerpts.units)):
        told, units = excerpts.excerpt(at)
        assert at in units and isinstance(told, str)


def test_the_unit_that_a_character_of_the_text_is_in():
    text = "Keys are\nrotated every night.  The old one\nworks for a minute.\n\n- Run the job.\n- Restart it.\n"
    read = Excerpts(text)
    found = [read.units[read.unit_at(text.index(word))].text for word in ("rotated", "old", "works", "Run", "Restart")]
    assert found[:3] == ["Keys are rotated every night.", *["The old one works for a minute."] * 2]
    assert "Run the job." in found[3] and "Restart it." in found[4]
    assert read.unit_at(len(text)) is None


def test_the_next_term_of_a_list_is_no_part_of_a_quote():
    told = quoted("Show the changes of an entry. Without one, the latest is shown.\n\ncreate\n\nMake an entry.", "Show")
    assert told == "Show the changes of an entry. Without one, the latest is shown."
