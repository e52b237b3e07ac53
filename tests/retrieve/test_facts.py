"""Facts of a passage, and the questions made from them: what is turned round, and what is left alone."""

from random import Random

import pytest

from settle.retrieve.check.facts import Fact, FactReader, as_asked, is_whole, small_words
from settle.retrieve.check.row_check import span_of

TEXT = """The server is run by one process. A worker is a process that answers requests.
To restart the server, run the restart command as the owner of the machine.
If the cache is full, the oldest entries are removed by the cleaner.
If you lose your key, you must ask the owner for another one.
Guests must not open the back door after ten in the evening.
Raw logs are large because nothing is left out of them by the writer.
The library of maps was opened to all readers in May 2019.
You can export a report by calling the export function with its number.
"""
READER = FactReader(small_words([TEXT, "the guests of guests, raw logs beside raw logs, the workers"]))


def _facts(text: str, headings: tuple[str, ...] = (), begins: bool = False) -> dict[str, Fact]:
    return {fact.kind: fact for fact in READER.facts(text, headings, begins)}


@pytest.mark.parametrize(
    ("kind", "question", "answer"),
    [
        ("definition", "What is a worker?", "A worker is a process that answers requests."),
        ("how", "How do I restart the server?", "To restart the server, run the restart command"),
        ("condition", "What happens if the cache is full?", "If the cache is full, the oldest"),
        ("condition", "What should I do if I lose my key?", "If you lose your key, you must ask"),
        ("rule", "Must guests open the back door after ten in the evening?", "No. Guests must not open"),
        ("why", "Why are raw logs large?", "Raw logs are large because"),
        ("date", "When was the library of maps opened to all readers?", "The library of maps was opened"),
        ("how", "How can I export a report?", "You can export a report by calling"),
    ],
)  # fmt: skip
def test_a_sentence_is_turned_round(kind: str, question: str, answer: str):
    found = [fact for fact in READER.facts(TEXT, (), False) if question in fact.questions]
    assert [fact.kind for fact in found] == [kind]
    assert found[0].answer.startswith(answer)


@pytest.mark.parametrize(
    "sentence",
    [
        "This server is a process that answers requests from the other machines.",
        "It is a process that answers requests from the other machines.",
        "The worker is a process that was described in the chapter on servers.",
        "However, a worker is a process that answers requests.",
        "A worker is a process that answers requests (from the other machines.",
        "A worker is { a: process } that answers requests from others.",
        "A worker is a process.",
        "A WORKER IS A PROCESS THAT ANSWERS REQUESTS FROM ALL.",
    ],
)
def test_what_cannot_be_read_alone_is_no_fact(sentence: str):
    assert not is_whole(sentence)
    assert not READER.facts(sentence, (), False)


def test_an_option_is_asked_for_with_its_command_and_default():
    text = "Set how many workers answer at once.\n\nDefault: `4`\n"
    facts = _facts(text, ("farm-serve", "--workers"), begins=True)
    assert facts["term"].questions == ("What does --workers in farm-serve do?",)
    assert facts["default"].answer == "The default of --workers is 4."
    assert not _facts(text, ("farm-serve", "--workers"), begins=False)  # the section began earlier


def test_a_heading_that_asks_is_answered_by_its_first_paragraph_only():
    stated = "A worker answers about nine requests at once on a small machine."
    assert _facts(f"{stated}\n\nMore follows.", ("How many requests at once?",), begins=True)["asked"].answer == stated
    assert not _facts(f"See the table.\n\n{stated}", ("How many requests at once?",), begins=True)


def test_a_row_of_a_table_is_asked_only_where_its_name_is_its_own():
    table = "| tool | price |\n|---|---|\n| hammer | 9 euros |\n| saw | 12 euros |\n| saw | 14 euros |"
    facts = [fact for fact in READER.facts(table, (), False) if fact.kind == "table"]
    assert not READER.facts(table.replace("price", "what you pay"), (), False)  # no noun: no question
    assert [(fact.questions, fact.answer) for fact in facts] == [(("What is the price of hammer?",), "9 euros")]


def test_people_type_questions_in_several_ways():
    asked = {as_asked("What is the restart command?", Random(seed)) for seed in range(200)}
    assert {"What is the restart command?", "what is the restart command"} < asked
    assert any("command" not in question for question in asked)  # mistyped


def test_a_span_is_found_across_marks_and_lines():
    text = "Before.\n**A worker** is a\n  process; it waits. After."
    start, end = span_of("A worker is a process", text) or (0, 0)
    assert text[start:end] == "A worker** is a\n  process"
    assert span_of("A worker was a process", text) is None
    assert span_of("", text) is None
