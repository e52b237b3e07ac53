"""What a text becomes for lexical search, what a question is about, and how people word one."""

from random import Random

import pytest

from settle.retrieve.check.phrases import as_people_ask
from settle.retrieve.index.words import words
from settle.retrieve.search import topic_of


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


TOPICS = {
    "What is the default port?": "default port?",
    "How do I find files?": "find files?",
    "how to use the mean": "use the mean",
    "where are logs described?": "logs",
    "and how long does the old key work?": "the old key work?",
    "What does MTU mean?": "MTU",
    "In networking, what does MTU mean?": "In networking, MTU",
    "How does the basic API work?": "the basic API",
    "I keep reading about RAID, what is it?": "RAID",
    "what do you call a small boat": "a small boat",
    "Could you please tell me about backups?": "backups?",
    "I need help with proxies.": "proxies.",
    "Is there a way to undo a commit?": "undo a commit?",
}


@pytest.mark.parametrize("question", TOPICS)
def test_words_that_only_ask_are_left_out(question):
    assert topic_of(question) == TOPICS[question]


@pytest.mark.parametrize(
    "question", ["", "Explain", "what is it?", "How many files can be open?", "reset the password", "in the house", "?"]
)
def test_a_question_of_other_words_stays_as_it_is(question):
    assert topic_of(question) == question


ASKED = "what is the interval of the rotation"


def test_what_is_asked_stays_and_the_words_around_it_vary():
    asked = [as_people_ask(ASKED, Random(seed)) for seed in range(400)]
    whole = [text for text in asked if "the interval of the rotation" in text]
    assert len(whole) > 0.85 * len(asked) and len(set(asked)) > 30
    bare = {ASKED.replace("what is", short) for short in ("what is", "what's", "whats")}
    assert 0.25 < sum(text in bare for text in asked) / 400 < 0.45
    assert any("what's" in text for text in asked) and any("anyone" in text for text in asked)


def test_slips_are_few_and_small():
    asked = [as_people_ask(ASKED, Random(seed)) for seed in range(400)]
    slipped = [text for text in asked if "the interval of the rotation" not in text]
    assert 0.02 < len(slipped) / 400 < 0.15
    for text in slipped:
        assert {"interv", "rotat"} & {stem[:6] for stem in words(text)} or "interval" in text or "rotation" in text


def test_the_same_seed_words_alike():
    assert as_people_ask(ASKED, Random(3)) == as_people_ask(ASKED, Random(3))
