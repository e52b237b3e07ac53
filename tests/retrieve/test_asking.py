"""What a question is about, without the words that only ask."""

import pytest

from settle.retrieve.search import topic_of

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
