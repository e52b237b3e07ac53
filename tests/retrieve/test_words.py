"""What a text becomes for lexical search."""

import pytest

from settle.retrieve.index.words import words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rotating the keys", "rotate a key"),
        ("the colours of behaviour", "color, behaviors"),
        ("organising, optimised, analysed", "organizing optimized analyzes"),
        ("centres and theatres", "center theater"),
        ("a catalogue", "catalogs"),
        ("modelling travellers", "modeling travelers"),
        ("Café Noël naïve", "cafe noel naive"),
        ("ｆｕｌｌ ﬁle", "full file"),
        ("revision", "to revise"),
    ],
)
def test_what_means_the_same_becomes_the_same(one, other):
    assert words(one) == words(other)


@pytest.mark.parametrize(("one", "other"), [("C", "C++"), ("C#", "C++"), ("hour", "or"), ("advice", "adviser")])
def test_what_means_something_else_stays_another(one, other):
    assert words(one) != words(other)


def test_names_are_found_whole_and_by_their_parts():
    assert words("readFile_v2") == ["readfile_v2", "read", "file", "v", "2"]
    assert words("HTTPServer") == ["httpserver", "http", "server"]
    assert set(words("read file")) < set(words("readFile"))
    assert words("os.path.join") == ["os", "path", "join"]


def test_words_that_tell_nothing_are_left_out():
    assert words("What is the key, and how do I rotate it?") == words("key rotate")
    assert words("") == words("… !") == []


def test_scripts_without_spaces_give_pairs():
    assert words("数据库") == ["数据", "据库"]
    assert words("鍵") == ["鍵"]


def test_an_endless_word_is_cut():
    assert words("x" * 10_000) == ["x" * 64]
