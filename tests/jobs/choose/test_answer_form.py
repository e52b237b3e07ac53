"""The form of answers, as a grammar."""

import pytest

from settle.jobs.choose.examples import form_of, only


@pytest.mark.parametrize(
    ("answers", "title"),
    [
        (["14", "-3.5", " 7 "], "a number"),
        (["2026-11-28", "1999-01-02"], "a date"),
        (['{"name": "mill", "kg": 14}', '{"name": null, "kg": 2.5}'], "JSON with name, kg"),
        (["14", "fourteen"], None),
        (["14", "2026-11-28"], None),
        (['{"name": "mill"}', '{"kg": 3}'], None),
        (['{"parts": [1, 2]}'], None),
        (["[1, 2]", "{"], None),
        ([], None),
    ],
)
def test_a_form_is_one_that_all_answers_have(answers, title):
    form = form_of(answers, [])
    assert (form and form.title) == title


def test_a_closed_set_allows_the_known_answers_only():
    assert only(['say "no"', "a\\b"]) == 'root ::= "say \\"no\\"" | "a\\\\b"'
    assert form_of(["14", "15"], ["14", "15"]).grammar == 'root ::= "14" | "15"'
