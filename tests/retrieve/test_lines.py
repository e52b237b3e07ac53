"""Titles and sentences beside a question."""

import numpy as np
import pytest

from settle.retrieve.answer.line_match import LONGEST, NAMES, SENTENCES, lines, names, title
from settle.retrieve.index.catalogue.records import Passage

ASKED = {"remov": "removing", "directori": "directory"}
TELLS = {"remov": 1.0, "directori": 3.0}


class Bags:
    """A text means its number of letters `r`, and everything else. `delete` means nearly what `removing` means."""

    KNOWN = {"removing": (1.0, 0.0), "delete": (0.8, 0.6), "table": (-1.0, 0.0)}

    def words(self, words):
        return np.array([self.KNOWN.get(word.lower(), (0, 0)) for word in words], np.float32).reshape(-1, 2)

    def documents(self, texts):
        found = np.array([[text.lower().count("r"), 1] for text in texts], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def passage(text, *headings):
    return Passage(1, text, headings, 9)


def read(*passages):
    return lines(Bags(), Bags().documents(["remove directory"])[0], ASKED, TELLS, passages)


def test_a_sentence_is_read_together_with_its_title_and_a_title_alone():
    of_title, sentence = read(passage("It is removed at once. It was red.", "A directory of rare birds"))
    assert (of_title.text, sentence.text) == ("A directory of rare birds", "It is removed at once.")
    assert (of_title.had, sentence.had) == (0.75, 1.0)
    assert of_title.about == pytest.approx(1 / 3)
    assert 0 < sentence.like < of_title.like <= 1.0001


def test_only_those_with_most_of_the_words_are_compared():
    many = [passage(f"Number {i} is here. The directory is {i}.", f"Part {i}", f"Room {i}") for i in range(9)]
    found = read(*many, passage("The last.", "Removing a directory"))
    assert len(found) == NAMES + SENTENCES
    assert found[0].text == "Removing a directory"
    assert found[-1].text == "The directory is 0."


def test_nothing_to_compare():
    assert read() == []
    assert lines(Bags(), Bags().documents([""])[0], {}, {}, [passage("")]) == []
    (found,) = lines(Bags(), Bags().documents([""])[0], {}, {}, [passage("", "Saws")])
    assert (found.had, found.about) == (0, 0)


def test_a_word_that_means_nearly_the_same_counts_in_part():
    (delete,) = read(passage("", "Delete directory"))
    assert delete.had == pytest.approx((0.8 + 3) / 4) and delete.about == pytest.approx(0.9)
    (table,) = read(passage("", "Table directory"))  # the opposite is as little as nothing
    assert table.had == pytest.approx(3 / 4) and table.about == pytest.approx(0.5)
    (other,) = read(passage("", "Removes directory"))  # another word for it, of the same stem
    assert other.had == other.about == 1


def test_titles():
    assert title(passage("text", "Tools", "Saws")) == "Saws"
    assert title(passage("lathe\n\n<tool> A machine.")) == "lathe"
    assert title(passage("lathe\nturning machine\n\n<tool> A machine.")) == "lathe"
    assert title(passage("A machine that turns the work.\nIt is old.")) == ""
    assert len(title(passage("text", "long " * 500))) == LONGEST


def test_what_a_passage_says_that_it_is_about():
    assert names(passage("text", "Tools", "Saws")) == ("Saws", "Saws, Tools")
    page = passage("       getuid, geteuid - get the\n       identity of a user", "NAME")
    assert names(page)[-1] == "get the identity of a user"
    entry = passage("Serial Storage Architecture\n\n<storage> (SSA) A standard for an interface to disks and arrays.")
    assert {"Serial Storage Architecture", "SSA"} < set(names(entry))
    assert any(name.startswith("A standard for an interface") for name in names(entry))
    assert "two halves, joined" not in names(passage("It was late. We had come - two halves, joined"))
    assert names(passage("The text says nothing of itself.")) == ()
